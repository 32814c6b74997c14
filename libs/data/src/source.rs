//! Where tokens come from: one long sequence, read at any place.

use std::ops::Range;

use polygram_domain::model::ModelSpec;

use crate::error::DataError;

/// A sequence of tokens with random access. Reading the same range always gives the same tokens.
pub trait TokenSource: Send + Sync {
    /// What to call it in messages.
    fn name(&self) -> &str;

    /// Tokens in all.
    fn token_count(&self) -> u64;

    /// The tokens of a range. Refuses a range that goes past the end.
    fn read(&self, range: Range<u64>) -> Result<Vec<u32>, DataError>;

    /// The document (from 0) that holds the token at `position`, for messages.
    fn document_of(&self, position: u64) -> u64;
}

/// What the model knows of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Tokens are below this.
    pub size: u32,
    /// Token that begins a document, if data has it.
    pub bos: u32,
    /// Token that closes a document.
    pub eos: u32,
}

impl Vocabulary {
    /// The vocabulary of `model`.
    pub fn of(model: &ModelSpec) -> Vocabulary {
        Vocabulary { size: model.vocab_size, bos: model.bos_token_id, eos: model.eos_token_id }
    }
}

/// Checks a range against the source's end, so that both kinds of source refuse alike.
pub(crate) fn checked_range(source: &dyn TokenSource, range: &Range<u64>) -> Result<(), DataError> {
    if range.start <= range.end && range.end <= source.token_count() {
        return Ok(());
    }
    Err(DataError::Range {
        source_name: source.name().to_owned(),
        start: range.start,
        end: range.end,
        tokens: source.token_count(),
    })
}
