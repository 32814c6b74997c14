//! Stores to measure with, and a step's ids divided among them as lanes would own them.

use multiversion::multiversion;
use polygram_domain::philox::{Purpose, Stream};
use polygram_domain::{Generation, RunSpec, ShardIndex, Step, TableIndex};
use polygram_ngram::UniqueRows;

use super::error::BenchError;
use super::pages::{Near, prefetch};
use crate::config::ShardConfig;
use crate::rows::{Gradients, Rates, RowStore};

/// Rows that one call writes when a store is filled.
const ROWS_PER_CALL: usize = 4096;

/// Rates of measured updates.
pub(super) const RATES: Rates = Rates { scale: 1.0, lr: 1e-3, step: Step(0) };

/// What a store of `spec` is made from, one shard of one.
pub(super) fn config(spec: &RunSpec) -> ShardConfig {
    ShardConfig::of(spec, ShardIndex(0), Generation(1))
}

/// One store per lane, all rows virtual.
pub(super) fn stores(config: &ShardConfig) -> Result<Vec<RowStore>, BenchError> {
    config.lane_buckets().iter().map(|buckets| Ok(RowStore::new(config, buckets)?)).collect()
}

/// Writes every row of `store` once, in an order that scatters its records.
pub(super) fn write_all(store: &mut RowStore, config: &ShardConfig) -> Result<(), BenchError> {
    let stream = Stream::new(0, Purpose::SampleOrder);
    let rows: Vec<_> =
        (0..config.tables.len() as u32).map(|table| store.rows_of(TableIndex(table))).collect();
    let mut all: Vec<(u32, u32)> = Vec::with_capacity(rows.iter().map(ExactSizeIterator::len).sum());
    for (table, rows) in (0u32..).zip(rows) {
        all.extend(rows.map(|row| (table, row)));
    }
    for place in (1..all.len()).rev() {
        all.swap(place, stream.below(0, place as u64, place as u64 + 1) as usize);
    }
    for part in all.chunks_mut(ROWS_PER_CALL) {
        part.sort_unstable();
        for table in part.chunk_by(|a, b| a.0 == b.0) {
            let rows: Vec<u32> = table.iter().map(|(_, row)| *row).collect();
            write(store, TableIndex(table[0].0), &rows)?;
        }
    }
    Ok(())
}

/// Writes `rows` (ascending) of one table once.
pub(super) fn write(store: &mut RowStore, table: TableIndex, rows: &[u32]) -> Result<(), BenchError> {
    Ok(store.update(table, rows, &Small, RATES)?)
}

/// The same small gradient for every row.
struct Small;

impl Gradients for Small {
    fn scratch_values(&self, width: usize) -> usize {
        width
    }

    fn sum<'a>(&'a self, _: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        scratch.fill(1e-3);
        scratch
    }

    fn prefetch(&self, _: usize) {}
}

/// A step's ids of one lane, table by table.
#[derive(Clone, Debug)]
pub(super) struct LaneIds {
    /// Ids of each table, in the order of positions.
    pub(super) ids: Vec<Vec<u32>>,
    /// Position of each of them in the whole step, `table · tokens + token`.
    pub(super) positions: Vec<Vec<u32>>,
}

impl LaneIds {
    /// Those of `columns` (ids of each table) that `store` owns.
    pub(super) fn of(columns: &[Vec<u32>], store: &RowStore) -> LaneIds {
        let mut owned = LaneIds { ids: Vec::new(), positions: Vec::new() };
        for (table, column) in (0u32..).zip(columns) {
            let rows = store.rows_of(TableIndex(table));
            let first = table * column.len() as u32;
            let (mut ids, mut positions) = (vec![0; column.len()], vec![0; column.len()]);
            let mut count = 0;
            // Written always and counted where it belongs: whose a random id is cannot be predicted.
            for (&id, position) in column.iter().zip(first..) {
                (ids[count], positions[count]) = (id, position);
                count += usize::from(rows.contains(&id));
            }
            ids.truncate(count);
            positions.truncate(count);
            owned.ids.push(ids);
            owned.positions.push(positions);
        }
        owned
    }

    /// Ids of all tables.
    pub(super) fn len(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }
}

/// Numbers every owned row of every table, scattered: where a limit's records lie.
#[derive(Debug)]
pub(super) struct Slots {
    /// First owned row and number of the rows of tables before.
    tables: Vec<(u32, u64)>,
    count: u64,
    multiplier: u64,
}

impl Slots {
    /// For the rows of `store`.
    pub(super) fn of(store: &RowStore, config: &ShardConfig) -> Slots {
        let mut slots = Slots { tables: Vec::new(), count: 0, multiplier: 1 };
        for table in 0..config.tables.len() as u32 {
            let rows = store.rows_of(TableIndex(table));
            slots.tables.push((rows.start, slots.count));
            slots.count += rows.len() as u64;
        }
        // A prime near the golden section of the numbers scatters neighbours; one that divides the count would fold.
        let primes = [2_654_435_761u64, 2_246_822_519, 3_266_489_917];
        slots.multiplier = primes.into_iter().find(|prime| !slots.count.is_multiple_of(*prime)).unwrap_or(1);
        slots
    }

