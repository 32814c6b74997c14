//! A norm's weight and its use.

use std::ops::Range;

use tch::Tensor;

use crate::context::CellContext;
use crate::error::Result;
use crate::gradient::BucketGradient;
use crate::kernels::{Adds, Normed, rms_norm, rms_norm_backward};
use crate::parameters::{Precision, Weights};

/// RMSNorm with its weight, `[D]`, and a constant factor.
#[derive(Debug)]
pub(crate) struct Norm {
    weight: Tensor,
    range: Range<usize>,
    eps: f64,
    factor: f64,
}

impl Norm {
    /// The norm of the weight called `name`.
    pub(crate) fn new(weights: &Weights, name: &str, eps: f64) -> Result<Norm> {
        let range = weights.entry(name)?.range.clone();
        let weight = weights.view(&range, &[range.len() as i64], Precision::Single)?;
        Ok(Norm { weight, range, eps, factor: 1.0 })
    }

    /// The same, its output times `factor`.
    pub(crate) fn times(self, factor: f64) -> Norm {
        Norm { factor, ..self }
    }

    /// `[P, D]` → an operand of products.
    pub(crate) fn forward(&self, x: &Tensor, cell: &CellContext<'_>) -> Result<Normed> {
        rms_norm(x, (&self.weight, self.factor), self.eps, cell.products)
    }

    /// From the gradient by the output: that by `x` is added to `by_x` (or written there), that by the weight goes to its
    /// place.
    pub(crate) fn backward(
        &self,
        (x, normed): (&Tensor, &Normed),
        by_output: &Tensor,
        by_x: (&Tensor, Adds),
        dense: &mut BucketGradient,
    ) -> Result<()> {
        let by_weight = dense.part(&self.range);
        rms_norm_backward((x, normed), (&self.weight, self.factor), by_output, by_x, by_weight)
    }
}
