//! YaRN rotary scaling: its values and their bounds.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// YaRN rotary scaling (arXiv 2309.00071), with DeepSeek's two mscale terms, as transformers 4.57.6 computes
/// it (docs/model.md, "Attention").
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YarnSpec {
    /// Context extension factor.
    pub factor: f64,
    /// Context length of the unscaled model.
    pub original_max_position_embeddings: u32,
    /// Rotations above which a dimension is not interpolated.
    #[serde(default = "default_beta_fast")]
    pub beta_fast: f64,
    /// Rotations below which a dimension is fully interpolated.
    #[serde(default = "default_beta_slow")]
    pub beta_slow: f64,
    /// Scale of cos and sin (numerator); 0 means that it is not given.
    #[serde(default = "default_mscale")]
    pub mscale: f64,
    /// Scale of the softmax, squared, and of cos and sin (denominator); 0 means that it is not given.
    #[serde(default = "default_mscale")]
    pub mscale_all_dim: f64,
    /// Multiplies cos and sin instead of the ratio of the two scales.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// Whether the borders of the interpolated dimensions are rounded to whole dimensions.
    #[serde(default = "default_truncate", skip_serializing_if = "is_default_truncate")]
    pub truncate: bool,
}

/// Legal values of `rope_theta`.
pub const ROPE_THETA: RangeInclusive<f64> = 1e-3..=1e18;
/// Legal values of `factor`.
pub const FACTOR: RangeInclusive<f64> = 1.0..=1e6;
/// Legal values of `beta_fast` and `beta_slow`.
pub const BETA: RangeInclusive<f64> = 1e-6..=1e6;
/// Legal values of `mscale` and `mscale_all_dim`.
pub const MSCALE: RangeInclusive<f64> = 0.0..=1e3;
/// Legal values of `attention_factor`.
pub const ATTENTION_FACTOR: RangeInclusive<f64> = 1e-3..=1e3;

fn default_beta_fast() -> f64 {
    32.0
}
fn default_beta_slow() -> f64 {
    1.0
}
fn default_mscale() -> f64 {
    1.0
}
fn default_truncate() -> bool {
    true
}
fn is_default_truncate(truncate: &bool) -> bool {
    *truncate
}

impl YarnSpec {
    /// Checks every value, for frequencies of base `theta`. The error names the key of a run file and the
    /// legal range.
    pub fn check(&self, theta: f64) -> Result<(), String> {
        if self.original_max_position_embeddings == 0 {
            return Err(
                "model.rope_scaling.original_max_position_embeddings is 0; it must be at least 1".into()
            );
        }
        let values = [
            ("factor", self.factor, FACTOR),
            ("beta_fast", self.beta_fast, BETA),
            ("beta_slow", self.beta_slow, BETA),
            ("mscale", self.mscale, MSCALE),
            ("mscale_all_dim", self.mscale_all_dim, MSCALE),
            ("attention_factor", self.attention_factor.unwrap_or(1.0), ATTENTION_FACTOR),
        ];
        for (key, value, range) in values {
            if !range.contains(&value) {
                return Err(format!(
                    "model.rope_scaling.{key} is {value}; it must be {} to {}",
                    range.start(),
                    range.end()
                ));
            }
        }
        if theta <= 1.0 {
            return Err(format!(
                "model.rope_theta is {theta}; with model.rope_scaling it must be more than 1"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::YarnSpec;
    use crate::{ConfigError, RunFile};

    /// YaRN of the full model's run file with these settings.
    fn yarn(sets: &[&str]) -> Result<YarnSpec, ConfigError> {
        let text = include_str!("../../../configs/longcat-flash-lite.toml");
        let sets: Vec<String> = sets.iter().map(|set| format!("model.rope_scaling.{set}")).collect();
        let spec = RunFile::parse(text, "lite", &sets)?.resolve()?;
        spec.model.attention.yarn.ok_or_else(|| ConfigError::Invalid("no YaRN".into()))
    }

    #[test]
    fn a_run_file_may_give_every_value() {
        let plain = yarn(&[]).unwrap();
        assert_eq!((plain.attention_factor, plain.truncate, plain.mscale_all_dim), (None, true, 1.0));
        let wanted = YarnSpec { attention_factor: Some(1.25), truncate: false, mscale: 0.0, ..plain };
        assert_eq!(yarn(&["attention_factor=1.25", "truncate=false", "mscale=0.0"]).unwrap(), wanted);
    }

    #[test]
    fn values_out_of_range_are_refused_by_key() {
        for key in ["factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"] {
            for value in ["1e308", "-1.0", "nan", "inf"] {
                let error = yarn(&[&format!("{key}={value}")]).unwrap_err().to_string();
                assert!(error.contains(key), "{key} = {value}: {error}");
            }
        }
        for set in
            ["factor=0.5", "attention_factor=0.0", "beta_fast=0.0", "original_max_position_embeddings=0"]
        {
            let error = yarn(&[set]).unwrap_err().to_string();
            assert!(error.contains(set.split('=').next().unwrap_or_default()), "{set}: {error}");
        }
    }
}
