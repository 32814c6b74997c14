//! bfloat16, the upper half of an f32: exact widening, and rounding to nearest.

use multiversion::multiversion;

/// Widens bf16 `bits` into `values`; exact.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn widen(bits: &[u16], values: &mut [f32]) {
    for (value, &bits) in values.iter_mut().zip(bits) {
        *value = f32::from_bits(u32::from(bits) << 16);
    }
}

/// Rounds `values` to bf16: to nearest, ties to even. Infinities stay, and what is not a number stays so.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn round_to_nearest(values: &[f32], rounded: &mut [u16]) {
    for (rounded, value) in rounded.iter_mut().zip(values) {
        let bits = value.to_bits();
        let even = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
        // The quiet bit keeps a NaN whose upper bits are all zero from becoming an infinity.
        *rounded = (if is_nan { bits | 0x0040_0000 } else { even } >> 16) as u16;
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::philox::{Purpose, Stream};

    #[test]
    fn rounding_is_that_of_half() {
        let random = Stream::new(3, Purpose::SyntheticData);
        let edges = [
            0u32,
            1,
            0x7fff,
            0x8000,
            0x8001,
            0x1_8000,
            0x80_0000,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7fc0_0000,
            0x7fff_ffff,
        ];
        let drawn = (0..50_000u64).flat_map(|i| random.words(1, i));
        let bits: Vec<u32> = edges.into_iter().chain(edges.map(|bits| bits | 1 << 31)).chain(drawn).collect();
        let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let mut rounded = vec![0; values.len()];
        round_to_nearest(&values, &mut rounded);
        let mut back = vec![0.0; values.len()];
        widen(&rounded, &mut back);
        for ((value, rounded), back) in values.iter().zip(rounded).zip(back) {
            assert_eq!(rounded, bf16::from_f32(*value).to_bits(), "{:#010x}", value.to_bits());
            assert_eq!(back.is_nan(), value.is_nan());
            assert_eq!(back.to_bits(), bf16::from_bits(rounded).to_f32().to_bits(), "{rounded:#06x}");
        }
    }
}
