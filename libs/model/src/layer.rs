//! One shortcut-connected layer (LongCat-Flash report, 2509.01322, §2.2):
//!
//! ```text
//! x1  = x  + MLA0(norm_in0(x));    h  = norm_post0(x1)
//! s   = MoE(h)                                    independent of everything below
//! x2  = x1 + FFN0(h)
//! x3  = x2 + MLA1(norm_in1(x2));   h' = norm_post1(x3)
//! out = x3 + FFN1(h') + s
//! ```
//! The residual stream is f32; norms hand the compute type to the products.

use polygram_domain::ModelSpec;
use tch::Tensor;

use crate::attention::Attention;
use crate::balance::BalanceAim;
use crate::context::CellContext;
use crate::embedding::Gathered;
use crate::error::Result;
use crate::ffn::Ffn;
use crate::moe::{Moe, Routing};
use crate::norm::rms_norm;
use crate::parameters::{Leaf, Leaves, Precision, Weights};

/// The weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer {
    halves: [Half; 2],
    moe: Moe,
    eps: f64,
    /// Every weight of the layer that has a gradient.
    pub(crate) leaves: Vec<Leaf>,
}

#[derive(Debug)]
struct Half {
    norm_in: Tensor,
    attention: Attention,
    norm_post: Tensor,
    ffn: Ffn,
}

/// What one layer did with one cell.
pub(crate) struct LayerPass {
    /// `[P, D]` f32.
    pub(crate) output: Tensor,
    /// Balance loss, scalar in the graph.
    pub(crate) balance: Tensor,
    /// Router z-loss, scalar in the graph.
    pub(crate) router_z: Tensor,
    pub(crate) routing: Routing,
    /// Leaves of per-layer embeddings.
    pub(crate) gathered: Vec<Gathered>,
}

impl Layer {
    /// Layer `index` of `model`.
    pub(crate) fn new(weights: &Weights, model: &ModelSpec, index: u32, aim: BalanceAim) -> Result<Layer> {
        let mut leaves = Leaves::new(weights);
        let halves = [half(&mut leaves, model, index, 0)?, half(&mut leaves, model, index, 1)?];
        let moe = Moe::new(&mut leaves, model, index, aim)?;
        Ok(Layer { halves, moe, eps: model.rms_norm_eps, leaves: leaves.finish() })
    }

    /// `[P, D]` f32 → `[P, D]` f32.
    pub(crate) fn forward(&self, x: &Tensor, cell: &CellContext<'_>) -> Result<LayerPass> {
        let norm = |x: &Tensor, weight: &Tensor| rms_norm(x, weight, self.eps, cell.kind);
        let [first, second] = &self.halves;
        let x1 = x.f_add(&first.attention.forward(&norm(x, &first.norm_in)?, cell)?)?;
        let h = norm(&x1, &first.norm_post)?;
        let moe = self.moe.forward(&h, cell)?;
        let (ffn, gathered_first) = first.ffn.forward(&h, cell)?;
        let x2 = x1.f_add(&ffn)?;
        let x3 = x2.f_add(&second.attention.forward(&norm(&x2, &second.norm_in)?, cell)?)?;
        let (ffn, gathered_second) = second.ffn.forward(&norm(&x3, &second.norm_post)?, cell)?;
        Ok(LayerPass {
            output: x3.f_add(&ffn)?.f_add(&moe.output)?,
            balance: moe.balance,
            router_z: moe.router_z,
            routing: moe.routing,
            gathered: gathered_first.into_iter().chain(gathered_second).collect(),
        })
    }
}

fn half(leaves: &mut Leaves<'_>, model: &ModelSpec, layer: u32, index: u32) -> Result<Half> {
    let prefix = format!("model.layers.{layer}");
    let norm_in = format!("{prefix}.input_layernorm.{index}.weight");
    let norm_post = format!("{prefix}.post_attention_layernorm.{index}.weight");
    Ok(Half {
        norm_in: leaves.weight(&norm_in, Precision::Single)?,
        attention: Attention::new(leaves, model, &format!("{prefix}.self_attn.{index}"))?,
        norm_post: leaves.weight(&norm_post, Precision::Single)?,
        ffn: Ffn::new(leaves, model, layer, index)?,
    })
}
