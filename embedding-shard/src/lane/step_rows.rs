//! One step's declared rows of one lane, and where the gradients are that they get.
//!
//! Gradients stay where they came in: a row's sum is made when it is needed, for the square sums and again for the
//! update, so that a gradient is never copied and a row with one contribution is never summed. The sum of several
//! follows the fixed binary tree over cells (`polygram_domain::sum_tree`), in which a cell without a contribution is
//! left out: whoever adds a subtree up beforehand gets the same bits.
//!
//! Legend: C = tables per site, n = declared rows of the lane, w = weights per row. Row ids are shared by all sites.

use std::ops::Range;
use std::sync::Arc;

use multiversion::multiversion;
use polygram_domain::{BucketIndex, RowId, TableIndex, TableSet};
use polygram_row_exchange::block::Values;
use polygram_row_exchange::message::{Request, RowBlock};

use crate::rows::{Gradients, prefetch, square_sum};

/// Levels of a tree over 2³² cells, and its root.
const LEVELS: usize = 33;
/// Values at the beginning of a gradient that are asked for ahead.
const NEAR_VALUES: usize = 64;

/// The part of `rows` (ascending) that lies in `owned`.
pub(super) fn owned_part(rows: &[u32], owned: &Range<u32>) -> Range<usize> {
    rows.partition_point(|&row| row < owned.start)..rows.partition_point(|&row| row < owned.end)
}

/// A cell's gradient of a row: row `offset` of block `block`.
#[derive(Clone, Copy, Debug, Default)]
struct Contribution {
    cell: u32,
    block: u32,
    offset: u32,
}

/// Rows that a step will change, and by what.
#[derive(Debug)]
pub(super) struct StepRows {
    /// Declared rows of each site table, ascending (C lists).
    rows: Vec<Vec<u32>>,
    /// Place of each site table's first row among all (C + 1).
    starts: Vec<usize>,
    width: usize,
    /// Cells whose gradients are here.
    cells: u32,
    blocks: Vec<Arc<RowBlock>>,
    /// (place, contribution) in the order they came: cells ascending.
    arrived: Vec<(u32, Contribution)>,
    /// Contributions by place, cells ascending: those of place p are `by_place[bounds[p]..bounds[p + 1]]`.
    by_place: Vec<Contribution>,
    bounds: Vec<u32>,
}

impl StepRows {
    /// The union of all cells' requests within `owned` (rows of each site table).
    pub(super) fn union<'a>(
        requests: impl Iterator<Item = &'a Request> + Clone,
        owned: &[Range<u32>],
        width: usize,
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
        StepRows {
            rows,
            starts,
            width,
            cells: 0,
            blocks: Vec::new(),
            arrived: Vec::new(),
            by_place: Vec::new(),
            bounds: Vec::new(),
        }
    }

    /// Declared rows of a site table, ascending.
    pub(super) fn rows_of(&self, table: usize) -> &[u32] {
        &self.rows[table]
    }

    /// Contributions that are here: rows declared by the cells, counted once a cell.
    pub(super) fn contributions(&self) -> u64 {
        self.by_place.len() as u64
    }

    /// Declared rows of all site tables (n).
    pub(super) fn len(&self) -> usize {
        self.starts[self.rows.len()]
    }

    /// Takes the next cell's gradients; cells come in cell order.
    pub(super) fn add(&mut self, request: &Request, blocks: &[Arc<RowBlock>], owned: &[Range<u32>]) {
        let cell = self.cells;
        self.cells += 1;
        let first_block = self.blocks.len();
        self.blocks.extend(blocks.iter().map(Arc::clone));
        for (table, owned) in owned.iter().enumerate() {
            let declared = request.rows_of(table);
            let part = owned_part(declared, owned);
            let places = places_of(&declared[part.clone()], &self.rows[table]);
            let first = request.offsets[table] + part.start;
            for (index, block) in blocks.iter().enumerate() {
                let block_index = (first_block + index) as u32;
                let mut taken = 0;
                for run in block.runs() {
                    let run = run.start as usize..run.end as usize;
                    for position in run.start.max(first)..run.end.min(first + part.len()) {
                        let place = (self.starts[table] + places[position - first]) as u32;
                        let offset = (taken + position - run.start) as u32;
                        self.arrived.push((place, Contribution { cell, block: block_index, offset }));
                    }
                    taken += run.len();
                }
            }
        }
    }

    /// Orders the contributions by place; called once, after the last cell.
    pub(super) fn settle(&mut self) {
        let mut bounds = vec![0u32; self.len() + 1];
        for &(place, _) in &self.arrived {
            bounds[place as usize + 1] += 1;
        }
        for place in 0..self.len() {
            bounds[place + 1] += bounds[place];
        }
        let mut next = bounds.clone();
        self.by_place = vec![Contribution::default(); self.arrived.len()];
        for &(place, contribution) in &self.arrived {
            let at = &mut next[place as usize];
            self.by_place[*at as usize] = contribution;
            *at += 1;
        }
        self.bounds = bounds;
        self.arrived = Vec::new();
    }

    /// The gradients of one table; [`StepRows::settle`] came before.
    pub(super) fn gradients(&self, site: usize, table: usize) -> TableGradients<'_> {
        TableGradients { step: self, site, first: self.starts[table] }
    }

    /// The sum of squares of each bucket with a declared row: rows ascending, each row's sum as
    /// [`square_sum`]. A gradient that is not finite makes its bucket's sum not finite, and nothing else can: no sum of
    /// squares of f32 values reaches the end of f64.
    pub(super) fn square_sums(&self, tables: &TableSet) -> Vec<(TableIndex, BucketIndex, f64)> {
        let count = self.rows.len();
        let mut sums: Vec<(TableIndex, BucketIndex, f64)> = Vec::new();
        for spec in tables.iter() {
            let (site, table) = (spec.index.index() / count, spec.index.index() % count);
            let gradients = self.gradients(site, table);
            let mut scratch = vec![0.0; gradients.scratch_values(self.width)];
            let mut bucket_end = 0;
            for (place, &row) in self.rows[table].iter().enumerate() {
                if place == 0 || row >= bucket_end {
                    let bucket = spec.bucket_of(RowId(row));
                    bucket_end = spec.rows_of(bucket).end;
                    sums.push((spec.index, bucket, 0.0));
                }
                if let Some((_, _, total)) = sums.last_mut() {
                    *total += square_sum(gradients.sum(place, &mut scratch));
                }
            }
        }
        sums
    }
}

