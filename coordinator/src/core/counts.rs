//! What members have counted, and the run's tables put together from it. No decision depends on it.

use std::collections::BTreeMap;

use polygram_domain::control::{
    CollisionStatus, InputReport, InputStatus, MemberRef, Role, RowsStatus, RunFingerprint, ShardReport,
    TableStatus, common_marks,
};
use polygram_domain::{Step, TableSpec, words};
use polygram_telemetry::{Collisions, HyperLogLog};

use super::settings::Settings;

/// The newest counts of every member.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    shards: BTreeMap<u32, ShardReport>,
    inputs: BTreeMap<u32, Input>,
    /// Distinct n-grams of each order, from 2, over all workers.
    sketches: Vec<HyperLogLog>,
}

/// A worker's counts, its sketches aside: those are merged.
#[derive(Clone, Copy, Debug)]
struct Input {
    since: Step,
    row_ids: u64,
    unique_rows: u64,
}

/// Orders up to a table's, from 2.
fn orders_below(table: &TableSpec) -> usize {
    (table.order as usize).saturating_sub(1)
}

impl Counts {
    /// Takes a shard's counts, which must be of the run's tables; the refusal is one sentence.
    pub(super) fn take_shard(
        &mut self,
        who: MemberRef,
        report: ShardReport,
        settings: &Settings,
    ) -> Result<(), String> {
        let (tables, count) = (settings.tables.len(), report.tables.len());
        if who.role != Role::Shard || count != tables {
            let counted = words::counted(count as u64, "table");
            return Err(format!("ignored counts of {counted} by {who}, of {tables} in the run"));
        }
        self.shards.insert(who.index, report);
        Ok(())
    }

    /// Takes a worker's counts; its sketches only ever add to what is known. The refusal is one sentence.
    pub(super) fn take_input(
        &mut self,
        who: MemberRef,
        report: InputReport,
        settings: &Settings,
    ) -> Result<(), String> {
        let orders = settings.tables.iter().map(orders_below).max().unwrap_or(0);
        let sketches: Option<Vec<HyperLogLog>> =
            report.sketches.iter().map(|registers| HyperLogLog::from_bytes(registers)).collect();
        let sketches = sketches.filter(|sketches| sketches.len() == orders && who.role == Role::Worker);
        let Some(sketches) = sketches else {
            return Err(format!("ignored input counts by {who}: not {orders} sketches of n-grams"));
        };
        self.sketches.resize_with(orders, HyperLogLog::default);
        for (held, sketch) in self.sketches.iter_mut().zip(&sketches) {
            held.merge(sketch);
        }
        let InputReport { since, row_ids, unique_rows, .. } = report;
        self.inputs.insert(who.index, Input { since, row_ids, unique_rows });
        Ok(())
    }

    /// What a shard last said.
    pub(super) fn shard(&self, who: MemberRef) -> Option<&ShardReport> {
        if who.role == Role::Shard { self.shards.get(&who.index) } else { None }
    }

    /// The run's tables.
    pub(super) fn status(&self, settings: &Settings) -> RowsStatus {
        let input = self.input();
        let all_shards = self.shards.len() == settings.topology.shards as usize;
        let distinct = self.distinct_from_the_start(settings);
        let tables = settings.tables.iter().filter(|_| all_shards).map(|spec| {
            let parts = self.shards.values().map(|shard| shard.tables[spec.index.index()].touched_rows);
            let (rows, touched_rows) = (u64::from(spec.rows), parts.fold(0, u64::saturating_add));
            let distinct = distinct.as_ref().and_then(|distinct| distinct.get(orders_below(spec) - 1));
            let collisions = distinct.map(|&distinct| {
                let collisions = Collisions::of(rows, distinct, touched_rows);
                CollisionStatus {
                    distinct_ngrams: distinct,
                    ideal_rows: collisions.ideal_rows,
                    excess_ratio: collisions.excess_ratio(),
                    ngrams_per_row: collisions.ngrams_per_row(),
                    shared_lookups_ratio: collisions.shared_lookups_ratio(),
                }
            });
            TableStatus { name: spec.name.clone(), order: spec.order, rows, touched_rows, collisions }
        });
        RowsStatus {
            tables: tables.collect(),
            input,
            fingerprint: if all_shards { self.fingerprint() } else { None },
        }
    }

    fn input(&self) -> Option<InputStatus> {
        let since = self.inputs.values().map(|input| input.since).max()?;
        let sum = |of: fn(&Input) -> u64| self.inputs.values().map(of).fold(0, u64::saturating_add);
        Some(InputStatus { since, row_ids: sum(|i| i.row_ids), unique_rows: sum(|i| i.unique_rows) })
    }

    /// Distinct n-grams of each order over the whole run, where every worker has counted from its first step on.
    fn distinct_from_the_start(&self, settings: &Settings) -> Option<Vec<f64>> {
        let all_workers = self.inputs.len() == settings.topology.workers as usize;
        let from_start = all_workers && self.inputs.values().all(|input| input.since == Step(0));
        from_start.then(|| self.sketches.iter().map(HyperLogLog::estimate).collect())
    }

    /// The newest version that all shards have a fingerprint of, and the sum of those; they must have begun at one
    /// version.
    fn fingerprint(&self) -> Option<RunFingerprint> {
        let since = self.shards.values().next()?.since;
        if self.shards.values().any(|shard| shard.since != since) {
            return None;
        }
        let marks = common_marks(self.shards.values().map(|shard| &shard.marks[..]));
        let mark = marks.into_iter().max_by_key(|mark| mark.version)?;
        Some(RunFingerprint { since, mark })
    }
}
