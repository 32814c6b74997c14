//! The model: forward and backward of one cell, segment by segment.
//!
//! A segment is the embedding, one layer, or the head. Each runs on a leaf cut off from the segment before it, so backward
//! goes through them one at a time: segment i's output, multiplied into the gradient that came from segment i + 1, is
//! differentiated by the segment's own leaves. With `recompute` a layer's graph is made only then, from its kept input;
//! it is the same code on the same numbers, so it gives the same bits.

use std::ops::Range;

use polygram_domain::ModelSpec;
use tch::{Kind, Tensor, no_grad, with_grad};

use crate::adamw::{AdamW, Update};
use crate::balance::{BalanceAim, bias_delta};
use crate::cell::{Auxiliary, CellInput, CellOutput};
use crate::context::CellContext;
use crate::embedding::Site;
use crate::error::{ModelError, Result};
use crate::gradient::{CellGradient, GradientFold, store};
use crate::layer::{Layer, LayerPass};
use crate::loss::{Head, Targets, hidden_z};
use crate::options::Options;
use crate::parameters::{Layout, Leaf, Leaves, Weights};
use crate::rope::Rotary;

/// The decoder, its weights, its optimizer and the sum of the gradients of the cells so far.
#[derive(Debug)]
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) options: Options,
    pub(crate) weights: Weights,
    pub(crate) adamw: Option<AdamW>,
    pub(crate) embedding: Site,
    embedding_leaves: Vec<Leaf>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) head: Head,
    pub(crate) rotary: Rotary,
    /// Rotations of the last sequence length seen.
    pub(crate) rotation: Option<(usize, Tensor)>,
    fold: GradientFold,
    /// Elements that no gradient reaches: the selection biases.
    untrained: Vec<Range<usize>>,
}

/// A layer's input, and its graph unless that is to be made anew.
struct Kept {
    input: Tensor,
    pass: Option<LayerPass>,
}

impl Model {
    /// A model of zeros: call [`Model::init`] or load state before using it.
    pub fn new(spec: &ModelSpec, options: Options) -> Result<Model> {
        let spec = spec
            .clone()
            .validated()
            .map_err(|problem| ModelError::input("model", problem, "a legal model"))?;
        let layout = Layout::of(&spec)?;
        let adamw = options
            .adamw
            .as_ref()
            .map(|adamw| AdamW::new(adamw, AdamW::groups_of(&layout, adamw), layout.len()))
            .transpose()?;
        let fold = GradientFold::new(layout.len());
        let untrained = layout.entries().iter().filter(|entry| !entry.spec.is_trained());
        let untrained = untrained.map(|entry| entry.range.clone()).collect();
        let weights = Weights::new(layout, options.kind(), options.device)?;
        let aim =
            BalanceAim { target_top_k: options.balance.target_top_k, groups: options.balance.loss_groups };
        let mut leaves = Leaves::new(&weights);
        let embedding = Site::input(&mut leaves, &spec)?;
        let a = &spec.attention;
        Ok(Model {
            embedding,
            embedding_leaves: leaves.finish(),
            layers: (0..spec.num_layers)
                .map(|index| Layer::new(&weights, &spec, index, aim))
                .collect::<Result<_>>()?,
            head: Head::new(&weights, &spec)?,
            rotary: Rotary::new(a.rope_theta, a.qk_rope_head_dim, a.yarn.as_ref()),
            rotation: None,
            spec,
            options,
            weights,
            adamw,
            fold,
            untrained,
        })
    }

    /// Initial weights of `seed`: the same on every machine.
    pub fn init(&mut self, seed: u64) -> Result<()> {
        crate::init::fill(&self.weights.layout, seed, self.weights.master.as_mut_slice());
        self.weights.refresh()
    }

    /// The model's dimensions.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Where each dense tensor lies in flat buffers.
    pub fn layout(&self) -> &Layout {
        &self.weights.layout
    }

    /// The master weights, flat.
    pub fn weights(&self) -> &[f32] {
        self.weights.master.as_slice()
    }

    /// Computes one cell: its loss, its row gradients, and its dense gradient, which becomes the next leaf of the sum
    /// over cells. Call it in cell order. After an error the cell has added nothing.
    pub fn forward_backward(&mut self, input: &CellInput<'_>) -> Result<CellOutput> {
        input.check(&self.spec)?;
        let cell = self.context(input)?;
        let rows_suw = vec![0.0; input.rows_suw.len()];
        let mut sums = CellGradient { flat: self.fold.buffer(), rows_suw };
        for range in &self.untrained {
            sums.flat[range.clone()].fill(0.0);
        }
        let output = with_grad(|| self.differentiate(input, &cell, &mut sums))?;
        self.fold.push(sums.flat);
        Ok(CellOutput { row_grads_suw: sums.rows_suw, ..output })
    }

