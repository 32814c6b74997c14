//! One step's declared rows of one lane, and the sums of their gradients.
//!
//! Legend: C = tables per site, n = declared rows of the lane, w = weights per row. Row ids are shared by all sites.

use std::ops::Range;

use polygram_domain::{BucketIndex, RowId, TableIndex, TableSet};
use polygram_proto::bulk::message::{Request, RowBlock};

/// The part of `rows` (ascending) that lies in `owned`.
pub(super) fn owned_part(rows: &[u32], owned: &Range<u32>) -> Range<usize> {
    rows.partition_point(|&row| row < owned.start)..rows.partition_point(|&row| row < owned.end)
}

/// Rows that a step will change, and by how much.
#[derive(Debug)]
pub(super) struct StepRows {
    /// Declared rows of each site table, ascending (C lists).
    rows: Vec<Vec<u32>>,
    /// Place of each site table's first row among all (C + 1).
    starts: Vec<usize>,
    /// Gradient sums `[sites, n, w]`.
    sums: Vec<f32>,
    width: usize,
}

impl StepRows {
    /// The union of all cells' requests within `owned` (rows of each site table). `buffer` is memory to reuse.
    pub(super) fn union<'a>(
        requests: impl Iterator<Item = &'a Request> + Clone,
        owned: &[Range<u32>],
        (sites, width): (usize, usize),
        mut buffer: Vec<f32>,
    ) -> StepRows {
        let mut starts = vec![0];
        let mut rows = Vec::with_capacity(owned.len());
        for (table, owned) in owned.iter().enumerate() {
            let mut all = Vec::new();
            for request in requests.clone() {
                let declared = request.rows_of(table);
                all.extend_from_slice(&declared[owned_part(declared, owned)]);
            }
            // A stable sort finds the cells' runs and merges them.
            all.sort();
            all.dedup();
            starts.push(starts[table] + all.len());
            rows.push(all);
        }
        buffer.clear();
        buffer.resize(sites * starts[owned.len()] * width, 0.0);
        StepRows { rows, starts, sums: buffer, width }
    }

    /// Declared rows of a site table, ascending.
    pub(super) fn rows_of(&self, table: usize) -> &[u32] {
        &self.rows[table]
    }

    /// Declared rows of all site tables (n).
    fn len(&self) -> usize {
        self.starts[self.rows.len()]
    }

    /// The gradient sum of the `place`-th declared row of a site table.
    pub(super) fn sum(&self, site: usize, table: usize, place: usize) -> &[f32] {
        let at = (site * self.len() + self.starts[table] + place) * self.width;
        &self.sums[at..at + self.width]
    }

    /// Adds a cell's gradients. Cells come in cell order, so every sum is made from left to right, beginning at 0.
    pub(super) fn add(&mut self, request: &Request, blocks: &[impl AsRef<RowBlock>], owned: &[Range<u32>]) {
        for (table, owned) in owned.iter().enumerate() {
            let declared = request.rows_of(table);
            let part = owned_part(declared, owned);
            let places = places_of(&declared[part.clone()], &self.rows[table]);
            let first = request.offsets[table] + part.start;
            for block in blocks {
                self.add_block(block.as_ref(), first..first + part.len(), table, &places);
            }
        }
    }

    /// Adds what `block` has of `positions` of a site table; `places[i]` is where position i of them belongs.
    fn add_block(&mut self, block: &RowBlock, positions: Range<usize>, table: usize, places: &[usize]) {
        let width = self.width;
        let site_values = block.rows() * width;
        if site_values == 0 {
            return;
        }
        let mut taken = 0;
        for run in block.runs() {
            let run = run.start as usize..run.end as usize;
            for position in run.start.max(positions.start)..run.end.min(positions.end) {
                let place = self.starts[table] + places[position - positions.start];
                let source = (taken + position - run.start) * width;
                for (site, values) in block.values().chunks_exact(site_values).enumerate() {
                    let at = (site * self.starts[self.rows.len()] + place) * width;
                    let sums = &mut self.sums[at..at + width];
                    for (sum, value) in sums.iter_mut().zip(&values[source..source + width]) {
                        *sum += value;
                    }
                }
            }
            taken += run.len();
        }
    }

    /// The sum of squares of each bucket with a declared row: f64, rows ascending, elements ascending. A gradient
    /// that is not finite makes its bucket's sum not finite, and nothing else can: no sum of squares of f32 values
    /// reaches the end of f64.
    pub(super) fn square_sums(&self, tables: &TableSet) -> Vec<(TableIndex, BucketIndex, f64)> {
        let count = self.rows.len();
        let mut sums = Vec::new();
        for spec in tables.iter() {
            let (site, table) = (spec.index.index() / count, spec.index.index() % count);
            let mut bucket_end = 0;
            for (place, &row) in self.rows[table].iter().enumerate() {
                if sums.is_empty() || row >= bucket_end || place == 0 {
                    let bucket = spec.bucket_of(RowId(row));
                    bucket_end = spec.rows_of(bucket).end;
                    sums.push((spec.index, bucket, 0.0));
                }
                if let Some((_, _, total)) = sums.last_mut() {
                    for &value in self.sum(site, table, place) {
                        *total += f64::from(value) * f64::from(value);
                    }
                }
            }
        }
        sums
    }

    /// The memory, to be used again.
    pub(super) fn into_buffer(self) -> Vec<f32> {
        self.sums
    }
}

/// For each of `rows`, its place in `union`; both ascend and `union` contains all of them.
fn places_of(rows: &[u32], union: &[u32]) -> Vec<usize> {
    let mut place = 0;
    rows.iter()
        .map(|&row| {
            while union[place] < row {
                place += 1;
            }
            place
        })
        .collect()
}
