//! A forward pass that keeps what a reader wants to see: embedding, choices of experts, logits.

use tch::{Kind, Tensor, no_grad};

use crate::cell::CellInput;
use crate::decoder::{Model, Network};
use crate::error::Result;
use crate::loss::Targets;

/// What one forward pass showed. All buffers are row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// `[B, T, D]`: input of the first layer.
    pub embedding_btd: Vec<f32>,
    /// Choices per layer.
    pub routing: Vec<RoutingTrace>,
    /// `[B, T, V]`.
    pub logits_btv: Vec<f32>,
    /// Mean nll over the cell's targets, in nats; NaN where there are none.
    pub loss: f64,
}

/// One layer's choices.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingTrace {
    /// `[P, k]`: chosen experts, best first.
    pub chosen_pk: Vec<u32>,
    /// `[P, k]`: their gates, scale included.
    pub gates_pk: Vec<f32>,
    /// `[n + z]`: how often each expert was chosen.
    pub counts: Vec<u64>,
}

impl Model {
    /// Runs one cell forward and keeps embedding, routing and logits. The logits exist whole: mind `B·T·V`.
    pub fn inspect(&mut self, input: &CellInput<'_>) -> Result<Inspection> {
        input.check(&self.spec)?;
        let cell = self.context(input)?;
        let Model { network: Network { embedding, layers, head, .. }, experts: group, spec, .. } = self;
        no_grad(|| {
            let mut x = embedding.combine(&embedding.gather(&cell)?, &cell)?;
            let embedding_btd = to_host(&x)?;
            let mut routing = Vec::with_capacity(layers.len());
            for layer in layers {
                let pass = layer.forward(&x, &cell, group)?;
                let probabilities = to_host(&pass.routing.probabilities)?;
                let experts = spec.routed_experts() as usize;
                let k = spec.moe.top_k as usize;
                let scale = spec.moe.routed_scaling_factor as f32;
                let gate = |(slot, &expert): (usize, &u32)| {
                    probabilities[slot / k * experts + expert as usize] * scale
                };
                routing.push(RoutingTrace {
                    gates_pk: pass.routing.chosen_pk.iter().enumerate().map(gate).collect(),
                    chosen_pk: pass.routing.chosen_pk,
                    counts: pass.routing.counts,
                });
                x = pass.output;
            }
            let normed = head.normed(&x, &cell)?.output;
            let targets = Targets::new(input.batch.targets_bt(), input.global_targets, &cell)?;
            let loss = head.loss_sum(&normed, &targets)? / input.batch.target_count() as f64;
            let logits_btv = to_host(&head.logits(&normed)?)?;
            Ok(Inspection { embedding_btd, routing, logits_btv, loss })
        })
    }
}

fn to_host(tensor: &Tensor) -> Result<Vec<f32>> {
    let mut values = vec![0.0f32; tensor.numel()];
    tensor.f_to_kind(Kind::Float)?.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}
