//! RMSNorm.

use tch::{Kind, Tensor};

use crate::error::Result;

/// `weight · (x / sqrt(mean(x²) + eps))` over the last dimension (Zhang and Sennrich, 1910.07467): statistics in f32,
/// rounded to `kind`, then times the weight.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: Kind) -> Result<Tensor> {
    let x = x.f_to_kind(Kind::Float)?;
    let mean = x.f_square()?.f_mean_dim(&[-1i64][..], true, None::<Kind>)?;
    let normed = x.f_mul(&mean.f_add_scalar(eps)?.f_rsqrt()?)?;
    Ok(normed.f_to_kind(kind)?.f_mul(&weight.f_to_kind(kind)?)?)
}
