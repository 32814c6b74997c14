//! Reading a shard from outside a run: rows, what it owns, what it has counted, over gRPC.
//!
//! ```text
//!  RowService ──Peek──►  engine  ──►  lanes         rows: between two commands of the lane that owns them
//!      └── stats ──►  ShardView                     counts: what lanes published, without asking them
//! ```
//! Reading changes nothing and holds no step up: at most [`server::READS`] reads are under way, of at most 4096 rows each.

pub mod reader;
pub mod server;
mod service;

pub use reader::{Peek, PeekError, Peeked, ShardReader};
pub use server::{QueryServer, serve};
