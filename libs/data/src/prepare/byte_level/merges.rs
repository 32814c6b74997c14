//! Merges of byte-level BPE: a word's bytes to token ids.
//!
//! Always the pair of lowest rank is merged, the leftmost of equal ones, until no pair has a merge
//! (tokenizers, `models/bpe/word.rs`, `merge_all`).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use ahash::RandomState;
use serde_json::Value;

/// Words of up to so many bytes are merged by looking at every pair each time, longer ones with a heap.
const SHORT: usize = 32;
/// No merge, no neighbour.
const NONE: u32 = u32::MAX;

/// A merge: its rank and the token it makes.
#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    token: u32,
}

const NO_MERGE: Merge = Merge { rank: NONE, token: NONE };

/// The merges of a vocabulary that has a token for every byte.
pub(crate) struct Merges {
    bytes: [u32; 256],
    pairs: HashMap<(u32, u32), Merge, RandomState>,
    /// Tokens by their bytes, where a word that is a token is not to be merged (`ignore_merges`).
    whole: Option<HashMap<Box<[u8]>, u32, RandomState>>,
}

/// What merging needs again and again.
#[derive(Default)]
pub(crate) struct Scratch {
    tokens: Vec<u32>,
    pairs: Vec<Merge>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

impl Merges {
    /// Of the `model` of a `tokenizer.json`; `None` when it is not plain byte-level BPE.
    pub(crate) fn of(model: &Value) -> Option<Merges> {
        let absent = |key: &str| match &model[key] {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        if model["type"] != "BPE" || !absent("continuing_subword_prefix") || !absent("end_of_word_suffix") {
            return None;
        }
        if model["dropout"].as_f64().is_some_and(|dropout| dropout > 0.0) {
            return None;
        }
        let vocab = model["vocab"].as_object()?;
        let id = |token: &str| vocab.get(token)?.as_u64().and_then(|id| u32::try_from(id).ok());
        let letters = letters();
        let mut bytes = [0; 256];
        for (letter, token) in letters.iter().zip(&mut bytes) {
            *token = id(letter.encode_utf8(&mut [0; 4]))?;
        }
        let mut pairs = HashMap::with_hasher(RandomState::new());
        for (rank, merge) in model["merges"].as_array()?.iter().enumerate() {
            let (left, right) = match merge {
                Value::String(text) => text.split_once(' ')?,
                Value::Array(two) => match two.as_slice() {
                    [Value::String(left), Value::String(right)] => (left.as_str(), right.as_str()),
                    _ => return None,
                },
                _ => return None,
            };
            let merge = Merge { rank: u32::try_from(rank).ok()?, token: id(&format!("{left}{right}"))? };
            pairs.insert((id(left)?, id(right)?), merge);
        }
        let whole = match &model["ignore_merges"] {
            Value::Bool(true) => {
                let byte_of: HashMap<char, u8> = letters.iter().copied().zip(0..=u8::MAX).collect();
                let mut whole = HashMap::with_hasher(RandomState::new());
                for (text, token) in vocab {
                    let bytes: Option<Box<[u8]>> = text.chars().map(|c| byte_of.get(&c).copied()).collect();
                    if let Some(bytes) = bytes {
                        whole.insert(bytes, u32::try_from(token.as_u64()?).ok()?);
                    }
                }
                Some(whole)
            }
            Value::Bool(false) | Value::Null => None,
            _ => return None,
        };
        Some(Merges { bytes, pairs, whole })
    }

    /// Appends the tokens of `word`.
    pub(crate) fn encode(&self, word: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if let Some(token) = self.whole.as_ref().and_then(|whole| whole.get(word)) {
            out.push(*token);
            return;
        }
        scratch.tokens.clear();
        scratch.tokens.extend(word.iter().map(|&byte| self.bytes[byte as usize]));
        if word.len() <= SHORT {
            self.merge_short(scratch, out);
        } else {
            self.merge_long(scratch, out);
        }
    }

    fn pair(&self, left: u32, right: u32) -> Merge {
        self.pairs.get(&(left, right)).copied().unwrap_or(NO_MERGE)
    }

    fn merge_short(&self, Scratch { tokens, pairs, .. }: &mut Scratch, out: &mut Vec<u32>) {
        pairs.clear();
        pairs.extend(tokens.windows(2).map(|two| self.pair(two[0], two[1])));
        loop {
            let mut best = NO_MERGE;
            let mut at = 0;
            for (i, pair) in pairs.iter().enumerate() {
                if pair.rank < best.rank {
                    (best, at) = (*pair, i);
                }
            }
            if best.rank == NONE {
                break;
            }
            tokens[at] = best.token;
            tokens.remove(at + 1);
            pairs.remove(at);
            if at > 0 {
                pairs[at - 1] = self.pair(tokens[at - 1], best.token);
            }
            if at < pairs.len() {
                pairs[at] = self.pair(best.token, tokens[at + 1]);
            }
        }
        out.extend_from_slice(tokens);
    }

    /// Tokens as a linked list over their first bytes. An entry of the heap is out of date when its place no
    /// longer has the pair that it was made of, which then has another rank: no two pairs share one.
    fn merge_long(&self, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { tokens, next, previous, heap, .. } = scratch;
        let count = tokens.len() as u32;
        next.clear();
        next.extend((1..count).chain([NONE]));
        previous.clear();
        previous.extend([NONE].into_iter().chain(0..count - 1));
        heap.clear();
        heap.extend((0..count - 1).filter_map(|at| {
            let merge = self.pair(tokens[at as usize], tokens[at as usize + 1]);
            (merge.rank != NONE).then_some(Reverse((merge.rank, at, merge.token)))
        }));
        while let Some(Reverse((rank, at, token))) = heap.pop() {
            let right = next[at as usize];
            if tokens[at as usize] == NONE || right == NONE {
                continue;
            }
            if self.pair(tokens[at as usize], tokens[right as usize]).rank != rank {
                continue;
            }
            tokens[at as usize] = token;
            tokens[right as usize] = NONE;
            let after = next[right as usize];
            next[at as usize] = after;
            if after != NONE {
                previous[after as usize] = at;
                let merge = self.pair(token, tokens[after as usize]);
                if merge.rank != NONE {
                    heap.push(Reverse((merge.rank, at, merge.token)));
                }
            }
            let before = previous[at as usize];
            if before != NONE {
                let merge = self.pair(tokens[before as usize], token);
                if merge.rank != NONE {
                    heap.push(Reverse((merge.rank, before, merge.token)));
                }
            }
        }
        out.extend(tokens.iter().copied().filter(|&token| token != NONE));
    }
}

/// The character that stands for each byte in a byte-level vocabulary (GPT-2, `bytes_to_unicode`).
pub(crate) fn letters() -> [char; 256] {
    let mut letters = ['\0'; 256];
    let mut substitutes = (256..).filter_map(char::from_u32);
    for (byte, letter) in (0u8..=u8::MAX).zip(&mut letters) {
        *letter = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => substitutes.next().unwrap_or_default(),
        };
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn model(merges: &[(&str, &str)]) -> Value {
        let mut vocab = serde_json::Map::new();
        for (id, letter) in letters().iter().enumerate() {
            vocab.insert(letter.to_string(), json!(id));
        }
        for (left, right) in merges {
            let id = vocab.len();
            vocab.entry(format!("{left}{right}")).or_insert(json!(id));
        }
        json!({"type": "BPE", "vocab": vocab, "merges": merges})
    }

    #[test]
    fn letters_are_those_of_tokenizers() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert_eq!(letters().iter().copied().collect::<ahash::AHashSet<char>>(), alphabet);
        assert_eq!((letters()[0], letters()[b' ' as usize], letters()[0xad]), ('Ā', 'Ġ', 'Ń'));
    }