    /// The sum of the flat gradients of the cells since the last call, along the fixed tree; zeros if there were none.
    pub fn take_gradient(&mut self) -> Vec<f32> {
        self.fold.take()
    }

    /// Gives a buffer of [`Model::take_gradient`] back, so that the next step need not allocate one.
    pub fn recycle(&mut self, gradient: Vec<f32>) {
        self.fold.recycle(gradient);
    }

    /// One AdamW update of the dense weights by a flat gradient.
    pub fn apply(&mut self, gradient: &[f32], update: Update) -> Result<()> {
        let Some(adamw) = &mut self.adamw else {
            return Err(ModelError::input("model", "no optimizer", "a model with AdamW options to train"));
        };
        adamw.step(self.weights.master.as_mut_slice(), gradient, update)?;
        self.weights.refresh()
    }

    /// Moves the selection biases by `counts` (`[layers, n + z]`, over all cells of the step) at `rate`
    /// ([`bias_rate_at`](polygram_domain::run_spec::BalanceSpec::bias_rate_at)): computed in f64, stored in f32.
    pub fn update_router_bias(&mut self, counts: &[u64], rate: f64) -> Result<()> {
        let routed = self.spec.routed_experts() as usize;
        if counts.len() != self.layers.len() * routed {
            return Err(ModelError::input(
                "routing counts",
                format!("{} numbers", counts.len()),
                format!("{} layers × {routed} experts", self.layers.len()),
            ));
        }
        for (layer, counts) in counts.chunks_exact(routed).enumerate() {
            let name = format!("model.layers.{layer}.mlp.router.e_score_correction_bias");
            let range = self.weights.layout.get(&name)?.range.clone();
            let delta = bias_delta(counts, &self.spec.moe, self.options.balance.target_top_k, rate);
            for (bias, delta) in self.weights.master.as_mut_slice()[range].iter_mut().zip(delta) {
                *bias = (f64::from(*bias) + delta) as f32;
            }
        }
        self.weights.refresh()
    }

    /// Σ nll of one cell in nats, without gradients.
    pub fn evaluate(&mut self, input: &CellInput<'_>) -> Result<f64> {
        input.check(&self.spec)?;
        let cell = self.context(input)?;
        no_grad(|| {
            let mut x = self.embedding.combine(&self.embedding.gather(&cell)?, &cell)?;
            for layer in &self.layers {
                x = layer.forward(&x, &cell)?.output;
            }
            let targets = Targets::new(input.batch.targets_bt(), input.global_targets, &cell)?;
            self.head.loss_sum(&self.head.normed(&x, &cell)?, &targets)
        })
    }

    fn differentiate(
        &self,
        input: &CellInput<'_>,
        cell: &CellContext<'_>,
        sums: &mut CellGradient,
    ) -> Result<CellOutput> {
        let balance = &self.options.balance;
        let targets = input.batch.target_count();
        let share = targets as f64 / input.global_targets.max(1) as f64;
        let mut auxiliary = Auxiliary::default();
        let mut routing_counts = Vec::new();

        let gathered = self.embedding.gather(cell)?;
        let embedded = self.embedding.combine(&gathered, cell)?;
        let mut x = leaf_of(&embedded)?;
        let mut kept = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let pass = match self.options.recompute {
                true => no_grad(|| layer.forward(&x, cell))?,
                false => layer.forward(&x, cell)?,
            };
            auxiliary.balance.push(pass.balance.f_double_value(&[])?);
            auxiliary.router_z.push(pass.router_z.f_double_value(&[])?);
            routing_counts.extend_from_slice(&pass.routing.counts);
            let output = leaf_of(&pass.output)?;
            kept.push(Kept {
                input: std::mem::replace(&mut x, output),
                pass: (!self.options.recompute).then_some(pass),
            });
        }

