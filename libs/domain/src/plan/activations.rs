//! Bytes of activations of one micro-batch: what forward keeps for backward, and what backward makes beside it.
//!
//! The sizes follow `libs/model` tensor by tensor (`layer.rs`, `attention.rs`, `ffn.rs`, `moe.rs`, `loss.rs`). How many rows
//! a rank's experts get depends on the router; `training.balance.target_top_k` FFN experts a token are counted, which is
//! what balancing aims at.
//!
//! Legend: P positions of a micro-batch, D hidden size, I width of a dense FFN, e bytes of an operand of products.

use crate::model::{ModelSpec, Placement};
use crate::run_spec::{DeviceKind, RunSpec};

use super::operands::Operands;

/// Values of f32 logits that exist at one time, about, and the positions that they are of (`libs/model/src/loss.rs`).
const LOGITS: u128 = 4 << 20;
const LOGIT_POSITIONS: (u128, u128) = (64, 1024);
/// Bytes of an f32.
const F32: u128 = 4;

/// The dimensions of one rank's part of a micro-batch.
struct Dimensions<'a> {
    model: &'a ModelSpec,
    positions: u128,
    /// FFN experts a token.
    choices: u128,
    /// Bytes of an operand.
    e: u128,
    /// Bytes of f32 copies that bf16 operands need for a while: 4, or 0 where operands are f32.
    single: u128,
    d: u128,
    inner: u128,
    expert_inner: u128,
    heads: u128,
    /// Width of a head as attention has it: the wider one of queries and values.
    head: u128,
    value: u128,
}

/// Bytes of activations at their peak, of a rank that computes `spec` with `operands`.
pub(super) fn activation_bytes(spec: &RunSpec, operands: Operands) -> u128 {
    let sizes = Dimensions::of(spec, operands);
    let layers = u128::from(spec.model.num_layers);
    let (kept, work) = (sizes.kept(), sizes.backward());
    // The input of each layer; with recomputation also the rows that came to its experts.
    let per_layer = sizes.positions * F32 * sizes.d;
    // What is kept when the end of the model is reached, and what backward of a layer then adds to it.
    let (kept, layer) = match spec.training.recompute {
        true => (layers * (per_layer + sizes.expert_rows()), kept + work),
        false => (layers * (per_layer + kept), work),
    };
    sizes.embedding() + kept + layer.max(sizes.head()) + sizes.weight_product(spec)
}

/// Bytes in host memory of an exchange with the ranks that hold the other experts: the rows that leave and those that come.
///
/// Both are there at once: the answers come while the next part of a layer is computed (`libs/model/src/experts.rs`).
/// Rows for a rank's own experts are not copied.
pub(super) fn exchange_bytes(spec: &RunSpec, operands: Operands) -> u128 {
    let ranks = u128::from(spec.topology.expert_parallel).max(1);
    2 * Dimensions::of(spec, operands).expert_rows() * (ranks - 1) / ranks
}

impl Dimensions<'_> {
    fn of(spec: &RunSpec, operands: Operands) -> Dimensions<'_> {
        let model = &spec.model;
        let wide = |size: u32| u128::from(size);
        let a = &model.attention;
        Dimensions {
            positions: wide(spec.training.seq_len) * wide(spec.training.micro_batch_size),
            choices: wide(spec.training.balance.target_top_k),
            e: operands.bytes(),
            single: if operands == Operands::Bf16 { F32 } else { 0 },
            d: wide(model.hidden_size),
            inner: wide(model.ffn_hidden_size),
            expert_inner: wide(model.moe.expert_hidden_size),
            heads: wide(a.heads),
            head: (wide(a.qk_nope_head_dim) + wide(a.qk_rope_head_dim)).max(wide(a.v_head_dim)),
            value: wide(a.v_head_dim),
            model,
        }
    }

    /// What one layer keeps, its input aside.
    fn kept(&self) -> u128 {
        let Dimensions { e, d, .. } = *self;
        let a = &self.model.attention;
        let (q_rank, kv_rank) = (u128::from(a.q_lora_rank), u128::from(a.kv_lora_rank));
        let rope = u128::from(a.qk_rope_head_dim);
        // Values of 4 heads' widths: q, k, v and the output; it is copied where values are narrower.
        let copied = if self.value < self.head { self.value } else { 0 };
        let attended = self.heads * ((4 * self.head + copied) * e + F32);
        let latents = (2 * q_rank + 2 * kv_rank + rope) * e;
        let norms = 2 * d * e + 4 * F32;
        let half = norms + latents + attended + d * F32 + self.ffn_kept();
        // x2, and what the router keeps: logits, probabilities, the order of its choices.
        let routed = u128::from(self.model.moe.experts) + u128::from(self.model.moe.zero_experts);
        let router = 2 * F32 * routed + 4 * F32 + 24 * self.choices;
        let experts = self.choices * 3 * self.expert_inner * e;
        self.positions * (2 * half + d * F32 + router + experts) + self.expert_rows()
    }

    /// What a dense FFN keeps of a position.
    fn ffn_kept(&self) -> u128 {
        let Dimensions { e, inner, .. } = *self;
        match self.model.placement {
            Placement::Input => 3 * inner * e,
            Placement::PerLayer => 2 * inner * e + inner * F32,
            Placement::PerLayerNgram => 2 * inner * e + 3 * inner * F32,
        }
    }

    /// Rows in front of the experts and their gates.
    fn expert_rows(&self) -> u128 {
        self.positions * self.choices * (self.d * self.e + F32)
    }

    /// The most that backward of a layer makes beside what forward has kept.
    fn backward(&self) -> u128 {
        let Dimensions { e, d, inner, single, .. } = *self;
        // Gradients of the residual stream, of the experts' outputs, and by the norms' outputs.
        let streams = 2 * d * F32 + self.choices * d * e + 2 * d * e + 3 * d * single;
        let ffn = 3 * inner * e + 5 * inner * single;
        let attention = self.heads * (self.value + 4 * self.head) * (e + single / 2);
        let experts = self.choices * (3 * self.expert_inner * e + d * e + 5 * self.expert_inner * single);
        self.positions * (streams + ffn.max(attention).max(experts))
    }

    /// The embedding of a micro-batch: words and rows of its positions.
    fn embedding(&self) -> u128 {
        let sites = if self.model.placement == Placement::Input { 3 } else { 1 };
        self.positions * self.d * (sites * F32)
    }

    /// The end of the model: some logits and their gradients, hidden states and theirs.
    fn head(&self) -> u128 {
        let vocab = u128::from(self.model.vocab_size);
        let (least, most) = LOGIT_POSITIONS;
        let logits = (LOGITS / vocab.max(1)).clamp(least, most).min(self.positions) * vocab;
        logits * (self.e + 2 * self.single) + self.positions * self.d * (2 * self.e + 2 * F32)
    }

    /// The gradient of the largest weight, where it is not made in its place: in host memory with f32 operands it is.
    fn weight_product(&self, spec: &RunSpec) -> u128 {
        if spec.device.kind == DeviceKind::Cpu && self.single == 0 {
            return 0;
        }
        let head = u128::from(self.model.vocab_size) * self.d;
        let ffn = 2 * self.inner * self.d;
        head.max(ffn) * (self.e + F32)
    }
}
