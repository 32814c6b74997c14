//! One shortcut-connected layer (LongCat-Flash report, 2509.01322, §2.2), in segments that are differentiated one at a
//! time, so that the tokens of the mixture of experts travel while other segments are computed:
//!
//! ```text
//! front    x1  = x + MLA0(norm_in0(x));    h = norm_post0(x1);    choices of experts for h
//!          ── rows of h travel to their experts ──
//! middle   x2  = x1 + FFN0(h)
//! experts  gated outputs for the rows of all ranks of the expert group
//!          ── outputs travel back ──
//! back     x3  = x2 + MLA1(norm_in1(x2));  x3 + FFN1(norm_post1(x3))
//! output   back + zero experts + Σ expert outputs
//! ```
//! Backward goes the same way from the end: the outputs' gradients travel beside the back, those of the rows beside
//! the middle. The residual stream is f32; norms hand the compute type to the products.

use polygram_domain::ModelSpec;
use tch::{Kind, Tensor, no_grad};

use crate::attention::Attention;
use crate::balance::BalanceAim;
use crate::context::CellContext;
use crate::embedding::Gathered;
use crate::error::{ModelError, Result};
use crate::experts::{ExpertGroup, Message};
use crate::ffn::Ffn;
use crate::gradient::{BucketGradient, CellGradients};
use crate::moe::{Experts, Routed, Router, Routing, Work};
use crate::norm::rms_norm;
use crate::options::Options;
use crate::parameters::{Leaf, Leaves, Precision, Weights};
use crate::segment::{backward, leaf_of, required};

/// The weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer {
    halves: [Half; 2],
    router: Router,
    experts: Experts,
    eps: f64,
    front_leaves: Vec<Leaf>,
    middle_leaves: Vec<Leaf>,
    back_leaves: Vec<Leaf>,
    /// Its bucket of gradients; that of its experts is the next one.
    bucket: usize,
}

#[derive(Debug)]
struct Half {
    norm_in: Tensor,
    attention: Attention,
    norm_post: Tensor,
    ffn: Ffn,
}

/// One segment's input leaf, its output, and the leaves of per-layer embeddings.
struct Segment {
    input: Tensor,
    output: Tensor,
    gathered: Option<Gathered>,
}

/// The front's outputs, in the graph.
struct Front {
    x1: Tensor,
    h: Tensor,
    routed: Routed,
}

/// The experts' outputs for some tokens.
struct Block {
    /// Its rows and gates are leaves.
    work: Work,
    /// `[c, D]` in the compute type.
    mixed: Tensor,
}

/// What one layer did with one cell.
pub(crate) struct LayerPass {
    /// `[P, D]` f32, without a graph.
    pub(crate) output: Tensor,
    /// Balance loss.
    pub(crate) balance: f64,
    /// Router z-loss.
    pub(crate) router_z: f64,
    pub(crate) routing: Routing,
    pub(crate) graph: Graph,
}

/// What backward needs of a forward pass.
pub(crate) struct Graph {
    front: Front,
    /// h, the middle's other input; its first is x1.
    h: Tensor,
    middle: Segment,
    back: Segment,
    blocks: Vec<Block>,
}

/// What a forward pass is made anew from: what came from other ranks. They are not asked twice.
pub(crate) struct Received(Vec<Work>);

/// What the auxiliary losses of a layer are multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct AuxiliaryScale {
    pub(crate) balance: f64,
    pub(crate) router_z: f64,
}

