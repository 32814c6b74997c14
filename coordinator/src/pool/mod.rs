//! A pool: one long-lived coordinator that keeps a queue of jobs and places members that have no rank of their own.
//!
//! Every decision is made in [`core`], a pure state machine. Around it stand a tonic server (`service`), one task that owns
//! the state and the file it is kept in (`driver`, [`store`]), and one task for each session of a run (`session`), which is
//! the whole coordinator of that run: the one of [`crate::opening`] and [`crate::server`], on a port of its own.

pub mod core;
pub mod server;
pub mod store;

mod driver;
mod messages;
mod metrics;
mod service;
mod session;

pub use server::{Pool, PoolError, serve};
pub use store::{Store, StoreError};
