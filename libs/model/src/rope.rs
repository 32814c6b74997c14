//! Rotary position embedding (arXiv 2104.09864) on interleaved pairs, with YaRN scaling (arXiv 2309.00071).
//!
//! Frequencies, cosines and sines are computed in f64 by `libm` and rounded once, so that every machine has the same
//! tables; angles are products in f32, as the published modeling code has them.

use polygram_domain::model::YarnSpec;

/// The frequencies of one rotary width, and the scales that come with them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// `[dim / 2]`: radians per position.
    pub inverse_frequencies: Vec<f32>,
    /// Multiplies cosines and sines: m(f, mscale) / m(f, mscale_all_dim).
    pub amplitude: f64,
    /// Multiplies the softmax scale: m(f, mscale_all_dim)².
    pub softmax_multiplier: f64,
}

impl Rotary {
    /// For `dim` rotated values (even) of base `theta`.
    pub fn new(theta: f64, dim: u32, yarn: Option<&YarnSpec>) -> Rotary {
        let pairs = dim / 2;
        let frequency = |pair: u32| libm::pow(theta, f64::from(2 * pair) / f64::from(dim));
        let Some(yarn) = yarn else {
            let inverse_frequencies = (0..pairs).map(|pair| (1.0 / frequency(pair)) as f32).collect();
            return Rotary { inverse_frequencies, amplitude: 1.0, softmax_multiplier: 1.0 };
        };
        let (low, high) = correction_range(theta, dim, yarn);
        let inverse_frequencies = (0..pairs)
            .map(|pair| {
                let ramp = ((f64::from(pair) - low) / (high - low)).clamp(0.0, 1.0);
                let plain = 1.0 / frequency(pair);
                (plain / yarn.factor * ramp + plain * (1.0 - ramp)) as f32
            })
            .collect();
        let all = magnitude(yarn.factor, yarn.mscale_all_dim);
        let amplitude = magnitude(yarn.factor, yarn.mscale) / all;
        Rotary { inverse_frequencies, amplitude, softmax_multiplier: all * all }
    }

    /// Cosines and sines of positions `0..positions`, each `[positions, dim / 2]` row-major, times the amplitude.
    pub fn tables(&self, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let angles = || {
            (0..positions)
                .flat_map(|position| self.inverse_frequencies.iter().map(move |f| position as f32 * f))
                .map(f64::from)
        };
        (
            angles().map(|angle| (libm::cos(angle) * self.amplitude) as f32).collect(),
            angles().map(|angle| (libm::sin(angle) * self.amplitude) as f32).collect(),
        )
    }
}

/// The pairs between which YaRN goes from no interpolation to full interpolation.
fn correction_range(theta: f64, dim: u32, yarn: &YarnSpec) -> (f64, f64) {
    let original = f64::from(yarn.original_max_position_embeddings);
    let correction = |rotations: f64| {
        f64::from(dim) * libm::log(original / (rotations * 2.0 * std::f64::consts::PI))
            / (2.0 * libm::log(theta))
    };
    let low = correction(yarn.beta_fast).floor().max(0.0);
    let high = correction(yarn.beta_slow).ceil().min(f64::from(dim - 1));
    (low, if low == high { high + 0.001 } else { high })
}

/// m(f, a) = 0.1·a·ln f + 1; 1 where nothing is extended.
fn magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * libm::log(factor) + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frequencies_fall_geometrically() {
        let rotary = Rotary::new(10_000.0, 8, None);
        assert_eq!(rotary.inverse_frequencies, [1.0, 0.1, 0.01, 0.001]);
        assert_eq!((rotary.amplitude, rotary.softmax_multiplier), (1.0, 1.0));
        let (cos, sin) = rotary.tables(3);
        assert_eq!((cos[0], sin[0]), (1.0, 0.0));
        assert!((cos[2 * 4 + 1] - 0.2f32.cos()).abs() < 1e-7 && (sin[2 * 4] - 2.0f32.sin()).abs() < 1e-7);
    }

    /// LongCat-Flash-Lite's scaling. The wanted numbers were computed apart from this code, with Python's f64, from the
    /// formulas of the YaRN paper (see the comment beside each).
    #[test]
    fn yarn_of_the_full_model() {
        let yarn = YarnSpec {
            factor: 10.0,
            original_max_position_embeddings: 32_768,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
        };
        let rotary = Rotary::new(5e6, 64, Some(&yarn));
        // corr(32) = 64·ln(32768/(64π))/(2·ln 5e6) = 10.56697…; corr(1) = 17.75686…; so the ramp runs from 10 to 18.
        assert_eq!(correction_range(5e6, 64, &yarn), (10.0, 18.0));
        let plain = |pair: f64| 5e6f64.powf(-pair / 32.0);
        for (pair, ramp) in [(0, 0.0), (10, 0.0), (11, 0.125), (14, 0.5), (17, 0.875), (18, 1.0), (31, 1.0)] {
            let wanted = plain(f64::from(pair)) * (1.0 - 0.9 * ramp);
            let found = f64::from(rotary.inverse_frequencies[pair as usize]);
            assert!((found / wanted - 1.0).abs() < 1e-6, "pair {pair}: {found} against {wanted}");
        }
        // m(10, 1) = 0.1·ln 10 + 1 = 1.2302585…, squared 1.51353599970…
        assert_eq!(rotary.amplitude, 1.0);
        assert!((rotary.softmax_multiplier - 1.513_535_999_7).abs() < 1e-9, "{}", rotary.softmax_multiplier);
    }

    #[test]
    fn yarn_amplitude_is_the_ratio_of_the_two_scales() {
        let yarn = YarnSpec {
            factor: 4.0,
            original_max_position_embeddings: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 0.707,
            mscale_all_dim: 0.0,
        };
        let rotary = Rotary::new(10_000.0, 8, Some(&yarn));
        assert!((rotary.amplitude - (0.0707 * 4f64.ln() + 1.0)).abs() < 1e-12);
        assert_eq!(rotary.softmax_multiplier, 1.0);
    }
}
