//! The keys of a `config.json` that decide hashing.

use serde_json::Value;

use super::config::HfConfig;
use super::keys::{Keys, shown};
use crate::model::{Amplification, MAX_HEADS, MAX_ORDER, NgramSpec, Normalizer};

/// Keys of relatives of this family that change how n-grams are hashed.
const OTHER_HASHES: &[&str] = &[
    "ngram_exclude_sp_token",
    "oe_ignore_tokens",
    "oe_neighbor_num",
    "oe_split_num",
    "oe_vocab_size_ratio",
    "oe_vocab_sizes",
    "special_token_scope",
];

/// The keys that decide hashing: all that n-gram ids need of a `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct HashConfig {
    /// V.
    pub vocab_size: u32,
    /// N.
    pub emb_neighbor_num: u32,
    /// K.
    pub emb_split_num: u32,
    /// Table rows over V.
    pub ngram_vocab_size_ratio: f64,
    /// Token that closes a document.
    pub eos_token_id: u32,
}

impl HashConfig {
    /// Reads the hashing keys of a `config.json`; keys that do not change hashing are not looked at. The
    /// error names the key.
    pub fn parse(text: &str) -> Result<HashConfig, String> {
        let config = HfConfig::parse(text)?;
        HashConfig::read(&config.keys())
    }

    pub(super) fn read(keys: &Keys<'_>) -> Result<HashConfig, String> {
        for key in OTHER_HASHES {
            if let Some(value) = keys.get(key).filter(|value| **value != Value::Bool(false)) {
                return Err(format!(
                    "{key} is {}; this way of hashing n-grams is not supported (keys of this family: \
                     emb_neighbor_num, emb_split_num, ngram_vocab_size_ratio)",
                    shown(value)
                ));
            }
        }
        let vocab_size = keys.required("vocab_size", 1..=u32::MAX - 1)?;
        if let Some(hashed) = keys.whole("text_vocab_size", 1..=u32::MAX - 1)?
            && hashed != vocab_size
        {
            return Err(format!(
                "text_vocab_size is {hashed}, but vocab_size is {vocab_size}; a vocabulary for hashing that differs from \
                 the model's is not supported"
            ));
        }
        let config = HashConfig {
            vocab_size,
            emb_neighbor_num: keys.required("emb_neighbor_num", 2..=MAX_ORDER)?,
            emb_split_num: keys.required("emb_split_num", 1..=MAX_HEADS)?,
            ngram_vocab_size_ratio: keys.required_number("ngram_vocab_size_ratio", 0.0..=f64::MAX)?,
            eos_token_id: end_of_document(keys, vocab_size)?,
        };
        let ngram = config.ngram();
        let (tables, largest) = (ngram.tables_per_site(), ngram.rows_of(ngram.tables_per_site() - 1));
        if config.ngram_vocab_size_ratio <= 0.0 || largest >= u64::from(u32::MAX) {
            return Err(format!(
                "ngram_vocab_size_ratio is {}; it must be more than 0, and the largest of {tables} tables, {largest} rows, \
                 must have less than {} rows",
                config.ngram_vocab_size_ratio,
                u32::MAX
            ));
        }
        Ok(config)
    }

    /// The n-gram tables it describes.
    pub fn ngram(&self) -> NgramSpec {
        NgramSpec {
            max_order: self.emb_neighbor_num,
            heads: self.emb_split_num,
            ratio: self.ngram_vocab_size_ratio,
            hash_vocab_size: self.vocab_size,
            ignored_tokens: Vec::new(),
            normalizer: Normalizer::Mean,
            amplification: Amplification::None,
        }
    }
}

/// `eos_token_id`: a number, or a list of one number. N-grams are cut behind one token only.
fn end_of_document(keys: &Keys<'_>, vocab_size: u32) -> Result<u32, String> {
    const KEY: &str = "eos_token_id";
    let value = keys.get(KEY).ok_or_else(|| keys.missing(KEY))?;
    let token = match value.as_array().map(Vec::as_slice) {
        Some([only]) => only,
        Some(_) => {
            let wanted = "one token: n-grams are cut behind it, so choose the one that closes documents";
            return Err(keys.wrong(KEY, value, wanted));
        }
        None => value,
    };
    token_of(token, vocab_size).ok_or_else(|| keys.wrong(KEY, value, &token_range(vocab_size)))
}

/// A token of the vocabulary.
pub(super) fn token_of(value: &Value, vocab_size: u32) -> Option<u32> {
    value.as_u64().and_then(|token| u32::try_from(token).ok()).filter(|token| *token < vocab_size)
}

/// What a token id must be.
pub(super) fn token_range(vocab_size: u32) -> String {
    format!("a token of the vocabulary, from 0 to {}", vocab_size - 1)
}
