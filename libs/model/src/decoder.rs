//! The model: forward and backward of one cell.
//!
//! Embedding, layers and head are differentiated one after another from the end. With `recompute` what backward needs of a
//! layer is made only then, from its kept input; it is the same code on the same numbers, so it gives the same bits.
//!
//! What backward has passed is done with: the gradient of each bucket of the layout joins the sum over cells at once,
//! and leaves with the last cell.

use std::ops::Range;

use polygram_collective::Collective;
use polygram_domain::{ModelSpec, RankLayout};
use tch::{Tensor, no_grad, with_grad};

use crate::adamw::{AdamW, Update};
use crate::balance::{AuxiliaryScale, bias_delta};
use crate::cell::{Auxiliary, CellInput, CellOutput};
use crate::context::CellContext;
use crate::embedding::{Gathered, Site};
use crate::error::{ModelError, Result};
use crate::experts::{ExchangeWatch, ExpertGroup, MessageShape};
use crate::gradient::{CellGradients, GradientFold, TakeBucket};
use crate::layer::{Kept, Layer, Received};
use crate::loss::{Head, HeadOutput, Targets};
use crate::options::Options;
use crate::parameters::{Leaf, Leaves, Weights};
use crate::rope::Rotary;
use crate::segment::backward;

/// The decoder, its weights, its optimizer and the sum of the gradients of the cells so far.
#[derive(Debug)]
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) options: Options,
    pub(crate) weights: Weights,
    pub(crate) adamw: Option<AdamW>,
    pub(crate) network: Network,
    /// The ranks that hold the other experts.
    pub(crate) experts: ExpertGroup,
    pub(crate) rotary: Rotary,
    /// Rotations of the last sequence length seen.
    pub(crate) rotation: Option<(usize, Tensor)>,
    fold: GradientFold,
}

/// The parts that compute.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) embedding: Site,
    embedding_leaves: Vec<Leaf>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) head: Head,
    options: Options,
    embedding_bucket: usize,
    head_bucket: usize,
}

/// A layer's input, and what backward needs or makes it anew from.
struct Passed {
    input: Tensor,
    pass: Pass,
}

enum Pass {
    Kept(Box<Kept>),
    Received(Received),
}

impl Model {
    /// A model of zeros with all experts: call [`Model::init`] or load state before using it.
    pub fn new(spec: &ModelSpec, options: Options) -> Result<Model> {
        let layout =
            RankLayout::whole(spec).map_err(|problem| ModelError::input("model", problem, "fewer values"))?;
        Model::of_rank(spec, options, layout)
    }

    /// As [`Model::new`] with what one rank holds. A rank without all experts must [`Model::join`] the others before it
    /// computes.
    pub fn of_rank(spec: &ModelSpec, options: Options, layout: RankLayout) -> Result<Model> {
        let spec = spec
            .clone()
            .validated()
            .map_err(|problem| ModelError::input("model", problem, "a legal model"))?;
        let adamw = options.adamw.as_ref().map(|adamw| AdamW::new(adamw, &layout)).transpose()?;
        let fold = GradientFold::new(&layout, 1, options.determinism);
        let weights = Weights::new(layout, options.products, options.device)?;
        let mut leaves = Leaves::new(&weights);
        let embedding = Site::input(&mut leaves, &spec)?;
        let network = Network {
            embedding,
            embedding_leaves: leaves.finish(),
            layers: (0..spec.num_layers)
                .map(|index| Layer::new(&weights, &spec, index, &options))
                .collect::<Result<_>>()?,
            head: Head::new(&weights, &spec, options.products)?,
            options: options.clone(),
            embedding_bucket: weights.layout.embedding_bucket(),
            head_bucket: weights.layout.head_bucket(),
        };
        let a = &spec.attention;
        let (kind, device) = (options.products.kind(), options.device);
        let shape = MessageShape { width: i64::from(spec.hidden_size), kind, device };
        Ok(Model {
            network,
            experts: ExpertGroup::alone(shape),
            rotary: Rotary::new(a.rope_theta, a.qk_rope_head_dim, a.yarn.as_ref()),
            rotation: None,
            spec,
            options,
            weights,
            adamw,
            fold,
        })
    }

