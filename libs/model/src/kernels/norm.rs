//! RMSNorm (Zhang and Sennrich, 1910.07467) over the last dimension, of D values:
//!
//! ```text
//! r = (Σ x²/D + eps)^(−1/2)        y = x·r·w
//! ∂x = r·(g − x·r²·Σ(g·x)/D)       with g = ∂y·w
//! ∂w = Σ_rows ∂y·x·r
//! ```
//! Statistics are f32; y is rounded once, to the type of products.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::elementary::{rounded_if, sum};
use super::parallel::{for_blocks, rows_per_block};
use super::rows::Rows;
use super::{Products, are_plain, vectorized};
use crate::error::Result;

/// A normed tensor, and what backward needs.
#[derive(Debug)]
pub(crate) struct Normed {
    /// `[P, D]`, an operand of products.
    pub(crate) output: Tensor,
    /// `[P, 1]` f32: r.
    inverse: Tensor,
}

/// `x` `[P, D]` normed and times `weight·factor`, `[D]` f32.
pub(crate) fn rms_norm(
    x: &Tensor,
    (weight, factor): (&Tensor, f64),
    eps: f64,
    products: Products,
) -> Result<Normed> {
    if products == Products::Bf16 || !are_plain(&[x, weight]) {
        let x = x.f_to_kind(Kind::Float)?;
        let mean = x.f_square()?.f_mean_dim(&[-1i64][..], true, None::<Kind>)?;
        let inverse = mean.f_add_scalar(eps)?.f_rsqrt()?;
        let output = x.f_mul(&inverse)?.f_mul(&weight.f_mul_scalar(factor)?)?;
        return Ok(Normed { output: products.operand(&output)?, inverse });
    }
    let output = Tensor::f_empty(x.size(), (Kind::Float, x.device()))?;
    let inverse = Tensor::f_empty([x.size()[0], 1], (Kind::Float, x.device()))?;
    let task = Forward {
        x: Rows::of(x)?,
        weight: Rows::of(weight)?.row(0),
        factor: factor as f32,
        eps: eps as f32,
        output: Rows::of(&output)?,
        inverse: Rows::of(&inverse)?,
        rounds: products.rounds(),
    };
    for_blocks(task.x.count(), rows_per_block(task.x.width()), |block| forward_block(block, &task));
    Ok(Normed { output, inverse })
}

/// The results are new tensors, and every row is in one block.
struct Forward<'a> {
    x: Rows<'a>,
    weight: &'a [f32],
    factor: f32,
    eps: f32,
    output: Rows<'a>,
    inverse: Rows<'a>,
    rounds: bool,
}

vectorized! {
    fn forward_block(block: Range<usize>, task: &Forward<'_>) {
        let width = task.x.width();
        let w = &task.weight[..width];
        for index in block {
            let x = &task.x.row(index)[..width];
            // SAFETY: as the task says.
            let (y, r) = unsafe { (task.output.row_mut(index), task.inverse.row_mut(index)) };
            let inverse = 1.0 / (sum(width, |i| x[i] * x[i]) / width as f32 + task.eps).sqrt();
            r[0] = inverse;
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                *y = rounded_if(task.rounds, (x * inverse) * (w * task.factor));
            }
        }
    }
}

/// Backward of [`rms_norm`] of `x`: adds ∂x to `by_x`, `[P, D]` f32 (or writes it there), and writes ∂weight to `by_weight`.
pub(crate) fn rms_norm_backward(
    (x, normed): (&Tensor, &Normed),
    (weight, factor): (&Tensor, f64),
    by_output: &Tensor,
    (by_x, adds): (&Tensor, Adds),
    by_weight: &mut [f32],
) -> Result<()> {
    if !are_plain(&[x, weight, by_output, by_x]) {
        return composed_backward((x, normed), (weight, factor), by_output, (by_x, adds), by_weight);
    }
    let from = Rows::of(x)?;
    let per_block = rows_per_block(from.width());
    let blocks = from.count().div_ceil(per_block);
    let sums = Tensor::f_zeros([blocks as i64, from.width() as i64], (Kind::Float, x.device()))?;
    let task = Backward {
        x: from,
        inverse: Rows::of(&normed.inverse)?,
        weight: Rows::of(weight)?.row(0),
        factor: factor as f32,
        by_output: Rows::of(by_output)?,
        by_x: Rows::of(by_x)?,
        adds,
        by_weight: Rows::of(&sums)?,
        per_block,
    };
    for_blocks(from.count(), per_block, |block| backward_block(block, &task));
    by_weight.fill(0.0);
    for block in 0..blocks {
        for (sum, value) in by_weight.iter_mut().zip(task.by_weight.row(block)) {
            *sum += value * task.factor;
        }
    }
    Ok(())
}

/// `by_x` is written here alone, a row in one block; `by_weight` is new and has a row for each block.
struct Backward<'a> {
    x: Rows<'a>,
    inverse: Rows<'a>,
    weight: &'a [f32],
    factor: f32,
    by_output: Rows<'a>,
    by_x: Rows<'a>,
    adds: Adds,
    by_weight: Rows<'a>,
    per_block: usize,
}

