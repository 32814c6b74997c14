//! What a shard is doing, for those who follow it.

use polygram_domain::Step;

/// What a shard is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStatus {
    /// Updates in its rows.
    pub version: Step,
    /// Written rows, as of the last closed step.
    pub written_rows: u64,
    /// Whether a snapshot is being written.
    pub is_snapshotting: bool,
}
