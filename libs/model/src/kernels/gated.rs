//! Gated units: SwiGLU (Shazeer, 2002.05202), and with an expert's gate for each row.
//!
//! ```text
//! y = s·silu(g)·u            silu(g) = g·σ(g)            s: the row's gate, or 1
//! ∂u = s·∂y·silu(g)          ∂g = s·∂y·u·σ(g)·(1 + g·(1 − σ(g)))          ∂s = Σ ∂y·silu(g)·u
//! ```

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::elementary::{LANES, rounded_if, sigmoid};
use super::parallel::{for_blocks, rows_per_block};
use super::rows::Rows;
use super::{Products, are_plain, vectorized};
use crate::error::Result;

/// What is multiplied: views of any row distance.
pub(crate) struct Gated<'a> {
    /// `[P, I]`.
    pub(crate) gate: &'a Tensor,
    /// `[P, I]`.
    pub(crate) up: &'a Tensor,
    /// `[P]` f32.
    pub(crate) scale: Option<&'a Tensor>,
}

/// `[P, I]`, an operand of products.
pub(crate) fn silu_gated(x: &Gated<'_>, products: Products) -> Result<Tensor> {
    let Gated { gate, up, scale } = *x;
    if products == Products::Bf16 && gate.device() == Device::Cpu {
        // A row's bits must not depend on the rows beside it: libtorch's exponentials differ in the last elements.
        let (gate, up) = (gate.f_to_kind(Kind::Float)?, up.f_to_kind(Kind::Float)?);
        let y = silu_gated(&Gated { gate: &gate, up: &up, scale }, Products::F32)?;
        return products.operand(&y);
    }
    if !are_plain(&[gate, up]) {
        let y = gate.f_to_kind(Kind::Float)?.f_silu()?.f_mul(up)?;
        return products.operand(&match scale {
            Some(scale) => y.f_mul(&scale.f_unsqueeze(-1)?)?,
            None => y,
        });
    }
    let output = Tensor::f_empty(gate.size(), (Kind::Float, gate.device()))?;
    let scale = scale.map(|scale| scale.f_unsqueeze(-1)).transpose()?;
    let task = Forward {
        gate: Rows::of(gate)?,
        up: Rows::of(up)?,
        scale: scale.as_ref().map(Rows::of).transpose()?,
        output: Rows::of(&output)?,
        rounds: products.rounds(),
    };
    for_blocks(task.gate.count(), rows_per_block(task.gate.width()), |block| forward_block(block, &task));
    Ok(output)
}

/// The result is a new tensor, and every row is in one block.
struct Forward<'a> {
    gate: Rows<'a>,
    up: Rows<'a>,
    scale: Option<Rows<'a>>,
    output: Rows<'a>,
    rounds: bool,
}

vectorized! {
    fn forward_block(block: Range<usize>, task: &Forward<'_>) {
        for index in block {
            let scale = task.scale.map_or(1.0, |scale| scale.row(index)[0]);
            // SAFETY: as the task says.
            let y = unsafe { task.output.row_mut(index) };
            for ((y, &g), &u) in y.iter_mut().zip(task.gate.row(index)).zip(task.up.row(index)) {
                *y = rounded_if(task.rounds, scale * ((g * sigmoid(g)) * u));
            }
        }
    }
}

