//! What a shard must know before it owns a row.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use polygram_domain::embedding::{EmbeddingSpec, RowType};
use polygram_domain::tables::buckets_of;
use polygram_domain::{BucketIndex, Generation, RunName, RunSpec, ShardIndex, TableSet, TableSpec, Topology};
use polygram_row_exchange::block::BlockShape;

/// A shard's place in a run.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The run; frames of another are refused.
    pub run: RunName,
    /// Membership generation; frames of another are refused.
    pub generation: Generation,
    /// This shard.
    pub index: ShardIndex,
    /// Numbers of processes.
    pub topology: Topology,
    /// Cells of a step (G).
    pub cells: u32,
    /// Seed of rows not written yet.
    pub seed: u64,
    /// Tables of the model, all of one width.
    pub tables: Arc<TableSet>,
    /// Update rule, lanes, limits.
    pub embedding: EmbeddingSpec,
    /// Whether it is noted which rows change, for recovery points that hold no others.
    pub tracks_changes: bool,
    /// A worker that sends no heartbeat for so long is given up.
    pub failure_detection: Duration,
}

impl ShardConfig {
    /// The place of shard `index` in `spec`'s run.
    pub fn of(spec: &RunSpec, index: ShardIndex, generation: Generation) -> ShardConfig {
        ShardConfig {
            run: spec.name.clone(),
            generation,
            index,
            topology: spec.topology,
            cells: spec.training.cells,
            seed: spec.seed,
            tables: Arc::new(spec.tables()),
            embedding: spec.embedding.clone(),
            tracks_changes: spec.recovery_points.as_ref().is_some_and(|points| points.changes_below > 0.0),
            failure_detection: Duration::from_secs_f64(spec.failure_detection_seconds),
        }
    }

    /// Tables per site (C); 0 for a model without tables.
    pub fn tables_per_site(&self) -> usize {
        self.tables.tables_per_site() as usize
    }

    /// Sites: how many tables share one set of row ids.
    pub fn sites(&self) -> usize {
        self.tables.sites()
    }

    /// Weights per row (w).
    pub fn width(&self) -> usize {
        self.tables.width()
    }

    /// What the values of a row block are that travel as `kind`.
    pub fn shape(&self, kind: RowType) -> BlockShape {
        BlockShape { sites: self.sites(), width: self.width(), kind }
    }

    /// Optimizer values per row.
    pub fn state_values(&self) -> usize {
        self.embedding.state_values(self.width())
    }

    /// Bytes of a written row in memory.
    pub fn record_bytes(&self) -> u64 {
        self.embedding.record_bytes(self.width()) as u64
    }

    /// Buckets of this shard.
    pub fn buckets(&self) -> Range<u32> {
        buckets_of(self.index, self.topology.shards)
    }

    /// Buckets of each lane: contiguous runs of the shard's, sizes differing by at most one.
    pub fn lane_buckets(&self) -> Vec<Range<u32>> {
        let Range { start, end } = self.buckets();
        let lanes = u64::from(self.embedding.lanes.max(1));
        let bound = |lane: u64| start + (u64::from(end - start) * lane / lanes) as u32;
        (0..lanes).map(|lane| bound(lane)..bound(lane + 1)).collect()
    }
}

/// Rows of `table` in a run of buckets: one contiguous range.
pub fn rows_of_buckets(table: &TableSpec, buckets: &Range<u32>) -> Range<u32> {
    let start = |bucket: u32| table.rows_of(BucketIndex(bucket)).start;
    start(buckets.start)..start(buckets.end)
}
