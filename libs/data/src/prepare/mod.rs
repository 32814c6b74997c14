//! Text in, token files out.
//!
//! Two passes over the corpus. The first counts documents and bytes and keeps a uniform sample of the documents that
//! will be trained on, for the tokenizer; the second encodes every document, closes it with EOS and appends it to the
//! training or the held-out segment. Which documents are held out is a hash of their number (Purpose::HeldOut), so
//! adding documents at the end moves none.
//!
//! Output: `train.bin`, `train.idx`, `held_out.bin`, `held_out.idx` (when a document is held out), `tokenizer.json`, and
//! last, as the mark that all is whole, `meta.json`. Each is written under another name and renamed.

mod corpus;
mod encode;
mod files;
mod meta;
mod split;
mod tokenizer;

use std::fs;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

pub use files::DEFAULT_EXTENSIONS;
pub use meta::{PartReport, PrepareReport, SourceCount};
pub use tokenizer::TokenizerChoice;

use crate::error::DataError;
use crate::segment::writer::{PartialFile, refuse_existing};
use crate::segment::{Dtype, Existing, SegmentWriter};
use corpus::{Corpus, Document};
use encode::Encoder;
use meta::PartCount;
use split::{Sample, Split};
use tokenizer::TextTokenizer;

/// Bytes of text that are read before they are encoded together.
const BATCH_BYTES: usize = 16 << 20;

/// What to prepare, from what, into what. [`PrepareOptions::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Files and folders. A folder is walked in name order, hidden files and folders aside.
    pub inputs: Vec<PathBuf>,
    /// Folder of the output; made where needed.
    pub output: PathBuf,
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerChoice,
    /// Field of a JSON line, or column of a parquet file, that holds the text.
    pub text_key: String,
    /// Extensions of text files taken from folders, without the dot. Files named as inputs are taken whatever theirs.
    pub extensions: Vec<String>,
    /// Stop reading after so many bytes of text.
    pub max_bytes: Option<u64>,
    /// Share of documents that are held out, 0 to below 1.
    pub held_out_share: f64,
    /// Decides which documents are held out and which the tokenizer is trained on.
    pub seed: u64,
    /// Threads that encode.
    pub threads: NonZeroUsize,
    /// What to do about output that is there.
    pub existing: Existing,
}

impl PrepareOptions {
    /// Defaults: train a tokenizer of 8192 tokens on up to 32 MiB of text; key "text"; 1 % held out; seed 0; all cores;
    /// refuse to overwrite.
    pub fn new(inputs: Vec<PathBuf>, output: PathBuf) -> PrepareOptions {
        PrepareOptions {
            inputs,
            output,
            tokenizer: TokenizerChoice::default(),
            text_key: "text".into(),
            extensions: DEFAULT_EXTENSIONS.iter().map(|&e| e.to_owned()).collect(),
            max_bytes: None,
            held_out_share: 0.01,
            seed: 0,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            existing: Existing::Refuse,
        }
    }

    fn check(&self) -> Result<(), DataError> {
        if !(0.0..1.0).contains(&self.held_out_share) {
            return Err(DataError::IllegalOption {
                option: "the held-out share",
                value: self.held_out_share.to_string(),
                wanted: "0 to below 1".into(),
            });
        }
        if self.inputs.is_empty() {
            return Err(DataError::IllegalOption {
                option: "the list of inputs",
                value: "empty".into(),
                wanted: "files or folders of text".into(),
            });
        }
        if self.output.to_str().is_none() {
            return Err(DataError::IllegalOption {
                option: "the output folder",
                value: self.output.display().to_string(),
                wanted: "valid UTF-8, since run files must name it".into(),
            });
        }
        self.tokenizer.check()?;
        for name in OUTPUTS {
            refuse_existing(&self.output.join(name), self.existing)?;
        }
        Ok(())
    }
}

/// Everything a preparation may leave in its folder.
const OUTPUTS: [&str; 6] =
    ["train.bin", "train.idx", "held_out.bin", "held_out.idx", "tokenizer.json", "meta.json"];

