//! What to prepare, from what, into what.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::content::TextFormat;
use super::files::DEFAULT_EXTENSIONS;
use super::output::check_outputs;
use super::tokenizer::TokenizerChoice;
use crate::error::DataError;
use crate::segment::Existing;

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

    /// Refuses options that are outside their ranges, and output that must not be written.
    pub(super) fn check(&self) -> Result<(), DataError> {
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