    /// Takes a seat among the ranks that hold all experts together, in the order of their seats. From then on all of them
    /// compute their cells at the same time, or [`Model::assist`]. `watch` is told whenever this rank begins and ends to
    /// wait for the others.
    pub fn join(&mut self, ranks: Box<dyn Collective>, watch: ExchangeWatch) -> Result<()> {
        let (size, seat) = (ranks.world_size(), ranks.rank().0);
        let (held, all) = (self.weights.layout.experts(), self.spec.moe.experts);
        if u64::from(held.start) * u64::from(size) != u64::from(seat) * u64::from(all)
            || held.len() as u32 * size != all
        {
            return Err(ModelError::input(
                "expert group",
                format!("experts {held:?} of {all} on seat {seat} of {size}"),
                "the seat's share of all experts",
            ));
        }
        self.fold = GradientFold::new(&self.weights.layout, size as usize, self.options.determinism);
        self.experts.join(ranks, watch)
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
    pub fn layout(&self) -> &RankLayout {
        &self.weights.layout
    }

    /// The master weights, flat.
    pub fn weights(&self) -> &[f32] {
        self.weights.master.as_slice()
    }

    /// The master weights, to be written by other ranks; [`Model::state_written`] takes them into use.
    pub fn weights_mut(&mut self) -> &mut [f32] {
        self.weights.master.as_mut_slice()
    }

    /// Computes one cell: its loss, its row gradients, and its dense gradient, which becomes the next leaf of the sum
    /// over cells. Call it in cell order.
    ///
    /// With the last cell of a step comes `take`: it is given the sum of each bucket as soon as backward has passed it.
    /// After an error the sums are of no use.
    pub fn forward_backward(
        &mut self,
        input: &CellInput<'_>,
        take: Option<&mut TakeBucket<'_>>,
    ) -> Result<CellOutput> {
        input.check(&self.spec)?;
        let cell = self.context(input)?;
        let Model { network, experts, fold, .. } = self;
        let mut gradients = CellGradients { fold, rows_suw: vec![0.0; input.rows_suw.len()], take };
        with_grad(|| network.differentiate(input, &cell, experts, &mut gradients))
            .map(|output| CellOutput { row_grads_suw: gradients.rows_suw, ..output })
    }

    /// Moves a checked cell to the device.
    pub(crate) fn context<'a>(&mut self, input: &CellInput<'a>) -> Result<CellContext<'a>> {
        let rotation = self.rotation(input.batch.seq_len())?;
        CellContext::new(&self.spec, &self.options, input, rotation)
    }

    /// cos + i·sin of every position, `[T, 1, rope / 2]`.
    fn rotation(&mut self, seq_len: usize) -> Result<Tensor> {
        if let Some((_, rotation)) = self.rotation.as_ref().filter(|(known, _)| *known == seq_len) {
            return Ok(rotation.shallow_clone());
        }
        let (cos, sin) = self.rotary.tables(seq_len);
        let shape = [seq_len as i64, 1, i64::from(self.spec.attention.qk_rope_head_dim) / 2];
        let tensor = |values: &[f32]| Tensor::f_from_slice(values)?.f_view(shape);
        let rotation = Tensor::f_complex(&tensor(&cos)?, &tensor(&sin)?)?.f_to_device(self.options.device)?;
        self.rotation = Some((seq_len, rotation.shallow_clone()));
        Ok(rotation)
    }

    /// Computes this rank's experts for a cell of the other ranks of the expert group, without a cell of its own: what is
    /// [`Model::forward_backward`] there. Its own cell adds zeros to the sums.
    pub fn assist(&mut self, take: Option<&mut TakeBucket<'_>>) -> Result<()> {
        let Model { network, experts, fold, .. } = self;
        let mut gradients = CellGradients { fold, rows_suw: Vec::new(), take };
        with_grad(|| network.assist(experts, &mut gradients))
    }

    /// As [`Model::assist`], where the others [`Model::evaluate`].
    pub fn assist_evaluation(&mut self) -> Result<()> {
        self.network.layers.iter().try_for_each(|layer| layer.assist(&mut self.experts).map(drop))
    }

    /// The sum of the gradients of the cells since the last call, flat, along the fixed tree; zeros if there were none.
    /// For callers that gave no `take`.
    pub fn take_gradient(&mut self) -> Vec<f32> {
        let mut flat = vec![0.0; self.weights.layout.len()];
        for (index, bucket) in self.weights.layout.buckets().iter().enumerate() {
            let sum = self.fold.take(index);
            flat[bucket.range.clone()].copy_from_slice(&sum);
            self.fold.recycle(index, sum);
        }
        flat
    }

    /// Gives the buffer of bucket `index` back, so that the next step need not allocate one.
    pub fn recycle(&mut self, index: usize, gradient: Vec<f32>) {
        self.fold.recycle(index, gradient);
    }

    /// One AdamW update of this rank's own part of the dense weights; `gradient` gives the values of the flat gradient
    /// within a range of it that lies in one bucket. For a rank that is not alone: the other parts come from other ranks
    /// ([`Model::weights_mut`]), then [`Model::state_written`] or [`Model::update_router_bias`] takes all into use.
    pub fn apply_own<'g>(
        &mut self,
        gradient: impl Fn(Range<usize>) -> &'g [f32],
        update: Update,
    ) -> Result<()> {
        let Some(adamw) = &mut self.adamw else {
            return Err(ModelError::input("model", "no optimizer", "a model with AdamW options to train"));
        };
        adamw.step(self.weights.master.as_mut_slice(), gradient, update)
    }

    /// [`Model::apply_own`] of a rank that is alone, and taken into use.
    pub fn apply<'g>(&mut self, gradient: impl Fn(Range<usize>) -> &'g [f32], update: Update) -> Result<()> {
        self.apply_own(gradient, update)?;
        self.weights.refresh()
    }

    /// Bytes of optimizer state.
    pub fn optimizer_bytes(&self) -> u64 {
        self.adamw
            .as_ref()
            .map_or(0, |adamw| (size_of_val(adamw.exp_avg()) + size_of_val(adamw.exp_avg_sq())) as u64)
    }

    /// Moves the selection biases by `counts` (`[layers, n + z]`, over all cells of the step) at `rate`
    /// ([`bias_rate_at`](polygram_domain::run_spec::BalanceSpec::bias_rate_at)): computed in f64, stored in f32.
    pub fn update_router_bias(&mut self, counts: &[u64], rate: f64) -> Result<()> {
        let routed = self.spec.routed_experts() as usize;
        if counts.len() != self.network.layers.len() * routed {
            return Err(ModelError::input(
                "routing counts",
                format!("{} numbers", counts.len()),
                format!("{} layers × {routed} experts", self.network.layers.len()),
            ));
        }
        for (layer, counts) in counts.chunks_exact(routed).enumerate() {
            let name = format!("model.layers.{layer}.mlp.router.e_score_correction_bias");
            let range = self.weights.entry(&name)?.range.clone();
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
        let Model { network: Network { embedding, layers, head, .. }, experts, .. } = self;
        no_grad(|| {
            let mut x = embedding.combine(&embedding.gather(&cell)?, &cell)?;
            for layer in layers {
                x = layer.forward(&x, &cell, experts)?.output;
            }
            let targets = Targets::new(input.batch.targets_bt(), input.global_targets, &cell)?;
            head.loss_sum(&head.normed(&x, &cell)?.output, &targets)
        })
    }
}

