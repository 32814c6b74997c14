//! How a shard fails.

use std::io;

use polygram_checkpoint::StoreProblem;
use polygram_domain::{RowId, Step, TableIndex};
use polygram_process::Panicked;
use polygram_row_exchange::Refusal;
use thiserror::Error;

/// Why a shard stops.
#[derive(Debug, Error)]
pub enum ShardError {
    /// Sizes that this program cannot hold.
    #[error("shard configuration: {0}")]
    Config(String),
    /// A lane's thread was not started.
    #[error("cannot start the thread of lane {lane}: {source}")]
    Thread {
        /// The lane.
        lane: usize,
        /// What the system says.
        source: io::Error,
    },
    /// A lane ended before its work did.
    #[error("lane {0} ended unexpectedly")]
    Lane(usize),
    /// A lane's thread panicked: a bug.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// A row that is restored does not belong here.
    #[error("row {row} of table {table} cannot be restored: {rule}")]
    Restore {
        /// Table of the row.
        table: TableIndex,
        /// The row.
        row: RowId,
        /// What does not hold.
        rule: String,
    },
    /// Rows would pass the ceiling.
    #[error("{0}")]
    Memory(String),
    /// The workers contradict each other, or the ceiling would be passed: no later request can be right.
    #[error("{}", .0.text)]
    Refused(Refusal),
    /// A snapshot was not written.
    #[error("snapshot of version {version} failed: {reason}")]
    Snapshot {
        /// Version of the rows.
        version: Step,
        /// Why.
        reason: String,
        /// What kept the store from taking it, if the store did not.
        problem: Option<StoreProblem>,
    },
}

/// The sentence about the ceiling, with every number in it.
pub(crate) fn memory_message(rows: u64, record_bytes: u64, limit_bytes: u64) -> String {
    format!(
        "{rows} written rows of {record_bytes} bytes need {} bytes, over this shard's limit of {limit_bytes} \
         (embedding.memory_limit_gib); raise the limit or use more shards",
        rows.saturating_mul(record_bytes)
    )
}
