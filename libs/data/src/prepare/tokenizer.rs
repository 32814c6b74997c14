//! The tokenizer: byte-level BPE trained here, or one that exists.
//!
//! A given `tokenizer.json` says how text becomes tokens, and only that is taken from it. What another tool
//! stored there for its own calls is not obeyed: truncation and padding would cut or fill documents, dropout
//! would make the tokens random, and the post-processor would add tokens that the data does not have. Special
//! tokens that are spelled out in a document are text there; other added tokens are tokens, as the file says.
//! Normalizers and pre-tokenizers are obeyed to the letter, on the whole document: the tokens are those of
//! `tokenizers` in Python.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use polygram_domain::words::{grouped, of_many};
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::byte_level::{ByteLevel, Memory, Piece};
use super::corpus::MOST_RECORD_BYTES;
use super::monitor::Monitor;
use super::tokenizer_file;
use super::train::{SPECIAL, failed, train};
use crate::error::DataError;
use crate::guard::guarded;
use crate::source::Vocabulary;

/// Bytes, and the special tokens.
const SMALLEST_VOCAB: u32 = 256 + SPECIAL.len() as u32;
/// A larger vocabulary is a mistake: its embedding alone would not fit anywhere.
const LARGEST_VOCAB: u32 = 1 << 24;
/// The largest vocabulary that is trained.
const LARGEST_TRAINED: u32 = 1 << 22;
/// A larger file is no tokenizer.json.
const MOST_FILE_BYTES: u64 = 1 << 28;
/// Names under which other tokenizers have the token that closes a document.
const EOS_NAMES: [&str; 6] =
    ["<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|endofdocument|>", "<｜end▁of▁sentence｜>"];
const BOS_NAMES: [&str; 4] = ["<bos>", "<s>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"];

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerChoice {
    /// Byte-level BPE trained on the corpus: `<pad>` 0, `<bos>` 1, `<eos>` 2, then bytes and merges.
    Train {
        /// Tokens wanted, 259 to 4,194,304; a small corpus may not have as many merges.
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
    pub(crate) fn check(&self) -> Result<(), DataError> {
        match self {
            TokenizerChoice::Train { vocab_size, .. }
                if !(SMALLEST_VOCAB..=LARGEST_TRAINED).contains(vocab_size) =>
            {
                Err(DataError::IllegalOption {
                    option: "the vocabulary size (--vocab-size)",
                    value: vocab_size.to_string(),
                    wanted: format!(
                        "{SMALLEST_VOCAB} (every byte and {} special tokens) to {LARGEST_TRAINED}",
                        SPECIAL.len()
                    ),
                })
            }
            TokenizerChoice::Train { .. } => Ok(()),
            TokenizerChoice::Given { path, .. } => tokenizer_file::check(path),
        }
    }
}

/// Where a document may be cut before it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cuts {
    /// Where the words of the byte-level encoder end.
    Words,
    /// Before any space: each begins a word, and the start of a text is treated as if one stood there.
    Spaces,
    /// Nowhere that is known to change nothing.
    Nowhere,
}

/// A tokenizer and what the model must know of it.
pub(crate) struct TextTokenizer {
    tokenizer: Tokenizer,
    fast: Option<ByteLevel>,
    cuts: Cuts,
    vocab: Vocabulary,
    name: String,
    notes: Vec<String>,
}