    #[test]
    fn long_and_short_words_merge_alike() {
        let merges =
            Merges::of(&model(&[("b", "c"), ("a", "a"), ("a", "b"), ("aa", "bc"), ("aa", "aa"), ("c", "c")]))
                .unwrap();
        let mut scratch = Scratch::default();
        for seed in 0u32..500 {
            let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
            let word: Vec<u8> = (0..2 + seed % 60)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    b"aaabcx"[(state >> 24) as usize % 6]
                })
                .collect();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            for (out, merge) in
                [(&mut short, Merges::merge_short as fn(&_, &mut _, &mut _)), (&mut long, Merges::merge_long)]
            {
                scratch.tokens = word.iter().map(|&byte| merges.bytes[byte as usize]).collect();
                merge(&merges, &mut scratch, out);
            }
            assert_eq!(short, long, "seed {seed}: {}", String::from_utf8_lossy(&word));
        }
    }

    #[test]
    fn other_models_are_left_to_the_library() {
        let base = model(&[("a", "b")]);
        assert!(Merges::of(&base).is_some());
        for (key, value) in [
            ("type", json!("Unigram")),
            ("continuing_subword_prefix", json!("##")),
            ("end_of_word_suffix", json!("</w>")),
            ("dropout", json!(0.1)),
            ("merges", json!([["a", "missing"]])),
            ("merges", json!("a b")),
            ("ignore_merges", json!("yes")),
        ] {
            let mut other = base.clone();
            other[key] = value.clone();
            assert!(Merges::of(&other).is_none(), "{key} = {value}");
        }
        let mut lacking = base.clone();
        lacking["vocab"].as_object_mut().unwrap().remove("Ġ");
        assert!(Merges::of(&lacking).is_none());
    }
}
