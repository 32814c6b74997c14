//! An embedding shard: owns a contiguous range of buckets of every n-gram table, serves rows and applies sparse
//! gradients.
//!
//! ```text
//!  connections (tokio)  ──frames──►  engine (tokio task, owns the ledger)  ──commands──►  lanes (threads, own rows)
//!        ▲                                   ▲                                                   │
//!        └───────────── rows ────────────────┼───────────────────────────────────────────────────┤
//!                                            └───────────────────── reports ─────────────────────┘
//! ```
//! * [`ledger`]: what may happen when; pure, no sockets, clocks or threads.
//! * [`rows`]: row storage, virtual rows, update rules. `lane`: the thread that owns some of them.
//! * [`Shard`]: rows and place in a run; [`Shard::serve`] runs it in-process behind an open [`Door`].
//! * [`bench`]: what all this costs, against what the machine can do.
//! * [`observe`]: what lanes count, and who is told. [`query`]: reading a shard from outside a run.
//! * [`archive`]: where snapshots go; [`restore`]: where rows come back from. [`role`]: the shard as a member of a run.

pub mod archive;
pub mod args;
pub mod bench;
pub mod config;
pub mod error;
mod lane;
pub mod ledger;
pub mod member_error;
pub mod numa;
pub mod observe;
mod outbox;
pub mod query;
pub mod restore;
pub mod role;
pub mod rows;
mod selection;
mod server;
pub mod shard;
mod side_services;
mod snapshot;
mod status;

pub use archive::{RowArchive, StoreArchive};
pub use config::ShardConfig;
pub use error::ShardError;
pub use member_error::ShardMemberError;
pub use role::ShardRole;
pub use rows::Record;
pub use selection::{RowCounts, Selection};
pub use server::Door;
pub use shard::Shard;
pub use snapshot::{SnapshotRows, SnapshotStopped};
pub use status::ShardStatus;
