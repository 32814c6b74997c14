//! Dense feed-forward networks: SwiGLU (Shazeer, 2002.05202), or one whose up-projection is a per-layer embedding.

use polygram_domain::ModelSpec;
use polygram_domain::model::Placement;
use tch::{Kind, Tensor};

use crate::context::CellContext;
use crate::embedding::{Gathered, Site};
use crate::error::{ModelError, Result};
use crate::gradient::BucketGradient;
use crate::gradient::CellGradients;
use crate::kernels::{Gated, silu_gated, silu_gated_backward};
use crate::linear::Linear;
use crate::parameters::{Leaf, Leaves, Weights};
use crate::segment::backward;

/// One dense FFN.
#[derive(Debug)]
pub(crate) struct Ffn {
    entry: Entry,
    down: Linear,
}

#[derive(Debug)]
enum Entry {
    /// `[gate; up]` as one `[2·inner, D]` product.
    SwiGlu(Linear),
    /// The gate's projection, and the embedding that takes the place of the up-projection.
    Embedded { gate: Linear, site: Box<Site>, leaves: Vec<Leaf> },
}

/// What backward needs of a forward pass.
pub(crate) struct FfnPass {
    /// `[P, 2·inner]`, or `[P, inner]` beside an embedding.
    entered: Tensor,
    embedded: Option<Embedded>,
    /// `[P, inner]`, an operand of products.
    gated: Tensor,
}

/// A site's output `[P, inner]` f32 in its graph, and its leaves.
struct Embedded {
    output: Tensor,
    gathered: Gathered,
}

impl Ffn {
    /// FFN `index` (0 or 1) of `layer`.
    pub(crate) fn new(weights: &Weights, model: &ModelSpec, layer: u32, index: u32) -> Result<Ffn> {
        let prefix = format!("model.layers.{layer}.mlps.{index}");
        let gate = format!("{prefix}.gate_proj.weight");
        let entry = match model.placement {
            Placement::Input => {
                Entry::SwiGlu(Linear::pair(weights, &gate, &format!("{prefix}.up_proj.weight"))?)
            }
            Placement::PerLayer | Placement::PerLayerNgram => {
                let mut leaves = Leaves::new(weights);
                let site = Site::per_layer(&mut leaves, model, &prefix, 2 * layer + index)?;
                let gate = Linear::new(weights, &gate)?;
                Entry::Embedded { gate, site: Box::new(site), leaves: leaves.finish() }
            }
        };
        Ok(Ffn { entry, down: Linear::new(weights, &format!("{prefix}.down_proj.weight"))? })
    }

    /// `residual` `[P, D]` f32 plus the FFN of `x` `[P, D]`, an operand of products.
    pub(crate) fn forward(
        &self,
        residual: &Tensor,
        x: &Tensor,
        cell: &CellContext<'_>,
    ) -> Result<(Tensor, FfnPass)> {
        let (entered, embedded) = match &self.entry {
            Entry::SwiGlu(gate_up) => (gate_up.forward(x)?, None),
            Entry::Embedded { gate, site, .. } => {
                let gathered = site.gather(cell)?;
                let output = site.combine(&gathered, cell)?;
                (gate.forward(x)?, Some(Embedded { output, gathered }))
            }
        };
        let gated = {
            let [gate, up] = halves(&entered, embedded.as_ref())?;
            silu_gated(&Gated { gate: &gate, up: &up, scale: None }, cell.products)?
        };
        let output = self.down.forward_onto(residual, &gated)?;
        Ok((output, FfnPass { entered, embedded, gated }))
    }

    /// From the gradient by the output, an operand of products, that by `x`, `[P, D]`. The residual's is the output's.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        pass: FfnPass,
        by: &Tensor,
        (cell, dense): (&CellContext<'_>, &mut BucketGradient),
        gradients: &mut CellGradients<'_, '_>,
    ) -> Result<Tensor> {
        let FfnPass { entered, embedded, gated } = pass;
        self.down.by_weight(by, &gated, dense)?;
        let by_gated = self.down.by_input(by)?;
        drop(gated);
        let by_entered = entered.f_empty_like()?;
        let by_embedding = match &embedded {
            Some(_) => Some(Tensor::f_empty(entered.size(), (Kind::Float, cell.device))?),
            None => None,
        };
        {
            let [gate, up] = halves(&entered, embedded.as_ref())?;
            let (by_gate, by_up) = match &by_embedding {
                Some(by_up) => (by_entered.shallow_clone(), by_up.shallow_clone()),
                None => split(&by_entered)?,
            };
            let gated = Gated { gate: &gate, up: &up, scale: None };
            silu_gated_backward(&gated, &by_gated, (&by_gate, &by_up), cell.products)?;
        }
        match (&self.entry, embedded, by_embedding) {
            (Entry::SwiGlu(gate_up), ..) => {
                gate_up.by_weight(&by_entered, x, dense)?;
                gate_up.by_input(&by_entered)
            }
            (Entry::Embedded { gate, leaves, .. }, Some(Embedded { output, gathered }), Some(by_output)) => {
                let extra: Vec<&Tensor> = gathered.leaves().collect();
                let mut found = backward(&[(&output, by_output)], &[], (&[], leaves, &extra))?;
                dense.store(leaves, &mut found)?;
                gathered.scatter(&mut found, cell, dense, &mut gradients.rows_suw)?;
                gate.by_weight(&by_entered, x, dense)?;
                gate.by_input(&by_entered)
            }
            (Entry::Embedded { .. }, ..) => {
                Err(ModelError::Torch("a pass of an embedded FFN without its embedding".into()))
            }
        }
    }
}

/// Gate and up: the halves of `entered`, or all of it beside the embedding.
fn halves(entered: &Tensor, embedded: Option<&Embedded>) -> Result<[Tensor; 2]> {
    match embedded {
        Some(embedded) => Ok([entered.shallow_clone(), embedded.output.f_detach()?]),
        None => split(entered).map(|(gate, up)| [gate, up]),
    }
}

/// `[…, 2·inner]` → its halves.
pub(crate) fn split(gate_up: &Tensor) -> Result<(Tensor, Tensor)> {
    let inner = gate_up.size().last().copied().unwrap_or(0) / 2;
    Ok((gate_up.f_narrow(-1, 0, inner)?, gate_up.f_narrow(-1, inner, inner)?))
}
