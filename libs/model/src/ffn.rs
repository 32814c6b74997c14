//! Dense feed-forward networks: SwiGLU (Shazeer, 2002.05202), or one whose up-projection is a per-layer embedding.

use polygram_domain::ModelSpec;
use polygram_domain::model::Placement;
use tch::Tensor;

use crate::context::CellContext;
use crate::embedding::{Gathered, Site};
use crate::error::Result;
use crate::parameters::{Leaves, Precision};

/// One dense FFN.
#[derive(Debug)]
pub(crate) struct Ffn {
    entry: Entry,
    down: Tensor,
}

#[derive(Debug)]
enum Entry {
    /// `[gate; up]` as one `[2·inner, D]` product.
    SwiGlu(Tensor),
    /// The gate's projection, and the embedding that takes the place of the up-projection.
    Embedded { gate: Tensor, site: Box<Site> },
}

impl Ffn {
    /// FFN `index` (0 or 1) of `layer`.
    pub(crate) fn new(leaves: &mut Leaves<'_>, model: &ModelSpec, layer: u32, index: u32) -> Result<Ffn> {
        let prefix = format!("model.layers.{layer}.mlps.{index}");
        let gate = format!("{prefix}.gate_proj.weight");
        let entry = match model.placement {
            Placement::Input => {
                let shape = [2 * i64::from(model.ffn_hidden_size), i64::from(model.hidden_size)];
                Entry::SwiGlu(leaves.joined(&gate, &format!("{prefix}.up_proj.weight"), &shape)?)
            }
            Placement::PerLayer | Placement::PerLayerNgram => Entry::Embedded {
                gate: leaves.weight(&gate, Precision::Compute)?,
                site: Box::new(Site::per_layer(leaves, model, &prefix, 2 * layer + index)?),
            },
        };
        Ok(Ffn { entry, down: leaves.weight(&format!("{prefix}.down_proj.weight"), Precision::Compute)? })
    }

    /// `[P, D]` (normed, compute type) → `[P, D]`, and the leaves of its embedding if it has one.
    pub(crate) fn forward(
        &self,
        x_pd: &Tensor,
        cell: &CellContext<'_>,
    ) -> Result<(Tensor, Option<Gathered>)> {
        let (inner, gathered) = match &self.entry {
            Entry::SwiGlu(gate_up) => (swiglu(&x_pd.f_linear(gate_up, None::<&Tensor>)?)?, None),
            Entry::Embedded { gate, site } => {
                let gathered = site.gather(cell)?;
                let embedding = site.combine(&gathered, cell)?.f_to_kind(cell.kind)?;
                (x_pd.f_linear(gate, None::<&Tensor>)?.f_silu()?.f_mul(&embedding)?, Some(gathered))
            }
        };
        Ok((inner.f_linear(&self.down, None::<&Tensor>)?, gathered))
    }
}

/// `[…, 2·inner]` → `[…, inner]`: silu of the first half times the second.
pub(crate) fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let halves = gate_up.f_chunk(2, -1)?;
    Ok(halves[0].f_silu()?.f_mul(&halves[1])?)
}
