//! The coordinator: who is in the run, at which step, and what is committed.
//!
//! Every decision is made in [`core`], a pure state machine. Around it stand a tonic server (`service`), one task that
//! owns the state (`driver`) and one that owns the store (`recorder`). A coordinator is made in two steps:
//! [`opening::open`] claims the run in the store and decides what it continues from, [`server::serve`] leads it to its
//! end. A pool ([`pool`]) keeps a queue of runs, and does so for each whose turn has come.

pub mod args;
pub mod compatibility;
pub mod core;
pub mod interrupts;
pub mod opening;
pub mod pool;
pub mod server;

mod beat;
mod clock;
mod driver;
mod fit;
mod leadership;
mod ledger;
mod messages;
mod metrics;
mod opening_error;
mod pending_records;
mod points;
#[cfg(test)]
mod random;
mod recorder;
mod rollback;
mod room;
mod scrapes;
mod segment_buffer;
mod service;
mod upload;

pub use leadership::Claim;
pub use opening::{Opened, Origin, open};
pub use opening_error::OpeningError;
pub use server::{Ended, ServeError, serve};
