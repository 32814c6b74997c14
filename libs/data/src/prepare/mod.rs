//! Text in, token files out.
//!
//! Where a tokenizer is given, one pass over the corpus: every document is encoded, closed with EOS and
//! appended to the training or the held-out segment. Where one is to be trained, a pass goes before it, which
//! keeps a uniform sample of the training documents; both passes must find the same text. Which documents are
//! held out is a hash of their text (`split.rs`): adding documents moves none.
//!
//! Output: `train.bin`, `train.idx`, `held_out.bin`, `held_out.idx` (when a document is held out),
//! `tokenizer.json`, and last, as the mark that all is whole, `meta.json`; installed as a set (`output.rs`).

mod byte_level;
mod content;
mod corpus;
mod encode;
mod files;
mod json_line;
mod meta;
mod monitor;
mod output;
mod reading;
mod split;
mod table;
mod text;
mod tokenizer;
mod train;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

pub use content::TextFormat;
pub use files::{DEFAULT_EXTENSIONS, UNREADABLE};
pub use meta::{LeftOutCount, PartReport, PrepareReport, SourceCount};
pub use monitor::{Monitor, Progress, Stage};
pub use output::abandon;
pub use tokenizer::TokenizerChoice;

use crate::error::DataError;
use crate::identity::DataIdentity;
use crate::segment::{Dtype, Existing, SegmentWriter};
use content::Records;
use corpus::Corpus;
use encode::{Encoded, encode};
use files::{FileState, Search};
use meta::PartCount;
use monitor::Unattended;
use output::{Staging, check_outputs};
use reading::{Pass, PassReport};
use split::{Sample, Side, Split};
use tokenizer::TextTokenizer;

/// Fewer bytes hold no text: a character takes up to four.
const LEAST_BYTES: u64 = 4;
/// More threads than this are a mistake.
const MOST_THREADS: usize = 4096;

/// What to prepare, from what, into what. [`PrepareOptions::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Files and folders. A folder is walked in name order, hidden files and folders aside; links are
    /// followed.
    pub inputs: Vec<PathBuf>,
    /// Folder of the output; made where needed.
    pub output: PathBuf,
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerChoice,
    /// Field of a JSON line, or column of a parquet file, that holds the text.
    pub text_key: String,
    /// What files other than parquet hold.
    pub format: TextFormat,
    /// Extensions of text files taken from folders, without the dot. Files named as inputs are taken whatever
    /// theirs.
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
    /// Defaults: train a tokenizer of 8192 tokens on up to 32 MiB of text; key "text"; 1 % held out; seed 0;
    /// all cores; refuse to overwrite.
    pub fn new(inputs: Vec<PathBuf>, output: PathBuf) -> PrepareOptions {
        PrepareOptions {
            inputs,
            output,
            tokenizer: TokenizerChoice::default(),
            text_key: "text".into(),
            format: TextFormat::Auto,
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
        if let Some(bytes) = self.max_bytes.filter(|&bytes| bytes < LEAST_BYTES) {
            return Err(DataError::IllegalOption {
                option: "the limit of bytes",
                value: bytes.to_string(),
                wanted: format!("at least {LEAST_BYTES}"),
            });
        }
        if self.threads.get() > MOST_THREADS {
            return Err(DataError::IllegalOption {
                option: "the number of threads",
                value: self.threads.to_string(),
                wanted: format!("at most {MOST_THREADS}"),
            });
        }
        self.tokenizer.check()?;
        check_outputs(&self.output, self.existing)
    }
}

/// Prepares a corpus; returns what `meta.json` says.
pub fn prepare(options: &PrepareOptions) -> Result<PrepareReport, DataError> {
    prepare_with(options, &Unattended)
}

