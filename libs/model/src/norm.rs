//! RMSNorm, and sums of squares of flat gradients in their canonical order.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::parameters::Layout;

/// Elements of one block of a sum of squares.
pub const BLOCK: usize = 4096;

/// `weight · (x / sqrt(mean(x²) + eps))` over the last dimension (Zhang and Sennrich, 1910.07467): statistics in f32,
/// rounded to `kind`, then times the weight.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: Kind) -> Result<Tensor> {
    let x = x.f_to_kind(Kind::Float)?;
    let mean = x.f_square()?.f_mean_dim(&[-1i64][..], true, None::<Kind>)?;
    let normed = x.f_mul(&mean.f_add_scalar(eps)?.f_rsqrt()?)?;
    Ok(normed.f_to_kind(kind)?.f_mul(&weight.f_to_kind(kind)?)?)
}

/// Sum of squares of each named tensor of a flat gradient, in the layout's order: f64 sums over blocks of [`BLOCK`]
/// elements, added in order. Not finite if any element is not.
///
/// # Panics
/// If `gradient` does not have the layout's length.
pub fn square_sums(layout: &Layout, gradient: &[f32]) -> Vec<f64> {
    assert_eq!(gradient.len(), layout.len(), "a flat gradient has the layout's length");
    layout.entries().iter().map(|entry| tensor_square_sum(&gradient[entry.range.clone()])).collect()
}

/// Sum of squares of a flat gradient: [`square_sums`] added in order.
pub fn square_sum(layout: &Layout, gradient: &[f32]) -> f64 {
    square_sums(layout, gradient).into_iter().sum()
}

/// Sum of squares of one tensor: f64 sums over blocks of [`BLOCK`] elements, added in order.
pub fn tensor_square_sum(values: &[f32]) -> f64 {
    values.chunks(BLOCK).map(block_square_sum).sum()
}

/// Eight running sums, element i to sum i mod 8, joined pairwise: an order that vector units can keep.
fn block_square_sum(block: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    for chunk in block.chunks(8) {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_squares() {
        let values: Vec<f32> = (0..10_000).map(|i| (i % 17) as f32 - 8.0).collect();
        let wanted: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        assert_eq!(tensor_square_sum(&values), wanted, "small integers add exactly in any order");
        assert!(tensor_square_sum(&[1.0, f32::NAN]).is_nan());
        assert!(tensor_square_sum(&[f32::INFINITY]).is_infinite());
        assert_eq!(tensor_square_sum(&[]), 0.0);
    }
}