impl Layer {
    /// Layer `index` of `model`, with this rank's experts.
    pub(crate) fn new(weights: &Weights, model: &ModelSpec, index: u32, options: &Options) -> Result<Layer> {
        let prefix = format!("model.layers.{index}");
        let balance = &options.balance;
        let aim = BalanceAim { target_top_k: balance.target_top_k, groups: balance.loss_groups };
        let mut front = Leaves::new(weights);
        let mut middle = Leaves::new(weights);
        let mut back = Leaves::new(weights);
        let norm = |leaves: &mut Leaves<'_>, which: &str, half: u32| {
            leaves.weight(&format!("{prefix}.{which}_layernorm.{half}.weight"), Precision::Single)
        };
        let halves = [
            Half {
                norm_in: norm(&mut front, "input", 0)?,
                attention: Attention::new(&mut front, model, &format!("{prefix}.self_attn.0"))?,
                norm_post: norm(&mut front, "post_attention", 0)?,
                ffn: Ffn::new(&mut middle, model, index, 0)?,
            },
            Half {
                norm_in: norm(&mut back, "input", 1)?,
                attention: Attention::new(&mut back, model, &format!("{prefix}.self_attn.1"))?,
                norm_post: norm(&mut back, "post_attention", 1)?,
                ffn: Ffn::new(&mut back, model, index, 1)?,
            },
        ];
        Ok(Layer {
            halves,
            router: Router::new(&mut front, model, index, aim)?,
            experts: Experts::new(weights, model, index, options.determinism)?,
            eps: model.rms_norm_eps,
            front_leaves: front.finish(),
            middle_leaves: middle.finish(),
            back_leaves: back.finish(),
            bucket: weights.layout.layer_bucket(index as usize),
        })
    }

    /// `[P, D]` f32 leaf → `[P, D]` f32. Every rank of the expert group does this, or [`Layer::assist`], at the same time.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        cell: &CellContext<'_>,
        group: &mut ExpertGroup,
    ) -> Result<LayerPass> {
        let (front, routing) = self.front(x, cell)?;
        let Routed { rows, gates, dispatch, .. } = &front.routed;
        group.start(dispatch.messages(group.size(), &rows.f_detach()?, Some(&gates.f_detach()?))?)?;
        let h = leaf_of(&front.h)?;
        let middle = self.middle(&front.x1, &h, cell)?;
        let blocks = self.compute(self.experts.work(group.finish()?)?)?;
        group.start(outputs(&blocks)?)?;
        let back = self.back(&middle.output, cell)?;
        let (mixed, _) = dispatch.joined(&group.finish()?)?;
        let output = no_grad(|| {
            let mixed = mixed.f_to_kind(Kind::Float)?;
            let zero = match &front.routed.zero {
                Some(zero) => zero.shallow_clone(),
                None => back.output.f_zeros_like()?,
            };
            Ok::<_, ModelError>(back.output.f_add(&zero.f_index_add(0, &dispatch.tokens, &mixed)?)?)
        })?;
        Ok(LayerPass {
            output: output.f_detach()?,
            balance: front.routed.balance.f_double_value(&[])?,
            router_z: front.routed.router_z.f_double_value(&[])?,
            routing,
            graph: Graph { front, h, middle, back, blocks },
        })
    }

    /// Makes the graph of a pass anew, from its input and what had come from other ranks.
    pub(crate) fn again(&self, x: &Tensor, cell: &CellContext<'_>, received: Received) -> Result<Graph> {
        let (front, _) = self.front(x, cell)?;
        let h = leaf_of(&front.h)?;
        let middle = self.middle(&front.x1, &h, cell)?;
        let back = self.back(&middle.output, cell)?;
        Ok(Graph { blocks: self.compute(received.0)?, front, h, middle, back })
    }

    /// Gradients of `⟨output, by_output⟩` and the auxiliary losses: by the pass's input `x`, which is returned, and by the
    /// weights, which go into `gradients`.
    pub(crate) fn backward(
        &self,
        (x, graph): (&Tensor, Graph),
        by_output: &Tensor,
        scale: AuxiliaryScale,
        (cell, group): (&CellContext<'_>, &mut ExpertGroup),
        gradients: &mut CellGradients<'_, '_>,
    ) -> Result<Tensor> {
        let Graph { front, h, middle, back, blocks } = graph;
        let Front { x1, h: h_out, routed } = front;
        let by_mixed = by_output.f_index_select(0, &routed.dispatch.tokens)?.f_to_kind(cell.kind)?;
        group.start(routed.dispatch.messages(group.size(), &by_mixed, None)?)?;
        let mut dense = gradients.fold.begin(self.bucket);

        let [by_x2, _] =
            self.through(&back, None, by_output, &self.back_leaves, (cell, &mut dense), gradients)?;
        let answers = self.differentiate(blocks, group.finish()?, gradients)?;
        group.start(answers)?;
        let [by_x1, by_h] = self.through(
            &middle,
            Some(&h),
            &required(by_x2)?,
            &self.middle_leaves,
            (cell, &mut dense),
            gradients,
        )?;
        let (by_rows, by_gates) = routed.dispatch.joined(&group.finish()?)?;

        let mut outputs = vec![(&x1, required(by_x1)?), (&h_out, required(by_h)?)];
        outputs.push((&routed.rows, by_rows));
        if let Some(by_gates) = by_gates {
            outputs.push((&routed.gates, by_gates));
        }
        if let Some(zero) = &routed.zero {
            outputs.push((zero, by_output.shallow_clone()));
        }
        let terms = [(&routed.balance, scale.balance), (&routed.router_z, scale.router_z)];
        let mut found = backward(&outputs, &terms, (&[x], &self.front_leaves, &[]))?;
        let by_x = required(found.next())?;
        dense.store(&self.front_leaves, &mut found)?;
        gradients.finish(dense);
        Ok(by_x)
    }

    /// Takes part in a forward pass of the expert group without a cell of its own.
    pub(crate) fn assist(&self, group: &mut ExpertGroup) -> Result<Received> {
        let nothing = |group: &ExpertGroup| {
            (0..group.size()).map(|_| group.empty(self.experts.len(), true)).collect::<Result<Vec<_>>>()
        };
        group.start(nothing(group)?)?;
        let work = self.experts.work(group.finish()?)?;
        let blocks = no_grad(|| self.compute(work))?;
        group.start(outputs(&blocks)?)?;
        group.finish()?;
        Ok(received(blocks))
    }

    /// Takes part in the backward pass that belongs to [`Layer::assist`].
    pub(crate) fn assist_backward(
        &self,
        received: Received,
        group: &mut ExpertGroup,
        gradients: &mut CellGradients<'_, '_>,
    ) -> Result<()> {
        let empty = (0..group.size()).map(|_| group.empty(self.experts.len(), false));
        let empty = empty.collect::<Result<Vec<_>>>()?;
        group.start(empty)?;
        let blocks = self.compute(received.0)?;
        let answers = self.differentiate(blocks, group.finish()?, gradients)?;
        group.start(answers)?;
        group.finish()?;
        gradients.finish_empty(self.bucket);
        Ok(())
    }

    fn front(&self, x: &Tensor, cell: &CellContext<'_>) -> Result<(Front, Routing)> {
        let half = &self.halves[0];
        let normed = rms_norm(x, &half.norm_in, self.eps, cell.kind)?;
        let x1 = x.f_add(&half.attention.forward(&normed, cell)?)?;
        let h = rms_norm(&x1, &half.norm_post, self.eps, cell.kind)?;
        let (routed, routing) = self.router.forward(&h, cell)?;
        Ok((Front { x1, h, routed }, routing))
    }

    fn middle(&self, x1: &Tensor, h: &Tensor, cell: &CellContext<'_>) -> Result<Segment> {
        let input = leaf_of(x1)?;
        let (ffn, gathered) = self.halves[0].ffn.forward(h, cell)?;
        Ok(Segment { output: input.f_add(&ffn)?, input, gathered })
    }

    fn back(&self, x2: &Tensor, cell: &CellContext<'_>) -> Result<Segment> {
        let half = &self.halves[1];
        let input = leaf_of(x2)?;
        let normed = rms_norm(&input, &half.norm_in, self.eps, cell.kind)?;
        let x3 = input.f_add(&half.attention.forward(&normed, cell)?)?;
        let (ffn, gathered) =
            half.ffn.forward(&rms_norm(&x3, &half.norm_post, self.eps, cell.kind)?, cell)?;
        Ok(Segment { output: x3.f_add(&ffn)?, input, gathered })
    }

    /// This rank's experts, for the tokens of every rank.
    fn compute(&self, work: Vec<Work>) -> Result<Vec<Block>> {
        let block = |work: Work| {
            let work = work.on_leaves()?;
            Ok(Block { mixed: self.experts.forward(&work)?, work })
        };
        work.into_iter().map(block).collect()
    }

    /// Backward of [`Layer::compute`]: the answers to every rank, and the experts' gradients.
    fn differentiate(
        &self,
        blocks: Vec<Block>,
        by_mixed: Vec<Message>,
        gradients: &mut CellGradients<'_, '_>,
    ) -> Result<Vec<Message>> {
        let mut answers = Vec::with_capacity(by_mixed.len());
        let mut by_mixed = by_mixed.into_iter();
        for (source, Block { work, mixed }) in blocks.into_iter().enumerate() {
            let by_mixed = work.arranged(&mut by_mixed)?;
            if by_mixed.size() != mixed.size() {
                return Err(ModelError::input(
                    "expert exchange",
                    format!("gradients of {:?} for block {source}", by_mixed.size()),
                    format!("those of its outputs {:?}", mixed.size()),
                ));
            }
            let Work { rows, gates, .. } = &work;
            let mut own = gradients.fold.begin(self.bucket + 1);
            let (by_rows, by_gates) = if work.is_empty() {
                own = own.zero();
                (rows.f_zeros_like()?, gates.f_zeros_like()?)
            } else {
                let outputs = [(&mixed, by_mixed)];
                let mut found = backward(&outputs, &[], (&[rows], &self.experts.leaves, &[gates]))?;
                let by_rows = required(found.next())?;
                own.store(&self.experts.leaves, &mut found)?;
                (by_rows, required(found.next())?)
            };
            gradients.fold.push(own, source);
            answers.extend(work.answers(&by_rows.f_detach()?, Some(&by_gates.f_detach()?))?);
        }
        gradients.finished(self.bucket + 1);
        Ok(answers)
    }

    /// Backward of one segment: gradients by its input and by `other`, its second one.
    fn through(
        &self,
        segment: &Segment,
        other: Option<&Tensor>,
        by_output: &Tensor,
        leaves: &[Leaf],
        (cell, dense): (&CellContext<'_>, &mut BucketGradient),
        gradients: &mut CellGradients<'_, '_>,
    ) -> Result<[Option<Tensor>; 2]> {
        let inputs: Vec<&Tensor> = std::iter::once(&segment.input).chain(other).collect();
        let extra: Vec<&Tensor> = segment.gathered.iter().flat_map(Gathered::leaves).collect();
        let outputs = [(&segment.output, by_output.shallow_clone())];
        let mut found = backward(&outputs, &[], (&inputs, leaves, &extra))?;
        let by_input = found.next();
        let by_other = other.and_then(|_| found.next());
        dense.store(leaves, &mut found)?;
        if let Some(gathered) = &segment.gathered {
            gathered.scatter(&mut found, cell, dense, &mut gradients.rows_suw)?;
        }
        Ok([by_input, by_other])
    }
}

impl Graph {
    /// What [`Layer::again`] needs to make it anew.
    pub(crate) fn received(self) -> Received {
        received(self.blocks)
    }
}

fn received(blocks: Vec<Block>) -> Received {
    Received(blocks.into_iter().map(|block| block.work).collect())
}

/// The answers to every rank.
fn outputs(blocks: &[Block]) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    for block in blocks {
        messages.extend(block.work.answers(&block.mixed.f_detach()?, None)?);
    }
    Ok(messages)
}