impl Network {
    fn differentiate(
        &self,
        input: &CellInput<'_>,
        cell: &CellContext<'_>,
        experts: &mut ExpertGroup,
        gradients: &mut CellGradients<'_, '_>,
    ) -> Result<CellOutput> {
        let balance = &self.options.balance;
        let targets = input.batch.target_count();
        let share = targets as f64 / input.global_targets.max(1) as f64;
        let mut auxiliary = Auxiliary::default();
        let mut routing_counts = Vec::new();

        let gathered = self.embedding.gather(cell)?;
        let embedded = self.embedding.combine(&gathered, cell)?;
        let mut x = embedded.f_detach()?;
        let mut passed = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let recompute = self.options.recompute;
            let pass = match recompute {
                true => no_grad(|| layer.forward(&x, cell, experts))?,
                false => layer.forward(&x, cell, experts)?,
            };
            auxiliary.balance.push(pass.balance);
            auxiliary.router_z.push(pass.router_z);
            routing_counts.extend_from_slice(&pass.routing.counts);
            let kept = match recompute {
                true => Pass::Received(pass.kept.received()),
                false => Pass::Kept(Box::new(pass.kept)),
            };
            passed.push(Passed { input: std::mem::replace(&mut x, pass.output), pass: kept });
        }

        let (loss_sum, mut by_x) =
            self.differentiate_head(&x, (input, share), cell, &mut auxiliary, gradients)?;
        let scale = AuxiliaryScale {
            balance: balance.loss_coefficient * share,
            router_z: balance.router_z_coefficient * share,
        };
        for (layer, Passed { input, pass }) in self.layers.iter().zip(passed).rev() {
            let kept = match pass {
                Pass::Kept(kept) => *kept,
                Pass::Received(received) => layer.again(&input, cell, received)?,
            };
            by_x = layer.backward((&input, kept), &by_x, scale, (cell, experts), gradients)?;
        }

