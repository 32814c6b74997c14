//! Rows as checkpoints hold them: f32 values, whatever a record looks like in memory.
//!
//! Values of a record are its weights, its optimizer state and, where all rows decay, three digits of how far it has
//! decayed. bf16 weights widen exactly, so a row that goes out and comes back is the same to the bit.

use polygram_checkpoint::RowRecord;
use polygram_domain::bf16::{round_to_nearest, widen};
use polygram_domain::embedding::RowType;
use polygram_domain::{RowId, RowRef, TableIndex};

use super::decay::DecayLog;
use super::store::RowStore;
use crate::error::ShardError;

/// A written row.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its table.
    pub table: TableIndex,
    /// The row.
    pub row: RowId,
    /// Updates it has had.
    pub updates: u32,
    /// Weights, then optimizer values, then decay.
    pub values: Vec<f32>,
}

impl RowStore {
    /// The update count and values of an owned row, if it is written.
    pub fn record(&self, at: RowRef) -> Option<(u32, Vec<f32>)> {
        let slot = self.slot(at);
        (slot != 0).then(|| {
            let (layout, record) = (&self.layout, self.arena.get(slot));
            let mut values = vec![0.0; layout.width];
            values.reserve_exact(layout.saved_values - layout.width);
            match layout.storage {
                RowType::F32 => values.copy_from_slice(layout.f32s(record)),
                RowType::Bf16 => widen(layout.bf16s(record), &mut values),
            }
            values.extend_from_slice(layout.state(record));
            if layout.decays {
                values.extend(layout.decayed(record).digits());
            }
            (layout.updates(record), values)
        })
    }

    /// Puts a row back as it was saved.
    ///
    /// # Errors
    /// [`ShardError::Restore`] when the row is not owned, is there already, or has other values than a record: a row of
    /// another shape is an error, never a reason to start afresh.
    pub fn restore(&mut self, table: TableIndex, saved: RowRecord<'_>) -> Result<(), ShardError> {
        let refuse = |rule: String| Err(ShardError::Restore { table, row: saved.row, rule });
        if table.index() >= self.tables() {
            return refuse(format!("there are {} tables", self.tables()));
        }
        let rows = self.rows_of(table);
        if !rows.contains(&saved.row.0) {
            return refuse(format!("it is not among rows {rows:?} of its lane"));
        }
        if saved.values.len() != self.layout.saved_values {
            return refuse(format!(
                "it has {} values, a record has {}",
                saved.values.len(),
                self.layout.saved_values
            ));
        }
        let at = RowRef { table, row: saved.row };
        if self.is_written(at) {
            return refuse("it was restored already".into());
        }
        let (weights, rest) = saved.values.split_at(self.layout.width);
        let (state, digits) = rest.split_at(self.layout.state_values);
        if self.layout.storage == RowType::Bf16 {
            let mut rounded = vec![0; weights.len()];
            let mut back = vec![0.0; weights.len()];
            round_to_nearest(weights, &mut rounded);
            widen(&rounded, &mut back);
            let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
            if let Some(column) = weights.iter().zip(&back).position(differs) {
                let value = weights[column];
                return refuse(format!("its weight {value} in column {column} is not a bf16 value"));
            }
        }
        let decayed = match digits {
            [] => DecayLog::default(),
            &[a, b, c] => match DecayLog::from_digits([a, b, c]) {
                Some(log) => log,
                None => return refuse(format!("{a}, {b}, {c} are not the digits of a decay")),
            },
            _ => return refuse(format!("it has {} values of decay", digits.len())),
        };
        let slot = self.allocate(at, saved.updates)?;
        self.put_weights(slot, weights);
        let layout = self.layout;
        let (_, state_values, mut head) = layout.split_mut(self.arena.get_mut(slot));
        state_values.copy_from_slice(state);
        head.set_decayed(decayed);
        Ok(())
    }

    /// The first written row of `table` at or after `from` and before `end`.
    pub fn next_written(&self, table: TableIndex, from: u32, end: u32) -> Option<RowId> {
        let rows = self.rows_of(table);
        let (from, end) = (from.max(rows.start), end.min(rows.end));
        if from >= end {
            return None;
        }
        let entries = &self.entries(table)[(from - rows.start) as usize..(end - rows.start) as usize];
        Some(RowId(from + entries.iter().position(|&slot| slot != 0)? as u32))
    }
}
