//! A 64-bit key of every n-gram, for counting distinct ones.
//!
//! The key of order n at a position is a hash of exactly what the row ids of order n are computed from: the token there
//! and the n − 1 tokens before it in its segment, 0 where there is none. Equal n-grams have equal keys in any batch of
//! any worker; different ones share a key once in 2^64. A position whose token is left out of n-grams has none.

use crate::error::NgramError;
use crate::hasher::{Context, Hasher, MAX_DEPTH};

/// 2^64 over the golden ratio, odd.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Tells `each` the key of every n-gram of B sequences of T tokens, each beginning a segment: the place of its order
/// (0 for order 2) and the key.
///
/// `tokens_bt` is `[B, T]`. The tokens must be ones that [`crate::batch_ids`] accepts.
///
/// # Errors
/// [`NgramError::Shape`] where the tokens are not whole sequences.
pub fn batch_keys(
    hasher: &Hasher,
    tokens_bt: &[u32],
    seq_len: usize,
    mut each: impl FnMut(usize, u64),
) -> Result<(), NgramError> {
    if seq_len == 0 || !tokens_bt.len().is_multiple_of(seq_len) {
        let expected = tokens_bt.len().checked_div(seq_len).unwrap_or(0) * seq_len;
        return Err(NgramError::Shape { what: "the token buffer", actual: tokens_bt.len(), expected });
    }
    for tokens in tokens_bt.chunks_exact(seq_len) {
        let mut context = Context::default();
        for &token in tokens {
            if hasher.ignores(token) {
                context = Context::default();
                continue;
            }
            let mut key = mix(u64::from(token).wrapping_add(STEP));
            for (order, earlier) in context[..hasher.orders()].iter().enumerate() {
                key = mix(key.wrapping_mul(STEP) ^ earlier);
                each(order, key);
            }
            if token == hasher.eos() {
                context = Context::default();
            } else {
                context.copy_within(0..MAX_DEPTH - 1, 1);
                context[0] = u64::from(token);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use polygram_domain::model::{Amplification, NgramSpec, Normalizer};
    use proptest::prelude::*;

    use super::*;
    use crate::batch_ids;

    const EOS: u32 = 2;

    fn hasher() -> Hasher {
        // Of 10,011 rows and more: an n-gram of up to four of ten tokens is its row's decimal number.
        let spec = NgramSpec {
            max_order: 4,
            heads: 1,
            hash_vocab_size: 10,
            ignored_tokens: vec![9],
            ratio: 1001.0,
            normalizer: Normalizer::Mean,
            amplification: Amplification::None,
        };
        Hasher::new(&spec, EOS).unwrap()
    }

    proptest! {
        /// Row ids in tables that hold every n-gram apart are the n-grams: keys must part them alike.
        #[test]
        fn keys_part_n_grams_as_perfect_tables_do(raw in prop::collection::vec(0u32..10, 0..400), seq_len in 1usize..40) {
            let tokens = &raw[..raw.len() / seq_len * seq_len];
            let hasher = hasher();
            let ids = batch_ids(&hasher, tokens, seq_len).unwrap();
            let mut keys = vec![Vec::new(); 3];
            batch_keys(&hasher, tokens, seq_len, |order, key| keys[order].push(key)).unwrap();
            let counted = tokens.iter().filter(|&&token| token != 9).count();
            for (order, keys) in keys.iter().enumerate() {
                prop_assert_eq!(keys.len(), counted);
                let rows = tokens.iter().zip(ids.chunks_exact(3)).filter(|(token, _)| **token != 9);
                let mut row_of = BTreeMap::new();
                for (key, (_, ids)) in keys.iter().zip(rows) {
                    prop_assert_eq!(*row_of.entry(*key).or_insert(ids[order]), ids[order]);
                }
                let distinct: BTreeSet<u32> = row_of.values().copied().collect();
                prop_assert_eq!(distinct.len(), row_of.len(), "two n-grams of order {} share a row", order + 2);
            }
        }
    }

    #[test]
    fn half_a_sequence_is_refused() {
        assert!(batch_keys(&hasher(), &[1, 2, 3], 2, |_, _| ()).is_err());
        assert!(batch_keys(&hasher(), &[1, 2, 3], 0, |_, _| ()).is_err());
    }
}
