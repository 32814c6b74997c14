//! One lane's rows of all tables: a direct index from row to record, and the records.
//!
//! A record is one block of 4-byte words: update count, row id, weights, optimizer values. Its size is the same in all
//! tables, since all have one width. A row without a record is virtual.

use std::ops::Range;

use polygram_checkpoint::RowRecord;
use polygram_domain::{RowId, TableIndex};

use super::arena::Arena;
use super::optimizer::{Rates, RowRule, RowState};
use super::virtual_rows::VirtualRows;
use crate::config::{ShardConfig, rows_of_buckets};
use crate::error::ShardError;

/// Words before the values: update count and row id.
const HEAD_WORDS: usize = 2;

/// A written row.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its table.
    pub table: TableIndex,
    /// The row.
    pub row: RowId,
    /// Updates it has had.
    pub updates: u32,
    /// Weights, then optimizer values.
    pub values: Vec<f32>,
}

#[derive(Debug)]
struct TableRows {
    /// Rows of the table that this lane owns.
    rows: Range<u32>,
    /// Record number of each of them; 0: virtual.
    index: Vec<u32>,
}

/// The rows of one run of buckets.
#[derive(Debug)]
pub struct RowStore {
    tables: Vec<TableRows>,
    arena: Arena,
    virtual_rows: VirtualRows,
    rule: RowRule,
    width: usize,
    values: usize,
}

impl RowStore {
    /// The rows of `buckets`, all virtual.
    pub fn new(config: &ShardConfig, buckets: &Range<u32>) -> RowStore {
        let table = |rows: Range<u32>| TableRows { index: vec![0; rows.len()], rows };
        let (width, values) = (config.width(), config.width() + config.state_values());
        RowStore {
            tables: config.tables.iter().map(|spec| table(rows_of_buckets(spec, buckets))).collect(),
            arena: Arena::new(HEAD_WORDS + values),
            virtual_rows: VirtualRows::new(config.seed, config.embedding.init_std, width),
            rule: RowRule::of(&config.embedding),
            width,
            values,
        }
    }

    /// Bytes of a record.
    pub fn record_bytes(config: &ShardConfig) -> u64 {
        4 * (HEAD_WORDS + config.width() + config.state_values()) as u64
    }

    /// Written rows.
    pub fn written(&self) -> u64 {
        u64::from(self.arena.records())
    }

    /// Rows of `table` that belong to this store.
    pub fn rows_of(&self, table: TableIndex) -> Range<u32> {
        self.tables[table.index()].rows.clone()
    }

    fn slot(&self, table: TableIndex, row: RowId) -> u32 {
        let table = &self.tables[table.index()];
        table.index[(row.0 - table.rows.start) as usize]
    }

    /// Whether an owned row has a record.
    pub fn is_written(&self, table: TableIndex, row: RowId) -> bool {
        self.slot(table, row) != 0
    }

    /// Copies the weights of an owned row.
    pub fn read(&self, table: TableIndex, row: RowId, weights: &mut [f32]) {
        match self.slot(table, row) {
            0 => self.virtual_rows.fill(table, row, weights),
            slot => {
                let record = &self.arena.get(slot)[HEAD_WORDS..HEAD_WORDS + self.width];
                weights.copy_from_slice(bytemuck::cast_slice(record));
            }
        }
    }

    /// The update count and values of an owned row, if it is written.
    pub fn record(&self, table: TableIndex, row: RowId) -> Option<(u32, &[f32])> {
        let slot = self.slot(table, row);
        (slot != 0).then(|| {
            let record = self.arena.get(slot);
            (record[0], bytemuck::cast_slice(&record[HEAD_WORDS..]))
        })
    }

    /// Applies one update to an owned row, writing it first if it was virtual.
    ///
    /// # Errors
    /// [`ShardError::Memory`] when more than 2³² − 1 rows of one lane would be written, or the system has no memory.
    pub fn update(
        &mut self,
        (table, row): (TableIndex, RowId),
        gradient: &[f32],
        rates: Rates,
    ) -> Result<(), ShardError> {
        let slot = match self.slot(table, row) {
            0 => {
                let slot = self.allocate(table, row)?;
                let (virtual_rows, width) = (self.virtual_rows, self.width);
                let record = &mut self.arena.get_mut(slot)[HEAD_WORDS..HEAD_WORDS + width];
                virtual_rows.fill(table, row, bytemuck::cast_slice_mut(record));
                slot
            }
            slot => slot,
        };
        let (head, values) = self.arena.get_mut(slot).split_at_mut(HEAD_WORDS);
        head[0] = head[0].saturating_add(1);
        let (weights, state) = bytemuck::cast_slice_mut::<u32, f32>(values).split_at_mut(self.width);
        self.rule.update(RowState { updates: head[0], weights, state }, gradient, rates);
        Ok(())
    }

    fn allocate(&mut self, table: TableIndex, row: RowId) -> Result<u32, ShardError> {
        let full =
            || ShardError::Memory("a lane has written 4294967295 rows; use more lanes or shards".into());
        let refused = |error| ShardError::Memory(format!("the system gives no memory for rows: {error}"));
        let slot = self.arena.allocate().map_err(refused)?.ok_or_else(full)?;
        let rows = &mut self.tables[table.index()];
        rows.index[(row.0 - rows.rows.start) as usize] = slot;
        self.arena.get_mut(slot)[1] = row.0;
        Ok(slot)
    }

    /// Puts a row back as it was saved.
    ///
    /// # Errors
    /// [`ShardError::Restore`] when the row is not owned, is there already, was never updated, or has another length:
    /// a row of another shape is an error, never a reason to start afresh.
    pub fn restore(&mut self, table: TableIndex, saved: RowRecord<'_>) -> Result<(), ShardError> {
        let refuse = |rule: String| Err(ShardError::Restore { table, row: saved.row, rule });
        let Some(rows) = self.tables.get(table.index()) else {
            return refuse(format!("there are {} tables", self.tables.len()));
        };
        if !rows.rows.contains(&saved.row.0) {
            return refuse(format!("it is not among rows {:?} of its lane", rows.rows));
        }
        if saved.values.len() != self.values {
            return refuse(format!("it has {} values, a record has {}", saved.values.len(), self.values));
        }
        if self.is_written(table, saved.row) {
            return refuse("it was restored already".into());
        }
        let slot = self.allocate(table, saved.row)?;
        let (head, values) = self.arena.get_mut(slot).split_at_mut(HEAD_WORDS);
        head[0] = saved.updates;
        values.copy_from_slice(bytemuck::cast_slice(saved.values));
        Ok(())
    }

    /// The first written row of `table` at or after `from` and before `end`.
    pub fn next_written(&self, table: TableIndex, from: u32, end: u32) -> Option<RowId> {
        let TableRows { rows, index } = &self.tables[table.index()];
        let (from, end) = (from.max(rows.start), end.min(rows.end));
        if from >= end {
            return None;
        }
        let found = index[(from - rows.start) as usize..(end - rows.start) as usize]
            .iter()
            .position(|&slot| slot != 0)?;
        Some(RowId(from + found as u32))
    }
}
