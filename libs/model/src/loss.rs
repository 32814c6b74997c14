//! The end of the model: final norm, output head, cross-entropy and the hidden z-loss.
//!
//! Logits are made for [`CHUNK`] positions at a time and never exist whole. Their gradient is `softmax − onehot` over the
//! global number of targets, made in place; the head's gradient is summed over chunks in order.

use polygram_domain::ModelSpec;
use polygram_domain::batch::IGNORED_TARGET;
use tch::{Kind, Tensor};

use crate::context::CellContext;
use crate::error::Result;
use crate::norm::rms_norm;
use crate::parameters::{Leaf, Leaves, Precision, Weights};

/// Positions whose logits exist at one time.
const CHUNK: i64 = 1024;

/// Final norm and output head.
#[derive(Debug)]
pub(crate) struct Head {
    norm: Tensor,
    /// `[V, D]`, without gradient: its gradient is computed by hand.
    weight: Tensor,
    eps: f64,
    /// The norm's weight.
    pub(crate) leaves: Vec<Leaf>,
    /// Where the head's gradient belongs in the flat buffer.
    pub(crate) weight_range: std::ops::Range<usize>,
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
    pub(crate) fn new(weights: &Weights, model: &ModelSpec) -> Result<Head> {
        let mut leaves = Leaves::new(weights);
        let norm = leaves.weight("model.norm.weight", Precision::Single)?;
        let weight_range = weights.entry("lm_head.weight")?.range.clone();
        let shape = [i64::from(model.vocab_size), i64::from(model.hidden_size)];
        Ok(Head {
            norm,
            weight: weights.view(&weight_range, &shape, Precision::Compute)?,
            eps: model.rms_norm_eps,
            leaves: leaves.finish(),
            weight_range,
        })
    }

    /// The normed hidden states, `[P, D]` in the compute type.
    pub(crate) fn normed(&self, x: &Tensor, cell: &CellContext<'_>) -> Result<Tensor> {
        rms_norm(x, &self.norm, self.eps, cell.kind)
    }

    /// `[p, D]` normed → f32 logits `[p, V]`.
    pub(crate) fn logits(&self, normed: &Tensor) -> Result<Tensor> {
        Ok(normed.f_linear(&self.weight, None::<&Tensor>)?.f_to_kind(Kind::Float)?)
    }

    /// `[p, D]` normed → f32 logarithms of probabilities `[p, V]`.
    fn log_probabilities(&self, normed: &Tensor) -> Result<Tensor> {
        Ok(self.logits(normed)?.f_log_softmax(-1, None::<Kind>)?)
    }

    /// Σ nll in f64, over positions in order. Call it without gradient.
    pub(crate) fn loss_sum(&self, normed: &Tensor, targets: &Targets) -> Result<f64> {
        let mut sum = 0.0;
        for chunk in chunks(normed)? {
            let logs = self.log_probabilities(&chunk.of(normed)?)?;
            sum += host_sum(&negative_log_likelihood(&logs, &chunk, targets)?)?;
        }
        Ok(sum)
    }

    /// Σ nll in f64, and the gradients of Σ nll / global by the normed states `[P, D]` and by the head
    /// `[V, D]` (f32). Call it without gradient.
    pub(crate) fn loss_and_gradients(
        &self,
        normed: &Tensor,
        targets: &Targets,
    ) -> Result<(f64, Tensor, Tensor)> {
        let mut sum = 0.0;
        let mut by_normed = Vec::new();
        let mut by_weight: Option<Tensor> = None;
        for chunk in chunks(normed)? {
            let states = chunk.of(normed)?;
            let scale = chunk.of(&targets.mask)?.f_div_scalar(targets.global)?.f_unsqueeze(-1)?;
            let mut logs = self.log_probabilities(&states)?;
            sum += host_sum(&negative_log_likelihood(&logs, &chunk, targets)?)?;
            // In place: logarithms → probabilities → gradient of each position's nll by its logits.
            let mut by_logits = logs.f_exp_()?;
            let minus_one = Tensor::f_full([chunk.len, 1], -1.0, (Kind::Float, by_logits.device()))?;
            let index = chunk.of(&targets.index)?.f_unsqueeze(-1)?;
            let by_logits = by_logits.f_scatter_add_(1, &index, &minus_one)?.f_to_kind(states.f_kind()?)?;
            // The scale is applied to the narrow side of both products.
            by_normed.push(by_logits.f_mm(&self.weight)?.f_mul(&scale)?);
            let scaled = states.f_mul(&scale)?.f_to_kind(states.f_kind()?)?;
            let part = by_logits.f_transpose(0, 1)?.f_mm(&scaled)?.f_to_kind(Kind::Float)?;
            by_weight = Some(match by_weight {
                Some(mut sum) => sum.f_add_(&part)?,
                None => part,
            });
        }
        let by_weight = match by_weight {
            Some(sum) => sum,
            None => self.weight.f_zeros_like()?.f_to_kind(Kind::Float)?,
        };
        Ok((sum, Tensor::f_cat(&by_normed, 0)?, by_weight))
    }
}

/// mean(logsumexp(|h|)²) over positions, of hidden states `[P, D]` before the final norm.
pub(crate) fn hidden_z(hidden: &Tensor) -> Result<Tensor> {
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

fn chunks(normed: &Tensor) -> Result<impl Iterator<Item = Chunk>> {
    let positions = normed.size().first().copied().unwrap_or(0);
    Ok((0..positions)
        .step_by(CHUNK as usize)
        .map(move |start| Chunk { start, len: CHUNK.min(positions - start) }))
}

/// `[p]`, 0 where ignored.
fn negative_log_likelihood(logs: &Tensor, chunk: &Chunk, targets: &Targets) -> Result<Tensor> {
    let index = chunk.of(&targets.index)?.f_unsqueeze(-1)?;
    let nll = logs.f_gather(1, &index, false)?.f_squeeze_dim(-1)?.f_neg()?;
    // Selected, not multiplied: a position without target adds nothing, whatever its logits are.
    let counted = chunk.of(&targets.mask)?.f_gt(0.0)?;
    Ok(nll.f_where_self(&counted, &nll.f_zeros_like()?)?)
}

fn host_sum(values: &Tensor) -> Result<f64> {
    let mut host = vec![0.0f32; values.numel()];
    values.f_copy_data(&mut host, values.numel())?;
    Ok(host.iter().map(|&value| f64::from(value)).sum())
}
