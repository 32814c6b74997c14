//! Products with a weight, forward and backward, without a graph.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::gradient::BucketGradient;
use crate::kernels::are_plain;
use crate::parameters::{Precision, Weights};

/// A weight `[out, in]`: a view into the flat buffer, and where its gradient belongs.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    range: Range<usize>,
}

impl Linear {
    /// The weight called `name`, an operand of products.
    pub(crate) fn new(weights: &Weights, name: &str) -> Result<Linear> {
        Linear::with(weights, name, Precision::Compute)
    }

    /// The weight called `name` in f32, for products that are f32 always.
    pub(crate) fn single(weights: &Weights, name: &str) -> Result<Linear> {
        Linear::with(weights, name, Precision::Single)
    }

    fn with(weights: &Weights, name: &str, precision: Precision) -> Result<Linear> {
        let entry = weights.entry(name)?;
        let shape: Vec<i64> = entry.spec.shape.iter().map(|&size| size as i64).collect();
        let range = entry.range.clone();
        Ok(Linear { weight: weights.view(&range, &shape, precision)?, range })
    }

    /// Two neighbouring weights of the same width as one.
    pub(crate) fn pair(weights: &Weights, first: &str, second: &str) -> Result<Linear> {
        let (first, second) = (weights.entry(first)?, weights.entry(second)?);
        let range = first.range.start..second.range.end;
        let width = first.spec.shape.last().map_or(1, |&size| size as i64);
        let shape = [range.len() as i64 / width.max(1), width];
        Ok(Linear { weight: weights.view(&range, &shape, Precision::Compute)?, range })
    }

    /// Number of outputs.
    pub(crate) fn outputs(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Number of inputs.
    pub(crate) fn inputs(&self) -> i64 {
        self.weight.size()[1]
    }

    /// `x·Wᵀ`: `[P, in]` → `[P, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, None::<&Tensor>)?)
    }

    /// The same, written to `target`, of the operands' type.
    pub(crate) fn forward_into(&self, x: &Tensor, target: &Tensor) -> Result<()> {
        drop(x.f_mm_out(target, &self.weight.f_transpose(0, 1)?)?);
        Ok(())
    }

    /// `residual + x·Wᵀ` in f32.
    pub(crate) fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        if x.f_kind()? == residual.f_kind()? {
            return Ok(residual.f_addmm(x, &self.weight.f_transpose(0, 1)?)?);
        }
        Ok(residual.f_add(&self.forward(x)?)?)
    }

    /// By its input: `[P, out]` → `[P, in]`.
    pub(crate) fn by_input(&self, by: &Tensor) -> Result<Tensor> {
        Ok(by.f_mm(&self.weight)?)
    }

    /// The same, written to `target`, of the operands' type.
    pub(crate) fn by_input_into(&self, by: &Tensor, target: &Tensor) -> Result<()> {
        drop(by.f_mm_out(target, &self.weight)?);
        Ok(())
    }

    /// The same, added to `sum`.
    pub(crate) fn by_input_onto(&self, sum: &mut Tensor, by: &Tensor) -> Result<()> {
        if sum.f_kind()? == by.f_kind()? {
            drop(sum.f_addmm_(by, &self.weight)?);
        } else {
            drop(sum.f_add_(&self.by_input(by)?)?);
        }
        Ok(())
    }

    /// By the weight, written to its place: `byᵀ·x`.
    pub(crate) fn by_weight(&self, by: &Tensor, x: &Tensor, dense: &mut BucketGradient) -> Result<()> {
        self.by_weight_onto(by, x, dense, Sum::Begins)
    }

    /// The same, as a part of a sum.
    pub(crate) fn by_weight_onto(
        &self,
        by: &Tensor,
        x: &Tensor,
        dense: &mut BucketGradient,
        sum: Sum,
    ) -> Result<()> {
        let shape = (self.outputs(), self.inputs());
        product_into(&by.f_transpose(0, 1)?, x, (dense.part(&self.range), shape), sum)
    }

    /// Writes zeros to the place of its gradient.
    pub(crate) fn no_gradient(&self, dense: &mut BucketGradient) {
        dense.part(&self.range).fill(0.0);
    }
}

/// Where in a sum a product stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    /// It is the first term.
    Begins,
    /// It is added.
    GoesOn,
}

/// `left·right` into a host buffer of its shape; f32 products in host memory are made in place.
fn product_into(
    left: &Tensor,
    right: &Tensor,
    (target, (rows, columns)): (&mut [f32], (i64, i64)),
    sum: Sum,
) -> Result<()> {
    if are_plain(&[left, right]) {
        let size = [rows, columns];
        debug_assert_eq!(target.len() as i64, rows * columns);
        // SAFETY: the buffer has this many f32 and outlives the tensor, which is dropped at the end of this block and
        // is the only way to the buffer meanwhile.
        let mut place = unsafe {
            Tensor::f_from_blob(
                target.as_mut_ptr().cast_const().cast(),
                &size,
                &[columns, 1],
                Kind::Float,
                Device::Cpu,
            )
        }?;
        drop(match sum {
            Sum::Begins => left.f_mm_out(&place, right)?,
            Sum::GoesOn => place.f_addmm_(left, right)?,
        });
        return Ok(());
    }
    let product = left.f_mm(right)?.f_to_kind(Kind::Float)?;
    match sum {
        Sum::Begins => product.f_copy_data(target, target.len())?,
        Sum::GoesOn => {
            let mut host = vec![0.0f32; target.len()];
            product.f_copy_data(&mut host, target.len())?;
            target.iter_mut().zip(&host).for_each(|(sum, value)| *sum += value);
        }
    }
    Ok(())
}