/// Backward of [`silu_gated`]: writes ∂gate and ∂up to `by_gate` and `by_up` (views like those of `x`, operands of products),
/// and gives ∂scale, `[P]` f32, where there is one.
pub(crate) fn silu_gated_backward(
    x: &Gated<'_>,
    by_output: &Tensor,
    (by_gate, by_up): (&Tensor, &Tensor),
    products: Products,
) -> Result<Option<Tensor>> {
    let Gated { gate, up, scale } = *x;
    if products == Products::Bf16 && gate.device() == Device::Cpu {
        let single = |x: &Tensor| x.f_to_kind(Kind::Float);
        let (gate, up, by_output) = (single(gate)?, single(up)?, single(by_output)?);
        let (found_gate, found_up) = (gate.f_empty_like()?, gate.f_empty_like()?);
        let x = Gated { gate: &gate, up: &up, scale };
        let by_scale = silu_gated_backward(&x, &by_output, (&found_gate, &found_up), Products::F32)?;
        by_gate.shallow_clone().f_copy_(&found_gate)?;
        by_up.shallow_clone().f_copy_(&found_up)?;
        return Ok(by_scale);
    }
    if !are_plain(&[gate, up, by_output, by_gate, by_up]) {
        return composed_backward(x, by_output, (by_gate, by_up));
    }
    let by_scale = scale.map(|scale| scale.f_empty_like()?.f_unsqueeze(-1)).transpose()?;
    let scale = scale.map(|scale| scale.f_unsqueeze(-1)).transpose()?;
    let task = Backward {
        gate: Rows::of(gate)?,
        up: Rows::of(up)?,
        scale: scale.as_ref().map(Rows::of).transpose()?,
        by_output: Rows::of(by_output)?,
        by_gate: Rows::of(by_gate)?,
        by_up: Rows::of(by_up)?,
        by_scale: by_scale.as_ref().map(Rows::of).transpose()?,
        rounds: products.rounds(),
    };
    for_blocks(task.gate.count(), rows_per_block(task.gate.width()), |block| backward_block(block, &task));
    Ok(by_scale.map(|by_scale| by_scale.f_squeeze_dim(-1)).transpose()?)
}

/// The gradients are written here alone, and every row is in one block.
struct Backward<'a> {
    gate: Rows<'a>,
    up: Rows<'a>,
    scale: Option<Rows<'a>>,
    by_output: Rows<'a>,
    by_gate: Rows<'a>,
    by_up: Rows<'a>,
    by_scale: Option<Rows<'a>>,
    rounds: bool,
}

vectorized! {
    fn backward_block(block: Range<usize>, task: &Backward<'_>) {
        let width = task.gate.width();
        for index in block {
            let scale = task.scale.map_or(1.0, |scale| scale.row(index)[0]);
            let (g, g_rest) = task.gate.row(index).as_chunks::<LANES>();
            let (u, u_rest) = task.up.row(index).as_chunks::<LANES>();
            let (by, by_rest) = task.by_output.row(index).as_chunks::<LANES>();
            // SAFETY: as the task says.
            let (by_g, by_u) = unsafe { (task.by_gate.row_mut(index), task.by_up.row_mut(index)) };
            let mut products = [0.0f32; LANES];
            for (chunk, ((g, u), by)) in g.iter().zip(u).zip(by).enumerate() {
                let found = unit_backward((g, u), by, (scale, task.rounds), &mut products);
                let at = chunk * LANES..(chunk + 1) * LANES;
                by_g[at.clone()].copy_from_slice(&found.0);
                by_u[at].copy_from_slice(&found.1);
            }
            let rest = width % LANES;
            if rest > 0 {
                let filled = |from: &[f32]| {
                    let mut lanes = [0.0f32; LANES];
                    lanes[..rest].copy_from_slice(from);
                    lanes
                };
                let (g, u, by) = (filled(g_rest), filled(u_rest), filled(by_rest));
                let found = unit_backward((&g, &u), &by, (scale, task.rounds), &mut products);
                by_g[width - rest..].copy_from_slice(&found.0[..rest]);
                by_u[width - rest..].copy_from_slice(&found.1[..rest]);
            }
            if let Some(by_scale) = task.by_scale {
                // SAFETY: as the task says.
                let by_scale = unsafe { by_scale.row_mut(index) };
                by_scale[0] = products.iter().sum();
            }
        }
    }
}

/// ∂gate and ∂up of neighbouring values; adds the terms of ∂scale to `products`. Whole arrays at a time, so that the
/// compiler need not ask whether places overlap.
#[inline(always)]
fn unit_backward(
    (g, u): (&[f32; LANES], &[f32; LANES]),
    by: &[f32; LANES],
    (scale, rounds): (f32, bool),
    products: &mut [f32; LANES],
) -> ([f32; LANES], [f32; LANES]) {
    let (mut by_g, mut by_u) = ([0.0f32; LANES], [0.0f32; LANES]);
    for i in 0..LANES {
        let s = sigmoid(g[i]);
        let silu = g[i] * s;
        let along = by[i] * silu;
        products[i] += along * u[i];
        by_u[i] = rounded_if(rounds, scale * along);
        by_g[i] = rounded_if(rounds, (scale * by[i]) * u[i] * (s + silu * (1.0 - s)));
    }
    (by_g, by_u)
}

