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
mod notes;
mod options;
mod output;
mod reading;
mod split;
mod table;
mod text;
mod tokenizer;
mod tokenizer_file;
mod train;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

pub use content::TextFormat;
pub use files::{DEFAULT_EXTENSIONS, UNREADABLE};
pub use meta::{LeftOutCount, PartReport, PrepareReport, Prepared, SourceCount};
pub use monitor::{Monitor, Progress, Stage};
pub use options::PrepareOptions;
pub use output::Leftovers;
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
use notes::{check_found, notes};
use output::Staging;
use reading::{Pass, PassReport};
use split::{Sample, Side, Split};
use tokenizer::TextTokenizer;

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
    let json = tokenizer.to_json()?;
    let hash = blake3::hash(json.as_bytes()).to_hex().to_string();
    let report = PrepareReport { tokenizer_hash: Some(hash), ..parts.finish(options, &tokenizer, found)? };
    staging.write("tokenizer.json", &json)?;
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
            tokenizer_hash: None,
            vocab_size: tokenizer.vocab().size,
            bos_token_id: tokenizer.vocab().bos,
            eos_token_id: tokenizer.vocab().eos,
            dtype: self.dtype.to_string(),
            seed: options.seed,
            held_out_share: options.held_out_share,
            notes: notes(options, tokenizer, (&self.train.count, &self.held_out.count), &found),
            sources: found.sources,
            left_out: found.left_out,
        })
    }
}
