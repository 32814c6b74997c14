//! Multi-head latent attention: queries from one latent, keys and values from another, one rotated key for all heads.
//!
//! ```text
//! cq = RMSNorm(x·Wqa)        q = cq·Wqb           per head [nope | rope]
//! [c | kr] = x·Wkva          c = RMSNorm(c)·√(D/kv_rank)
//! [k_nope | v] = c·Wkvb      k = [k_nope | rope(kr)]
//! out = softmax(q·k · scale, causal) · v · Wo
//! ```
//! The query's factor √(D/q_rank) enters the scores only, so it is part of `scale`; the latent's factor is folded into
//! its norm's weight.

use polygram_domain::ModelSpec;
use tch::{Kind, Tensor};

use crate::context::CellContext;
use crate::error::Result;
use crate::gradient::BucketGradient;
use crate::kernels::{Adds, Attended, Heads, Normed, are_plain, assemble, disassemble};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::parameters::Weights;
use crate::rope::Rotary;
use crate::segment::{backward, leaf_of, required};

/// Epsilon of the two latent norms, whatever the model's own is.
const LATENT_EPS: f64 = 1e-6;

/// The weights of one attention and its dimensions.
#[derive(Debug)]
pub(crate) struct Attention {
    q_a: Linear,
    q_norm: Norm,
    q_b: Linear,
    kv_a: Linear,
    kv_norm: Norm,
    kv_b: Linear,
    o: Linear,
    heads: Heads,
    kv_rank: i64,
    scale: f64,
}

/// What backward needs of a forward pass.
pub(crate) struct AttentionPass {
    /// `[P, q_rank]`.
    latent_q: Tensor,
    normed_q: Normed,
    /// `[P, kv_rank + rope]`.
    latent_kv: Tensor,
    normed_kv: Normed,
    attended: Attended,
    softmax: Softmax,
    /// `[P, h·value]`, an operand of products.
    mixed: Tensor,
}

/// The inner product with the softmax, as backward wants it.
enum Softmax {
    /// libtorch's kernel for processors, called by its name: output and logarithms of sums, `[B, h, T, ·]`.
    Flash { output: Tensor, logsumexp: Tensor },
    /// Whatever libtorch chooses on this device: a piece of graph from q, k, v `[B, h, T, ·]` to the output.
    Graph { leaves: [Tensor; 3], output: Tensor },
}

impl Attention {
    /// The attention called `prefix`.
    pub(crate) fn new(weights: &Weights, model: &ModelSpec, prefix: &str) -> Result<Attention> {
        let a = &model.attention;
        let d = f64::from(model.hidden_size);
        let rotary = Rotary::new(a.rope_theta, a.qk_rope_head_dim, a.yarn.as_ref());
        let q_factor = (d / f64::from(a.q_lora_rank)).sqrt();
        let linear = |name: &str| Linear::new(weights, &format!("{prefix}.{name}.weight"));
        let norm = |name: &str| Norm::new(weights, &format!("{prefix}.{name}.weight"), LATENT_EPS);
        Ok(Attention {
            q_a: linear("q_a_proj")?,
            q_norm: norm("q_a_layernorm")?,
            q_b: linear("q_b_proj")?,
            kv_a: linear("kv_a_proj_with_mqa")?,
            kv_norm: norm("kv_a_layernorm")?.times((d / f64::from(a.kv_lora_rank)).sqrt()),
            kv_b: linear("kv_b_proj")?,
            o: linear("o_proj")?,
            heads: Heads {
                count: i64::from(a.heads),
                nope: i64::from(a.qk_nope_head_dim),
                rope: i64::from(a.qk_rope_head_dim),
                value: i64::from(a.v_head_dim),
            },
            kv_rank: i64::from(a.kv_lora_rank),
            scale: f64::from(model.qk_head_dim()).sqrt().recip() * rotary.softmax_multiplier * q_factor,
        })
    }

    /// `residual` `[P, D]` f32 plus the attention of `x` `[P, D]`, an operand of products.
    pub(crate) fn forward(
        &self,
        residual: &Tensor,
        x: &Tensor,
        cell: &CellContext<'_>,
    ) -> Result<(Tensor, AttentionPass)> {
        let latent_q = self.q_a.forward(x)?;
        let normed_q = self.q_norm.forward(&latent_q, cell)?;
        let latent_kv = self.kv_a.forward(x)?;
        let (latent, shared) = self.parts(&latent_kv)?;
        let normed_kv = self.kv_norm.forward(&latent, cell)?;
        let q = self.q_b.forward(&normed_q.output)?;
        let kv = self.kv_b.forward(&normed_kv.output)?;
        let attended = assemble(self.heads, (&q, &shared, &kv), &cell.rotation, cell.products)?;
        let softmax = self.attend(&attended)?;
        let mixed = softmax.output().f_narrow(-1, 0, self.heads.value)?.f_transpose(1, 2)?;
        let mixed = mixed.f_reshape([cell.positions(), self.heads.count * self.heads.value])?;
        let mixed = cell.products.operand(&mixed)?;
        let output = self.o.forward_onto(residual, &mixed)?;
        let pass = AttentionPass { latent_q, normed_q, latent_kv, normed_kv, attended, softmax, mixed };
        Ok((output, pass))
    }