        self.differentiate_embedding(&embedded, by_x, (&gathered, cell), gradients)?;
        let layers = |values: &[f64]| values.iter().sum::<f64>();
        let objective = loss_sum / input.global_targets.max(1) as f64
            + share
                * (balance.loss_coefficient * layers(&auxiliary.balance)
                    + balance.router_z_coefficient * layers(&auxiliary.router_z)
                    + balance.hidden_z_coefficient * auxiliary.hidden_z);
        let row_grads_suw = Vec::new();
        Ok(CellOutput { loss_sum, targets, objective, row_grads_suw, routing_counts, auxiliary })
    }

    /// Σ nll, and the gradient by the last layer's output `x`.
    fn differentiate_head(
        &self,
        x: &Tensor,
        (input, share): (&CellInput<'_>, f64),
        cell: &CellContext<'_>,
        auxiliary: &mut Auxiliary,
        gradients: &mut CellGradients<'_, '_>,
    ) -> Result<(f64, Tensor)> {
        let mut dense = gradients.fold.begin(self.head_bucket);
        let wanted = Targets::new(input.batch.targets_bt(), input.global_targets, cell)?;
        let z = self.options.balance.hidden_z_coefficient * share;
        let HeadOutput { loss_sum, hidden_z, by_hidden } =
            self.head.differentiate(x, &wanted, z, (cell, &mut dense))?;
        auxiliary.hidden_z = hidden_z;
        gradients.finish(dense);
        Ok((loss_sum, by_hidden))
    }

    fn differentiate_embedding(
        &self,
        embedded: &Tensor,
        by_embedded: Tensor,
        (gathered, cell): (&Gathered, &CellContext<'_>),
        gradients: &mut CellGradients<'_, '_>,
    ) -> Result<()> {
        let mut dense = gradients.fold.begin(self.embedding_bucket);
        let leaves: Vec<&Tensor> = gathered.leaves().collect();
        let outputs = [(embedded, by_embedded)];
        let mut found = backward(&outputs, &[], (&[], &self.embedding_leaves, &leaves))?;
        dense.store(&self.embedding_leaves, &mut found)?;
        gathered.scatter(&mut found, cell, &mut dense, &mut gradients.rows_suw)?;
        gradients.finish(dense);
        Ok(())
    }

    fn assist(&self, experts: &mut ExpertGroup, gradients: &mut CellGradients<'_, '_>) -> Result<()> {
        let forward = |layer: &Layer| layer.assist(experts);
        let received = self.layers.iter().map(forward).collect::<Result<Vec<_>>>()?;
        gradients.finish_empty(self.head_bucket);
        for (layer, received) in self.layers.iter().zip(received).rev() {
            layer.assist_backward(received, experts, gradients)?;
        }
        gradients.finish_empty(self.embedding_bucket);
        Ok(())
    }
}
