//! Documents that a run makes itself: text for trying things out, with something to learn for every n-gram order.
//!
//! A second-order Markov chain. Each token has four successors, drawn once with a bias towards small ids; which of
//! them is likely depends on the class (one of 16) of the token before it. A model that knows only bigrams is left
//! with a choice of four (up to ln 4 nats a token); one that knows trigrams reaches [`Synthetic::ENTROPY`].
//!
//! Everything is a function of (seed, position): blocks of 1024 tokens are made independently, each of whole documents
//! of 8 to 135 tokens that end with EOS. Training and held-out data follow the same chain at different places.

use std::ops::Range;

use polygram_domain::philox::{Purpose, Stream};

use crate::error::DataError;
use crate::source::{TokenSource, Vocabulary, checked_range};

/// Tokens of an independent block; its last one is EOS.
const BLOCK: u64 = 1024;
/// Tokens of a document, EOS included: `SHORTEST..SHORTEST + SPREAD`, more where the block's rest would be shorter.
const SHORTEST: u64 = 8;
const SPREAD: u64 = 128;
const SUCCESSORS: u64 = 4;
const CLASSES: u64 = 16;
/// Chance, of 256, that the context's own choice of successor is taken; otherwise any of the four.
const CERTAINTY: u32 = 224;

/// Counters of the stream: which kind of thing a random number decides.
const CHAIN_SUCCESSORS: u64 = 1 << 32;
const CHAIN_CHOICE: u64 = 2 << 32;

/// Which documents of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Training data.
    Train,
    /// Held-out data: the same chain, other documents.
    HeldOut,
}

/// A source of made-up documents.
#[derive(Clone, Debug)]
pub struct Synthetic {
    stream: Stream,
    part: Part,
    tokens: u64,
    eos: u32,
    /// Tokens that documents are made of: all but these, which rise.
    reserved: Vec<u32>,
    ordinary: u64,
}

impl Synthetic {
    /// Nats a token (EOS aside) that remain once the chain is known: the entropy of one successor of weight 29/32 and
    /// three of 1/32.
    pub const ENTROPY: f64 = 0.414_124_1;

    /// `tokens` tokens of the chain of `seed`. Token 0, BOS and EOS do not occur inside documents. Refuses vocabularies
    /// of fewer than 8 tokens.
    pub fn new(seed: u64, part: Part, tokens: u64, vocab: Vocabulary) -> Result<Synthetic, DataError> {
        if vocab.size < 8 || vocab.eos >= vocab.size {
            return Err(DataError::IllegalOption {
                option: "model.vocab_size",
                value: vocab.size.to_string(),
                wanted: format!("at least 8 and above the EOS token {} for synthetic data", vocab.eos),
            });
        }
        let mut reserved: Vec<u32> = vec![0, vocab.bos, vocab.eos];
        reserved.retain(|&token| token < vocab.size);
        reserved.sort_unstable();
        reserved.dedup();
        let ordinary = u64::from(vocab.size) - reserved.len() as u64;
        let stream = Stream::new(seed, Purpose::SyntheticData);
        Ok(Synthetic { stream, part, tokens, eos: vocab.eos, reserved, ordinary })
    }

    /// The ordinary token of a rank in `0..ordinary`: the reserved ones are stepped over.
    fn token_of(&self, rank: u64) -> u32 {
        self.reserved.iter().fold(rank as u32, |token, &reserved| token + u32::from(token >= reserved))
    }

    /// A token from 32 random bits, small ids more often: the rank is the square of a uniform number.
    fn biased(&self, word: u32) -> u32 {
        let word = u64::from(word);
        let square = (word * word) >> 32;
        self.token_of((square * self.ordinary) >> 32)
    }

    /// The token after `before`, `last`, chosen by the 32 random bits of its position.
    fn successor(&self, before: u32, last: u32, word: u32) -> u32 {
        let class = u64::from(before) % CLASSES;
        let [preferred, ..] = self.stream.words(CHAIN_CHOICE | class, u64::from(last));
        let choice = if word % 256 < CERTAINTY { preferred } else { word >> 8 };
        let successors = self.stream.words(CHAIN_SUCCESSORS, u64::from(last));
        self.biased(successors[(u64::from(choice) % SUCCESSORS) as usize])
    }

    /// All tokens of a block.
    fn block(&self, block: u64) -> Vec<u32> {
        let part = match self.part {
            Part::Train => 0,
            Part::HeldOut => 1,
        };
        let mut tokens: Vec<u32> = Vec::with_capacity(BLOCK as usize);
        let mut end = 0;
        let mut start = 0;
        while (tokens.len() as u64) < BLOCK {
            let at = tokens.len() as u64;
            let [choice, length, first, second] =
                self.stream.words(part, block.wrapping_mul(BLOCK).wrapping_add(at));
            if at == end {
                start = at;
                end = at + SHORTEST + u64::from(length) % SPREAD;
                if end + SHORTEST > BLOCK {
                    end = BLOCK;
                }
            }
            tokens.push(match at - start {
                _ if at + 1 == end => self.eos,
                0 => self.biased(first),
                1 => self.biased(second),
                _ => self.successor(tokens[at as usize - 2], tokens[at as usize - 1], choice),
            });
        }
        tokens
    }
}

