//! The border between a step and the arithmetic of the model: plain buffers in, plain buffers out.
//!
//! Only [`torch`] knows what a tensor is. [`drill`] is a small exact stand-in with the same parameters, so that
//! clusters and their faults are tested in seconds and without libtorch.
//!
//! Legend: B = batch, T = positions, P = B·T, C = tables per site, S = sites, U = unique row ids, W = row width.

pub mod drill;
mod engines;
#[cfg(feature = "torch")]
pub mod torch;

use std::ops::Range;
use std::sync::Arc;

use polygram_checkpoint::NamedTensor;
use polygram_collective::Collective;
use polygram_domain::layout::StateView;
use polygram_domain::{CellBatch, Rank, RankLayout};
use polygram_ngram::UniqueRows;

use crate::gradients::SummedGradient;
pub use engines::engine_of;

/// Why a cell could not be computed. It ends the run: the state on this device is no longer known.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// This program was built without the engine that the run asks for.
    #[error(
        "device.engine is \"torch\", but this worker was built without libtorch; build it with `make build` or set \
         device.engine to \"drill\""
    )]
    NoTorch,
    /// The parameters do not fit this machine.
    #[error("{0}")]
    Size(String),
    /// A tensor of a checkpoint does not fit the model.
    #[error("tensor {name}: {reason}")]
    State {
        /// Global name.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// The model's own failure.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Model(#[from] polygram_model::ModelError),
}

impl ComputeError {
    /// The rank that this failure points at, if it is a consequence of another rank's.
    pub fn suspect(&self) -> Option<Rank> {
        match self {
            #[cfg(feature = "torch")]
            ComputeError::Model(error) => error.suspect(),
            _ => None,
        }
    }
}

/// One cell, ready to compute.
pub struct CellWork {
    /// Numbers of its samples, counted over epochs; none where it is held out.
    pub samples: Range<u64>,
    /// Its tokens and targets.
    pub batch: CellBatch,
    /// The rows that its n-grams select.
    pub unique: Arc<UniqueRows>,
    /// Values of those rows at every site, `[S, U, W]`.
    pub rows_suw: Vec<f32>,
    /// Targets of the whole step: the divisor of its loss.
    pub global_targets: u64,
}

/// What a cell gives back beside its dense gradient, which stays with the engine.
pub struct CellResult {
    /// Σ negative log-likelihood over the cell's targets, in nats.
    pub loss_sum: f64,
    /// Gradient of the objective with respect to `rows_suw`, `[S, U, W]`.
    pub row_gradients_suw: Vec<f32>,
    /// Times each expert of each layer was chosen, `[layers, experts + zero experts]`.
    pub routing_counts: Vec<u64>,
}

/// What one update of the dense parameters needs to know.
pub struct DenseUpdate<'a> {
    /// Number of this update, from 1: the exponent of Adam's bias corrections.
    pub update: u64,
    /// Learning rate.
    pub lr: f64,
    /// Clip scale of every gradient.
    pub scale: f32,
    /// Routing counts of the whole step, `[layers, experts + zero experts]`.
    pub routing_counts: &'a [u64],
    /// Rate of the router bias update.
    pub bias_rate: f64,
}

/// Takes the finished sum of a bucket: its index and its values.
pub type TakeBucket<'a> = dyn FnMut(usize, Vec<f32>) + 'a;

/// Is told whether compute waits for other ranks' experts.
pub type ExchangeWatch = Box<dyn FnMut(bool) + Send>;

/// An engine: what one rank holds of parameters and optimizer state ([`RankLayout`]), and the arithmetic of a cell, all on
/// one device and one thread.
pub trait Compute: Send {
    /// Where everything lies.
    fn layout(&self) -> &RankLayout;

    /// Takes a seat among the ranks that hold all experts together; called once, before anything is computed, where
    /// there is more than one. `watch` is told whenever compute begins and ends to wait for them.
    fn join(&mut self, ranks: Box<dyn Collective>, watch: ExchangeWatch) -> Result<(), ComputeError>;

    /// Forward and backward of one cell. Its dense gradient joins those of the cells before it, along the fixed
    /// tree over cells. With the last cell of a step comes `take`, which is given the sum of each bucket over this
    /// rank's cells as soon as it is complete.
    fn forward_backward(
        &mut self,
        cell: &CellWork,
        take: Option<&mut TakeBucket<'_>>,
    ) -> Result<CellResult, ComputeError>;

    /// One optimizer update of this rank's own part of the parameters. Answers the flat weights: the other parts are to
    /// be filled from the other ranks, then [`Compute::applied`] be called.
    fn apply(
        &mut self,
        update: &DenseUpdate<'_>,
        gradient: &SummedGradient,
    ) -> Result<&mut [f32], ComputeError>;

    /// Takes the updated weights into use, and moves the router biases.
    fn applied(&mut self, update: &DenseUpdate<'_>) -> Result<(), ComputeError>;

    /// Takes the buffers of a gradient back.
    fn recycle(&mut self, gradient: SummedGradient);

    /// Σ negative log-likelihood over the cell's targets, in nats, without gradients.
    fn evaluate(&mut self, cell: &CellWork) -> Result<f64, ComputeError>;

    /// What [`Compute::evaluate`] is on a rank that has no cell while others have: its experts are needed.
    fn assist_evaluation(&mut self) -> Result<(), ComputeError>;

    /// The training state that this rank is the one to keep: its own part of every tensor, weights and, for trained
    /// parameters, both moments (`optimizer.exp_avg.<name>` and `optimizer.exp_avg_sq.<name>`).
    fn state(&self) -> Vec<StateView<'_>>;

    /// Replaces tensors of the training state, or runs of their elements, as they come; what this rank does not hold is
    /// passed over.
    fn restore(&mut self, tensors: &mut dyn Iterator<Item = NamedTensor>) -> Result<(), ComputeError>;

    /// Fingerprint of the part of the weights that this rank updates ([`RankLayout::own_fingerprint`]).
    fn fingerprint(&self) -> u64;

    /// Bytes of optimizer state that are here.
    fn optimizer_bytes(&self) -> u64;
}

/// [`Compute::forward_backward`], with the spikes that a test orders for the samples of `work`.
pub fn run_micro_batch(
    engine: &mut dyn Compute,
    work: &CellWork,
    take: Option<&mut TakeBucket<'_>>,
) -> Result<CellResult, ComputeError> {
    let mut result = engine.forward_backward(work, take)?;
    if let Some(factor) = polygram_faults::poison(work.samples.clone()) {
        result.loss_sum *= factor;
        result.row_gradients_suw.iter_mut().for_each(|gradient| *gradient *= factor as f32);
    }
    Ok(result)
}
