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
use crate::norm::rms_norm;
use crate::parameters::{Leaves, Precision};
use crate::rope::Rotary;

/// Epsilon of the two latent norms, whatever the model's own is.
const LATENT_EPS: f64 = 1e-6;

/// The weights of one attention and its dimensions.
#[derive(Debug)]
pub(crate) struct Attention {
    q_a: Tensor,
    q_a_norm: Tensor,
    q_b: Tensor,
    kv_a: Tensor,
    kv_a_norm: Tensor,
    kv_b: Tensor,
    o: Tensor,
    heads: i64,
    kv_rank: i64,
    nope: i64,
    rope: i64,
    value: i64,
    scale: f64,
    kv_factor: f64,
}

impl Attention {
    /// The attention called `prefix`.
    pub(crate) fn new(leaves: &mut Leaves<'_>, model: &ModelSpec, prefix: &str) -> Result<Attention> {
        let a = &model.attention;
        let d = f64::from(model.hidden_size);
        let rotary = Rotary::new(a.rope_theta, a.qk_rope_head_dim, a.yarn.as_ref());
        let q_factor = (d / f64::from(a.q_lora_rank)).sqrt();
        let mut weight = |name: &str, precision| leaves.weight(&format!("{prefix}.{name}.weight"), precision);
        Ok(Attention {
            q_a: weight("q_a_proj", Precision::Compute)?,
            q_a_norm: weight("q_a_layernorm", Precision::Single)?,
            q_b: weight("q_b_proj", Precision::Compute)?,
            kv_a: weight("kv_a_proj_with_mqa", Precision::Compute)?,
            kv_a_norm: weight("kv_a_layernorm", Precision::Single)?,
            kv_b: weight("kv_b_proj", Precision::Compute)?,
            o: weight("o_proj", Precision::Compute)?,
            heads: i64::from(a.heads),
            kv_rank: i64::from(a.kv_lora_rank),
            nope: i64::from(a.qk_nope_head_dim),
            rope: i64::from(a.qk_rope_head_dim),
            value: i64::from(a.v_head_dim),
            scale: f64::from(model.qk_head_dim()).sqrt().recip() * rotary.softmax_multiplier * q_factor,
            kv_factor: (d / f64::from(a.kv_lora_rank)).sqrt(),
        })
    }

    /// `[P, D]` (normed, compute type) → `[P, D]`.
    pub(crate) fn forward(&self, x_pd: &Tensor, cell: &CellContext<'_>) -> Result<Tensor> {
        let (b, t, h) = (cell.batch, cell.seq_len, self.heads);
        let linear = |x: &Tensor, weight: &Tensor| x.f_linear(weight, None::<&Tensor>);

        let latent_q = rms_norm(&linear(x_pd, &self.q_a)?, &self.q_a_norm, LATENT_EPS, cell.kind)?;
        let q = linear(&latent_q, &self.q_b)?.f_view([b, t, h, self.nope + self.rope])?;
        let q = q.f_split_with_sizes([self.nope, self.rope], -1)?;
        let q_bthd = Tensor::f_cat(&[&q[0], &rotate(&q[1], cell)?], -1)?;

        let latent = linear(x_pd, &self.kv_a)?.f_split_with_sizes([self.kv_rank, self.rope], -1)?;
        let kv_weight = self.kv_a_norm.f_mul_scalar(self.kv_factor)?;
        let latent_kv = rms_norm(&latent[0], &kv_weight, LATENT_EPS, cell.kind)?;
        let kv = linear(&latent_kv, &self.kv_b)?.f_view([b, t, h, self.nope + self.value])?;
        let kv = kv.f_split_with_sizes([self.nope, self.value], -1)?;
        let shared = rotate(&latent[1].f_reshape([b, t, 1, self.rope])?, cell)?;
        let k_bthd = Tensor::f_cat(&[&kv[0], &shared.f_expand([b, t, h, self.rope], false)?], -1)?;

        let mixed = self.attend(&q_bthd, &k_bthd, &kv[1])?;
        Ok(linear(&mixed.f_reshape([b * t, h * self.value])?, &self.o)?)
    }

    /// Causal softmax attention; `[B, T, h, ·]` in and out.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        // Fused kernels want one width for queries, keys and values: the narrower side is filled with zeros.
        let width = self.nope + self.rope;
        let padded = |x: &Tensor, by: i64| match by {
            ..=0 => Ok(x.shallow_clone()),
            by => x.f_constant_pad_nd([0, by]),
        };
        let (q, k) = (padded(q, self.value - width)?, padded(k, self.value - width)?);
        let v = padded(v, width - self.value)?;
        let heads_first = |x: &Tensor| x.f_transpose(1, 2);
        let mixed = Tensor::f_scaled_dot_product_attention(
            &heads_first(&q)?,
            &heads_first(&k)?,
            &heads_first(&v)?,
            None::<&Tensor>,
            0.0,
            true,
            self.scale,
            false,
        )?;
        Ok(mixed.f_narrow(-1, 0, self.value)?.f_transpose(1, 2)?)
    }
}

/// Rotates pairs (x0, x1), (x2, x3)… of the last dimension as complex numbers: `[B, T, heads, rope]`.
fn rotate(x: &Tensor, cell: &CellContext<'_>) -> Result<Tensor> {
    let size = x.size();
    let mut pairs = size.clone();
    if let Some(last) = pairs.pop() {
        pairs.extend([last / 2, 2]);
    }
    let complex = x.f_to_kind(Kind::Float)?.f_reshape(&pairs)?.f_contiguous()?.f_view_as_complex()?;
    let rotated = complex.f_mul(&cell.rotation)?.f_view_as_real()?;
    Ok(rotated.f_view(&size[..])?.f_to_kind(x.f_kind()?)?)
}