fn composed_backward(
    x: &Gated<'_>,
    by_output: &Tensor,
    (by_gate, by_up): (&Tensor, &Tensor),
) -> Result<Option<Tensor>> {
    let single = |x: &Tensor| x.f_to_kind(Kind::Float);
    let (gate, up, by) = (single(x.gate)?, single(x.up)?, single(by_output)?);
    let scaled = match x.scale {
        Some(scale) => by.f_mul(&scale.f_unsqueeze(-1)?)?,
        None => by.shallow_clone(),
    };
    let silu = gate.f_silu()?;
    by_up.shallow_clone().f_copy_(&scaled.f_mul(&silu)?)?;
    by_gate.shallow_clone().f_copy_(&gate.f_silu_backward(&scaled.f_mul(&up)?)?)?;
    let by_scale = || by.f_mul(&silu)?.f_mul(&up)?.f_sum_dim_intlist(&[-1i64][..], false, None::<Kind>);
    Ok(x.scale.map(|_| by_scale()).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain code, libtorch's operations, and autograd over the formula in f64.
    #[test]
    fn forward_and_backward_are_the_formula() {
        tch::manual_seed(5);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        for (rows, width) in [(1, 1), (5, 7), (40, 96), (300, 33)] {
            let both = random(&[rows, 2 * width]) * 4.0;
            let (by, scale) = (random(&[rows, width]), random(&[rows]));
            for scale in [None, Some(&scale)] {
                let leaf = |x: &Tensor| x.to_kind(Kind::Double).detach().set_requires_grad(true);
                let (both64, scale64) = (leaf(&both), scale.map(leaf));
                let halves = both64.chunk(2, -1);
                let plain = halves[0].silu() * &halves[1];
                let y = match &scale64 {
                    Some(scale) => plain * scale.unsqueeze(-1),
                    None => plain,
                };
                let objective = (&y * by.to_kind(Kind::Double)).sum(None::<Kind>);
                let leaves: Vec<&Tensor> = std::iter::once(&both64).chain(&scale64).collect();
                let wanted = Tensor::run_backward(&[objective], &leaves, false, false);

                let near = |what: &str, found: &Tensor, wanted: &Tensor| {
                    let difference = (found.to_kind(Kind::Double) - wanted).abs().max().double_value(&[]);
                    assert!(difference < 1e-4, "{what} of {rows}×{width}: {difference}");
                };
                let halves = both.chunk(2, -1);
                let x = Gated { gate: &halves[0], up: &halves[1], scale };
                near("y", &silu_gated(&x, Products::F32).unwrap(), &y);
                let half = silu_gated(&x, Products::Bf16).unwrap().to_kind(Kind::Float);
                let rounded = silu_gated(&x, Products::RoundedBf16).unwrap();
                assert_eq!(
                    (&half - &rounded).abs().gt_tensor(&(rounded.abs() * 0.01)).any().int64_value(&[]),
                    0
                );
                for composed in [false, true] {
                    let found = both.empty_like();
                    let parts = found.chunk(2, -1);
                    let by_scale = if composed {
                        composed_backward(&x, &by, (&parts[0], &parts[1])).unwrap()
                    } else {
                        silu_gated_backward(&x, &by, (&parts[0], &parts[1]), Products::F32).unwrap()
                    };
                    near("∂g, ∂u", &found, &wanted[0]);
                    assert_eq!(by_scale.is_some(), scale.is_some());
                    if let Some(by_scale) = by_scale {
                        near("∂s", &by_scale, &wanted[1]);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        let x = Tensor::from_slice(&[f32::NAN, 1.0, f32::INFINITY, 2.0]).view([2, 2]);
        let halves = x.chunk(2, -1);
        let gated = Gated { gate: &halves[0], up: &halves[1], scale: None };
        let y = silu_gated(&gated, Products::F32).unwrap();
        assert!(!y.isfinite().any().int64_value(&[]).is_positive(), "{y}");
    }
}