    /// From the gradient by the output, an operand of products, that by `x`, `[P, D]`. The residual's is the output's.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        pass: AttentionPass,
        by: &Tensor,
        cell: &CellContext<'_>,
        dense: &mut BucketGradient,
    ) -> Result<Tensor> {
        let AttentionPass { latent_q, normed_q, latent_kv, normed_kv, attended, softmax, mixed } = pass;
        let Heads { count, value, .. } = self.heads;
        self.o.by_weight(by, &mixed, dense)?;
        let by_mixed = self.o.by_input(by)?.f_view([cell.batch, cell.seq_len, count, value])?;
        let lacks = self.heads.width() - value;
        let by_mixed = if lacks > 0 { by_mixed.f_constant_pad_nd([0, lacks])? } else { by_mixed };
        let by_attended = self.attend_backward(&attended, softmax, &by_mixed.f_transpose(1, 2)?)?;
        drop(attended);

        let by_latent_kv = latent_kv.f_empty_like()?;
        let (by_latent, by_shared) = self.parts(&by_latent_kv)?;
        let (by_q, by_kv) = disassemble(self.heads, &by_attended, &cell.rotation, &by_shared, cell.products)?;
        self.q_b.by_weight(&by_q, &normed_q.output, dense)?;
        self.kv_b.by_weight(&by_kv, &normed_kv.output, dense)?;
        let by_normed_q = self.q_b.by_input(&by_q)?;
        let by_latent_q = Tensor::f_empty(latent_q.size(), (Kind::Float, cell.device))?;
        self.q_norm.backward((&latent_q, &normed_q), &by_normed_q, (&by_latent_q, Adds::No), dense)?;
        let by_normed_kv = self.kv_b.by_input(&by_kv)?;
        let (latent, _) = self.parts(&latent_kv)?;
        self.kv_norm.backward((&latent, &normed_kv), &by_normed_kv, (&by_latent, Adds::No), dense)?;

        let by_latent_q = cell.products.operand(&by_latent_q)?;
        let by_latent_kv = cell.products.operand(&by_latent_kv)?;
        self.q_a.by_weight(&by_latent_q, x, dense)?;
        self.kv_a.by_weight(&by_latent_kv, x, dense)?;
        let mut by_x = self.q_a.by_input(&by_latent_q)?;
        self.kv_a.by_input_onto(&mut by_x, &by_latent_kv)?;
        Ok(by_x)
    }

    /// `[P, kv_rank + rope]` → the latent and the shared key.
    fn parts(&self, latent_kv: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((latent_kv.f_narrow(1, 0, self.kv_rank)?, latent_kv.f_narrow(1, self.kv_rank, self.heads.rope)?))
    }

    /// Causal softmax attention.
    fn attend(&self, Attended { q, k, v }: &Attended) -> Result<Softmax> {
        let heads_first = |x: &Tensor| x.f_transpose(1, 2);
        let (q, k, v) = (heads_first(q)?, heads_first(k)?, heads_first(v)?);
        let none = None::<&Tensor>;
        if are_plain(&[&q]) {
            let (output, logsumexp) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
                &q, &k, &v, 0.0, true, none, self.scale,
            )?;
            return Ok(Softmax::Flash { output, logsumexp });
        }
        let leaves = [leaf_of(&q)?, leaf_of(&k)?, leaf_of(&v)?];
        let [q, k, v] = &leaves;
        let output = Tensor::f_scaled_dot_product_attention(q, k, v, none, 0.0, true, self.scale, false)?;
        Ok(Softmax::Graph { leaves, output })
    }

    /// From `by`, `[B, h, T, width]`.
    fn attend_backward(
        &self,
        Attended { q, k, v }: &Attended,
        softmax: Softmax,
        by: &Tensor,
    ) -> Result<Attended> {
        let turned = |x: &Tensor| x.f_transpose(1, 2);
        let (q, k, v) = match softmax {
            Softmax::Flash { output, logsumexp } => {
                Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
                    by,
                    &turned(q)?,
                    &turned(k)?,
                    &turned(v)?,
                    &output,
                    &logsumexp,
                    0.0,
                    true,
                    None::<&Tensor>,
                    self.scale,
                )?
            }
            Softmax::Graph { leaves: [q, k, v], output } => {
                let outputs = [(&output, by.shallow_clone())];
                let mut found = backward(&outputs, &[], (&[&q, &k, &v], &[], &[]))?;
                let mut next = || required(found.next());
                (next()?, next()?, next()?)
            }
        };
        Ok(Attended { q: turned(&q)?, k: turned(&k)?, v: turned(&v)? })
    }
}

impl Softmax {
    fn output(&self) -> Tensor {
        match self {
            Softmax::Flash { output, .. } => output.shallow_clone(),
            Softmax::Graph { output, .. } => output.detach(),
        }
    }
}
