//! A snapshot of a lane's rows that does not stop it: rows are copied out in batches, in order; a row that is about to
//! change and was not copied yet is saved first.

use std::collections::HashMap;

use polygram_domain::{RowId, RowRef, TableIndex};

use crate::rows::{ChangedRows, Record, RowStore};

/// Rows of the index looked at per batch at most, so that a batch never delays a step for long.
const SCAN_ROWS: u32 = 1 << 20;
/// Values copied per batch, about.
const BATCH_VALUES: usize = 1 << 20;

/// Some rows of one table, ascending.
#[derive(Debug, Default)]
pub(crate) struct RowBatch {
    /// The rows.
    pub(crate) records: Vec<Record>,
    /// Whether the lane has no more rows in this table.
    pub(crate) is_last: bool,
}

/// A row as it was: `None` if it was virtual.
type Saved = Option<(u32, Vec<f32>)>;

/// What a running snapshot has seen and saved. Tables are copied in ascending order.
#[derive(Debug)]
pub(super) struct CopyOnWrite {
    /// The first row not copied yet.
    cursor: RowRef,
    saved: HashMap<RowRef, Saved>,
    /// The only rows that are copied, if it is not all.
    only: Option<ChangedRows>,
}

impl CopyOnWrite {
    /// Begins a snapshot of all written rows, or of these.
    pub(super) fn new(only: Option<ChangedRows>) -> CopyOnWrite {
        let cursor = RowRef { table: TableIndex(0), row: RowId(0) };
        CopyOnWrite { cursor, saved: HashMap::new(), only }
    }

    /// Saves a row that is about to change, unless it is copied or saved already.
    pub(super) fn before_update(&mut self, store: &RowStore, at: RowRef) {
        let is_wanted = || self.only.as_ref().is_none_or(|only| store.is_among(only, at));
        if at >= self.cursor && is_wanted() {
            self.saved.entry(at).or_insert_with(|| store.record(at));
        }
    }

    /// The next rows of `table`, as they were when the snapshot began.
    pub(super) fn batch(&mut self, store: &RowStore, table: TableIndex) -> RowBatch {
        let owned = store.rows_of(table);
        let start = match self.cursor {
            cursor if cursor.table == table => cursor.row.0.max(owned.start),
            _ => owned.start,
        };
        let end = owned.end.min(start.saturating_add(SCAN_ROWS));
        let mut batch = RowBatch::default();
        let (mut from, mut values) = (start, 0);
        while values < BATCH_VALUES {
            let next = match &self.only {
                None => store.next_written(table, from, end),
                Some(only) => store.next_among(only, table, from..end),
            };
            let Some(row) = next else {
                from = end;
                break;
            };
            from = row.0 + 1;
            let at = RowRef { table, row };
            let was = match self.saved.remove(&at) {
                Some(saved) => saved,
                None => store.record(at),
            };
            if let Some((updates, row_values)) = was {
                values += row_values.len();
                batch.records.push(Record { table, row, updates, values: row_values });
            }
        }
        batch.is_last = from >= owned.end;
        self.cursor = match batch.is_last {
            true => RowRef { table: TableIndex(table.0 + 1), row: RowId(0) },
            false => RowRef { table, row: RowId(from) },
        };
        batch
    }
}
