//! One map of rows, one step at a time: what any number of shards and lanes must equal, bit for bit.

use std::collections::BTreeMap;
use std::ops::Range;

use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};
use polygram_domain::{BucketIndex, Cell, RowId, RunSpec, Step, TableIndex, TableSet};
use polygram_embedding_shard::Record;
use polygram_row_exchange::{Commit, Prepared, UniqueIds};

use super::Workload;

#[derive(Clone, Debug)]
struct Row {
    updates: u32,
    weights: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// Gradients of one row, each with its cell.
type Parts = Vec<(u32, Vec<f32>)>;

pub(crate) struct Reference {
    spec: RunSpec,
    tables: TableSet,
    rows: BTreeMap<(u32, u32), Row>,
}

/// What a step should answer.
pub(crate) struct ExpectedStep {
    /// Rows of each cell.
    pub(crate) rows: Vec<Vec<f32>>,
    pub(crate) prepared: Prepared,
}

impl Reference {
    pub(crate) fn new(spec: &RunSpec) -> Reference {
        Reference { spec: spec.clone(), tables: spec.tables(), rows: BTreeMap::new() }
    }

    fn width(&self) -> usize {
        self.tables.get(TableIndex(0)).unwrap().width as usize
    }

    fn per_site(&self) -> usize {
        self.tables.tables_per_site() as usize
    }

    fn sites(&self) -> usize {
        self.tables.len() / self.per_site()
    }

    pub(crate) fn weights(&self, table: u32, row: u32) -> Vec<f32> {
        let width = self.width();
        self.rows.get(&(table, row)).map_or_else(
            || {
                let stream = Stream::new(self.spec.seed, Purpose::RowInit);
                let blocks = width.div_ceil(4) as u64;
                (0..width)
                    .map(|column| {
                        let low = u64::from(row) * blocks + column as u64 / 4;
                        let word = stream.words(u64::from(table), low)[column % 4];
                        unit_variance_uniform(word) * self.spec.embedding.init_std as f32
                    })
                    .collect()
            },
            |row| row.weights.clone(),
        )
    }

    /// Rows `[sites, U, w]` now.
    pub(crate) fn read(&self, ids: &UniqueIds) -> Vec<f32> {
        let mut rows = Vec::new();
        for site in 0..self.sites() {
            for (table, row) in rows_of(ids) {
                rows.extend(self.weights((site * self.per_site() + table) as u32, row));
            }
        }
        rows
    }

    /// Runs one step of `workload`.
    pub(crate) fn step(&mut self, workload: &Workload, step: Step) -> ExpectedStep {
        let width = self.width();
        let mut parts: BTreeMap<(u32, u32), Parts> = BTreeMap::new();
        let mut rows = Vec::new();
        for cell in 0..self.spec.training.cells {
            let ids = workload.ids(&self.spec, step, Cell(cell));
            let values = self.read(&ids);
            let grads = workload.gradients(step, Cell(cell), &values);
            let mut grads = grads.chunks_exact(width);
            for site in 0..self.sites() {
                for (table, row) in rows_of(&ids) {
                    let key = ((site * self.per_site() + table) as u32, row);
                    parts.entry(key).or_default().push((cell, grads.next().unwrap().to_vec()));
                }
            }
            rows.push(values);
        }
        let cells = self.spec.training.cells;
        let sums: BTreeMap<(u32, u32), Vec<f32>> =
            parts.into_iter().map(|(key, parts)| (key, tree(&parts, 0..cells).unwrap())).collect();
        let mut squares: BTreeMap<(TableIndex, BucketIndex), f64> = BTreeMap::new();
        for (&(table, row), sum) in &sums {
            let bucket = self.tables.get(TableIndex(table)).unwrap().bucket_of(RowId(row));
            let total = squares.entry((TableIndex(table), bucket)).or_insert(0.0);
            *total += square_sum(sum);
        }
        let finite = sums.values().flatten().all(|value| value.is_finite());
        if finite {
            self.apply(&sums, workload.commit(step));
        }
        let sums = squares.into_iter().map(|((table, bucket), sum)| (table, bucket, sum)).collect();
        ExpectedStep { rows, prepared: Prepared { finite, sums } }
    }