    /// Records.
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    /// The slots of `rows` of one table.
    pub(super) fn all<'a>(&'a self, table: usize, rows: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let (start, before) = self.tables[table];
        rows.iter().map(move |row| ((before + u64::from(row - start)) * self.multiplier % self.count) as u32)
    }
}

/// The distinct rows of one table, and which contributions each gets.
#[derive(Clone, Debug)]
pub(super) struct Distinct {
    /// Ascending.
    pub(super) rows: Vec<u32>,
    /// Bounds of each row's contributions in `order` (rows + 1).
    pub(super) starts: Vec<u32>,
    /// Contributions, row by row, each row's in the order of positions.
    pub(super) order: Vec<u32>,
}

impl Distinct {
    /// Of `ids`; id i is contribution `contribution(i)`.
    pub(super) fn of(ids: &[u32], contribution: impl Fn(usize) -> u32) -> Distinct {
        let unique = UniqueRows::of(ids, 1);
        let mut starts = vec![0u32; unique.rows.len() + 1];
        for &place in &unique.inverse_pc {
            starts[place as usize + 1] += 1;
        }
        for place in 0..unique.rows.len() {
            starts[place + 1] += starts[place];
        }
        let mut next = starts.clone();
        let mut order = vec![0; ids.len()];
        for (index, &place) in unique.inverse_pc.iter().enumerate() {
            order[next[place as usize] as usize] = contribution(index);
            next[place as usize] += 1;
        }
        Distinct { rows: unique.rows, starts, order }
    }

    /// The contributions of the row at `place`.
    #[inline(always)]
    pub(super) fn contributions(&self, place: usize) -> &[u32] {
        &self.order[self.starts[place] as usize..self.starts[place + 1] as usize]
    }

    /// The gradients that `values` `[n, width]` hold for these rows.
    pub(super) fn sums<'a>(&'a self, values: &'a [f32], width: usize) -> Sums<'a> {
        Sums { distinct: self, values, width }
    }
}

/// Gradients summed from contributions, in the order of positions.
#[derive(Debug)]
pub(super) struct Sums<'a> {
    distinct: &'a Distinct,
    values: &'a [f32],
    width: usize,
}

impl Sums<'_> {
    #[inline(always)]
    fn row(&self, contribution: u32) -> &[f32] {
        &self.values[contribution as usize * self.width..][..self.width]
    }
}

impl Gradients for Sums<'_> {
    fn scratch_values(&self, width: usize) -> usize {
        width
    }

    #[inline(always)]
    fn sum<'a>(&'a self, place: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        let contributions = self.distinct.contributions(place);
        if let [only] = contributions {
            return self.row(*only);
        }
        scratch.fill(0.0);
        for &contribution in contributions {
            add(scratch, self.row(contribution));
        }
        scratch
    }

    #[inline(always)]
    fn prefetch(&self, place: usize) {
        for &contribution in self.distinct.contributions(place).iter().take(2) {
            prefetch(bytemuck::cast_slice(self.row(contribution)), Near::All);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn add(sum: &mut [f32], row: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunFile;

    use super::*;

    fn small() -> ShardConfig {
        let text = include_str!("../../../configs/tiny.toml");
        let overrides = ["embedding.lanes=2", "topology.shards=1"].map(str::to_owned);
        config(&RunFile::parse(text, "tiny", &overrides).and_then(|file| file.resolve()).unwrap())
    }

    #[test]
    fn filling_writes_every_row_once() {
        let config = small();
        for mut store in stores(&config).unwrap() {
            let rows: u64 = (0..4).map(|table| store.rows_of(TableIndex(table)).len() as u64).sum();
            write_all(&mut store, &config).unwrap();
            assert_eq!(store.written(), rows);
        }
    }

    #[test]
    fn lanes_share_a_step_and_slots_are_distinct() {
        let config = small();
        let stores = stores(&config).unwrap();
        let columns: Vec<Vec<u32>> = (0..4).map(|table| (0..1003).step_by(table + 1).collect()).collect();
        let lanes: Vec<LaneIds> = stores.iter().map(|store| LaneIds::of(&columns, store)).collect();
        assert_eq!(lanes[0].len() + lanes[1].len(), columns.iter().map(Vec::len).sum::<usize>());
        assert!(lanes.iter().all(|lane| lane.len() > 500));
        for store in &stores {
            let slots = Slots::of(store, &config);
            let mut seen = vec![false; slots.count()];
            for table in 0..4 {
                let rows: Vec<u32> = store.rows_of(TableIndex(table as u32)).collect();
                for slot in slots.all(table, &rows) {
                    assert!(!std::mem::replace(&mut seen[slot as usize], true));
                }
            }
            assert!(seen.iter().all(|seen| *seen));
        }
    }

    #[test]
    fn duplicates_are_summed_in_order() {
        let distinct = Distinct::of(&[9, 4, 9, 7], |index| index as u32);
        assert_eq!(
            (&distinct.rows[..], &distinct.starts[..], &distinct.order[..]),
            (&[4, 7, 9][..], &[0, 1, 2, 4][..], &[1, 3, 0, 2][..])
        );
        let values: Vec<f32> = (0..8).map(|value| value as f32).collect();
        let sums = distinct.sums(&values, 2);
        let mut scratch = [0.0; 2];
        assert_eq!(sums.sum(1, &mut scratch), [6.0, 7.0]);
        assert_eq!(sums.sum(2, &mut scratch), [4.0, 6.0]);
    }
}
