//! [`RowExchange`]: what a worker does with the rows of a run, whatever carries them.

use std::sync::Arc;

use polygram_domain::{BucketIndex, MicroBatchRef, Step, TableIndex};

use crate::error::RowError;
use crate::ids::UniqueIds;
use crate::message::{Commit, SnapshotOrder};

/// The answer of all shards to PREPARE.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Whether every summed row gradient is finite.
    pub finite: bool,
    /// Sum of squares (f64) of each bucket with a declared row, ascending by (table, bucket).
    pub sums: Vec<(TableIndex, BucketIndex, f64)>,
}

/// Exchanges rows and row gradients with all shards of a run. Clones share what carries them.
///
/// Legend: S = sites, U = unique rows of a cell, w = values per row.
///
/// What always holds, whatever the transport:
/// * Rows of a lookup at step `t` have every committed update of the steps before `t`, and none of `t` or later.
/// * Each call either reaches every shard that has a part in it or fails; an error names the shard, step and cell.
///   After one failure every open and later call fails.
/// * A step is committed or skipped on every shard, or on none that anybody goes on with: all workers vote with the same
///   bits.
pub trait RowExchange: Clone + Send + Sync + 'static {
    /// Version of the shards' rows when the exchange was opened: updates in them.
    fn version(&self) -> Step;

    /// Declares a micro-batch's rows and asks for them. Sent before this returns, in the order of calls.
    /// The future resolves to the rows `[S, U, w]` at version `at.step`; dropping it does not take the declaration
    /// back.
    fn lookup(
        &self,
        at: MicroBatchRef,
        ids: Arc<UniqueIds>,
    ) -> impl Future<Output = Result<Vec<f32>, RowError>> + Send + use<Self>;

    /// The rows `[S, U, w]` at exactly version `version`, for evaluation: nothing is declared. Sent before this
    /// returns. Refused once that version is past.
    fn read(
        &self,
        version: Step,
        ids: Arc<UniqueIds>,
    ) -> impl Future<Output = Result<Vec<f32>, RowError>> + Send + use<Self>;

    /// Sends a declared micro-batch's row gradients `[S, U, w]`, whose memory serves later lookups. Resolves when all
    /// of it is queued: it waits while a shard has more than a fixed number of bytes on its way.
    fn push(
        &self,
        at: MicroBatchRef,
        row_grads_suw: Vec<f32>,
    ) -> impl Future<Output = Result<(), RowError>> + Send;

    /// The shards' sums of the step, once every cell of every worker is in.
    fn prepare(&self, step: Step) -> impl Future<Output = Result<Prepared, RowError>> + Send;

    /// Votes to apply the step; resolves when every worker has sent the same bits and every shard has applied it, to the
    /// fingerprint of the rows updated: the sum of their hashes, in whatever way rows are divided.
    fn commit(&self, step: Step, commit: Commit) -> impl Future<Output = Result<u64, RowError>> + Send;

    /// Votes to skip the step, leaving the tables as they are, and to write them as `snapshot` says; the version moves on
    /// all the same.
    fn abort(&self, step: Step, snapshot: SnapshotOrder)
    -> impl Future<Output = Result<(), RowError>> + Send;
}
