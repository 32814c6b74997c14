//! Functions of single values, and sums with a fixed number of partial sums.

use std::ops::Range;

use tch::Tensor;

use super::parallel::{for_blocks, rows_per_block};
use super::rows::Rows;
use super::vectorized;
use crate::error::Result;

/// Partial sums of a sum over neighbouring values.
pub(super) const LANES: usize = 16;

/// eˣ within 2 units in the last place; 0 or a huge number beyond what f32 holds, NaN of NaN. Written without branches, so
/// that loops over it become vector instructions.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that its multiples are exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.0, 88.5);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2[0]) - n * LN2[1];
    // Taylor's series; |r| ≤ ln 2 / 2, so what is left out is below 6e-9.
    let series = 1.0 / 5040.0;
    let series = series * r + 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let value = (series * r) * r + r + 1.0;
    // Times 2ⁿ, in the exponent's bits.
    f32::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The nearest bf16, ties to even, as f32; NaN stays NaN.
#[inline(always)]
pub(super) fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    if x.is_nan() { x } else { f32::from_bits(rounded) }
}

/// `x`, rounded where the reader wants it so.
#[inline(always)]
pub(super) fn rounded_if(rounds: bool, x: f32) -> f32 {
    if rounds { round_bf16(x) } else { x }
}

/// Σ term(i) for i < `len`, in [`LANES`] partial sums that are added in order.
#[inline(always)]
pub(super) fn sum(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = len - len % LANES;
    let mut start = 0;
    while start < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
        start += LANES;
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(len - whole) {
        *sum += term(whole + lane);
    }
    lanes.iter().sum()
}

/// A copy with every value rounded to bf16, in f32.
pub(super) fn rounded(x: &Tensor) -> Result<Tensor> {
    let x = x.f_contiguous()?;
    let result = x.f_empty_like()?;
    let (from, to) = (Rows::of(&x)?, Rows::of(&result)?);
    for_blocks(from.count(), rows_per_block(from.width()), |block| round_block(block, from, to));
    Ok(result)
}

/// Rounds all of `from` into `to`, both flat.
pub(crate) fn round_into(from: &Tensor, to: &Tensor) -> Result<()> {
    const WIDTH: i64 = 1 << 12;
    let len = from.size()[0];
    let whole = len - len % WIDTH;
    for (start, len, width) in [(0, whole, WIDTH), (whole, len - whole, 1)] {
        let part = |x: &Tensor| x.f_narrow(0, start, len)?.f_view([-1, width]);
        if len > 0 {
            let (from, to) = (part(from)?, part(to)?);
            let (from, to) = (Rows::of(&from)?, Rows::of(&to)?);
            for_blocks(from.count(), rows_per_block(from.width()), |block| round_block(block, from, to));
        }
    }
    Ok(())
}

vectorized! {
    /// `to` is written here alone, and every row is in one block.
    fn round_block(block: Range<usize>, from: Rows<'_>, to: Rows<'_>) {
        for index in block {
            // SAFETY: as above.
            let to = unsafe { to.row_mut(index) };
            for (to, &from) in to.iter_mut().zip(from.row(index)) {
                *to = round_bf16(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_near_the_true_value() {
        let mut worst = 0.0f64;
        for i in 0..=2_000_000 {
            let x = -87.0 + 175.5 * (i as f32 / 2_000_000.0);
            let wanted = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / wanted - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(1e30) > 1e38 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn bf16_is_rounded_to_nearest_even() {
        for i in 0..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let wanted = half::bf16::from_f32(x).to_f32();
            assert!(round_bf16(x) == wanted || (x.is_nan() && round_bf16(x).is_nan()), "{x:e}");
        }
    }

    #[test]
    fn flat_buffers_are_rounded_to_the_end() {
        for len in [1, 4095, 4096, 10_001] {
            let x = Tensor::arange(len, (tch::Kind::Float, tch::Device::Cpu)) * 1.001;
            let to = x.zeros_like();
            round_into(&x, &to).unwrap();
            assert!(to == x.to_kind(tch::Kind::BFloat16).to_kind(tch::Kind::Float), "{len}");
        }
    }

    #[test]
    fn sums_take_every_term() {
        for len in [0, 1, 15, 16, 17, 100] {
            assert_eq!(sum(len, |i| i as f32), (0..len).sum::<usize>() as f32);
        }
    }
}