/// A step's gradients of one table.
#[derive(Debug)]
pub(super) struct TableGradients<'a> {
    step: &'a StepRows,
    site: usize,
    first: usize,
}

impl TableGradients<'_> {
    #[inline(always)]
    fn contributions(&self, place: usize) -> &[Contribution] {
        let place = self.first + place;
        &self.step.by_place[self.step.bounds[place] as usize..self.step.bounds[place + 1] as usize]
    }

    /// A contribution, as it came in.
    #[inline(always)]
    fn values(&self, of: Contribution) -> Values<'_> {
        let block = &self.step.blocks[of.block as usize];
        let at = (self.site * block.rows() + of.offset as usize) * self.step.width;
        block.values().range(at..at + self.step.width)
    }

    /// The sum of `contributions` in the tree over cells. Neighbours are joined where their cells' paths to the root
    /// meet: the lower they meet, the earlier. What waits to be joined is a stack whose meeting levels fall; place d of
    /// it has the d-th row of `scratch`.
    fn tree_sum<'s>(&self, contributions: &[Contribution], scratch: &'s mut [f32]) -> &'s [f32] {
        let width = self.step.width;
        let mut meets = [0u32; LEVELS + 1];
        let mut depth = 0;
        let join = |depth: usize, scratch: &mut [f32]| {
            let (left, right) = scratch[(depth - 2) * width..depth * width].split_at_mut(width);
            add_to(left, right);
        };
        for (i, &contribution) in contributions.iter().enumerate() {
            if i > 0 {
                let level = u32::BITS - (contributions[i - 1].cell ^ contribution.cell).leading_zeros();
                while depth > 1 && meets[depth - 1] < level {
                    join(depth, scratch);
                    depth -= 1;
                }
                meets[depth] = level;
            }
            let top = &mut scratch[depth * width..][..width];
            self.values(contribution).copy_to(top);
            depth += 1;
        }
        while depth > 1 {
            join(depth, scratch);
            depth -= 1;
        }
        &scratch[..width]
    }
}

impl Gradients for TableGradients<'_> {
    fn scratch_values(&self, width: usize) -> usize {
        // The stack holds one sum per level, and the newest contribution.
        (u32::BITS - self.step.cells.leading_zeros() + 2) as usize * width
    }

    #[inline(always)]
    fn sum<'a>(&'a self, place: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        match self.contributions(place) {
            [only] => match self.values(*only) {
                Values::F32(values) => values,
                bits => {
                    bits.copy_to(&mut scratch[..self.step.width]);
                    &scratch[..self.step.width]
                }
            },
            [] => {
                // Not reached: a row is declared by a cell, and a step is settled when every cell has pushed its rows.
                scratch[..self.step.width].fill(0.0);
                &scratch[..self.step.width]
            }
            several => self.tree_sum(several, scratch),
        }
    }

    #[inline(always)]
    fn prefetch(&self, place: usize) {
        for &contribution in self.contributions(place).iter().take(2) {
            match self.values(contribution) {
                Values::F32(values) => prefetch(&values[..values.len().min(NEAR_VALUES)]),
                Values::Bf16(bits) => prefetch(&bits[..bits.len().min(NEAR_VALUES)]),
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn add_to(sum: &mut [f32], right: &[f32]) {
    for (sum, right) in sum.iter_mut().zip(right) {
        *sum += right;
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