vectorized! {
    fn backward_block(block: Range<usize>, task: &Backward<'_>) {
        let width = task.x.width();
        let (w, factor) = (&task.weight[..width], task.factor);
        // SAFETY: as the task says.
        let by_w = &mut unsafe { task.by_weight.row_mut(block.start / task.per_block) }[..width];
        for index in block {
            let (x, by) = (&task.x.row(index)[..width], &task.by_output.row(index)[..width]);
            // SAFETY: as the task says.
            let by_x = &mut unsafe { task.by_x.row_mut(index) }[..width];
            let r = task.inverse.row(index)[0];
            let mean = sum(width, |i| by[i] * (w[i] * factor) * x[i]) / width as f32;
            let along = mean * (r * r);
            if task.adds == Adds::No {
                by_x.fill(0.0);
            }
            for i in 0..width {
                by_x[i] += r * (by[i] * (w[i] * factor) - x[i] * along);
                by_w[i] += by[i] * (x[i] * r);
            }
        }
    }
}

/// Whether a result is added to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adds {
    /// Added.
    Yes,
    /// Written over it.
    No,
}

fn composed_backward(
    (x, normed): (&Tensor, &Normed),
    (weight, factor): (&Tensor, f64),
    by_output: &Tensor,
    (by_x, adds): (&Tensor, Adds),
    by_weight: &mut [f32],
) -> Result<()> {
    let (x, by) = (x.f_to_kind(Kind::Float)?, by_output.f_to_kind(Kind::Float)?);
    let r = &normed.inverse;
    let along = by.f_mul(&x)?;
    let by_w = along.f_mul(r)?.f_sum_dim_intlist(&[0i64][..], false, None::<Kind>)?.f_mul_scalar(factor)?;
    by_w.f_copy_data(by_weight, by_weight.len())?;
    let weight = weight.f_mul_scalar(factor)?;
    let mean = along.f_mul(&weight)?.f_mean_dim(&[-1i64][..], true, None::<Kind>)?;
    let found = by.f_mul(&weight)?.f_sub(&x.f_mul(&mean.f_mul(&r.f_square()?)?)?)?.f_mul(r)?;
    let mut target = by_x.shallow_clone();
    match adds {
        Adds::Yes => drop(target.f_add_(&found)?),
        Adds::No => target.f_copy_(&found)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// Plain code, libtorch's operations, and autograd over the formula in f64.
    #[test]
    fn forward_and_backward_are_the_formula() {
        tch::manual_seed(3);
        for (rows, width) in [(1, 1), (3, 5), (70, 64), (300, 100)] {
            let wide = random(&[rows, width + 3]);
            let (x, weight, by) = (wide.narrow(1, 2, width), random(&[width]), random(&[rows, width]));
            let before = random(&[rows, width]);
            let leaf = |x: &Tensor| x.to_kind(Kind::Double).detach().set_requires_grad(true);
            let (x64, w64) = (leaf(&x), leaf(&weight));
            let mean = x64.square().mean_dim(&[-1i64][..], true, None::<Kind>);
            let y = &x64 * (mean + 1e-3).rsqrt() * (&w64 * 1.5);
            let objective = (&y * by.to_kind(Kind::Double)).sum(None::<Kind>);
            let wanted = Tensor::run_backward(&[objective], &[&x64, &w64], false, false);

            let near = |what: &str, found: &Tensor, wanted: &Tensor| {
                let difference = (found.to_kind(Kind::Double) - wanted).abs().max().double_value(&[]);
                assert!(difference < 2e-5 * (rows as f64).sqrt(), "{what} of {rows}×{width}: {difference}");
            };
            let normed = rms_norm(&x, (&weight, 1.5), 1e-3, Products::F32).unwrap();
            near("y", &normed.output, &y);
            let mut by_weight = vec![7.0f32; width as usize];
            for adds in [Adds::Yes, Adds::No] {
                let base = if adds == Adds::Yes { before.to_kind(Kind::Double) } else { &wanted[0] * 0.0 };
                let by_x = before.copy();
                rms_norm_backward((&x, &normed), (&weight, 1.5), &by, (&by_x, adds), &mut by_weight).unwrap();
                near("∂x", &by_x, &(&wanted[0] + &base));
                near("∂w", &Tensor::from_slice(&by_weight), &wanted[1]);
                let by_x = before.copy();
                composed_backward((&x, &normed), (&weight, 1.5), &by, (&by_x, adds), &mut by_weight).unwrap();
                near("composed ∂x", &by_x, &(&wanted[0] + &base));
                near("composed ∂w", &Tensor::from_slice(&by_weight), &wanted[1]);
            }
            let half = rms_norm(&x, (&weight, 1.5), 1e-3, Products::Bf16).unwrap();
            let rounded = rms_norm(&x, (&weight, 1.5), 1e-3, Products::RoundedBf16).unwrap();
            let relative = (half.output.to_kind(Kind::Float) - &rounded.output).abs();
            let far = relative.gt_tensor(&(rounded.output.abs() * 0.01)).any().int64_value(&[]);
            assert_eq!((half.output.kind(), far), (Kind::BFloat16, 0));
        }
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        tch::manual_seed(4);
        let (x, weight, by) = (random(&[500, 96]), random(&[96]), random(&[500, 96]));
        let run = |threads| {
            crate::set_threads(threads);
            let normed = rms_norm(&x, (&weight, 1.0), 1e-5, Products::F32).unwrap();
            let by_x = Tensor::zeros_like(&x);
            let mut by_weight = vec![0.0f32; 96];
            rms_norm_backward((&x, &normed), (&weight, 1.0), &by, (&by_x, Adds::No), &mut by_weight).unwrap();
            (normed.output, by_x, by_weight)
        };
        let (one, two) = (run(1), run(2));
        assert!(one.0 == two.0 && one.1 == two.1 && one.2 == two.2);
    }
}
