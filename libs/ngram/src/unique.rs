//! The distinct rows of a cell: what is asked of the shards, and how to get back from rows to positions.

use std::ops::Range;

use polygram_domain::ids::{BucketIndex, RowId, ShardIndex, TableIndex};
use polygram_domain::tables::{TableSpec, buckets_of};

/// Distinct row ids of each of a site's C tables, strictly ascending, one table after another. All sites of the
/// model share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueRows {
    /// `[C + 1]`: table i's rows are `rows[offsets[i]..offsets[i + 1]]`.
    pub offsets: Vec<usize>,
    /// `[U]`: row ids.
    pub rows: Vec<u32>,
    /// `[P, C]`: index into `rows` of each position's row of each table.
    pub inverse_pc: Vec<u32>,
}

impl UniqueRows {
    /// Sorts and unites `ids_pc` `[P, C]`, row-major, for C = `tables`.
    ///
    /// # Panics
    /// If `ids_pc` is not a whole number of positions, or has 2^32 ids or more.
    pub fn of(ids_pc: &[u32], tables: usize) -> UniqueRows {
        if tables == 0 {
            assert!(ids_pc.is_empty(), "a model without tables has no ids");
            return UniqueRows { offsets: vec![0], rows: Vec::new(), inverse_pc: Vec::new() };
        }
        assert!(ids_pc.len().is_multiple_of(tables), "{} ids are not [P, {tables}]", ids_pc.len());
        assert!(u32::try_from(ids_pc.len()).is_ok(), "{} ids are too many for one cell", ids_pc.len());
        let positions = ids_pc.len() / tables;
        let mut unique = UniqueRows {
            offsets: Vec::with_capacity(tables + 1),
            rows: Vec::new(),
            inverse_pc: vec![0; ids_pc.len()],
        };
        unique.offsets.push(0);
        let mut keys = Vec::with_capacity(positions);
        let mut scratch = vec![0; positions];
        for table in 0..tables {
            keys.clear();
            let column = ids_pc.iter().skip(table).step_by(tables);
            keys.extend(column.zip(0u64..).map(|(&id, p)| u64::from(id) << 32 | p));
            sort_by_id(&mut keys, &mut scratch);
            let first = unique.rows.len();
            for &key in &keys {
                let (id, position) = ((key >> 32) as u32, key as u32 as usize);
                if unique.rows.len() == first || unique.rows.last() != Some(&id) {
                    unique.rows.push(id);
                }
                unique.inverse_pc[position * tables + table] = (unique.rows.len() - 1) as u32;
            }
            unique.offsets.push(unique.rows.len());
        }
        unique
    }

    /// Tables, C.
    pub fn tables(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Distinct rows of all tables, U.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row at all.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Where in [`UniqueRows::rows`] a site's table `i` lies; empty for a table that is not there.
    pub fn table_range(&self, site_table: u32) -> Range<usize> {
        match self.offsets.get(site_table as usize..).and_then(|tail| tail.get(..2)) {
            Some(&[start, end]) => start..end,
            _ => 0..0,
        }
    }

    /// Where in [`UniqueRows::rows`] the rows of `table` lie that `shard` of `shards` owns: one contiguous run.
    pub fn shard_range(&self, table: &TableSpec, shard: ShardIndex, shards: u32) -> Range<usize> {
        let buckets = buckets_of(shard, shards);
        let start = table.rows_of(BucketIndex(buckets.start)).start;
        let end = table.rows_of(BucketIndex(buckets.end)).start;
        self.row_range(table, start..end)
    }

    /// The buckets of `table` that have rows here, ascending, each with its run in [`UniqueRows::rows`].
    pub fn buckets<'a>(
        &'a self,
        table: &'a TableSpec,
    ) -> impl Iterator<Item = (BucketIndex, Range<usize>)> + 'a {
        let mut rest = self.table_range(table.site_table);
        std::iter::from_fn(move || {
            let bucket = table.bucket_of(RowId(*self.rows[rest.clone()].first()?));
            let end = table.rows_of(bucket).end;
            let run = rest.start..rest.start + self.rows[rest.clone()].partition_point(|&row| row < end);
            rest.start = run.end;
            Some((bucket, run))
        })
    }

    /// Index of the row of (site, table, unique row) in a `[sites, U]` buffer: which row of `rows_suw` belongs to the
    /// model's table `table` and to `rows[index]`. Row buffers are site-major.
    pub fn buffer_row(&self, table: TableIndex, index: usize) -> usize {
        table.index() / self.tables().max(1) * self.len() + index
    }

    fn row_range(&self, table: &TableSpec, rows: Range<u32>) -> Range<usize> {
        let range = self.table_range(table.site_table);
        let own = &self.rows[range.clone()];
        let start = own.partition_point(|&row| row < rows.start);
        let end = own.partition_point(|&row| row < rows.end);
        range.start + start..range.start + end
    }
}

