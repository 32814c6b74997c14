//! The end of the model: final norm, output head, cross-entropy and the hidden z-loss.
//!
//! Logits are made for some positions at a time and never exist whole. They become their own gradient in place; the head's
//! gradient is summed over chunks in order.

use polygram_domain::ModelSpec;
use polygram_domain::batch::IGNORED_TARGET;
use tch::{Kind, Tensor, no_grad};

use crate::context::CellContext;
use crate::error::Result;
use crate::gradient::BucketGradient;
use crate::kernels::{Adds, Normed, Products, nll_and_gradient};
use crate::linear::{Linear, Sum};
use crate::norm::Norm;
use crate::parameters::Weights;
use crate::segment::{backward, leaf_of, required};

/// Logits that exist at one time, about: 16 MiB in f32, between the caches and a product's efficiency.
const LOGITS: i64 = 4 << 20;
/// Positions whose logits exist at one time.
const POSITIONS: std::ops::RangeInclusive<i64> = 64..=1024;

/// Final norm and output head.
#[derive(Debug)]
pub(crate) struct Head {
    norm: Norm,
    /// `[V, D]`.
    head: Linear,
    products: Products,
}

/// What the end of a cell gives.
pub(crate) struct HeadOutput {
    /// Σ nll.
    pub(crate) loss_sum: f64,
    /// Hidden z-loss, before its coefficient.
    pub(crate) hidden_z: f64,
    /// `[P, D]` f32: the gradient by the last layer's output.
    pub(crate) by_hidden: Tensor,
}

/// Targets of one cell, as the head wants them.
pub(crate) struct Targets {
    /// `[P]` i64, 0 where ignored.
    index: Tensor,
    /// `[P]` f32: 1 where there is a target.
    mask: Tensor,
    /// What the sum is divided by before backward.
    global: f64,
}

impl Targets {
    pub(crate) fn new(targets: &[i64], global: u64, cell: &CellContext<'_>) -> Result<Targets> {
        let index: Vec<i64> = targets.iter().map(|&target| target.max(0)).collect();
        let mask: Vec<f32> =
            targets.iter().map(|&target| if target == IGNORED_TARGET { 0.0 } else { 1.0 }).collect();
        Ok(Targets {
            index: Tensor::f_from_slice(&index)?.f_to_device(cell.device)?,
            mask: Tensor::f_from_slice(&mask)?.f_to_device(cell.device)?,
            global: global.max(1) as f64,
        })
    }
}

impl Head {
    pub(crate) fn new(weights: &Weights, model: &ModelSpec, products: Products) -> Result<Head> {
        Ok(Head {
            norm: Norm::new(weights, "model.norm.weight", model.rms_norm_eps)?,
            head: Linear::new(weights, "lm_head.weight")?,
            products,
        })
    }

    /// The normed hidden states, an operand of products.
    pub(crate) fn normed(&self, hidden: &Tensor, cell: &CellContext<'_>) -> Result<Normed> {
        self.norm.forward(hidden, cell)
    }

    /// `[p, D]` normed → f32 logits `[p, V]`.
    pub(crate) fn logits(&self, normed: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(normed)?.f_to_kind(Kind::Float)?)
    }

    /// Σ nll in f64, over positions in order, of normed states. Call it without gradient.
    pub(crate) fn loss_sum(&self, normed: &Tensor, targets: &Targets) -> Result<f64> {
        let mut sum = 0.0;
        for chunk in self.chunks(normed) {
            let logits = self.head.forward(&chunk.of(normed)?)?;
            let (index, mask) = (chunk.of(&targets.index)?, chunk.of(&targets.mask)?);
            // The gradient that comes with it is not used; training's own losses have the same bits.
            let (nll, _) = nll_and_gradient(logits, &index, &mask, self.products)?;
            sum += host_sum(&nll)?;
        }
        Ok(sum)
    }

    /// Loss of the last layer's output `hidden` `[P, D]`, and the gradients of Σ nll / global + `z`·(hidden z-loss); those by
    /// the weights go to their places.
    pub(crate) fn differentiate(
        &self,
        hidden: &Tensor,
        targets: &Targets,
        z: f64,
        (cell, dense): (&CellContext<'_>, &mut BucketGradient),
    ) -> Result<HeadOutput> {
        let (hidden_z, by_hidden) = self.hidden_z(hidden, z)?;
        let normed = self.normed(hidden, cell)?;
        let (loss_sum, by_normed) = no_grad(|| self.cross_entropy(&normed.output, targets, dense))?;
        self.norm.backward((hidden, &normed), &by_normed, (&by_hidden, Adds::Yes), dense)?;
        Ok(HeadOutput { loss_sum, hidden_z, by_hidden })
    }

    /// The z-loss and its gradient times `coefficient`.
    fn hidden_z(&self, hidden: &Tensor, coefficient: f64) -> Result<(f64, Tensor)> {
        if coefficient == 0.0 {
            return Ok((no_grad(|| hidden_z(hidden))?.f_double_value(&[])?, hidden.f_zeros_like()?));
        }
        let leaf = leaf_of(hidden)?;
        let value = hidden_z(&leaf)?;
        let by_hidden = required(backward(&[], &[(&value, coefficient)], (&[&leaf], &[], &[]))?.next())?;
        Ok((value.f_double_value(&[])?, by_hidden))
    }

    /// Σ nll in f64, and the gradient of Σ nll / global by the normed states.
    fn cross_entropy(
        &self,
        normed: &Tensor,
        targets: &Targets,
        dense: &mut BucketGradient,
    ) -> Result<(f64, Tensor)> {
        let mut loss = 0.0;
        let by_normed = normed.f_empty_like()?;
        let scales = targets.mask.f_div_scalar(targets.global)?;
        let mut sum = Sum::Begins;
        for chunk in self.chunks(normed) {
            let states = chunk.of(normed)?;
            let logits = self.head.forward(&states)?;
            let (index, scales) = (chunk.of(&targets.index)?, chunk.of(&scales)?);
            let (nll, by_logits) = nll_and_gradient(logits, &index, &scales, self.products)?;
            loss += host_sum(&nll)?;
            self.head.by_input_into(&by_logits, &chunk.of(&by_normed)?)?;
            self.head.by_weight_onto(&by_logits, &states, dense, sum)?;
            sum = Sum::GoesOn;
        }
        if sum == Sum::Begins {
            self.head.no_gradient(dense);
        }
        Ok((loss, by_normed))
    }

    fn chunks(&self, normed: &Tensor) -> impl Iterator<Item = Chunk> + use<> {
        let positions = normed.size().first().copied().unwrap_or(0);
        let each = (LOGITS / self.head.outputs().max(1)).clamp(*POSITIONS.start(), *POSITIONS.end());
        (0..positions)
            .step_by(each as usize)
            .map(move |start| Chunk { start, len: each.min(positions - start) })
    }
}

/// mean(logsumexp(|h|)²) over positions, of hidden states `[P, D]` before the final norm.
fn hidden_z(hidden: &Tensor) -> Result<Tensor> {
    Ok(hidden.f_abs()?.f_logsumexp(&[-1i64][..], false)?.f_square()?.f_mean(None::<Kind>)?)
}

struct Chunk {
    start: i64,
    len: i64,
}

impl Chunk {
    fn of(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.f_narrow(0, self.start, self.len)?)
    }
}

fn host_sum(values: &Tensor) -> Result<f64> {
    let mut host = vec![0.0f32; values.numel()];
    values.f_copy_data(&mut host, values.numel())?;
    Ok(host.iter().map(|&value| f64::from(value)).sum())
}
