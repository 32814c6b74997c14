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
//! the middle. The residual stream is f32; norms hand operands to the products.
//!
//! Forward keeps what backward needs by name, and every product's backward is written out: only the router's few numbers
//! and per-layer embeddings go through libtorch's graphs.

use polygram_domain::ModelSpec;
use tch::{Kind, Tensor, no_grad};

use crate::attention::{Attention, AttentionPass};
use crate::balance::{AuxiliaryScale, BalanceAim};
use crate::context::CellContext;
use crate::error::{ModelError, Result};
use crate::experts::{ExpertGroup, Message};
use crate::ffn::{Ffn, FfnPass};
use crate::gradient::{BucketGradient, CellGradients};
use crate::kernels::{Adds, Normed};
use crate::moe::{Experts, ExpertsPass, Routed, Router, Routing, Work};
use crate::norm::Norm;
use crate::options::Options;
use crate::parameters::Weights;

/// The weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer {
    halves: [Half; 2],
    router: Router,
    experts: Experts,
    /// Its bucket of gradients; that of its experts is the next one.
    bucket: usize,
}

#[derive(Debug)]
struct Half {
    norm_in: Norm,
    attention: Attention,
    norm_post: Norm,
    ffn: Ffn,
}

/// What a half's attention and norms did.
struct HalfPass {
    normed_in: Normed,
    attention: AttentionPass,
    /// `[P, D]` f32: after attention.
    between: Tensor,
    normed_post: Normed,
}

/// What this rank's experts did for the tokens of one rank, or of all.
struct Block {
    work: Work,
    pass: ExpertsPass,
}

/// What one layer did with one cell.
pub(crate) struct LayerPass {
    /// `[P, D]` f32.
    pub(crate) output: Tensor,
    /// Balance loss.
    pub(crate) balance: f64,
    /// Router z-loss.
    pub(crate) router_z: f64,
    pub(crate) routing: Routing,
    pub(crate) kept: Kept,
}

/// What backward needs of a forward pass.
pub(crate) struct Kept {
    front: HalfPass,
    routed: Routed,
    middle: FfnPass,
    /// `[P, D]` f32: between the halves.
    x2: Tensor,
    back: HalfPass,
    last: FfnPass,
    blocks: Vec<Block>,
}

/// What a forward pass is made anew from: what came from other ranks. They are not asked twice.
pub(crate) struct Received(Vec<Work>);

impl Layer {
    /// Layer `index` of `model`, with this rank's experts.
    pub(crate) fn new(weights: &Weights, model: &ModelSpec, index: u32, options: &Options) -> Result<Layer> {
        let prefix = format!("model.layers.{index}");
        let balance = &options.balance;
        let aim = BalanceAim { target_top_k: balance.target_top_k, groups: balance.loss_groups };
        let half = |half: u32| -> Result<Half> {
            let norm = |which: &str| {
                let name = format!("{prefix}.{which}_layernorm.{half}.weight");
                Norm::new(weights, &name, model.rms_norm_eps)
            };
            Ok(Half {
                norm_in: norm("input")?,
                attention: Attention::new(weights, model, &format!("{prefix}.self_attn.{half}"))?,
                norm_post: norm("post_attention")?,
                ffn: Ffn::new(weights, model, index, half)?,
            })
        };
        Ok(Layer {
            halves: [half(0)?, half(1)?],
            router: Router::new(weights, model, index, aim)?,
            experts: Experts::new(weights, index, options)?,
            bucket: weights.layout.layer_bucket(index as usize),
        })
    }

