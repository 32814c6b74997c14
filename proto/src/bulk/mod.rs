//! The bulk protocol between workers and embedding shards: framed TCP, one connection per worker and shard.
//!
//! ```text
//!  worker                                              shard
//!  HELLO(rank, workers, tables)              ───────►  WELCOME(shard, version) or REFUSED(reason)
//!  LOOKUP(step, cell, ids): declares         ───────►  ROWS… in parts: ready rows at once, parked rows when the
//!                                                      steps that change them are committed
//!  READ(version, ids): declares nothing      ───────►  READ_ROWS…
//!  PUSH(step, cell, row gradients)…          ───────►
//!  PREPARE(step)                             ───────►  PREPARED(finite, sums of squares per bucket)…
//!  COMMIT(step, scale, lr) | ABORT(step)     ───────►  COMMITTED | ABORTED, once every worker said the same
//! ```
//! Any request may be answered by NACK(reason, text); nothing is retried on a connection that saw one. Every
//! frame names run, generation, step and cell, and every request may come twice: it is answered twice and applied
//! once.
//!
//! * [`frame`]: header, checksum, limits. [`message`]: what frames say, [`payload`]: with which bodies. [`codec`]: frames over a stream.
//! * [`ids`]: a cell's unique rows and their division among shards.
//! * [`client`]: [`client::RowClient`], what a worker holds.

pub mod client;
pub mod codec;
pub mod frame;
pub mod ids;
pub mod message;
pub mod payload;
#[cfg(test)]
mod testing;

pub use client::{ClientLimits, Hello, Prepared, RowClient, RowError};
pub use ids::{UniqueIds, rows_of_shard};
pub use message::{Commit, Reason, Refusal};
