//! The rows of one cell, and how they divide among shards.

use std::ops::Range;

use polygram_domain::tables::buckets_of;
use polygram_domain::{BucketIndex, ShardIndex, TableSet, TableSpec};

use super::message::Request;

/// Unique row ids of one cell; all sites of the model share them. Legend: C = tables per site, U = rows in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueIds {
    /// Bounds of each site table's rows in `rows` (C + 1, from 0 to U).
    pub offsets: Vec<usize>,
    /// Row ids `[U]`, strictly ascending within each site table.
    pub rows: Vec<u32>,
}

/// Rows of `table` that `shard` of `shards` owns: one contiguous range.
pub fn rows_of_shard(table: &TableSpec, shard: ShardIndex, shards: u32) -> Range<u32> {
    let buckets = buckets_of(shard, shards);
    let start = |bucket: u32| table.rows_of(BucketIndex(bucket)).start;
    start(buckets.start)..start(buckets.end)
}

/// One shard's part of a cell's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardRows {
    /// Of each site table, the range of `UniqueIds::rows` that the shard owns.
    pub(crate) ranges: Vec<Range<usize>>,
    /// Position in the shard's request at which each table begins (C + 1).
    pub(crate) offsets: Vec<usize>,
}

impl ShardRows {
    /// Rows in all.
    pub(crate) fn len(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// The request to send.
    pub(crate) fn request(&self, ids: &UniqueIds) -> Request {
        let rows = self.ranges.iter().flat_map(|range| &ids.rows[range.clone()]).copied().collect();
        Request { offsets: self.offsets.clone(), rows }
    }

    /// The stretches of `UniqueIds::rows` under positions `run`, with the position each begins at.
    pub(crate) fn stretches(&self, run: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        self.ranges.iter().zip(self.offsets.windows(2)).filter_map(move |(range, bounds)| {
            let (start, end) = (run.start.max(bounds[0]), run.end.min(bounds[1]));
            (start < end).then(|| {
                let first = range.start + (start - bounds[0]);
                (start, first..first + (end - start))
            })
        })
    }
}

/// Checks `ids` against the tables and divides them among `shards`. The error says what is wrong.
pub(crate) fn divide(ids: &UniqueIds, tables: &TableSet, shards: u32) -> Result<Vec<ShardRows>, String> {
    let count = tables.tables_per_site() as usize;
    if ids.offsets.len() != count + 1 || ids.offsets[0] != 0 || ids.offsets[count] != ids.rows.len() {
        return Err(format!(
            "{} offsets do not bound {} rows of {count} tables",
            ids.offsets.len(),
            ids.rows.len()
        ));
    }
    let site: Vec<&TableSpec> = tables.iter().take(count).collect();
    for (i, table) in site.iter().enumerate() {
        let Some(rows) = ids.rows.get(ids.offsets[i]..ids.offsets[i + 1]) else {
            return Err(format!("offsets of table {i} are not ascending"));
        };
        if !rows.is_sorted_by(|a, b| a < b) {
            return Err(format!("rows of table {i} are not strictly ascending"));
        }
        if let Some(&last) = rows.last().filter(|&&last| last >= table.rows) {
            return Err(format!("row {last} is not in table {i} of {} rows", table.rows));
        }
    }
    let divide_one = |shard: u32| {
        let mut part = ShardRows { ranges: Vec::with_capacity(count), offsets: vec![0] };
        let mut total = 0;
        for (i, table) in site.iter().enumerate() {
            let owned = rows_of_shard(table, ShardIndex(shard), shards);
            let rows = &ids.rows[ids.offsets[i]..ids.offsets[i + 1]];
            let first = ids.offsets[i] + rows.partition_point(|&row| row < owned.start);
            let end = ids.offsets[i] + rows.partition_point(|&row| row < owned.end);
            total += end - first;
            part.ranges.push(first..end);
            part.offsets.push(total);
        }
        part
    };
    Ok((0..shards).map(divide_one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_tables;

    #[test]
    fn shards_divide_all_rows_once() {
        let tables = tiny_tables();
        let count = tables.tables_per_site() as usize;
        let mut ids = UniqueIds { offsets: vec![0], rows: Vec::new() };
        for table in tables.iter().take(count) {
            ids.rows.extend((0..table.rows - 1).step_by(3 + table.index.index()));
            ids.rows.push(table.rows - 1);
            ids.offsets.push(ids.rows.len());
        }
        for shards in [1, 2, 3, 7] {
            let parts = divide(&ids, &tables, shards).unwrap();
            for table in 0..count {
                let mut next = ids.offsets[table];
                for part in &parts {
                    assert_eq!(part.ranges[table].start, next);
                    next = part.ranges[table].end;
                }
                assert_eq!(next, ids.offsets[table + 1]);
            }
            for part in &parts {
                let all: Vec<usize> = part.stretches(0..part.len()).flat_map(|(_, range)| range).collect();
                assert_eq!(all.len(), part.len());
                let request = part.request(&ids);
                assert!(all.iter().zip(&request.rows).all(|(&at, &row)| ids.rows[at] == row));
            }
        }
    }

    #[test]
    fn illegal_ids_are_refused() {
        let tables = tiny_tables();
        let count = tables.tables_per_site() as usize;
        let ids = |rows: Vec<u32>| {
            let mut offsets = vec![rows.len(); count + 1];
            offsets[0] = 0;
            UniqueIds { offsets, rows }
        };
        assert!(divide(&ids(vec![1, 2]), &tables, 2).is_ok());
        for rows in [vec![2, 1], vec![1, 1], vec![u32::MAX]] {
            assert!(divide(&ids(rows.clone()), &tables, 2).is_err(), "{rows:?}");
        }
        let short = UniqueIds { offsets: vec![0], rows: vec![] };
        assert!(divide(&short, &tables, 2).is_err());
        let mut crossed = ids(vec![1, 2]);
        crossed.offsets[1] = 7;
        assert!(divide(&crossed, &tables, 2).is_err());
    }
}