    /// `[P, D]` f32 → `[P, D]` f32. Every rank of the expert group does this, or [`Layer::assist`], at the same time.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        cell: &CellContext<'_>,
        group: &mut ExpertGroup,
    ) -> Result<LayerPass> {
        let [first, second] = &self.halves;
        let front = first.attend(x, cell)?;
        let h = &front.normed_post.output;
        let (routed, routing) = self.router.forward(h, cell)?;
        let (rows, gates) = (routed.dispatch.rows_of(h)?, routed.gates.f_detach()?);
        group.start(routed.dispatch.messages(group.size(), &rows, Some(&gates))?)?;
        let (x2, middle) = first.ffn.forward(&front.between, h, cell)?;
        let (blocks, outputs) = self.compute(self.experts.work(group.finish()?)?)?;
        group.start(outputs)?;
        let back = second.attend(&x2, cell)?;
        let (mut output, last) = second.ffn.forward(&back.between, &back.normed_post.output, cell)?;
        let (mixed, _) = routed.dispatch.joined(&group.finish()?)?;
        no_grad(|| routed.add_experts(&mut output, &mixed, h))?;
        Ok(LayerPass {
            output,
            balance: routed.balance.f_double_value(&[])?,
            router_z: routed.router_z.f_double_value(&[])?,
            routing,
            kept: Kept { front, routed, middle, x2, back, last, blocks },
        })
    }

    /// Makes what a pass kept anew, from its input and what had come from other ranks.
    pub(crate) fn again(&self, x: &Tensor, cell: &CellContext<'_>, received: Received) -> Result<Kept> {
        let [first, second] = &self.halves;
        let front = first.attend(x, cell)?;
        let (routed, _) = self.router.forward(&front.normed_post.output, cell)?;
        let (x2, middle) = first.ffn.forward(&front.between, &front.normed_post.output, cell)?;
        let back = second.attend(&x2, cell)?;
        let (_, last) = second.ffn.forward(&back.between, &back.normed_post.output, cell)?;
        let (blocks, _) = self.compute(received.0)?;
        Ok(Kept { blocks, front, routed, middle, x2, back, last })
    }

    /// Gradients of `⟨output, by_output⟩` and the auxiliary losses: by the pass's input `x`, which is returned, and by the
    /// weights, which go into `gradients`.
    pub(crate) fn backward(
        &self,
        (x, kept): (&Tensor, Kept),
        by_output: &Tensor,
        scale: AuxiliaryScale,
        (cell, group): (&CellContext<'_>, &mut ExpertGroup),
        gradients: &mut CellGradients<'_, '_>,
    ) -> Result<Tensor> {
        let Kept { front, routed, middle, x2, back, last, blocks } = kept;
        let [first, second] = &self.halves;
        let by_mixed = cell.products.operand(&routed.dispatch.rows_of(by_output)?)?;
        group.start(routed.dispatch.messages(group.size(), &by_mixed, None)?)?;
        let mut dense = gradients.fold.begin(self.bucket);

        let h = &back.normed_post.output;
        let by = cell.products.operand(by_output)?;
        let by_h = second.ffn.backward(h, last, &by, (cell, &mut dense), gradients)?;
        // The residual's gradient, which the caller keeps: this rank's own copy is added to from here on.
        let mut by_x = by_output.f_empty_like()?;
        by_x.f_copy_(by_output)?;
        let by_x2 = second.attend_backward((&x2, back), &by_h, by_x, cell, &mut dense)?;
        let answers = self.differentiate(blocks, group.finish()?, gradients)?;
        group.start(answers)?;

        let h = &front.normed_post.output;
        let by = cell.products.operand(&by_x2)?;
        let by_h = first.ffn.backward(h, middle, &by, (cell, &mut dense), gradients)?;
        let mut by_h = by_h.f_to_kind(Kind::Float)?;
        let (by_rows, by_gates) = routed.dispatch.joined(&group.finish()?)?;
        let by_choices = (&by_rows, by_gates);
        self.router.backward((h, &routed), by_output, by_choices, scale, (&mut by_h, &mut dense))?;
        let by_x = first.attend_backward((x, front), &by_h, by_x2, cell, &mut dense)?;
        gradients.finish(dense);
        Ok(by_x)
    }

    /// Takes part in a forward pass of the expert group without a cell of its own.
    pub(crate) fn assist(&self, group: &mut ExpertGroup) -> Result<Received> {
        let nothing = |group: &ExpertGroup| {
            (0..group.size()).map(|_| group.empty(self.experts.len(), true)).collect::<Result<Vec<_>>>()
        };
        group.start(nothing(group)?)?;
        let (blocks, outputs) = self.compute(self.experts.work(group.finish()?)?)?;
        group.start(outputs)?;
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
        let (blocks, _) = self.compute(received.0)?;
        let answers = self.differentiate(blocks, group.finish()?, gradients)?;
        group.start(answers)?;
        group.finish()?;
        gradients.finish_empty(self.bucket);
        Ok(())
    }

    /// This rank's experts, for the tokens of every rank, and the answers to them.
    fn compute(&self, work: Vec<Work>) -> Result<(Vec<Block>, Vec<Message>)> {
        let (mut blocks, mut outputs) = (Vec::with_capacity(work.len()), Vec::new());
        for work in work {
            let (mixed, pass) = self.experts.forward(&work)?;
            outputs.extend(work.answers(&mixed, None)?);
            blocks.push(Block { work, pass });
        }
        Ok((blocks, outputs))
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
        for (source, Block { work, pass }) in blocks.into_iter().enumerate() {
            let by_mixed = work.arranged(&mut by_mixed)?;
            if by_mixed.size() != work.rows.size() {
                return Err(ModelError::input(
                    "expert exchange",
                    format!("gradients of {:?} for block {source}", by_mixed.size()),
                    format!("those of its outputs {:?}", work.rows.size()),
                ));
            }
            let mut own = gradients.fold.begin(self.bucket + 1);
            let (by_rows, by_gates) = self.experts.backward(&work, pass, &by_mixed, &mut own)?;
            gradients.fold.push(own, source);
            answers.extend(work.answers(&by_rows, Some(&by_gates))?);
        }
        gradients.finished(self.bucket + 1);
        Ok(answers)
    }
}

impl Half {
    /// `x + MLA(norm_in(x))`, and its norm.
    fn attend(&self, x: &Tensor, cell: &CellContext<'_>) -> Result<HalfPass> {
        let normed_in = self.norm_in.forward(x, cell)?;
        let (between, attention) = self.attention.forward(x, &normed_in.output, cell)?;
        let normed_post = self.norm_post.forward(&between, cell)?;
        Ok(HalfPass { normed_in, attention, between, normed_post })
    }

    /// Backward of [`Half::attend`] of `x`, from the gradient by the last norm's output and that by the residual stream, which
    /// becomes the one by `x`.
    fn attend_backward(
        &self,
        (x, pass): (&Tensor, HalfPass),
        by_normed: &Tensor,
        by_residual: Tensor,
        cell: &CellContext<'_>,
        dense: &mut BucketGradient,
    ) -> Result<Tensor> {
        let HalfPass { normed_in, attention, between, normed_post } = pass;
        self.norm_post.backward((&between, &normed_post), by_normed, (&by_residual, Adds::Yes), dense)?;
        let by = cell.products.operand(&by_residual)?;
        let by_normed_in = self.attention.backward(&normed_in.output, attention, &by, cell, dense)?;
        self.norm_in.backward((x, &normed_in), &by_normed_in, (&by_residual, Adds::Yes), dense)?;
        Ok(by_residual)
    }
}

impl Kept {
    /// What [`Layer::again`] needs to make it anew.
    pub(crate) fn received(self) -> Received {
        received(self.blocks)
    }
}

fn received(blocks: Vec<Block>) -> Received {
    Received(blocks.into_iter().map(|block| block.work).collect())
}