/// Prepares a corpus; returns what `meta.json` says.
pub fn prepare(options: &PrepareOptions) -> Result<PrepareReport, DataError> {
    options.check()?;
    fs::create_dir_all(&options.output).map_err(DataError::io("create", &options.output))?;
    let corpus = Corpus::find(options)?;

    let (mut split, sample) = survey(options, &corpus)?;
    let tokenizer = TextTokenizer::obtain(&options.tokenizer, sample)?;
    tracing::info!(
        documents = split.documents(),
        vocab_size = tokenizer.vocab().size,
        "surveyed the corpus and have a tokenizer"
    );

    let dtype = Dtype::for_vocab(tokenizer.vocab().size);
    let begin = |name: &str| {
        let path = options.output.join(name);
        SegmentWriter::create(&path.to_string_lossy(), dtype, options.existing)
    };
    let mut parts = Parts {
        train: (begin("train")?, PartCount::new(tokenizer.vocab().size)),
        held_out: split
            .holds_out()
            .then(|| begin("held_out"))
            .transpose()?
            .map(|writer| (writer, PartCount::new(tokenizer.vocab().size))),
    };
    let encoder = Encoder::new(&tokenizer, options.threads);
    let mut batch = Vec::new();
    let mut bytes = 0;
    let sources = corpus.read(|document| {
        bytes += document.text.len();
        batch.push(document);
        if bytes >= BATCH_BYTES {
            parts.append(&encoder, &mut split, std::mem::take(&mut batch))?;
            bytes = 0;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    parts.append(&encoder, &mut split, batch)?;

    let report = parts.report(options, &tokenizer, sources)?;
    parts.finish(options, &tokenizer, &report)?;
    Ok(report)
}

/// The first pass.
fn survey(options: &PrepareOptions, corpus: &Corpus) -> Result<(Split, Vec<String>), DataError> {
    let mut split = Split::new(options.seed, options.held_out_share);
    let mut sample = Sample::new(options.seed, options.tokenizer.sample_bytes());
    let sources = corpus.read(|document: Document| {
        if !split.survey() {
            sample.offer(document.text);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if split.documents() == 0 {
        let inputs: Vec<String> = options.inputs.iter().map(|path| path.display().to_string()).collect();
        return Err(DataError::EmptyCorpus {
            inputs: inputs.join(", "),
            files: sources.values().map(|count| count.files).sum(),
            skipped: sources.values().map(|count| count.skipped_files).sum(),
        });
    }
    split.settle();
    Ok((split, sample.into_texts()))
}

/// The two segments being written, each with its counts.
struct Parts {
    train: (SegmentWriter, PartCount),
    held_out: Option<(SegmentWriter, PartCount)>,
}

impl Parts {
    fn append(
        &mut self,
        encoder: &Encoder<'_>,
        split: &mut Split,
        documents: Vec<Document>,
    ) -> Result<(), DataError> {
        for tokens in encoder.encode(&documents)? {
            let held_out = split.next_is_held_out();
            let (writer, count) = match &mut self.held_out {
                Some(held_out_part) if held_out => held_out_part,
                _ => &mut self.train,
            };
            writer.push(&tokens)?;
            count.add(&tokens);
        }
        tracing::info!(tokens = self.train.0.tokens(), "encoded");
        Ok(())
    }

    fn report(
        &self,
        options: &PrepareOptions,
        tokenizer: &TextTokenizer,
        sources: std::collections::BTreeMap<String, SourceCount>,
    ) -> Result<PrepareReport, DataError> {
        let path = |name: &str| options.output.join(name).to_string_lossy().into_owned();
        let train = &self.train.1;
        Ok(PrepareReport {
            version: meta::VERSION,
            train: train.report(path("train"), train),
            held_out: self.held_out.as_ref().map(|(_, count)| count.report(path("held_out"), train)),
            tokenizer: path("tokenizer.json"),
            vocab_size: tokenizer.vocab().size,
            bos_token_id: tokenizer.vocab().bos,
            eos_token_id: tokenizer.vocab().eos,
            dtype: Dtype::for_vocab(tokenizer.vocab().size).to_string(),
            seed: options.seed,
            held_out_share: options.held_out_share,
            sources,
        })
    }

    /// Names every file, `meta.json` last; an older one is removed first, so that it never describes newer tokens.
    fn finish(
        self,
        options: &PrepareOptions,
        tokenizer: &TextTokenizer,
        report: &PrepareReport,
    ) -> Result<(), DataError> {
        let whole = |name: &str, text: String| -> Result<(), DataError> {
            let mut file = PartialFile::create(options.output.join(name), options.existing)?;
            file.write(text.as_bytes())?;
            file.finish()
        };
        if options.existing == Existing::Replace {
            remove(&options.output.join("meta.json"))?;
        }
        self.train.0.finish()?;
        match self.held_out {
            Some((writer, _)) => writer.finish()?,
            None if options.existing == Existing::Replace => {
                remove(&options.output.join("held_out.idx"))?;
                remove(&options.output.join("held_out.bin"))?;
            }
            None => {}
        }
        whole("tokenizer.json", tokenizer.to_json()?)?;
        let meta = report.to_json().map_err(|error| DataError::Io {
            action: "write",
            path: options.output.join("meta.json"),
            source: error.into(),
        })?;
        whole("meta.json", meta)
    }
}

fn remove(path: &Path) -> Result<(), DataError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(DataError::Io { action: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}
