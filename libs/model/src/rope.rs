//! Rotary position embedding (arXiv 2104.09864) on interleaved pairs, with YaRN scaling (arXiv 2309.00071) as
//! transformers 4.57.6 has it.
//!
//! Frequencies, cosines and sines are computed in f64 by `libm` and rounded once, so that every machine has
//! the same tables; angles are products in f32, as the published modeling code has them.

use polygram_domain::model::YarnSpec;

/// The frequencies of one rotary width, and the scales that come with them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// `[dim / 2]`: radians per position.
    pub inverse_frequencies: Vec<f32>,
    /// Multiplies cosines and sines: the attention factor, or m(f, mscale) / m(f, mscale_all_dim) where both
    /// are given, or m(f, 1).
    pub amplitude: f64,
    /// Multiplies the softmax scale: m(f, mscale_all_dim)², 1 where it is not given.
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
        let amplitude = match yarn.attention_factor {
            Some(factor) => factor,
            None if yarn.mscale != 0.0 && yarn.mscale_all_dim != 0.0 => {
                magnitude(yarn.factor, yarn.mscale) / all
            }
            None => magnitude(yarn.factor, 1.0),
        };
        Rotary { inverse_frequencies, amplitude, softmax_multiplier: all * all }
    }

    /// Cosines and sines of positions `0..positions`, each `[positions, dim / 2]` row-major, times the
    /// amplitude.
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
    let (low, high) = (correction(yarn.beta_fast), correction(yarn.beta_slow));
    let (low, high) = if yarn.truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(f64::from(dim - 1)));
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

    fn yarn(factor: f64, original: u32) -> YarnSpec {
        YarnSpec {
            factor,
            original_max_position_embeddings: original,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
            attention_factor: None,
            truncate: true,
        }
    }

    /// LongCat-Flash-Lite's scaling. The wanted numbers were computed apart from this code, with Python's
    /// f64, from the formulas of the YaRN paper (see the comment beside each).
    #[test]
    fn yarn_of_the_full_model() {
        let yarn = yarn(10.0, 32_768);
        let rotary = Rotary::new(5e6, 64, Some(&yarn));
        // corr(32) = 64·ln(32768/(64π))/(2·ln 5e6) = 10.56697…; corr(1) = 17.75686…; so the ramp runs from 10
        // to 18.
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

    /// Which scales count: as transformers 4.57.6 has it, 0 is not given, and one alone does not count for
    /// cos and sin.
    #[test]
    fn amplitude_and_softmax_follow_the_scales_that_are_given() {
        let m = |scale: f64| 0.1 * scale * 4f64.ln() + 1.0;
        for (mscale, all_dim, factor, amplitude, softmax) in [
            (1.0, 1.0, None, 1.0, m(1.0) * m(1.0)),
            (0.707, 1.0, None, m(0.707) / m(1.0), m(1.0) * m(1.0)),
            (0.0, 0.0, None, m(1.0), 1.0),
            (0.707, 0.0, None, m(1.0), 1.0),
            (0.0, 0.707, None, m(1.0), m(0.707) * m(0.707)),
            (0.707, 1.0, Some(1.3), 1.3, m(1.0) * m(1.0)),
            (0.0, 0.0, Some(1.3), 1.3, 1.0),
        ] {
            let yarn =
                YarnSpec { mscale, mscale_all_dim: all_dim, attention_factor: factor, ..yarn(4.0, 64) };
            let rotary = Rotary::new(10_000.0, 8, Some(&yarn));
            assert!((rotary.amplitude - amplitude).abs() < 1e-12, "{yarn:?}: {}", rotary.amplitude);
            assert!((rotary.softmax_multiplier - softmax).abs() < 1e-12, "{yarn:?}");
        }
        // Nothing is extended by a factor of 1.
        let rotary = Rotary::new(10_000.0, 8, Some(&yarn(1.0, 64)));
        assert_eq!((rotary.amplitude, rotary.softmax_multiplier), (1.0, 1.0));
    }

    /// corr(β) = 8·ln(512/(2πβ))/(2·ln 100): 0.81188… for β = 32, and 3.82218… for β = 1.
    #[test]
    fn the_borders_are_rounded_unless_the_file_says_otherwise() {
        let rounded = yarn(4.0, 512);
        assert_eq!(correction_range(100.0, 8, &rounded), (0.0, 4.0));
        let (low, high) = correction_range(100.0, 8, &YarnSpec { truncate: false, ..rounded });
        let exact =
            |beta: f64| 8.0 * (512.0 / (2.0 * std::f64::consts::PI * beta)).ln() / (2.0 * 100f64.ln());
        assert!((low - exact(32.0)).abs() < 1e-12 && (high - exact(1.0)).abs() < 1e-12, "{low} to {high}");
        assert!((low - 0.811_88).abs() < 1e-5 && (high - 3.822_18).abs() < 1e-5, "{low} to {high}");
    }
}
