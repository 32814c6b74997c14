//! How many distinct things were seen, in 16 KiB: HyperLogLog of 2^14 registers over 64-bit hashes.
//!
//! A register holds the largest number of leading zeros (plus one) seen among the hashes that belong to it; merging is
//! the maximum, so it does not matter who saw what, how often or in which order. The estimate is the improved raw
//! estimator of O. Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (arXiv 1702.01284,
//! algorithms 5 and 6), which is unbiased from nothing to far beyond 2^50 and needs no table of corrections. Its
//! standard error is 1.04/√2^14 = 0.81 %.

/// log2 of the number of registers.
const PRECISION: u32 = 14;
/// Registers, one byte each.
const REGISTERS: usize = 1 << PRECISION;
/// Bits of a hash that do not name the register.
const REST: u32 = 64 - PRECISION;

/// A set that only knows its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HyperLogLog {
    registers: Vec<u8>,
}

impl Default for HyperLogLog {
    fn default() -> HyperLogLog {
        HyperLogLog { registers: vec![0; REGISTERS] }
    }
}

impl HyperLogLog {
    /// Bytes of a sketch.
    pub const BYTES: usize = REGISTERS;
    /// Standard error of the estimate, as a share of it.
    pub const STANDARD_ERROR: f64 = 1.04 / 128.0;

    /// Adds something by a hash of it, whose bits must all be well mixed.
    #[inline]
    pub fn insert(&mut self, hash: u64) {
        let register = (hash >> REST) as usize;
        // A bit below the rest ends the count of zeros.
        let zeros = (hash << PRECISION | 1 << (PRECISION - 1)).leading_zeros();
        let rank = zeros as u8 + 1;
        let held = &mut self.registers[register];
        *held = rank.max(*held);
    }

    /// Adds everything that `other` has seen.
    pub fn merge(&mut self, other: &HyperLogLog) {
        for (held, rank) in self.registers.iter_mut().zip(&other.registers) {
            *held = (*held).max(*rank);
        }
    }

    /// The registers.
    pub fn as_bytes(&self) -> &[u8] {
        &self.registers
    }

    /// A sketch of these registers; `None` where they are not those of one.
    pub fn from_bytes(registers: &[u8]) -> Option<HyperLogLog> {
        let legal = registers.len() == REGISTERS && registers.iter().all(|&rank| u32::from(rank) <= REST + 1);
        legal.then(|| HyperLogLog { registers: registers.to_vec() })
    }

    /// Distinct things, about.
    pub fn estimate(&self) -> f64 {
        const RANKS: usize = REST as usize + 2;
        let mut counts = [0u32; RANKS];
        for &rank in &self.registers {
            counts[usize::from(rank)] += 1;
        }
        let m = REGISTERS as f64;
        let mut z = m * tau(1.0 - f64::from(counts[RANKS - 1]) / m);
        for &count in counts[1..RANKS - 1].iter().rev() {
            z = 0.5 * (z + f64::from(count));
        }
        z += m * sigma(f64::from(counts[0]) / m);
        m * m / (2.0 * std::f64::consts::LN_2 * z)
    }
}

/// Ertl's σ: Σ x^(2^k)·2^(k−1), what empty registers contribute.
fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

/// Ertl's τ, what full registers contribute.
fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// SplitMix64 (Steele, Lea, Flood 2014).
    pub(crate) fn hash(number: u64) -> u64 {
        let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    #[test]
    fn counts_are_within_three_standard_errors() {
        let seed = 20_261_122u64;
        println!("seed {seed}");
        let mut sketch = HyperLogLog::default();
        assert_eq!(sketch.estimate(), 0.0);
        let checks = [1u64, 2, 10, 100, 1000, 5000, 16_384, 40_000, 82_000, 200_000, 1_000_000, 3_000_000];
        let mut seen = 0;
        for exact in checks {
            while seen < exact {
                let key = hash(seed << 32 | seen);
                sketch.insert(key);
                sketch.insert(key);
                seen += 1;
            }
            let error = sketch.estimate() / exact as f64 - 1.0;
            assert!(error.abs() < 3.0 * HyperLogLog::STANDARD_ERROR, "{exact}: off by {error:.4}");
        }
    }

    #[test]
    fn the_error_over_many_sketches_is_the_standard_one() {
        let (sketches, exact) = (64u64, 30_000u64);
        let errors: Vec<f64> = (0..sketches)
            .map(|which| {
                let mut sketch = HyperLogLog::default();
                (0..exact).for_each(|i| sketch.insert(hash(which << 40 | i)));
                sketch.estimate() / exact as f64 - 1.0
            })
            .collect();
        let mean = errors.iter().sum::<f64>() / sketches as f64;
        let deviation = (errors.iter().map(|e| e * e).sum::<f64>() / sketches as f64).sqrt();
        assert!(mean.abs() < 4.0 * HyperLogLog::STANDARD_ERROR / 8.0, "biased by {mean:.5}");
        assert!(
            (0.4..1.6).contains(&(deviation / HyperLogLog::STANDARD_ERROR)),
            "deviates by {deviation:.5}"
        );
    }

    #[test]
    fn merging_is_seeing_everything() {
        let of = |range: std::ops::Range<u64>| {
            let mut sketch = HyperLogLog::default();
            range.for_each(|i| sketch.insert(hash(i)));
            sketch
        };
        let (mut left, right) = (of(0..60_000), of(40_000..90_000));
        left.merge(&right);
        assert_eq!(left, of(0..90_000));
        let copy = HyperLogLog::from_bytes(left.as_bytes()).unwrap();
        assert_eq!(copy, left);
        assert!(HyperLogLog::from_bytes(&left.as_bytes()[1..]).is_none());
        let mut nonsense = left.as_bytes().to_vec();
        nonsense[7] = 52;
        assert!(HyperLogLog::from_bytes(&nonsense).is_none());
    }

    #[test]
    fn extreme_hashes_have_their_place() {
        let mut sketch = HyperLogLog::default();
        for hash in [0, u64::MAX, 1 << 63, 1] {
            sketch.insert(hash);
        }
        let bytes = sketch.as_bytes();
        assert_eq!((bytes[0], bytes[REGISTERS - 1], bytes[REGISTERS / 2]), (51, 1, 51));
        assert!(sketch.estimate().is_finite());
    }
}
