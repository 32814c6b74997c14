//! Cross-entropy over a vocabulary, in place: logits become their own gradient.
//!
//! ```text
//! nll = ln Σ_j e^(l_j − max) + max − l_target            ∂l_j = scale·(e^(l_j − max)/Σ − [j = target])
//! ```

use std::ops::Range;

use tch::{Kind, Tensor};

use super::elementary::{LANES, exp, rounded_if};
use super::parallel::for_blocks;
use super::rows::Rows;
use super::{Products, are_plain, vectorized};
use crate::error::Result;

/// Turns `logits`, `[p, V]` f32, into the gradient of Σ scale·nll by them, an operand of products, and gives nll, `[p]`.
/// `targets` is `[p]` i64, `scales` `[p]` f32. A row whose scale is 0 has no target: its nll and gradient are 0, whatever
/// its logits are.
pub(crate) fn nll_and_gradient(
    logits: Tensor,
    targets: &Tensor,
    scales: &Tensor,
    products: Products,
) -> Result<(Tensor, Tensor)> {
    if products == Products::Bf16 || !are_plain(&[&logits, scales]) {
        return composed(logits, targets, scales, products);
    }
    let nll = scales.f_empty_like()?.f_unsqueeze(-1)?;
    let mut host = vec![0i64; targets.numel()];
    targets.f_copy_data(&mut host, targets.numel())?;
    let scales = scales.f_unsqueeze(-1)?;
    let task = Task {
        logits: Rows::of(&logits)?,
        targets: &host,
        scales: Rows::of(&scales)?,
        nll: Rows::of(&nll)?,
        rounds: products.rounds(),
    };
    for_blocks(task.logits.count(), 1, |block| rows_block(block, &task));
    Ok((nll.f_squeeze_dim(-1)?, logits))
}

/// Logits and nll are written here alone, and every row is in one block.
struct Task<'a> {
    logits: Rows<'a>,
    targets: &'a [i64],
    scales: Rows<'a>,
    nll: Rows<'a>,
    rounds: bool,
}

vectorized! {
    fn rows_block(block: Range<usize>, task: &Task<'_>) {
        for index in block {
            // SAFETY: as the task says.
            let (x, nll) = unsafe { (task.logits.row_mut(index), task.nll.row_mut(index)) };
            let scale = task.scales.row(index)[0];
            if scale == 0.0 {
                x.fill(0.0);
                nll[0] = 0.0;
                continue;
            }
            let target = task.targets[index] as usize;
            let wanted = x[target];
            // A comparison with NaN is false; it is then found in the sum.
            let mut lanes = [f32::NEG_INFINITY; LANES];
            let (whole, rest) = x.as_chunks::<LANES>();
            for chunk in whole {
                for (lane, &x) in lanes.iter_mut().zip(chunk) {
                    *lane = if x > *lane { x } else { *lane };
                }
            }
            let max = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
            let mut sums = [0.0f32; LANES];
            let (whole, rest) = x.as_chunks_mut::<LANES>();
            for chunk in whole {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *x = exp(*x - max);
                    *sum += *x;
                }
            }
            for (sum, x) in sums.iter_mut().zip(rest) {
                *x = exp(*x - max);
                *sum += *x;
            }
            let total: f32 = sums.iter().sum();
            nll[0] = libm::logf(total) + max - wanted;
            let each = scale / total;
            let at_target = x[target] * each - scale;
            for x in x.iter_mut() {
                *x = rounded_if(task.rounds, *x * each);
            }
            x[target] = rounded_if(task.rounds, at_target);
        }
    }
}

fn composed(
    logits: Tensor,
    targets: &Tensor,
    scales: &Tensor,
    products: Products,
) -> Result<(Tensor, Tensor)> {
    let mut logs = logits.f_to_kind(Kind::Float)?.f_log_softmax(-1, None::<Kind>)?;
    let index = targets.f_unsqueeze(-1)?;
    let counted = scales.f_ne(0.0)?;
    let nll = logs.f_gather(1, &index, false)?.f_squeeze_dim(-1)?.f_neg()?;
    let nll = nll.f_where_self(&counted, &nll.f_zeros_like()?)?;
    let minus_one = Tensor::f_full(index.size(), -1.0, (Kind::Float, logs.device()))?;
    let by_logits = logs.f_exp_()?.f_scatter_add_(1, &index, &minus_one)?.f_mul_(&scales.f_unsqueeze(-1)?)?;
    let by_logits = by_logits.f_where_self(&counted.f_unsqueeze(-1)?, &by_logits.f_zeros_like()?)?;
    Ok((nll, products.operand(&by_logits)?))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// Plain code, libtorch's operations, and autograd over the definition in f64.
    #[test]
    fn nll_and_gradient_are_the_definition() {
        tch::manual_seed(6);
        for (rows, vocabulary) in [(1, 1), (4, 3), (20, 1000), (3, 40_001)] {
            let logits = random(&[rows, vocabulary]) * 5.0;
            let targets = Tensor::randint(vocabulary, [rows], (Kind::Int64, Device::Cpu));
            let scales = random(&[rows]).abs() * random(&[rows]).gt(-1.0).to_kind(Kind::Float);
            let leaf = logits.to_kind(Kind::Double).detach().set_requires_grad(true);
            let logs = leaf.log_softmax(-1, None::<Kind>);
            let nll = -logs.gather(1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
            let counted = scales.ne(0.0).to_kind(Kind::Double);
            let wanted_nll = &nll * &counted;
            let objective = (&nll * scales.to_kind(Kind::Double)).sum(None::<Kind>);
            let wanted = Tensor::run_backward(&[objective], &[&leaf], false, false);
            let near = |what: &str, found: &Tensor, wanted: &Tensor| {
                let difference = (found.to_kind(Kind::Double) - wanted).abs().max().double_value(&[]);
                assert!(difference < 2e-5, "{what} of {rows}×{vocabulary}: {difference}");
            };
            let (nll, by_logits) = nll_and_gradient(logits.copy(), &targets, &scales, Products::F32).unwrap();
            near("nll", &nll, &wanted_nll);
            near("∂logits", &by_logits, &wanted[0]);
            let (nll, by_logits) = composed(logits.copy(), &targets, &scales, Products::F32).unwrap();
            near("composed nll", &nll, &wanted_nll);
            near("composed ∂logits", &by_logits, &wanted[0]);
            let (_, rounded) =
                nll_and_gradient(logits.copy(), &targets, &scales, Products::RoundedBf16).unwrap();
            assert!(rounded == rounded.to_kind(Kind::BFloat16).to_kind(Kind::Float));
        }
    }

    #[test]
    fn only_rows_with_a_target_count() {
        let logits = Tensor::from_slice(&[f32::NAN, 1.0, f32::NAN, 1.0]).view([2, 2]);
        let targets = Tensor::from_slice(&[0i64, 1]);
        let scales = Tensor::from_slice(&[0.0f32, 0.5]);
        for plain in [true, false] {
            let (nll, by_logits) = if plain {
                nll_and_gradient(logits.copy(), &targets, &scales, Products::F32).unwrap()
            } else {
                composed(logits.copy(), &targets, &scales, Products::F32).unwrap()
            };
            assert_eq!(nll.double_value(&[0]), 0.0);
            assert_eq!(by_logits.get(0).abs().sum(None::<Kind>).double_value(&[]), 0.0);
            assert!(nll.double_value(&[1]).is_nan() && by_logits.get(1).isnan().all().int64_value(&[]) == 1);
        }
    }
}
