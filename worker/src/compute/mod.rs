//! The border between a step and the arithmetic of the model: plain buffers in, plain buffers out.
//!
//! Only [`torch`] knows what a tensor is. [`drill`] is a small exact stand-in with the same parameters, so that
//! clusters and their faults are tested in seconds and without libtorch.
//!
//! Legend: B = batch, T = positions, P = B·T, C = tables per site, S = sites, U = unique row ids, W = row width.

pub mod drill;
#[cfg(feature = "torch")]
pub mod torch;

use std::sync::Arc;

use polygram_checkpoint::NamedTensor;
use polygram_domain::CellBatch;
use polygram_domain::run_spec::{Engine, RunSpec};
use polygram_ngram::UniqueRows;

/// Why a cell could not be computed. It ends the run: the state on this device is no longer known.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// This program was built without the engine that the run asks for.
    #[error(
        "device.engine is \"torch\", but this worker was built without libtorch; build it with `make build` or set \
         device.engine to \"drill\""
    )]
    NoTorch,
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

/// One cell, ready to compute.
pub struct CellWork {
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

/// An engine: parameters, optimizer state and the arithmetic of a cell, all on one device and one thread.
pub trait Compute: Send {
    /// Forward and backward of one cell. Its dense gradient joins those of the cells before it, along the fixed
    /// tree over cells.
    fn forward_backward(&mut self, cell: &CellWork) -> Result<CellResult, ComputeError>;

    /// The dense gradient of the cells since the last `apply` or `discard`: flat f32, in the order of
    /// `domain::layout::dense_parameters`. The caller sums it over ranks in place.
    fn gradient(&mut self) -> Result<&mut [f32], ComputeError>;

    /// Σ g² of that gradient in f64: fixed blocks of each tensor, in canonical order.
    fn gradient_square_sum(&mut self) -> Result<f64, ComputeError>;

    /// One optimizer update from that gradient, and the router bias update.
    fn apply(&mut self, update: &DenseUpdate<'_>) -> Result<(), ComputeError>;

    /// Forgets that gradient: the step is skipped.
    fn discard(&mut self);

    /// Σ negative log-likelihood over the cell's targets, in nats, without gradients.
    fn evaluate(&mut self, cell: &CellWork) -> Result<f64, ComputeError>;

    /// The tensors of the training state whose canonical position among the dense parameters `keep` accepts: weight
    /// and, for trained parameters, both moments (`optimizer.exp_avg.<name>` and `optimizer.exp_avg_sq.<name>`).
    fn export(&self, keep: &dyn Fn(usize) -> bool) -> Result<Vec<NamedTensor>, ComputeError>;

    /// Replaces tensors of the training state, or runs of their elements, as they come.
    fn restore(&mut self, tensors: &mut dyn Iterator<Item = NamedTensor>) -> Result<(), ComputeError>;
}

/// The engine of `spec`, with its initial parameters.
pub fn engine_of(spec: &RunSpec) -> Result<Box<dyn Compute>, ComputeError> {
    match spec.device.engine {
        Engine::Drill => Ok(Box::new(drill::Drill::new(spec))),
        #[cfg(feature = "torch")]
        Engine::Torch => Ok(Box::new(torch::Torch::new(spec)?)),
        #[cfg(not(feature = "torch"))]
        Engine::Torch => Err(ComputeError::NoTorch),
    }
}