/// [`prepare`], followed by `monitor`, which may also stop it.
pub fn prepare_with(options: &PrepareOptions, monitor: &dyn Monitor) -> Result<PrepareReport, DataError> {
    options.check()?;
    let given = match &options.tokenizer {
        TokenizerChoice::Given { path, eos } => Some(TextTokenizer::read(path, eos.as_deref())?),
        TokenizerChoice::Train { .. } => None,
    };
    let search = Search { inputs: &options.inputs, extensions: &options.extensions, output: &options.output };
    let corpus = Corpus {
        inputs: search.find()?,
        records: Records { text_key: options.text_key.clone(), format: options.format },
        max_bytes: options.max_bytes.unwrap_or(u64::MAX),
    };
    let staging = Staging::begin(&options.output, options.existing)?;
    let split = Split::new(options.seed, options.held_out_share);
    let mut before = None;
    let tokenizer = match (given, &options.tokenizer) {
        (Some(given), _) => given,
        (None, TokenizerChoice::Train { vocab_size, sample_bytes }) => {
            refuse_streams(&corpus)?;
            let mut sample = Sample::new(options.seed, *sample_bytes);
            before = Some(survey(&corpus, &split, &mut sample, monitor)?);
            check_found(options, &corpus, before.as_ref())?;
            let texts = sample.into_texts();
            if texts.is_empty() {
                return Err(nothing_to_train_on(options, before.as_ref()));
            }
            TextTokenizer::train(*vocab_size, texts, monitor)?
        }
        (None, TokenizerChoice::Given { path, .. }) => {
            return Err(train::failed(&path.display().to_string(), "it was not read".into()));
        }
    };

    let mut parts = Parts::new(&staging, tokenizer.vocab().size);
    let tokens = AtomicU64::new(0);
    let counting = Counting { monitor, tokens: &tokens };
    let pass = Pass { stage: Stage::Encode, monitor: &counting, before: before.as_ref() };
    let mut sink = |encoded: Encoded| {
        tokens.fetch_add(encoded.tokens.len() as u64, Ordering::Relaxed);
        parts.append(&encoded)
    };
    let found = encode(&tokenizer, options.threads, &mut sink, |feeder| {
        corpus.read(&pass, &mut |document| {
            let Some(first) = document.next_chunk()? else { return Ok(()) };
            let side = split.side_of(&first);
            feeder.document(first, document, side)
        })
    })?;
    check_found(options, &corpus, Some(&found))?;
    if parts.train.count.documents() == 0 {
        return Err(nothing_to_train_on(options, Some(&found)));
    }
    let report = parts.finish(options, &tokenizer, found)?;
    staging.write("tokenizer.json", &tokenizer.to_json()?)?;
    let meta = report.to_json().map_err(|error| DataError::Io {
        action: "write",
        path: options.output.join("meta.json"),
        source: error.into(),
    })?;
    staging.write("meta.json", &meta)?;
    // Who stops the work looks at the stage after his request: either he sees this one, or he is seen here.
    monitor.progress(&Progress {
        stage: Stage::Install,
        bytes: 0,
        total_bytes: 0,
        documents: 0,
        tokens: tokens.load(Ordering::Relaxed),
    });
    if monitor.stop_requested() {
        return Err(DataError::Stopped);
    }
    staging.install()?;
    Ok(report)
}

/// The first pass: samples the documents that will be trained on.
fn survey(
    corpus: &Corpus,
    split: &Split,
    sample: &mut Sample,
    monitor: &dyn Monitor,
) -> Result<PassReport, DataError> {
    let pass = Pass { stage: Stage::Survey, monitor, before: None };
    corpus.read(&pass, &mut |document| {
        let Some(mut text) = document.next_chunk()? else { return Ok(()) };
        if split.side_of(&text) == Side::HeldOut {
            return Ok(());
        }
        if let Some(hash) = sample.next() {
            while (text.len() as u64) < sample.limit()
                && let Some(chunk) = document.next_chunk()?
            {
                text.push_str(&chunk);
            }
            sample.keep(hash, text);
        }
        Ok(())
    })
}

/// A pipe gives its text once, and training a tokenizer takes two readings.
fn refuse_streams(corpus: &Corpus) -> Result<(), DataError> {
    match corpus.inputs.files.iter().find(|file| file.state == FileState::Stream) {
        Some(file) => Err(file.unusable(
            "it is a pipe or a device, which can be read once, and a tokenizer is to be trained, which takes two \
             readings; copy it into a file, or give a tokenizer",
        )),
        None => Ok(()),
    }
}

fn check_found(
    options: &PrepareOptions,
    corpus: &Corpus,
    found: Option<&PassReport>,
) -> Result<(), DataError> {
    let Some(found) = found.filter(|found| found.documents() == 0) else { return Ok(()) };
    let inputs: Vec<String> = options.inputs.iter().map(|path| path.display().to_string()).collect();
    let kinds: Vec<String> =
        found.left_out.iter().map(|(kind, count)| format!("{} {kind}", count.files)).collect();
    let left_out = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
    Err(DataError::EmptyCorpus {
        inputs: inputs.join(", "),
        files: corpus.inputs.files.len() as u64,
        left_out,
    })
}

fn nothing_to_train_on(options: &PrepareOptions, found: Option<&PassReport>) -> DataError {
    DataError::NothingToTrainOn {
        documents: found.map_or(0, PassReport::documents),
        share: options.held_out_share,
        seed: options.seed,
    }
}

/// Adds the tokens to what a monitor is told.
struct Counting<'a> {
    monitor: &'a dyn Monitor,
    tokens: &'a AtomicU64,
}