impl TokenSource for Synthetic {
    fn name(&self) -> &str {
        match self.part {
            Part::Train => "synthetic training data",
            Part::HeldOut => "synthetic held-out data",
        }
    }

    fn token_count(&self) -> u64 {
        self.tokens
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u32>, DataError> {
        checked_range(self, &range)?;
        let mut out = Vec::with_capacity((range.end - range.start) as usize);
        let mut at = range.start;
        while at < range.end {
            let block = self.block(at / BLOCK);
            let from = at % BLOCK;
            let to = (range.end - at / BLOCK * BLOCK).min(BLOCK);
            out.extend_from_slice(&block[from as usize..to as usize]);
            at += to - from;
        }
        Ok(out)
    }

    /// Counted within the block: documents before it are not known without making them.
    fn document_of(&self, position: u64) -> u64 {
        let block = self.block(position / BLOCK);
        block[..(position % BLOCK) as usize].iter().filter(|&&token| token == self.eos).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn vocab(size: u32) -> Vocabulary {
        Vocabulary { size, bos: 1, eos: 2 }
    }

    fn source(seed: u64, part: Part, size: u32) -> Synthetic {
        Synthetic::new(seed, part, 1 << 22, vocab(size)).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_range_is_a_cut_of_the_whole(seed: u64, start in 0u64..5000, length in 0u64..3000, size in 8u32..1000) {
            let source = source(seed, Part::Train, size);
            let whole = source.read(0..8192).unwrap();
            prop_assert_eq!(&source.read(start..start + length).unwrap(), &whole[start as usize..(start + length) as usize]);
            prop_assert!(whole.iter().all(|&t| t < size && t != 0 && t != 1));
        }
    }

    #[test]
    fn documents_vary_and_end_with_eos() {
        let tokens = source(5, Part::Train, 512).read(0..1 << 16).unwrap();
        let lengths: Vec<usize> = tokens.split_inclusive(|&t| t == 2).map(<[u32]>::len).collect();
        assert!(lengths.iter().all(|&n| (8..=143).contains(&n)), "{lengths:?}");
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        assert!((50..90).contains(&mean), "mean length {mean}");
        assert_eq!(tokens.last(), Some(&2));
    }

    #[test]
    fn seeds_and_parts_differ() {
        let base = source(5, Part::Train, 512).read(0..1000).unwrap();
        assert_ne!(base, source(6, Part::Train, 512).read(0..1000).unwrap());
        assert_ne!(base, source(5, Part::HeldOut, 512).read(0..1000).unwrap());
        let far = Synthetic::new(5, Part::Train, u64::MAX, vocab(512)).unwrap();
        assert_eq!(far.read(u64::MAX - 7..u64::MAX).unwrap().len(), 7);
        assert!(far.read(Range { start: 5, end: 4 }).is_err());
        assert!(source(5, Part::Train, 512).read((1 << 22) - 1..(1 << 22) + 1).is_err());
    }

    /// Counts of the next token given the last `order` tokens, trained on one part and tried on the other.
    fn cross_entropy(order: usize, size: u32) -> f64 {
        let train = source(5, Part::Train, size).read(0..1 << 20).unwrap();
        let test = source(5, Part::HeldOut, size).read(0..1 << 16).unwrap();
        let mut counts: HashMap<&[u32], HashMap<u32, f64>> = HashMap::new();
        for window in train.windows(order + 1) {
            *counts.entry(&window[..order]).or_default().entry(window[order]).or_default() += 1.0;
        }
        let mut nats = 0.0;
        for window in test.windows(order + 1) {
            let next = counts.get(&window[..order]);
            let total: f64 = next.map_or(0.0, |next| next.values().sum());
            let count = next.and_then(|next| next.get(&window[order])).copied().unwrap_or(0.0);
            nats -= ((count + 0.02) / (total + 0.02 * f64::from(size))).ln();
        }
        nats / (test.len() - order) as f64
    }

    #[test]
    fn longer_contexts_predict_better() {
        let [unigram, bigram, trigram] = [0, 1, 2].map(|order| cross_entropy(order, 256));
        assert!(unigram > bigram + 1.5, "{unigram} {bigram}");
        assert!(bigram > trigram + 0.2, "{bigram} {trigram}");
        assert!(trigram < 1.0, "{trigram}");
    }

    #[test]
    fn refuses_tiny_vocabularies() {
        assert!(Synthetic::new(1, Part::Train, 10, vocab(7)).is_err());
        assert!(Synthetic::new(1, Part::Train, 10, Vocabulary { size: 9, bos: 1, eos: 9 }).is_err());
        let odd = Synthetic::new(1, Part::Train, 5000, Vocabulary { size: 8, bos: 7, eos: 6 }).unwrap();
        assert!(odd.read(0..5000).unwrap().iter().all(|t| (1..=6).contains(t)));
    }
}
