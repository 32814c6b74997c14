//! What one lane counts while it works, and how others see it.
//!
//! The lane alone owns a [`LaneObserver`] and counts into plain integers; at each closed step it publishes a copy.
//! Readers ([`crate::observe::ShardView`]) hold the other end and see the newest copy, never a step half done.

use std::time::Duration;

use polygram_domain::control;
use polygram_domain::control::Mark;
use polygram_domain::{RowId, RowRef, Step, TableIndex};
use polygram_proto::rows::HotRow;
use tokio::sync::watch;

use crate::observe::fingerprint::{Fingerprint, Marks, row_hash};
use crate::observe::histogram::LogHistogram;
use crate::observe::hot::HotRows;

/// One table's part on one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCounts {
    /// Rows that are written.
    pub touched_rows: u64,
    /// Row updates since the process began.
    pub updates: u64,
    /// Of the present version.
    pub fingerprint: Fingerprint,
}

/// What a lane has counted up to a version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaneStats {
    /// The version at which counting began.
    pub since: Step,
    /// Updates in its rows.
    pub version: Step,
    /// Its tables, in order.
    pub tables: Vec<TableCounts>,
    /// Rows declared by cells, counted once a cell.
    pub declared_rows: u64,
    /// Rows declared by steps, counted once a step.
    pub step_rows: u64,
    /// Rows that changed since all were last written to a recovery point.
    pub changed_rows: u64,
    /// Norms of rows after an update (see [`norm_is_sampled`]).
    pub norms: LogHistogram,
    /// Seconds that lookups were held back.
    pub park: LogHistogram,
    /// Rows updated most often.
    pub hot: HotRows,
    /// Time spent at work.
    pub busy: Duration,
    /// F of all tables at some versions.
    pub marks: Marks,
}

/// A row that was just updated.
#[derive(Clone, Copy, Debug)]
pub struct UpdatedRow {
    /// Table of the row.
    pub table: TableIndex,
    /// The row.
    pub row: RowId,
    /// Updates of it, this one included; 1: it was virtual before.
    pub updates: u32,
}

/// What a step was for a lane, once it is closed.
#[derive(Clone, Copy, Debug)]
pub struct StepTotals {
    /// The version that the lane has now.
    pub version: Step,
    /// Rows of this lane that its cells declared, counted once a cell.
    pub declared_rows: u64,
    /// The same, counted once.
    pub step_rows: u64,
    /// Rows of this lane that changed since all were last written to a recovery point.
    pub changed_rows: u64,
    /// Time the lane worked since the step before was closed.
    pub busy: Duration,
}

/// Whether the norm of a row is looked at after an update: one row in eight, the same ones everywhere.
#[inline]
pub const fn norm_is_sampled(row: RowId) -> bool {
    row.0 & 7 == 0
}

/// A lane's own counters.
#[derive(Debug)]
pub struct LaneObserver {
    stats: LaneStats,
    /// Sum of row hashes of the step being closed, by table.
    sums: Vec<u64>,
    outlet: watch::Sender<LaneStats>,
}

impl LaneObserver {
    /// Counters of a lane at version 0 whose rows of all `tables` tables are virtual, and the readers' end.
    pub fn new(tables: usize) -> (LaneObserver, watch::Receiver<LaneStats>) {
        let stats = LaneStats { tables: vec![TableCounts::default(); tables], ..LaneStats::default() };
        let (outlet, inlet) = watch::channel(stats.clone());
        (LaneObserver { sums: vec![0; tables], stats, outlet }, inlet)
    }

    /// Begins anew at `version`, with `touched_rows` written rows of each table, and publishes that.
    pub fn begin(&mut self, version: Step, touched_rows: &[u64]) {
        let table = |&touched_rows: &u64| TableCounts { touched_rows, ..TableCounts::default() };
        let tables: Vec<TableCounts> = touched_rows.iter().map(table).collect();
        self.sums = vec![0; tables.len()];
        self.stats = LaneStats { since: version, version, tables, ..LaneStats::default() };
        self.publish();
    }

    /// Notes an updated row; `weights` are its weights as stored, bit for bit.
    #[inline]
    pub fn updated(&mut self, updated: UpdatedRow, weights: &[u8]) {
        let UpdatedRow { table, row, updates } = updated;
        let counts = &mut self.stats.tables[table.index()];
        counts.touched_rows += u64::from(updates == 1);
        counts.updates += 1;
        let sum = &mut self.sums[table.index()];
        *sum = sum.wrapping_add(row_hash(RowRef { table, row }, updates, weights));
        self.stats.hot.note(HotRow { table, row, updates });
    }

    /// Notes the norm of an updated row; meant for rows of [`norm_is_sampled`].
    #[inline]
    pub fn row_norm(&mut self, norm: f32) {
        self.stats.norms.add(norm);
    }

    /// Notes that a lookup was answered that had been held back for so long.
    #[inline]
    pub fn released(&mut self, parked: Duration) {
        self.stats.park.add(parked.as_secs_f32());
    }

    /// Closes a step, committed or aborted, and publishes everything counted so far. Answers the sum of the hashes of the
    /// rows that it has updated, over all tables.
    pub fn closed_step(&mut self, totals: StepTotals) -> u64 {
        let StepTotals { version, declared_rows, step_rows, changed_rows, busy } = totals;
        let stats = &mut self.stats;
        stats.version = version;
        stats.declared_rows += declared_rows;
        stats.step_rows += step_rows;
        stats.changed_rows = changed_rows;
        stats.busy += busy;
        let (mut chain, mut step) = (0u64, 0u64);
        for (table, sum) in stats.tables.iter_mut().zip(&mut self.sums) {
            step = step.wrapping_add(*sum);
            table.fingerprint.close(std::mem::take(sum));
            chain = chain.wrapping_add(table.fingerprint.chain);
        }
        stats.marks.note(Mark { version, fingerprint: control::Fingerprint(chain) });
        self.publish();
        step
    }

    fn publish(&self) {
        // With no reader left this only renews the copy.
        self.outlet.send_modify(|published| published.clone_from(&self.stats));
    }

    /// What was counted so far.
    pub fn stats(&self) -> &LaneStats {
        &self.stats
    }
}
