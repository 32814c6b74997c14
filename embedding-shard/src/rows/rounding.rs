//! Stochastic rounding of stored bf16 weights.
//!
//! It adds 16 random bits below the ones that stay and cuts: a value rounds up with the probability of its distance
//! from below, so that updates smaller than half a unit in the last place are not lost on average. The bits are a
//! function of (seed, table, row, update count, column), never of who rounds.

use multiversion::multiversion;
use polygram_domain::RowRef;
use polygram_domain::philox::{Purpose, Stream};

use super::counter::Counter;

/// Philox blocks made side by side; a block rounds eight columns.
const LANES: usize = 8;

/// Random bits for rounding stored rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    stream: Stream,
}

impl Rounding {
    pub(super) fn new(seed: u64) -> Rounding {
        Rounding { stream: Stream::new(seed, Purpose::StochasticRounding) }
    }

    /// Rounds the weights that update number `updates` of a row has made. Column c takes half c mod 2 (low first) of
    /// word ⌊c/2⌋ mod 4 of the Philox block (table·2³² + row, updates·2³² + ⌊c/8⌋).
    pub(super) fn round(&self, at: RowRef, updates: u32, values: &[f32], rounded: &mut [u16]) {
        let high = u64::from(at.table.0) << 32 | u64::from(at.row.0);
        stochastic(&self.stream, Counter { high, low: u64::from(updates) << 32 }, values, rounded);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn stochastic(stream: &Stream, first: Counter, values: &[f32], rounded: &mut [u16]) {
    let groups = values.chunks(8 * LANES).zip(rounded.chunks_mut(8 * LANES)).enumerate();
    for (group, (values, rounded)) in groups {
        let words = stream.lanes::<LANES>(first.high, first.low + (group * LANES) as u64);
        let mut random = [0u16; 8 * LANES];
        for (i, columns) in random.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            for (pair, words) in columns.as_chunks_mut::<2>().0.iter_mut().zip(&words) {
                *pair = [words[i] as u16, (words[i] >> 16) as u16];
            }
        }
        for ((rounded, value), random) in rounded.iter_mut().zip(values).zip(random) {
            let bits = value.to_bits();
            let is_finite = bits & 0x7f80_0000 != 0x7f80_0000;
            let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
            // Infinities are exact already; a NaN must not lose the last bit that makes it one.
            let kept = bits | u32::from(is_nan) << 22;
            *rounded = (if is_finite { bits + u32::from(random) } else { kept } >> 16) as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polygram_domain::philox::unit_variance_uniform;
    use polygram_domain::{RowId, TableIndex};

    const ROW: RowRef = RowRef { table: TableIndex(0), row: RowId(1) };

    #[test]
    fn columns_follow_the_formula() {
        let rounding = Rounding::new(9);
        let values: Vec<f32> = (0..131).map(|c| unit_variance_uniform(c * 77_777_777)).collect();
        let mut rounded = vec![0; values.len()];
        rounding.round(RowRef { table: TableIndex(2), row: RowId(70_000) }, 3, &values, &mut rounded);
        let stream = Stream::new(9, Purpose::StochasticRounding);
        for (c, value) in values.iter().enumerate() {
            let word = stream.words((2 << 32) + 70_000, (3 << 32) + c as u64 / 8)[c / 2 % 4];
            let random = if c % 2 == 0 { word & 0xffff } else { word >> 16 };
            assert_eq!(rounded[c], ((value.to_bits() + random) >> 16) as u16, "column {c}");
        }
    }

    #[test]
    fn the_mean_is_the_value() {
        let rounding = Rounding::new(4);
        for value in [0.1f32, -3.3, 1e-20] {
            let mut sum = 0.0;
            for updates in 0..4000 {
                let mut rounded = [0u16];
                rounding.round(ROW, updates, &[value], &mut rounded);
                sum += f64::from(half::bf16::from_bits(rounded[0]).to_f32());
            }
            let error = (sum / 4000.0 / f64::from(value) - 1.0).abs();
            // One unit in the last place is 2⁻⁷ at most; the mean of 4,000 deviates by 2⁻⁷/2/63 (one sigma).
            assert!(error < 3e-4, "{value}: mean is off by {error:e}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let mut rounded = [0u16; 3];
        let values = [f32::from_bits(0x7f80_0001), f32::INFINITY, f32::NEG_INFINITY];
        Rounding::new(4).round(ROW, 1, &values, &mut rounded);
        let back = rounded.map(half::bf16::from_bits);
        assert!(back[0].is_nan() && back[1] == half::bf16::INFINITY && back[2] == half::bf16::NEG_INFINITY);
    }
}