    fn apply(&mut self, sums: &BTreeMap<(u32, u32), Vec<f32>>, commit: Commit) {
        let embedding = self.spec.embedding.clone();
        let width = self.width();
        for (&(table, id), sum) in sums {
            let weights = self.weights(table, id);
            let row = self.rows.entry((table, id)).or_insert_with(|| Row {
                updates: 0,
                weights,
                first: vec![0.0; width],
                second: vec![0.0; width],
            });
            row.updates += 1;
            let [left1, left2] = [embedding.beta1, embedding.beta2].map(|beta| {
                // By squaring, as documented; any other way differs in the last bits.
                let (mut power, mut square) = (1.0f64, beta);
                for bit in 0..32 {
                    power *= if row.updates >> bit & 1 == 1 { square } else { 1.0 };
                    square *= square;
                }
                1.0 - power
            });
            let rate = (f64::from(commit.lr) * left2.sqrt() / left1) as f32;
            let eps = (embedding.eps * left2.sqrt()) as f32;
            for (i, gradient) in sum.iter().enumerate() {
                let g = gradient * commit.scale;
                let (b1, b2) = (embedding.beta1, embedding.beta2);
                row.first[i] = b1 as f32 * row.first[i] + (1.0 - b1) as f32 * g;
                row.second[i] = b2 as f32 * row.second[i] + (1.0 - b2) as f32 * (g * g);
                row.weights[i] -= rate * (row.first[i] / (row.second[i].sqrt() + eps));
            }
        }
    }

    /// Every written row, by table and row.
    pub(crate) fn records(&self) -> Vec<Record> {
        let record = |(&(table, row), value): (&(u32, u32), &Row)| Record {
            table: TableIndex(table),
            row: RowId(row),
            updates: value.updates,
            values: [&value.weights[..], &value.first, &value.second].concat(),
        };
        self.rows.iter().map(record).collect()
    }
}

/// The sum of a row's gradients along the binary tree over `cells`; a half without any is left out.
fn tree(parts: &[(u32, Vec<f32>)], cells: Range<u32>) -> Option<Vec<f32>> {
    let here: Vec<_> = parts.iter().filter(|(cell, _)| cells.contains(cell)).collect();
    if here.len() < 2 {
        return here.first().map(|(_, values)| values.clone());
    }
    let middle = cells.start + cells.len() as u32 / 2;
    match (tree(parts, cells.start..middle), tree(parts, middle..cells.end)) {
        (Some(left), Some(right)) => Some(left.iter().zip(right).map(|(a, b)| a + b).collect()),
        (left, right) => left.or(right),
    }
}

/// Sixteen sums of every sixteenth square, joined by halves.
fn square_sum(values: &[f32]) -> f64 {
    let mut sums: Vec<f64> = (0..16)
        .map(|c| values.iter().skip(c).step_by(16).fold(0.0, |sum, &v| sum + f64::from(v) * f64::from(v)))
        .collect();
    while sums.len() > 1 {
        let high = sums.split_off(sums.len() / 2);
        sums = sums.iter().zip(high).map(|(a, b)| a + b).collect();
    }
    sums[0]
}

fn rows_of(ids: &UniqueIds) -> impl Iterator<Item = (usize, u32)> + '_ {
    ids.offsets
        .windows(2)
        .enumerate()
        .flat_map(|(table, bounds)| ids.rows[bounds[0]..bounds[1]].iter().map(move |&row| (table, row)))
}

/// Records as bits, for comparison.
pub(crate) fn bits(records: &[Record]) -> Vec<(u32, u32, u32, Vec<u32>)> {
    records
        .iter()
        .map(|r| (r.table.0, r.row.0, r.updates, r.values.iter().map(|v| v.to_bits()).collect()))
        .collect()
}
