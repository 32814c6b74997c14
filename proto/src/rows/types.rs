//! What is asked and answered.

use std::ops::Range;

use polygram_domain::{Generation, RowId, ShardIndex, Step, TableIndex};

/// Rows that somebody wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Of which table.
    pub table: TableIndex,
    /// Which, in any order; at most [`crate::rows::ROWS_LIMIT`].
    pub rows: Vec<u32>,
}

/// Rows as they are now.
#[derive(Clone, Debug, PartialEq)]
pub struct Looked {
    /// Updates in them.
    pub version: Step,
    /// `[rows, width]`, in the order asked for.
    pub values_rw: Vec<f32>,
}

/// What a shard owns and how it keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The run.
    pub run: String,
    /// Membership generation.
    pub generation: Generation,
    /// Which shard.
    pub shard: ShardIndex,
    /// Of how many.
    pub shards: u32,
    /// Updates in its rows.
    pub version: Step,
    /// Update rule, as in a run file.
    pub optimizer: String,
    /// Type of stored weights, as in a run file.
    pub storage: String,
    /// Threads that own rows.
    pub lanes: u32,
    /// Bytes of a written row's record.
    pub record_bytes: u64,
    /// Every table of the model, in order.
    pub tables: Vec<OwnedTable>,
}

/// A table and the shard's part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedTable {
    /// Its number.
    pub table: TableIndex,
    /// The name of its weight.
    pub name: String,
    /// N-gram order.
    pub order: u32,
    /// Rows.
    pub rows: u32,
    /// Values per row.
    pub width: u32,
    /// Rows that the shard owns.
    pub owned: Range<u32>,
}

/// What a shard has counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Updates in its rows.
    pub version: Step,
    /// The version at which counting began.
    pub since: Step,
    /// Bytes of a written row's record.
    pub record_bytes: u64,
    /// Every table of the model, in order.
    pub tables: Vec<TableStats>,
    /// Rows that cells declared, counted once a cell.
    pub declared_rows: u64,
    /// Rows that steps declared, counted once a step.
    pub step_rows: u64,
    /// Norms of rows after an update, one row in eight.
    pub row_norms: Distribution,
    /// Seconds that lookups were held back.
    pub park_seconds: Distribution,
    /// Rows updated most often, most updates first.
    pub hot_rows: Vec<HotRow>,
    /// Seconds that each lane worked.
    pub lane_busy_seconds: Vec<f64>,
}

/// One table's part of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStats {
    /// Its number.
    pub table: TableIndex,
    /// Rows that the shard owns.
    pub owned_rows: u64,
    /// Of which written.
    pub touched_rows: u64,
    /// Row updates since counting began.
    pub updates: u64,
    /// `None` while the lanes are between two versions.
    pub fingerprint: Option<TableFingerprint>,
}

/// Fingerprints of a table's row updates on a shard; those of shards are added, wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFingerprint {
    /// Over the rows that the latest step updated.
    pub step: u64,
    /// Over all steps since counting began.
    pub chain: u64,
}

/// How often values fell where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Sum of the finite values.
    pub sum: f64,
    /// (upper bound, values up to it and above the bound before); the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
}

/// A row and its updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotRow {
    /// Table of the row.
    pub table: TableIndex,
    /// The row.
    pub row: RowId,
    /// Updates of it.
    pub updates: u32,
}
