//! Pieces of the graph that are differentiated one at a time: each runs on leaves cut off from the piece before it.

use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::parameters::Leaf;

/// `x` cut off from what made it, to be differentiated by.
pub(crate) fn leaf_of(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_detach()?.f_set_requires_grad(true)?)
}

/// Gradients of `Σ ⟨output, by_output⟩ + Σ coefficient·term` by the segment's inputs, its weights and its other leaves, in
/// this order. A gradient of 1 times `by_output` is exact, so this is backward from `by_output`.
pub(crate) fn backward(
    outputs: &[(&Tensor, Tensor)],
    terms: &[(&Tensor, f64)],
    (inputs, weights, others): (&[&Tensor], &[Leaf], &[&Tensor]),
) -> Result<std::vec::IntoIter<Tensor>> {
    let flat = |x: &Tensor| x.f_to_kind(Kind::Float)?.f_flatten(0, -1);
    let mut objective: Option<Tensor> = None;
    let mut add = |term: Tensor| {
        objective = Some(match &objective {
            Some(sum) => sum.f_add(&term)?,
            None => term,
        });
        Ok::<_, ModelError>(())
    };
    for (output, by_output) in outputs {
        add(flat(output)?.f_dot(&flat(by_output)?)?)?;
    }
    for (term, coefficient) in terms {
        if *coefficient != 0.0 {
            add(term.f_mul_scalar(*coefficient)?)?;
        }
    }
    let objective = objective.ok_or_else(|| ModelError::Torch("nothing to differentiate".into()))?;
    let mut leaves = inputs.to_vec();
    leaves.extend(weights.iter().map(|leaf| &leaf.tensor));
    leaves.extend(others);
    Ok(Tensor::f_run_backward(&[objective], &leaves, false, false)?.into_iter())
}

/// The gradient by an input that every segment uses.
pub(crate) fn required(gradient: Option<Tensor>) -> Result<Tensor> {
    gradient
        .filter(Tensor::defined)
        .ok_or_else(|| ModelError::Torch("backward gave no gradient for a segment's input".into()))
}
