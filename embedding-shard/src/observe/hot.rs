//! The rows that were updated most often: exact, because every row says its own update count when it is updated.

use polygram_proto::rows::HotRow;

/// Rows that are kept.
pub const HOT_ROWS: usize = 16;

/// The most often updated rows among those seen since the process began; of equals, the first seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HotRows {
    rows: Vec<HotRow>,
    /// Fewer or as many updates do not enter.
    threshold: u32,
}

impl HotRows {
    /// Notes an updated row.
    #[inline]
    pub fn note(&mut self, row: HotRow) {
        if row.updates > self.threshold {
            self.enter(row);
        }
    }

    #[cold]
    fn enter(&mut self, row: HotRow) {
        let held = self.rows.iter().position(|held| (held.table, held.row) == (row.table, row.row));
        let coldest = || (0..self.rows.len()).min_by_key(|&at| self.rows[at].updates);
        match held.or_else(|| if self.rows.len() == HOT_ROWS { coldest() } else { None }) {
            Some(at) => self.rows[at] = row,
            None => self.rows.push(row),
        }
        if self.rows.len() == HOT_ROWS {
            self.threshold = self.rows.iter().map(|row| row.updates).min().unwrap_or(0);
        }
    }

    /// The rows of several lanes that have none in common, most updates first.
    pub fn merged<'a>(parts: impl IntoIterator<Item = &'a HotRows>) -> Vec<HotRow> {
        let mut rows: Vec<HotRow> = parts.into_iter().flat_map(|part| part.rows.iter().copied()).collect();
        rows.sort_by_key(|row| (std::cmp::Reverse(row.updates), row.table, row.row));
        rows.truncate(HOT_ROWS);
        rows
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use polygram_domain::{RowId, TableIndex};

    use super::*;

    #[test]
    fn the_hottest_rows_are_exact() {
        let seed = 7u64;
        println!("seed {seed}");
        let (mut counts, mut lanes) =
            (BTreeMap::<(u32, u32), u32>::new(), [HotRows::default(), HotRows::default()]);
        let mut state = seed;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let uniform = (state >> 40) as f64 / (1u64 << 24) as f64;
            // A few rows are much more frequent than the others.
            let (table, row) = ((state >> 13 & 1) as u32, (uniform.powi(4) * 500.0) as u32);
            let updates = counts.entry((table, row)).or_default();
            *updates += 1;
            let note = HotRow { table: TableIndex(table), row: RowId(row), updates: *updates };
            lanes[row as usize % 2].note(note);
        }
        let mut exact: Vec<u32> = counts.into_values().collect();
        exact.sort_unstable_by_key(|&updates| std::cmp::Reverse(updates));
        let hot = HotRows::merged(&lanes);
        assert_eq!(hot.iter().map(|row| row.updates).collect::<Vec<_>>(), exact[..HOT_ROWS]);
    }

    #[test]
    fn few_rows_are_all_hot() {
        let mut hot = HotRows::default();
        for row in [4, 5, 4] {
            let updates = if row == 4 { 2 } else { 1 };
            hot.note(HotRow { table: TableIndex(0), row: RowId(row), updates });
        }
        let rows: Vec<_> = HotRows::merged([&hot]).iter().map(|hot| (hot.row.0, hot.updates)).collect();
        assert_eq!(rows, [(4, 2), (5, 1)]);
    }
}
