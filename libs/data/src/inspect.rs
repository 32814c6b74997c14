//! What is in a segment.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::error::DataError;
use crate::guard::guarded;
use crate::identity::DataIdentity;
use crate::prepare::{PrepareReport, Prepared};
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
    /// The text of the first 160 tokens, by the `tokenizer.json` beside the files; `None` where there is none
    /// that made them. Control characters other than newline and tab are escaped.
    pub first_text: Option<String>,
    /// What does not belong together: files of a preparation that were changed, replaced or removed.
    pub notes: Vec<String>,
}

/// Opens the segment at `path` (without extension, or with `.bin` or `.idx`), checks it and reads every token once.
pub fn inspect(path: &str) -> Result<Inspection, DataError> {
    let segment = Segment::open(path)?;
    let first = segment.read(0..segment.token_count().min(TEXT_TOKENS))?;
    let max_token = segment.largest_token()?;
    let mut notes = Vec::new();
    let prepared = PrepareReport::beside(path).unwrap_or_else(|error| {
        notes.push(error.to_string());
        None
    });
    if let Some(Prepared { path, part, .. }) = &prepared
        && let Some(noted) = &part.identity
        && let Some(difference) = noted.difference(&DataIdentity::of(&segment)?)
    {
        notes.push(format!("{} is not what {} describes: {difference}", segment.name(), path.display()));
    }
    let beside = Beside { path: Path::new(segment.name()).with_file_name("tokenizer.json"), prepared };
    let first_text = beside.text_of(&first, max_token).unwrap_or_else(|note| {
        notes.push(note);
        None
    });
    Ok(Inspection {
        first_text,
        name: segment.name().to_owned(),
        dtype: segment.dtype(),
        documents: segment.documents() as u64,
        sequences: segment.sequences() as u64,
        tokens: segment.token_count(),
        max_token,
        first_tokens: first.into_iter().take(SHOWN).collect(),
        notes,
    })
}

/// The tokenizer beside a segment, and what is known of the one that made it.
struct Beside {
    path: PathBuf,
    prepared: Option<Prepared>,
}

impl Beside {
    /// The text of `tokens`, safe to show on a terminal; `None` where no tokenizer belongs to them. The error
    /// says why the one that is there does not.
    fn text_of(&self, tokens: &[u32], largest: Option<u32>) -> Result<Option<String>, String> {
        let path = self.path.display();
        let report = self.prepared.as_ref().map(|prepared| &prepared.report);
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return match report {
                    Some(_) => Err(format!("{path}, which made the tokens, is not there: no text is shown")),
                    None => Ok(None),
                };
            }
            Err(error) => return Err(format!("cannot read {path}: {error}; no text is shown")),
        };
        let another = |why: &str| {
            Err(format!("{path} is not the tokenizer that made the tokens: {why}; no text is shown"))
        };
        let noted = report.and_then(|report| report.tokenizer_hash.as_deref());
        let is_whole = noted.map(|noted| noted == blake3::hash(&bytes).to_hex().as_str());
        let Ok(tokenizer) = guarded(|| Tokenizer::from_bytes(&bytes)) else {
            let changed =
                if is_whole == Some(false) { ", and was changed since it made the tokens" } else { "" };
            return Err(format!(
                "{path} is not a tokenizer.json that can be used{changed}; no text is shown"
            ));
        };
        if is_whole == Some(false) {
            return another("it was changed or replaced since");
        }
        let size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| u64::from(id) + 1);
        // Without a hash, what it cannot have made tells.
        if is_whole.is_none()
            && let Some(report) = report
            && u64::from(report.vocab_size) != size
        {
            return another(&format!("it has a vocabulary of {size}, not {}", report.vocab_size));
        }
        if let Some(largest) = largest.filter(|largest| u64::from(*largest) >= size) {
            return another(&format!("it has a vocabulary of {size}, and the largest token is {largest}"));
        }
        let text = guarded(|| tokenizer.decode(tokens, false))
            .map_err(|error| format!("{path} makes no text of the tokens: {error}"))?;
        let shown = |c: char| {
            let is_text = !c.is_control() || c == '\n' || c == '\t';
            if is_text { c.to_string() } else { c.escape_unicode().to_string() }
        };
        Ok(Some(text.chars().map(shown).collect()))
    }
}
