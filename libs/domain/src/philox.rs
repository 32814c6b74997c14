//! Counter-based randomness: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011, §3.3), keyed by (seed, purpose). A value depends only on its key and its index, never on who
//! draws it or when.

const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;

/// What a stream of random numbers is for. Streams of different purposes never share a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial values of dense parameters.
    DenseInit = 1,
    /// Values of table rows not written yet.
    RowInit = 2,
    /// The order of training samples.
    SampleOrder = 3,
    /// Stochastic rounding of stored rows.
    StochasticRounding = 4,
    /// Tokens of the synthetic data source.
    SyntheticData = 5,
    /// Which documents are held out.
    HeldOut = 6,
}

/// Ten rounds of Philox 4x32 on one 128-bit counter.
#[inline(always)]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < 10 {
        let product_0 = u64::from(MULTIPLIER_0) * u64::from(c0);
        let product_1 = u64::from(MULTIPLIER_1) * u64::from(c2);
        (c0, c1, c2, c3) = (
            (product_1 >> 32) as u32 ^ c1 ^ k0,
            product_1 as u32,
            (product_0 >> 32) as u32 ^ c3 ^ k1,
            product_0 as u32,
        );
        k0 = k0.wrapping_add(WEYL_0);
        k1 = k1.wrapping_add(WEYL_1);
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// A keyed family of random numbers.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
}

impl Stream {
    /// The stream of `seed` for `purpose`: its key is one Philox block of (seed, purpose).
    pub fn new(seed: u64, purpose: Purpose) -> Stream {
        let block = philox4x32_10([purpose as u32, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
        Stream { key: [block[0], block[1]] }
    }

    /// Four words at the 128-bit index (`high`, `low`).
    #[inline(always)]
    pub fn words(&self, high: u64, low: u64) -> [u32; 4] {
        philox4x32_10([low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32], self.key)
    }

    /// Four words at each of the `L` indices (`high`, `low`), (`high`, `low` + 1), …: word w of index i is `[w][i]`. The
    /// same numbers as [`Stream::words`], made side by side.
    #[inline(always)]
    pub fn lanes<const L: usize>(&self, high: u64, low: u64) -> [[u32; L]; 4] {
        let mut c0 = [0u32; L];
        let mut c1 = [0u32; L];
        let mut c2 = [high as u32; L];
        let mut c3 = [(high >> 32) as u32; L];
        for i in 0..L {
            let low = low.wrapping_add(i as u64);
            (c0[i], c1[i]) = (low as u32, (low >> 32) as u32);
        }
        let [mut k0, mut k1] = self.key;
        for _ in 0..10 {
            for i in 0..L {
                let product_0 = u64::from(MULTIPLIER_0) * u64::from(c0[i]);
                let product_1 = u64::from(MULTIPLIER_1) * u64::from(c2[i]);
                (c0[i], c1[i], c2[i], c3[i]) = (
                    (product_1 >> 32) as u32 ^ c1[i] ^ k0,
                    product_1 as u32,
                    (product_0 >> 32) as u32 ^ c3[i] ^ k1,
                    product_0 as u32,
                );
            }
            k0 = k0.wrapping_add(WEYL_0);
            k1 = k1.wrapping_add(WEYL_1);
        }
        [c0, c1, c2, c3]
    }

    /// A word uniform in `0..bound` at the index, by multiply-shift of 64 random bits (bias below 2^-32).
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&self, high: u64, low: u64, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no random member");
        let [a, b, ..] = self.words(high, low);
        let bits = u64::from(a) | (u64::from(b) << 32);
        ((u128::from(bits) * u128::from(bound)) >> 64) as u64
    }
}

/// A word mapped to the f32 uniform on [-√3, √3) of mean 0 and variance 1: 24 bits, centred, exact but for
/// the last product.
#[inline(always)]
pub fn unit_variance_uniform(word: u32) -> f32 {
    const SCALE: f32 = 1.732_050_8 / 8_388_608.0;
    ((word >> 8) as i32 - 8_388_608) as f32 * SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_are_words_side_by_side() {
        let stream = Stream::new(3, Purpose::RowInit);
        for (high, low) in [(0, 0), (u64::MAX, u64::MAX - 2), (5 << 40, (1 << 32) - 3)] {
            let lanes = stream.lanes::<8>(high, low);
            let words: Vec<[u32; 4]> = (0..8).map(|i: u64| stream.words(high, low.wrapping_add(i))).collect();
            for (w, lane) in lanes.iter().enumerate() {
                assert!(lane.iter().zip(&words).all(|(value, words)| *value == words[w]), "word {w}");
            }
        }
    }

    #[test]
    fn uniform_has_unit_variance() {
        let stream = Stream::new(7, Purpose::RowInit);
        let values: Vec<f64> = (0..20_000u64)
            .flat_map(|i| stream.words(0, i))
            .map(|word| f64::from(unit_variance_uniform(word)))
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.02, "variance {variance}");
    }

    #[test]
    fn purposes_and_seeds_differ() {
        let a = Stream::new(1, Purpose::RowInit).words(0, 0);
        assert_ne!(a, Stream::new(2, Purpose::RowInit).words(0, 0));
        assert_ne!(a, Stream::new(1, Purpose::DenseInit).words(0, 0));
        assert_ne!(a, Stream::new(1 << 32, Purpose::RowInit).words(0, 0));
    }
}
