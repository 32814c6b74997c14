//! A cheap hash of runs of weights, for fingerprints that are added up in any order. Not against an adversary.

use multiversion::multiversion;

/// Multiplier between steps and names: 2^64 over the golden ratio, made odd.
pub const CHAIN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Multiplier between spans.
pub const SPAN: u64 = 0xd1b5_4a32_d192_ed03;
/// Pairs of words of a span.
const PAIRS: usize = 64;
/// One number a pair of a span.
pub const KEYS: [u64; PAIRS] = keys();

const fn keys() -> [u64; PAIRS] {
    let mut keys = [0; PAIRS];
    let mut i = 0;
    while i < PAIRS {
        keys[i] = mix(CHAIN.wrapping_mul(i as u64 + 1));
        i += 1;
    }
    keys
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
#[inline]
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Hash of `weights`, which are words w of four bytes, little-endian, zeros behind the last.
///
/// Over each span of 128 words it takes Σ (w₂ᵢ ⊕ k₂ᵢ)·(w₂ᵢ₊₁ ⊕ k₂ᵢ₊₁) modulo 2^64 with fixed keys, as XXH3 does (and NH
/// of UMAC, Black et al. 1999, §4, with sums in the place of ⊕). `seed` names what is hashed; [`mix`] what comes out.
#[multiversion(targets("x86_64+avx2+bmi2", "x86_64+avx512f+avx512bw+avx512dq+avx512vl"))]
pub fn word_hash(weights: &[u8], seed: u64) -> u64 {
    let (pairs, rest) = weights.as_chunks::<8>();
    // Whole spans apart: their length is known, and that is the common row of 128 weights.
    let (spans, tail) = pairs.as_chunks::<PAIRS>();
    let mut sum = seed;
    for span in spans {
        let mut total = 8 * PAIRS as u64;
        for (pair, key) in span.iter().zip(&KEYS) {
            total = total.wrapping_add(product(*pair, *key));
        }
        sum = sum.wrapping_mul(SPAN).wrapping_add(total);
    }
    if tail.is_empty() && rest.is_empty() {
        return sum;
    }
    let mut total = (8 * tail.len() + rest.len()) as u64;
    for (pair, key) in tail.iter().zip(&KEYS) {
        total = total.wrapping_add(product(*pair, *key));
    }
    if !rest.is_empty() {
        let mut pair = [0; 8];
        pair[..rest.len()].copy_from_slice(rest);
        total = total.wrapping_add(product(pair, KEYS[tail.len()]));
    }
    sum.wrapping_mul(SPAN).wrapping_add(total)
}

#[inline(always)]
fn product(pair: [u8; 8], key: u64) -> u64 {
    let pair = u64::from_le_bytes(pair) ^ key;
    (pair & 0xffff_ffff) * (pair >> 32)
}