const DIGIT_BITS: u32 = 11;

/// Sorts keys (id, position), whose positions already rise, by id: least significant digit first, stable, as many
/// digits as the largest id has.
fn sort_by_id(keys: &mut Vec<u64>, scratch: &mut Vec<u64>) {
    if keys.len() < 256 {
        keys.sort_unstable();
        return;
    }
    let bits = 64 - keys.iter().fold(0, |all, key| all | key >> 32).leading_zeros();
    for digit in 0..bits.div_ceil(DIGIT_BITS) {
        let digit_of = |key: u64| (key >> (32 + digit * DIGIT_BITS)) as usize & ((1 << DIGIT_BITS) - 1);
        let mut next = [0u32; 1 << DIGIT_BITS];
        for &key in keys.iter() {
            next[digit_of(key)] += 1;
        }
        let mut start = 0;
        for slot in &mut next {
            start += std::mem::replace(slot, start);
        }
        for &key in keys.iter() {
            let slot = &mut next[digit_of(key)];
            scratch[*slot as usize] = key;
            *slot += 1;
        }
        std::mem::swap(keys, scratch);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use polygram_domain::tables::owner_of;
    use proptest::prelude::*;

    use super::*;

    fn table(site_table: u32, rows: u32) -> TableSpec {
        TableSpec {
            index: TableIndex(site_table),
            name: format!("t{site_table}"),
            site_table,
            order: 2,
            rows,
            width: 4,
        }
    }

    fn check(ids: &[u32], tables: usize) {
        let unique = UniqueRows::of(ids, tables);
        assert_eq!(unique.tables(), tables);
        for t in 0..tables {
            let rows = &unique.rows[unique.table_range(t as u32)];
            assert!(rows.is_sorted_by(|a, b| a < b), "strictly ascending");
            let wanted: BTreeSet<u32> = ids.iter().skip(t).step_by(tables).copied().collect();
            assert!(wanted.iter().eq(rows), "table {t}");
        }
        for (k, (&id, &index)) in ids.iter().zip(&unique.inverse_pc).enumerate() {
            assert_eq!(unique.rows[index as usize], id);
            assert!(unique.table_range((k % tables) as u32).contains(&(index as usize)));
        }
    }

    proptest! {
        #[test]
        fn unites_and_leads_back(tables in 1usize..5, bits in 1u32..32, raw in prop::collection::vec(any::<u32>(), 0..3000)) {
            let ids: Vec<u32> = raw.iter().map(|id| id >> (32 - bits)).collect();
            check(&ids[..ids.len() / tables * tables], tables);
        }

        #[test]
        fn shards_and_buckets_partition(rows in 1u32..30_000, shards in 1u32..9, raw in prop::collection::vec(any::<u32>(), 0..1200)) {
            let even = raw.len() / 2 * 2;
            let ids: Vec<u32> = raw[..even].iter().map(|id| id % rows).collect();
            let unique = UniqueRows::of(&ids, 2);
            for table in [table(0, rows), table(1, rows)] {
                let mut next = unique.table_range(table.site_table).start;
                for shard in 0..shards {
                    let range = unique.shard_range(&table, ShardIndex(shard), shards);
                    prop_assert_eq!(range.start, next);
                    next = range.end;
                    for &row in &unique.rows[range] {
                        prop_assert_eq!(owner_of(table.bucket_of(RowId(row)), shards), ShardIndex(shard));
                    }
                }
                prop_assert_eq!(next, unique.table_range(table.site_table).end);
                let mut next = unique.table_range(table.site_table).start;
                let mut last = None;
                for (bucket, run) in unique.buckets(&table) {
                    prop_assert!(last.is_none_or(|last| last < bucket) && !run.is_empty());
                    last = Some(bucket);
                    prop_assert_eq!(run.start, next);
                    next = run.end;
                    prop_assert!(unique.rows[run].iter().all(|&row| table.bucket_of(RowId(row)) == bucket));
                }
                prop_assert_eq!(next, unique.table_range(table.site_table).end);
            }
        }
    }

    #[test]
    fn a_model_without_tables_asks_for_nothing() {
        let unique = UniqueRows::of(&[], 0);
        assert!(unique.is_empty());
        assert_eq!((unique.tables(), unique.table_range(0)), (0, 0..0));
    }

    #[test]
    fn extreme_ids_are_kept() {
        let ids: Vec<u32> = (0..600).map(|i| if i % 2 == 0 { u32::MAX - 1 } else { i }).collect();
        check(&ids, 1);
        check(&ids, 3);
    }

    #[test]
    fn buffers_are_site_major() {
        let unique = UniqueRows::of(&[5, 6, 5, 7], 2);
        assert_eq!(unique.rows, [5, 6, 7]);
        assert_eq!(unique.buffer_row(TableIndex(1), 2), 2);
        assert_eq!(unique.buffer_row(TableIndex(5), 2), 2 * 3 + 2);
    }
}
