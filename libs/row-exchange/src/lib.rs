//! Bulk rows between workers and embedding shards: frames over TCP, or over shared memory within a host.
//!
//! ```text
//!  worker                                              shard
//!  HELLO(rank, workers, tables, wire, window) ──────►  CHALLENGE(nonce)
//!  RESPONSE(nonce, proof)                     ──────►  VOUCH(proof) or REFUSED(reason)
//!                                             ◄──────  WELCOME(shard, version, window, offer) or REFUSED(reason)
//!  PATH, where there was an offer             ──────►
//!  LOOKUP(step, cell, ids): declares         ───────►  ROWS… in parts: ready rows at once, parked rows when the
//!                                                      steps that change them are committed
//!  READ(version, ids): declares nothing      ───────►  READ_ROWS…
//!  PUSH(step, cell, row gradients)…          ───────►
//!  PREPARE(step)                             ───────►  PREPARED(finite, sums of squares per bucket)…
//!  COMMIT(step, scale, lr) | ABORT(step)     ───────►  COMMITTED | ABORTED, once every worker said the same
//!  CREDIT(bytes of rows taken)               ◄──────►  CREDIT(bytes of gradients taken)
//!  HEARTBEAT, where there is nothing else    ◄──────►  HEARTBEAT
//! ```
//! Any request may be answered by NACK(reason, text); nothing is retried on a connection that saw one. Every
//! frame names run, generation, step and cell, and every request may come twice: it is answered twice and applied
//! once.
//!
//! A worker and a shard have one connection or several. The first carries everything whose order matters; PUSH and rows
//! go over whichever is free. Losing one is losing all of them. Bytes of gradients and of rows that are on their way are
//! bounded by [`credit`] that the receiver grants; nothing else waits for it.
//!
//! Worker and shard prove to each other that they know the run's token ([`handshake`]) before anything else. Each sends
//! the other its time limit for silence, and heartbeats within the other's limit ([`liveness`], [`activity`]); over
//! shared memory there are none, since a host does not lose itself.
//!
//! * [`frame`]: header, checksum, limits. [`message`]: what frames say, [`greeting`], [`payload`], [`block`]: with which
//!   bodies. [`codec`]: frames over a stream. [`queue`]: frames that wait for one. [`pool`]: memory used again.
//! * [`ring`]: a stream in shared memory, [`same_host`]: how two processes come to have one.
//! * [`ids`]: a cell's unique rows and their division among shards.
//! * [`exchange`]: [`RowExchange`], what a worker does with rows; [`client`]: [`RowClient`], which does it by frames.

pub mod activity;
pub mod block;
pub mod client;
pub mod codec;
pub mod credit;
pub mod error;
pub mod exchange;
pub mod frame;
pub mod greeting;
pub mod handshake;
pub mod ids;
pub mod liveness;
pub mod message;
pub mod payload;
pub mod pool;
pub mod queue;
pub mod response;
pub mod ring;
pub mod same_host;
#[cfg(test)]
mod testing;

pub use client::{ClientLimits, ClientOptions, Hello, RowClient};
pub use error::RowError;
pub use exchange::{Prepared, RowExchange};
pub use ids::{UniqueIds, rows_of_shard};
pub use message::{Commit, Reason, Refusal, SnapshotOrder};
