//! The tokenizer: byte-level BPE trained here, or one that exists.

use std::path::{Path, PathBuf};

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::error::DataError;
use crate::source::Vocabulary;

/// Special tokens of a trained tokenizer, from id 0. Id 0 is left unused, since in the n-gram hash it cannot be told
/// from "no context".
const SPECIAL: [&str; 3] = ["<pad>", "<bos>", "<eos>"];
/// Bytes, and the special tokens.
const SMALLEST_VOCAB: u32 = 256 + SPECIAL.len() as u32;
/// Names under which other tokenizers have the token that closes a document.
const EOS_NAMES: [&str; 6] =
    ["<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|endofdocument|>", "<｜end▁of▁sentence｜>"];
const BOS_NAMES: [&str; 4] = ["<bos>", "<s>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"];

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerChoice {
    /// Byte-level BPE trained on the corpus: `<pad>` 0, `<bos>` 1, `<eos>` 2, then bytes and merges.
    Train {
        /// Tokens wanted, at least 259; a small corpus may not have as many merges.
        vocab_size: u32,
        /// Text it is trained on, at most.
        sample_bytes: u64,
    },
    /// A `tokenizer.json`.
    Given {
        /// Its path.
        path: PathBuf,
        /// Its token that closes a document; `None`: one of the usual names.
        eos: Option<String>,
    },
}

impl Default for TokenizerChoice {
    fn default() -> TokenizerChoice {
        TokenizerChoice::Train { vocab_size: 8192, sample_bytes: 32 << 20 }
    }
}

impl TokenizerChoice {
    /// Text that training needs, at most.
    pub(crate) fn sample_bytes(&self) -> u64 {
        match self {
            TokenizerChoice::Train { sample_bytes, .. } => *sample_bytes,
            TokenizerChoice::Given { .. } => 0,
        }
    }

    pub(crate) fn check(&self) -> Result<(), DataError> {
        match self {
            TokenizerChoice::Train { vocab_size, .. } if *vocab_size < SMALLEST_VOCAB => {
                Err(DataError::IllegalOption {
                    option: "the vocabulary size",
                    value: vocab_size.to_string(),
                    wanted: format!(
                        "at least {SMALLEST_VOCAB}: every byte and {} special tokens",
                        SPECIAL.len()
                    ),
                })
            }
            TokenizerChoice::Given { path, .. } if !path.exists() => {
                Err(DataError::Missing { path: path.clone(), hint: "name a tokenizer.json, or train one" })
            }
            _ => Ok(()),
        }
    }
}

/// A tokenizer and what the model must know of it.
pub(crate) struct TextTokenizer {
    tokenizer: Tokenizer,
    vocab: Vocabulary,
    name: String,
}

impl TextTokenizer {
    /// Trains on `sample`, or reads the given file.
    pub(crate) fn obtain(choice: &TokenizerChoice, sample: Vec<String>) -> Result<TextTokenizer, DataError> {
        match choice {
            TokenizerChoice::Train { vocab_size, .. } => TextTokenizer::train(*vocab_size, sample),
            TokenizerChoice::Given { path, eos } => TextTokenizer::read(path, eos.as_deref()),
        }
    }

    fn train(vocab_size: u32, sample: Vec<String>) -> Result<TextTokenizer, DataError> {
        let name = "to be trained";
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_decoder(Some(ByteLevel::new(false, true, true)));
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size as usize)
            .min_frequency(2)
            .special_tokens(SPECIAL.iter().map(|&token| AddedToken::from(token, true)).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build()
            .into();
        tokenizer
            .train(&mut trainer, sample.iter().map(String::as_str))
            .map_err(|error| failed(name, format!("training failed: {error}")))?;
        TextTokenizer::of(tokenizer, name, Some(SPECIAL[2]))
    }

    fn read(path: &Path, eos: Option<&str>) -> Result<TextTokenizer, DataError> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
        let tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|error| failed(&name, format!("not a tokenizer.json: {error}")))?;
        TextTokenizer::of(tokenizer, &name, eos)
    }

    fn of(mut tokenizer: Tokenizer, name: &str, eos: Option<&str>) -> Result<TextTokenizer, DataError> {
        // Text that spells a special token is text: "<eos>" in a document must not end it.
        tokenizer.set_encode_special_tokens(true);
        let first = |names: &[&str]| names.iter().find_map(|token| tokenizer.token_to_id(token));
        let eos = match eos {
            Some(token) => tokenizer.token_to_id(token).ok_or_else(|| {
                failed(name, format!("it has no token {token:?}; name the one that closes a document"))
            })?,
            None => first(&EOS_NAMES).ok_or_else(|| {
                failed(
                    name,
                    format!("it has none of {}; name the token that closes a document", EOS_NAMES.join(", ")),
                )
            })?,
        };
        let bos = first(&BOS_NAMES).unwrap_or(eos);
        // Ids may have gaps: what counts is the largest.
        let size = tokenizer.get_vocab(true).into_values().max().unwrap_or(0).saturating_add(1);
        Ok(TextTokenizer { tokenizer, vocab: Vocabulary { size, bos, eos }, name: name.to_owned() })
    }

    pub(crate) fn vocab(&self) -> Vocabulary {
        self.vocab
    }

    /// Appends the tokens of `text`, without BOS or EOS.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), DataError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| failed(&self.name, format!("encoding failed: {error}")))?;
        out.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The `tokenizer.json`.
    pub(crate) fn to_json(&self) -> Result<String, DataError> {
        self.tokenizer
            .to_string(true)
            .map_err(|error| failed(&self.name, format!("cannot be written: {error}")))
    }
}

fn failed(name: &str, problem: String) -> DataError {
    DataError::Tokenizer { name: name.to_owned(), problem }
}
