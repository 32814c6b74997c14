//! One process per device: tokens → rows → model → gradients.
//!
//! [`step`] is the page to read first. The I/O side (tokio) is [`role`], [`training`], [`input`], [`row_desk`] and
//! [`snapshot`]; the compute side (one thread) is [`compute_thread`], [`step`], [`summary`], [`checkpoints`] and
//! [`compute`]. Bounded channels of plain buffers join them. Beside the compute thread [`gradients`] are summed over ranks
//! while backward goes on.

pub mod args;
pub mod checkpoints;
pub mod compute;
pub mod compute_thread;
pub mod counted;
pub mod engine;
pub mod error;
pub mod evaluate;
#[cfg(test)]
#[cfg(feature = "torch")]
mod golden;
pub mod gradients;
pub mod host_copy;
pub mod input;
mod input_counts;
#[cfg(feature = "torch")]
pub mod logits;
pub mod memory;
pub mod norm;
pub mod observe;
pub mod phases;
pub mod policy;
pub mod ranks;
pub mod restore;
pub mod role;
pub mod row_desk;
pub mod snapshot;
pub mod step;
pub mod stop_request;
pub mod summary;
pub mod training;

pub use error::WorkerError;
pub use role::{Listen, WorkerRole};
