//! What can be wrong with data; each message says where, what, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use polygram_domain::words::{counted, grouped};

use crate::local_path;

/// A refusal or failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder that is not there.
    #[error("{path} does not exist; {hint}", path = path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
    },
    /// The operating system failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An `.idx` that is not a whole and consistent Megatron index.
    #[error("{path} is not a usable index: {problem}; copy or prepare the .bin/.idx pair again", path = path.display())]
    Index {
        /// The `.idx`.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A `.bin` whose size is not what its index says.
    #[error(
        "{path} holds {actual} bytes, but its index describes {expected}; the two files do not belong together or a \
         copy was cut short: copy or prepare the pair again",
        path = path.display()
    )]
    BinSize {
        /// The `.bin`.
        path: PathBuf,
        /// Its bytes.
        actual: u64,
        /// The bytes it should have.
        expected: u64,
    },
    /// A file of a segment that is no longer what it was when it was opened.
    #[error(
        "{path} changed while a run read it; a run needs its data as it was: put the file back, or say \
         data.allow_change=true to go on with the new one",
        path = path.display()
    )]
    SegmentChanged {
        /// The file.
        path: PathBuf,
    },
    /// A token that the model has no embedding for.
    #[error(
        "{source_name} has token {token} at position {position} (document {document}), outside the vocabulary of \
         {vocab} tokens; the model needs a vocabulary for every token of its data: `polygram data inspect` shows the \
         largest one"
    )]
    TokenRange {
        /// File or source.
        source_name: String,
        /// Document, from 0.
        document: u64,
        /// Token position in the whole source, from 0.
        position: u64,
        /// Its value.
        token: i64,
        /// Legal tokens are below this.
        vocab: u32,
    },
    /// Too few tokens to make what is needed.
    #[error("{source_name} has {}, but {needed} are needed for {purpose}; {hint}", counted(*tokens, "token"))]
    TooShort {
        /// File or source.
        source_name: String,
        /// Tokens there.
        tokens: u64,
        /// Tokens needed at least.
        needed: u64,
        /// What they are needed for.
        purpose: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// Tokens beyond the end of a source.
    #[error("tokens {start}..{end} lie beyond the {tokens} tokens of {source_name}")]
    Range {
        /// File or source.
        source_name: String,
        /// First token asked for.
        start: u64,
        /// One past the last.
        end: u64,
        /// Tokens there.
        tokens: u64,
    },
    /// A cell that the step's grid does not have, or a step beyond counting.
    #[error("step {step} has no cell {cell}: a step has {}", counted(u64::from(*cells), "cell"))]
    NoSuchCell {
        /// The step asked for.
        step: u64,
        /// The cell asked for.
        cell: u32,
        /// G.
        cells: u32,
    },
    /// Output that is there already.
    #[error("{path} exists already; choose another output, or replace it (--replace)", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Text input that cannot be read as what its name says.
    #[error("cannot read {place}: {problem}", place = place)]
    Corpus {
        /// File, and line or row where known.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// Inputs without any text.
    #[error(
        "no text found in {inputs}: {found}; name files of text, .jsonl, .jsonl.gz, .jsonl.zst or .parquet, or \
         folders of them"
    )]
    EmptyCorpus {
        /// The inputs as given.
        inputs: String,
        /// What was found in its place: a clause.
        found: String,
    },
    /// A file that was named as an input and cannot be used.
    #[error("input {path} cannot be used: {problem}", path = path.display())]
    UnusableInput {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// A path that names nothing on this machine.
    #[error("{what} {path} cannot be used: {problem}", path = path.display())]
    NoLocalPath {
        /// What it was given for, with an article.
        what: &'static str,
        /// As it was given.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// An input that was not the same from the first look at it to the last.
    #[error(
        "{path} changed while it was read: {change}; prepare again when nothing writes to it, or prepare a copy",
        path = path.display()
    )]
    InputChanged {
        /// The file.
        path: PathBuf,
        /// What was noticed.
        change: String,
    },
    /// Every document is held out.
    #[error(
        "{} held out at a share of {share} and seed {seed}, so none is left to train on; choose a smaller share, \
         another seed or more documents",
        match documents {
            1 => "the only document is".to_owned(),
            documents => format!("all {} documents are", grouped(*documents)),
        }
    )]
    NothingToTrainOn {
        /// Documents.
        documents: u64,
        /// Share asked for.
        share: f64,
        /// Seed of the division.
        seed: u64,
    },
    /// Another preparation writes into the same folder.
    #[error(
        "another preparation is writing into {folder}; wait until it ends, or choose another output folder",
        folder = folder.display()
    )]
    Busy {
        /// The output folder.
        folder: PathBuf,
    },
    /// Output that must not be replaced.
    #[error(
        "{path} is {what}, which is never replaced by a file; remove it, or choose another output folder",
        path = path.display()
    )]
    NotAFile {
        /// What is there.
        path: PathBuf,
        /// Its kind, with an article.
        what: &'static str,
    },
    /// A segment that was replaced while it was opened.
    #[error(
        "{path} was replaced while it was opened; start again when the preparation that replaces it has ended",
        path = path.display()
    )]
    Replaced {
        /// The `.idx`.
        path: PathBuf,
    },
    /// The work was stopped on request before its result was complete; nothing was left behind.
    #[error("stopped on request; nothing was written")]
    Stopped,
    /// A tokenizer that cannot be read, trained or used.
    #[error("tokenizer {name}: {problem}")]
    Tokenizer {
        /// Its file, or how it is made.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// An option outside its range.
    #[error("{option} is {value}; it must be {wanted}")]
    IllegalOption {
        /// Which option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        wanted: String,
    },
}

impl DataError {
    /// Refuses a path that names nothing on this machine.
    pub(crate) fn check_local(what: &'static str, path: &Path) -> Result<(), DataError> {
        match local_path::problem_of(path) {
            Some(problem) => Err(DataError::NoLocalPath { what, path: path.to_owned(), problem }),
            None => Ok(()),
        }
    }

    /// For `map_err`: wraps an I/O error with what was being done to which path.
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DataError + 'a {
        move |source| DataError::Io { action, path: path.to_owned(), source }
    }
}