impl Monitor for Counting<'_> {
    fn progress(&self, progress: &Progress) {
        self.monitor.progress(&Progress { tokens: self.tokens.load(Ordering::Relaxed), ..*progress });
    }

    fn stop_requested(&self) -> bool {
        self.monitor.stop_requested()
    }
}

/// A segment being written, with its counts.
struct Part {
    /// Made with the first tokens.
    writer: Option<SegmentWriter>,
    count: PartCount,
    path: PathBuf,
}

impl Part {
    fn append(&mut self, encoded: &Encoded, dtype: Dtype) -> Result<(), DataError> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                none.insert(SegmentWriter::create(&self.path.to_string_lossy(), dtype, Existing::Replace)?)
            }
        };
        writer.push_part(&encoded.tokens)?;
        if encoded.place.ends {
            writer.end_document()?;
            self.count.add(&encoded.tokens);
        } else {
            self.count.add_part(&encoded.tokens);
        }
        Ok(())
    }

    /// Completes the files; their identity.
    fn finish(&mut self) -> Result<Option<DataIdentity>, DataError> {
        let Some(writer) = self.writer.take() else { return Ok(None) };
        writer.finish()?;
        DataIdentity::of_path(&self.path.to_string_lossy()).map(Some)
    }
}

/// The two segments.
struct Parts {
    train: Part,
    held_out: Part,
    dtype: Dtype,
}

impl Parts {
    fn new(staging: &Staging, vocab: u32) -> Parts {
        let part = |name| Part { writer: None, count: PartCount::new(vocab), path: staging.path(name) };
        Parts { train: part("train"), held_out: part("held_out"), dtype: Dtype::for_vocab(vocab) }
    }

    fn append(&mut self, encoded: &Encoded) -> Result<(), DataError> {
        let part = match encoded.place.side {
            Side::Train => &mut self.train,
            Side::HeldOut => &mut self.held_out,
        };
        part.append(encoded, self.dtype)
    }

    fn finish(
        &mut self,
        options: &PrepareOptions,
        tokenizer: &TextTokenizer,
        found: PassReport,
    ) -> Result<PrepareReport, DataError> {
        let path = |name: &str| options.output.join(name).to_string_lossy().into_owned();
        let (train_identity, held_out_identity) = (self.train.finish()?, self.held_out.finish()?);
        let report = |part: &Part, name, identity| PartReport {
            identity,
            ..part.count.report(path(name), &self.train.count)
        };
        let has_held_out = self.held_out.count.documents() > 0;
        Ok(PrepareReport {
            version: meta::VERSION,
            train: report(&self.train, "train", train_identity),
            held_out: has_held_out.then(|| report(&self.held_out, "held_out", held_out_identity)),
            tokenizer: path("tokenizer.json"),
            vocab_size: tokenizer.vocab().size,
            bos_token_id: tokenizer.vocab().bos,
            eos_token_id: tokenizer.vocab().eos,
            dtype: self.dtype.to_string(),
            seed: options.seed,
            held_out_share: options.held_out_share,
            notes: self.notes(options, tokenizer, &found),
            sources: found.sources,
            left_out: found.left_out,
        })
    }

    /// What the user may not expect.
    fn notes(&self, options: &PrepareOptions, tokenizer: &TextTokenizer, found: &PassReport) -> Vec<String> {
        let mut notes = tokenizer.notes().to_vec();
        let repaired: u64 = found.sources.values().map(|count| count.repaired_documents).sum();
        if repaired > 0 {
            notes.push(format!("documents with broken text, which became U+FFFD: {repaired}"));
        }
        for (what, count) in &found.doubts {
            notes.push(format!(
                "files that {what} were each read as one text: {} ({}{}); say what they are, or read them so with \
                 --format text",
                count.files,
                count.example,
                if count.files > 1 { " and others" } else { "" }
            ));
        }
        if let Some(count) = found.left_out.get(UNREADABLE) {
            notes.push(format!(
                "files and folders without permission to read were left out: {} ({}{}); give it (chmod, or as their \
                 owner) and prepare again to have them",
                count.files,
                count.example,
                if count.files > 1 { " and others" } else { "" }
            ));
        }
        let eos = tokenizer.vocab().eos;
        let inside = [&self.train, &self.held_out]
            .map(|part| part.count.count_of(eos).saturating_sub(part.count.documents()))
            .iter()
            .sum::<u64>();
        if inside > 0 {
            notes.push(format!(
                "the tokenizer makes its closing token {eos} of text too: it stands {inside} times inside documents"
            ));
        }
        if options.held_out_share > 0.0 && self.held_out.count.documents() == 0 {
            notes.push(format!(
                "no document is held out: {} documents at a share of {}; choose a larger share or another seed to \
                 have some",
                self.train.count.documents(),
                options.held_out_share
            ));
        }
        notes
    }
}
