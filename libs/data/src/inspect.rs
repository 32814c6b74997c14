//! What is in a segment.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::error::DataError;
use crate::segment::{Dtype, Segment};
use crate::source::TokenSource;

/// First tokens that an inspection shows.
const SHOWN: usize = 32;
/// Tokens of the text that an inspection shows.
const TEXT_TOKENS: u64 = 160;

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
    /// The text of the first 160 tokens, by the `tokenizer.json` beside the files; `None` where there is none that can be
    /// read. Control characters other than newline and tab are escaped.
    pub first_text: Option<String>,
}

/// Opens the segment at `path` (without extension, or with `.bin` or `.idx`), checks it and reads every token once.
pub fn inspect(path: &str) -> Result<Inspection, DataError> {
    let segment = Segment::open(path)?;
    let first = segment.read(0..segment.token_count().min(TEXT_TOKENS))?;
    Ok(Inspection {
        first_text: text_of(&first, &Path::new(segment.name()).with_file_name("tokenizer.json")),
        name: segment.name().to_owned(),
        dtype: segment.dtype(),
        documents: segment.documents() as u64,
        sequences: segment.sequences() as u64,
        tokens: segment.token_count(),
        max_token: segment.largest_token()?,
        first_tokens: first.into_iter().take(SHOWN).collect(),
    })
}

/// The text of `tokens`, safe to show on a terminal.
fn text_of(tokens: &[u32], tokenizer: &Path) -> Option<String> {
    let tokenizer = Tokenizer::from_bytes(std::fs::read(tokenizer).ok()?).ok()?;
    let text = tokenizer.decode(tokens, false).ok()?;
    let shown = |c: char| {
        let is_text = !c.is_control() || c == '\n' || c == '\t';
        if is_text { c.to_string() } else { c.escape_unicode().to_string() }
    };
    Some(text.chars().map(shown).collect())
}