impl TextTokenizer {
    /// Trains one on `sample`.
    pub(crate) fn train(
        vocab_size: u32,
        sample: Vec<String>,
        monitor: &dyn Monitor,
    ) -> Result<TextTokenizer, DataError> {
        let bytes: usize = sample.iter().map(String::len).sum();
        let tokenizer = train(vocab_size, sample, monitor)?;
        let mut tokenizer = TextTokenizer::of(tokenizer, "to be trained", Some(SPECIAL[2]))?;
        let size = tokenizer.vocab.size;
        if size < vocab_size {
            tokenizer.notes.push(format!(
                "the vocabulary has {} tokens, not {} (--vocab-size): the {} of text that the tokenizer is trained on \
                 have no other pairs of tokens that occur twice; a larger vocabulary takes more text",
                grouped(size.into()),
                grouped(vocab_size.into()),
                of_many(bytes as u64, grouped(bytes as u64), "byte"),
            ));
        }
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json`.
    pub(crate) fn read(path: &Path, eos: Option<&str>) -> Result<TextTokenizer, DataError> {
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MOST_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(DataError::io("read", path))?;
        if bytes.len() as u64 > MOST_FILE_BYTES {
            return Err(failed(&name, format!("it is larger than {} MiB", MOST_FILE_BYTES >> 20)));
        }
        let mut json = tokenizer_file::parse(&bytes, path)
            .map_err(|problem| failed(&name, format!("not a tokenizer.json: {problem}")))?;
        let notes = remove_state(&mut json);
        let bytes = serde_json::to_vec(&json)
            .map_err(|error| failed(&name, format!("not a tokenizer.json: {error}")))?;
        let tokenizer = guarded(|| Tokenizer::from_bytes(bytes))
            .map_err(|error| failed(&name, format!("not a tokenizer.json that can be used: {error}")))?;
        let mut tokenizer = TextTokenizer::of(tokenizer, &name, eos)?;
        tokenizer.notes.splice(0..0, notes);
        Ok(tokenizer)
    }

    fn of(mut tokenizer: Tokenizer, name: &str, eos: Option<&str>) -> Result<TextTokenizer, DataError> {
        // Text that spells a special token is text: "<eos>" in a document must not end it.
        tokenizer.set_encode_special_tokens(true);
        let first = |names: &[&'static str]| {
            names.iter().copied().find(|token| tokenizer.token_to_id(token).is_some())
        };
        let eos = match eos {
            Some(token) => token,
            None => first(&EOS_NAMES).ok_or_else(|| {
                failed(
                    name,
                    format!(
                        "it has none of {}; name the token that closes a document (--eos)",
                        EOS_NAMES.join(", ")
                    ),
                )
            })?,
        };
        let bos = first(&BOS_NAMES).unwrap_or(eos);
        let id = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| {
                failed(
                    name,
                    format!("it has no token {token:?}; name the one that closes a document (--eos)"),
                )
            })
        };
        let (eos_id, bos_id) = (id(eos)?, id(bos)?);
        // Ids may have gaps: what counts is the largest.
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest >= LARGEST_VOCAB {
            return Err(failed(
                name,
                format!("its largest token id is {largest}, and ids end below {LARGEST_VOCAB}"),
            ));
        }
        let mut notes = Vec::new();
        // The closing token is special, whatever another tool noted about it.
        let plain = |token: &str| {
            let added = tokenizer.get_added_vocabulary();
            added.get_vocab().contains_key(token) && !added.is_special_token(token)
        };
        let mut closing: Vec<&str> = [eos, bos].into_iter().filter(|token| plain(token)).collect();
        closing.dedup();
        if !closing.is_empty() {
            notes.push(format!(
                "{} is not marked as special in the tokenizer; where a document spells it, it is text all the same",
                closing.join(" and ")
            ));
            let tokens: Vec<AddedToken> =
                closing.into_iter().map(|token| AddedToken::from(token, true)).collect();
            tokenizer.add_special_tokens(tokens).map_err(|error| {
                failed(name, format!("its closing token cannot be made special: {error}"))
            })?;
        }
        // As the library writes it, so that defaults are filled in and older forms are gone.
        let json = tokenizer
            .to_string(false)
            .map_err(|error| failed(name, format!("cannot be written: {error}")))?;
        let json: Value = serde_json::from_str(&json)
            .map_err(|error| failed(name, format!("cannot be written: {error}")))?;
        let fast = ByteLevel::of(&json);
        let cuts = match &fast {
            Some(fast) if fast.can_cut() => Cuts::Words,
            None if words_begin_with_spaces(&json) => Cuts::Spaces,
            _ => Cuts::Nowhere,
        };
        let vocab = Vocabulary { size: largest + 1, bos: bos_id, eos: eos_id };
        Ok(TextTokenizer { tokenizer, fast, cuts, vocab, name: name.to_owned(), notes })
    }

    pub(crate) fn vocab(&self) -> Vocabulary {
        self.vocab
    }

    /// What the user may not expect of it.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Bytes of text that are encoded at a time, at most: the `tokenizers` crate takes over 100 times as much
    /// memory.
    pub(crate) fn most_bytes(&self) -> u64 {
        if self.fast.is_some() { MOST_RECORD_BYTES } else { MOST_RECORD_BYTES / 8 }
    }

    /// The first place from `start` on where a document may be cut without a change of any token.
    pub(crate) fn cut_after(&self, text: &str, start: usize) -> Option<usize> {
        let start = (start.max(1)..text.len()).find(|&at| text.is_char_boundary(at))?;
        match (self.cuts, &self.fast) {
            (Cuts::Words, Some(fast)) => {
                let mut before = text[..start].chars().next_back()?;
                text[start..].char_indices().find_map(|(at, after)| {
                    let before = std::mem::replace(&mut before, after);
                    fast.may_cut(before, after).then_some(start + at)
                })
            }
            (Cuts::Spaces, _) => text[start..].find(' ').map(|at| start + at),
            _ => None,
        }
    }

    /// Whether [`TextTokenizer::cut_after`] can find a place.
    pub(crate) fn can_cut(&self) -> bool {
        self.cuts != Cuts::Nowhere
    }

    /// Appends the tokens of a document or a piece of it, without BOS or EOS.
    pub(crate) fn encode(
        &self,
        piece: Piece<'_>,
        memory: &mut Memory,
        out: &mut Vec<u32>,
    ) -> Result<(), DataError> {
        // The regex library panics where a text exceeds its limits.
        let encoded = guarded(|| {
            if let Some(fast) = self.fast.as_ref().filter(|fast| fast.takes(piece.text)) {
                fast.encode(piece, memory, out);
            } else {
                out.extend_from_slice(self.tokenizer.encode_fast(piece.text, false)?.get_ids());
            }
            Ok::<(), tokenizers::Error>(())
        });
        encoded.map_err(|error| {
            let start: String = piece.text.chars().take(40).collect();
            failed(&self.name, format!("it cannot encode the text that begins with {start:?}: {error}"))
        })
    }

    /// The `tokenizer.json`.
    pub(crate) fn to_json(&self) -> Result<String, DataError> {
        self.tokenizer
            .to_string(true)
            .map_err(|error| failed(&self.name, format!("cannot be written: {error}")))
    }
}

/// Removes the settings that another tool stored for its own calls; what was removed, as notes.
fn remove_state(json: &mut Value) -> Vec<String> {
    let mut notes = Vec::new();
    for (key, effect) in [("truncation", "documents are encoded whole"), ("padding", "nothing is filled up")]
    {
        if let Some(state) = json.get_mut(key).filter(|state| !state.is_null()) {
            *state = Value::Null;
            notes.push(format!("the {key} that the tokenizer stores is not applied: {effect}"));
        }
    }
    if let Some(dropout) = json.pointer_mut("/model/dropout").filter(|dropout| !dropout.is_null()) {
        if dropout.as_f64() != Some(0.0) {
            notes.push(format!(
                "the dropout of {dropout} that the tokenizer stores is not applied: tokens are not random"
            ));
        }
        *dropout = Value::Null;
    }
    notes
}

/// Whether every word that the pre-tokenizer makes begins with a space, so that a document may be cut before
/// any.
fn words_begin_with_spaces(json: &Value) -> bool {
    let added = json["added_tokens"].as_array();
    let special = |token: &Value| token["special"].as_bool() == Some(true);
    json["normalizer"].is_null()
        && json["pre_tokenizer"]["type"] == "Metaspace"
        && json["pre_tokenizer"]["split"] == true
        && added.is_none_or(|tokens| tokens.iter().all(special))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stored_state_is_removed_and_named() {
        let mut json = json!({
            "truncation": {"max_length": 16}, "padding": {"strategy": "BatchLongest"},
            "model": {"dropout": 0.1, "vocab": {}}, "normalizer": {"type": "NFC"}
        });
        let notes = remove_state(&mut json);
        assert_eq!(notes.len(), 3);
        for (note, word) in notes.iter().zip(["truncation", "padding", "dropout of 0.1"]) {
            assert!(note.contains(word), "{note}");
        }
        assert_eq!(
            json,
            json!({"truncation": null, "padding": null, "model": {"dropout": null, "vocab": {}},
                   "normalizer": {"type": "NFC"}})
        );
        assert!(remove_state(&mut json).is_empty());
        assert!(remove_state(&mut json!([1])).is_empty());
    }

    /// A word-level tokenizer, so that nothing but the surroundings matters.
    fn tokenizer(pre_tokenizer: Value, added: Value) -> Result<TextTokenizer, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let json = json!({
            "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": pre_tokenizer,
            "post_processor": null, "decoder": null, "truncation": null, "padding": null,
            "model": {"type": "WordLevel", "vocab": {"</s>": 0, "<unk>": 1, "▁a": 2, "▁": 3, "a": 4}, "unk_token": "<unk>"}
        });
        std::fs::write(&path, json.to_string()).unwrap();
        TextTokenizer::read(&path, None)
    }

    fn tokens(tokenizer: &TextTokenizer, text: &str, starts: bool) -> Vec<u32> {
        let mut out = Vec::new();
        tokenizer.encode(Piece { text, starts }, &mut Memory::default(), &mut out).unwrap();
        out
    }

    #[test]
    fn metaspace_is_cut_before_spaces_only() {
        for scheme in ["always", "first", "never"] {
            let metaspace =
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
            let tokenizer = tokenizer(metaspace, json!([])).unwrap();
            let text = "a a  a\na ▁a   a";
            let whole = tokens(&tokenizer, text, true);
            let mut cuts = 0;
            let mut start = 1;
            while let Some(at) = tokenizer.cut_after(text, start) {
                let mut parts = tokens(&tokenizer, &text[..at], true);
                parts.extend(tokens(&tokenizer, &text[at..], false));
                assert_eq!(parts, whole, "{scheme}, cut at {at}");
                (cuts, start) = (cuts + 1, at + 1);
            }
            assert_eq!(cuts, 7);
        }
        let unsplit =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false});
        assert!(!tokenizer(unsplit, json!([])).unwrap().can_cut());
    }

    #[test]
    fn the_closing_token_is_never_made_of_text() {
        let plain = json!([{"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                            "normalized": false, "special": false}]);
        let whitespace = json!({"type": "WhitespaceSplit"});
        let made = tokenizer(whitespace.clone(), plain).unwrap();
        assert_eq!(tokens(&made, "a</s>a", true), [1], "one unknown word");
        assert!(made.notes()[0].contains("</s> is not marked as special"), "{:?}", made.notes());
    }

    #[test]
    fn damaged_files_are_refused_without_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.json");
        for text in [
            r#"{"version":"1.0","decoder":{"type":"#,
            r#"{"version":"1.0","decoder":{"type":"ByteLevel"}}"#,
            r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":1},"merges":["a"]},"decoder":{"typ":1}}"#,
            "[]",
            "",
        ] {
            std::fs::write(&path, text).unwrap();
            let error =
                TextTokenizer::read(&path, None).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("cut.json") && error.contains("not a tokenizer.json"), "{text}: {error}");
        }
        let huge = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"</s>":4294967295},"unk_token":"</s>"}}"#;
        std::fs::write(&path, huge).unwrap();
        assert!(TextTokenizer::read(&path, None).is_err());
    }
}