        let hidden_z = hidden_z(&x)?;
        auxiliary.hidden_z = hidden_z.f_double_value(&[])?;
        let normed = self.head.normed(&x, cell)?;
        let wanted = Targets::new(input.batch.targets_bt(), input.global_targets, cell)?;
        let (loss_sum, by_normed, by_head) =
            no_grad(|| self.head.loss_and_gradients(&normed.f_detach()?, &wanted))?;
        by_head.f_copy_data(&mut sums.flat[self.head.weight_range.clone()], self.head.weight_range.len())?;
        drop(by_head);
        let terms = [(&hidden_z, balance.hidden_z_coefficient * share)];
        let mut gradients = backward(&normed, &by_normed, &terms, (&x, &self.head.leaves, &[]))?;
        let mut by_x = required(gradients.next())?;
        store(&self.head.leaves, &mut gradients, &mut sums.flat)?;

        for (layer, kept) in self.layers.iter().zip(kept).rev() {
            let pass = match kept.pass {
                Some(pass) => pass,
                None => layer.forward(&kept.input, cell)?,
            };
            let terms = [
                (&pass.balance, balance.loss_coefficient * share),
                (&pass.router_z, balance.router_z_coefficient * share),
            ];
            let extra: Vec<&Tensor> = pass.gathered.iter().flat_map(|site| site.leaves()).collect();
            let leaves = (&kept.input, layer.leaves.as_slice(), extra.as_slice());
            let mut gradients = backward(&pass.output, &by_x, &terms, leaves)?;
            by_x = required(gradients.next())?;
            store(&layer.leaves, &mut gradients, &mut sums.flat)?;
            for site in &pass.gathered {
                site.scatter(&mut gradients, cell, sums)?;
            }
        }

        self.differentiate_embedding(&embedded, &by_x, (&gathered, cell), sums)?;
        let layers = |values: &[f64]| values.iter().sum::<f64>();
        let objective = loss_sum / input.global_targets.max(1) as f64
            + share
                * (balance.loss_coefficient * layers(&auxiliary.balance)
                    + balance.router_z_coefficient * layers(&auxiliary.router_z)
                    + balance.hidden_z_coefficient * auxiliary.hidden_z);
        let row_grads_suw = Vec::new();
        Ok(CellOutput { loss_sum, targets, objective, row_grads_suw, routing_counts, auxiliary })
    }

    fn differentiate_embedding(
        &self,
        embedded: &Tensor,
        by_embedded: &Tensor,
        (gathered, cell): (&crate::embedding::Gathered, &CellContext<'_>),
        sums: &mut CellGradient,
    ) -> Result<()> {
        let mut leaves: Vec<&Tensor> = self.embedding_leaves.iter().map(|leaf| &leaf.tensor).collect();
        leaves.extend(gathered.leaves());
        let surrogate = embedded.f_flatten(0, -1)?.f_dot(&by_embedded.f_flatten(0, -1)?)?;
        let mut gradients = Tensor::f_run_backward(&[surrogate], &leaves, false, false)?.into_iter();
        store(&self.embedding_leaves, &mut gradients, &mut sums.flat)?;
        gathered.scatter(&mut gradients, cell, sums)
    }
}

/// `x` cut off from what made it, to be differentiated by.
fn leaf_of(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_detach()?.f_set_requires_grad(true)?)
}

/// Gradients of `⟨output, by_output⟩ + Σ coefficient·term` by the segment's input, its weights and its other leaves, in
/// this order. A gradient of 1 times `by_output` is exact, so this is backward from `by_output`.
fn backward(
    output: &Tensor,
    by_output: &Tensor,
    terms: &[(&Tensor, f64)],
    (input, weights, others): (&Tensor, &[Leaf], &[&Tensor]),
) -> Result<std::vec::IntoIter<Tensor>> {
    let flat = |x: &Tensor| x.f_to_kind(Kind::Float)?.f_flatten(0, -1);
    let mut objective = flat(output)?.f_dot(&flat(by_output)?)?;
    for (term, coefficient) in terms {
        if *coefficient != 0.0 {
            objective = objective.f_add(&term.f_mul_scalar(*coefficient)?)?;
        }
    }
    let mut leaves = vec![input];
    leaves.extend(weights.iter().map(|leaf| &leaf.tensor));
    leaves.extend(others);
    Ok(Tensor::f_run_backward(&[objective], &leaves, false, false)?.into_iter())
}

/// The gradient by a segment's input, which every segment uses.
fn required(gradient: Option<Tensor>) -> Result<Tensor> {
    gradient
        .filter(Tensor::defined)
        .ok_or_else(|| ModelError::Torch("backward gave no gradient for a segment's input".into()))
}
