//! What is in a segment.

use crate::error::DataError;
use crate::segment::{Dtype, Segment};
use crate::source::TokenSource;

/// First tokens that an inspection shows.
const SHOWN: u64 = 32;

/// What [`inspect`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The `.bin`.
    pub name: String,
    /// Type of the stored tokens.
    pub dtype: Dtype,
    /// Documents.
    pub documents: u64,
    /// Sequences; equal to the documents unless a tool wrote several a document.
    pub sequences: u64,
    /// Tokens.
    pub tokens: u64,
    /// Largest token id; `None` of an empty segment. A model's vocabulary must be larger.
    pub max_token: Option<u32>,
    /// Up to 32 tokens from the start.
    pub first_tokens: Vec<u32>,
}

/// Opens the segment at `path` (without extension, or with `.bin` or `.idx`), checks it and reads every token once.
pub fn inspect(path: &str) -> Result<Inspection, DataError> {
    let segment = Segment::open(path)?;
    Ok(Inspection {
        name: segment.name().to_owned(),
        dtype: segment.dtype(),
        documents: segment.documents() as u64,
        sequences: segment.sequences() as u64,
        tokens: segment.token_count(),
        max_token: segment.largest_token()?,
        first_tokens: segment.read(0..segment.token_count().min(SHOWN))?,
    })
}
