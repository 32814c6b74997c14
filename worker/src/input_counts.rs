//! What a rank counts of its input: unique rows, and sketches of the distinct n-grams of each order.
//!
//! Owned by the task that awaits rows, off the compute thread. A cell is counted when its rows have come, so that the
//! counts are at most a step ahead of what shards have written. They go to the coordinator every few seconds and once
//! at the end; nothing depends on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use polygram_domain::control::{InputReport, MemberReport};
use polygram_domain::{CellBatch, Step};
use polygram_ngram::{Hasher, NgramError, UniqueRows, batch_keys};
use polygram_proto::control::Reporter;
use polygram_telemetry::HyperLogLog;

/// Counts go out this often, 16 KiB an order.
const INTERVAL: Duration = Duration::from_secs(5);

/// The counts of one rank.
pub(crate) struct InputCounts {
    hasher: Arc<Hasher>,
    reporter: Reporter,
    since: Step,
    next: Step,
    row_ids: u64,
    unique_rows: u64,
    sketches: Vec<HyperLogLog>,
    reported: Option<Instant>,
    is_news: bool,
}

impl InputCounts {
    /// Counts from `since` on, told by `reporter`.
    pub(crate) fn new(hasher: Arc<Hasher>, reporter: Reporter, since: Step) -> InputCounts {
        InputCounts {
            sketches: vec![HyperLogLog::default(); hasher.orders()],
            hasher,
            reporter,
            since,
            next: since,
            row_ids: 0,
            unique_rows: 0,
            reported: None,
            is_news: false,
        }
    }

    /// Counts a cell of `step`.
    ///
    /// # Errors
    /// When the batch is not whole sequences.
    pub(crate) fn count(
        &mut self,
        step: Step,
        batch: &CellBatch,
        unique: &UniqueRows,
    ) -> Result<(), NgramError> {
        if unique.tables() == 0 {
            return Ok(());
        }
        let sketches = &mut self.sketches;
        batch_keys(&self.hasher, batch.tokens_bt(), batch.seq_len(), |order, key| {
            sketches[order].insert(key)
        })?;
        self.row_ids += unique.inverse_pc.len() as u64;
        self.unique_rows += unique.len() as u64;
        self.next = step.next();
        self.is_news = true;
        Ok(())
    }

    /// Tells the coordinator, if it is time again.
    pub(crate) async fn report_if_due(&mut self) {
        if self.reported.is_none_or(|reported| reported.elapsed() >= INTERVAL) {
            self.report().await;
        }
    }

    /// Tells the coordinator what it does not know yet.
    pub(crate) async fn report(&mut self) {
        if !std::mem::take(&mut self.is_news) {
            return;
        }
        self.reported = Some(Instant::now());
        let report = InputReport {
            since: self.since,
            step: self.next,
            row_ids: self.row_ids,
            unique_rows: self.unique_rows,
            sketches: self.sketches.iter().map(|sketch| sketch.as_bytes().to_vec()).collect(),
        };
        // A session that is over says so to the task that listens to it.
        if let Err(error) = self.reporter.report(MemberReport::Input(Box::new(report))).await {
            tracing::debug!(%error, "input counts were not reported");
        }
    }
}
