//! Byte-level BPE to ids only, for the tokenizers that most models use: several times faster than the
//! `tokenizers` crate, which builds offsets, strings and masks for every token.
//!
//! Equal to the crate, token by token: what is not known to be equal is left to the crate, a tokenizer as a
//! whole ([`ByteLevel::of`] gives `None`) or a single text ([`ByteLevel::takes`]). Tests compare both on
//! random and on adversarial text. Crates that promise the same (`tokie`, `snaptokens`, `tokenizers` 1.0) had
//! no stable release in November 2026.

mod added;
mod classes;
mod merges;
mod words;

use std::collections::HashMap;

use ahash::RandomState;
use serde_json::Value;
use tokenizers::utils::SysRegex;

use added::{AddedTokens, Section};
use classes::Classes;
use merges::{Merges, Scratch};
use words::{LLAMA3, QWEN2};

pub(crate) use merges::letters;
pub(crate) use words::Words;

/// Words that are remembered, a thread.
const CACHED_WORDS: usize = 1 << 18;
/// Longer words are not remembered.
const CACHED_BYTES: usize = 64;
/// Regexes that divide text one after another, at most.
const MOST_REGEXES: usize = 16;

/// A byte-level BPE tokenizer.
pub(crate) struct ByteLevel {
    added: AddedTokens,
    words: Words,
    merges: Merges,
    /// A text that does not begin with a space gets one.
    prefix_space: bool,
    /// Only text in ASCII is taken: a Unicode normal form leaves it as it is.
    ascii_only: bool,
}

impl ByteLevel {
    /// Of a `tokenizer.json` as the crate writes it; `None` when it has a part that is not known here.
    pub(crate) fn of(json: &Value) -> Option<ByteLevel> {
        let ascii_only = match &json["normalizer"] {
            Value::Null => false,
            Value::Object(normalizer) => {
                let kind = normalizer.get("type")?.as_str()?;
                if !["NFC", "NFD", "NFKC", "NFKD"].contains(&kind) {
                    return None;
                }
                true
            }
            _ => return None,
        };
        let (words, prefix_space) = words_of(&json["pre_tokenizer"])?;
        if ascii_only && prefix_space {
            return None;
        }
        let added = AddedTokens::of(&json["added_tokens"])?;
        if ascii_only && !added.spellings().iter().all(|spelling| spelling.is_ascii()) {
            return None;
        }
        Some(ByteLevel { added, words, merges: Merges::of(&json["model"])?, prefix_space, ascii_only })
    }

    /// Whether `text` is encoded here; otherwise the crate must.
    pub(crate) fn takes(&self, text: &str) -> bool {
        !self.ascii_only || text.is_ascii()
    }

    /// Whether a document may be encoded in pieces that end where [`ByteLevel::may_cut`] says.
    pub(crate) fn can_cut(&self) -> bool {
        let crosses = |spelling: &String| {
            let mut characters = spelling.chars().zip(spelling.chars().skip(1));
            characters.any(|(before, after)| self.words.may_cut(before, after))
        };
        self.words.can_cut() && !self.added.spellings().iter().any(crosses)
    }

    /// Whether a document may be cut between these two characters.
    pub(crate) fn may_cut(&self, before: char, after: char) -> bool {
        // A piece that begins with a space never gets one in front.
        self.words.may_cut(before, after) && (!self.prefix_space || after == ' ')
    }

    /// Appends the tokens of `piece`.
    pub(crate) fn encode(&self, piece: Piece<'_>, memory: &mut Memory, out: &mut Vec<u32>) {
        let Piece { text, starts } = piece;
        let mut first = starts;
        self.added.visit(text, |section| {
            match section {
                Section::Token(token) => out.push(token),
                Section::Text(range) => {
                    let section = &text[range];
                    if self.prefix_space && first && !section.starts_with(' ') {
                        let spaced = format!(" {section}");
                        self.words.visit(&spaced, |word| self.encode_word(word.as_bytes(), memory, out));
                    } else {
                        self.words.visit(section, |word| self.encode_word(word.as_bytes(), memory, out));
                    }
                }
            }
            first = true;
        });
    }

    fn encode_word(&self, word: &[u8], memory: &mut Memory, out: &mut Vec<u32>) {
        let Memory { words, tokens, scratch } = memory;
        if word.len() > CACHED_BYTES {
            self.merges.encode(word, scratch, out);
            return;
        }
        if let Some(&(start, count)) = words.get(word) {
            out.extend_from_slice(&tokens[start as usize..start as usize + count as usize]);
            return;
        }
        let before = out.len();
        self.merges.encode(word, scratch, out);
        if words.len() == CACHED_WORDS {
            words.clear();
            tokens.clear();
        }
        // At most 2^18 words of 64 tokens: far below 2^32.
        words.insert(word.into(), (tokens.len() as u32, (out.len() - before) as u32));
        tokens.extend_from_slice(&out[before..]);
    }
}

/// A text to encode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'t> {
    /// The text.
    pub(crate) text: &'t str,
    /// It is the start of a document.
    pub(crate) starts: bool,
}

/// What one thread remembers: the tokens of words it has met.
#[derive(Default)]
pub(crate) struct Memory {
    words: HashMap<Box<[u8]>, (u32, u32), RandomState>,
    tokens: Vec<u32>,
    scratch: Scratch,
}

/// How a `pre_tokenizer` divides text, and whether it puts a space in front; `None` when that is not known
/// here.
fn words_of(pre_tokenizer: &Value) -> Option<(Words, bool)> {
    let classes = Classes::shared()?;
    let flag = |value: &Value, key: &str, default: bool| match &value[key] {
        Value::Null => Some(default),
        Value::Bool(flag) => Some(*flag),
        _ => None,
    };
    match pre_tokenizer["type"].as_str()? {
        "ByteLevel" if flag(pre_tokenizer, "use_regex", true)? => {
            Some((Words::Gpt2(classes), flag(pre_tokenizer, "add_prefix_space", true)?))
        }
        "Sequence" => {
            let (last, splits) = pre_tokenizer["pretokenizers"].as_array()?.split_last()?;
            let plain = last["type"] == "ByteLevel"
                && !flag(last, "use_regex", true)?
                && !flag(last, "add_prefix_space", true)?;
            if !plain || splits.is_empty() || splits.len() > MOST_REGEXES {
                return None;
            }
            let patterns: Vec<&str> = splits.iter().map(regex_of).collect::<Option<_>>()?;
            let words = match patterns.as_slice() {
                [LLAMA3] => Words::Llama { classes, digits: 3 },
                [QWEN2] => Words::Llama { classes, digits: 1 },
                patterns => {
                    let regexes = patterns.iter().map(|pattern| SysRegex::new(pattern).ok());
                    Words::Regexes(regexes.collect::<Option<_>>()?)
                }
            };
            Some((words, false))
        }
        _ => None,
    }
}

/// The regex of a `Split` that keeps matches as words of their own.
fn regex_of(split: &Value) -> Option<&str> {
    let isolated = split["type"] == "Split" && split["behavior"] == "Isolated";
    if isolated && split["invert"].as_bool() == Some(false) {
        split["pattern"]["Regex"].as_str()
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
