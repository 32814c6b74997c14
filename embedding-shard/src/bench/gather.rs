//! Rows out of a store against random reads of the same bytes. A row's bytes are those of its weights.

use std::time::Instant;

use polygram_domain::TableIndex;

use super::args::Sizes;
use super::error::BenchError;
use super::ids::{Distribution, Ids};
use super::limit::{Records, Way};
use super::pages::Pages;
use super::race::{Contest, race};
use super::report::{Figure, Report, Sample};
use super::setup::{LaneIds, Slots, config, stores, write_all};
use crate::config::ShardConfig;
use crate::rows::{RowStore, RowsOut};

/// Measures stores of both types with every number of lanes and every kind of ids.
pub(super) fn measure(sizes: &Sizes, report: &mut Report) -> Result<(), BenchError> {
    for storage in ["f32", "bf16"] {
        for &lanes in &sizes.lanes {
            let overrides =
                [format!("embedding.lanes={lanes}"), format!("embedding.storage=\"{storage}\""), sgd()];
            let spec = sizes.spec(&overrides)?;
            let config = config(&spec);
            let mut stores = stores(&config)?;
            if lanes == 1 {
                measure_virtual(sizes, &config, storage, &stores[0], report)?;
            }
            for store in &mut stores {
                write_all(store, &config)?;
            }
            for &distribution in &sizes.ids {
                let mut parts = Parts { sizes, config: &config, stores: &stores }.parts(distribution)?;
                let times = race(&mut parts, sizes.repetitions)?;
                let samples = |seconds: &[f64]| samples(&parts, seconds);
                let name = format!("{}_{lanes}", distribution.name());
                let key = format!("gather_vs_limit_{storage}");
                report.pair(&key, &name, &samples(&times.ours), &samples(&times.limit));
            }
        }
    }
    Ok(())
}

/// State does not matter to a gather; this has none.
fn sgd() -> String {
    "embedding.optimizer=\"sgd\"".to_owned()
}

fn samples(parts: &[Lane<'_>], seconds: &[f64]) -> Vec<Sample> {
    let work = |round: usize| {
        let rows: usize = parts.iter().map(|part| part.steps[round % part.steps.len()].slots.len()).sum();
        let bytes: usize = parts.iter().map(|part| part.words(round) * 4).sum();
        (rows as u64, bytes as u64)
    };
    let sample = |(round, &seconds): (usize, &f64)| {
        let (rows, bytes) = work(round);
        Sample { seconds, rows, bytes }
    };
    seconds.iter().enumerate().map(sample).collect()
}

/// What lanes are made from.
struct Parts<'a> {
    sizes: &'a Sizes,
    config: &'a ShardConfig,
    stores: &'a [RowStore],
}

impl<'a> Parts<'a> {
    fn parts(&self, distribution: Distribution) -> Result<Vec<Lane<'a>>, BenchError> {
        let Sizes { seed, exponent, steps, tokens, .. } = *self.sizes;
        let ids = Ids::new(seed, &self.config.tables, distribution, exponent);
        let columns: Vec<Vec<Vec<u32>>> = (0..steps as u64)
            .map(|step| (0..ids.tables()).map(|table| ids.column(step, table, tokens)).collect())
            .collect();
        self.stores.iter().map(|store| Lane::new(store, self.config, &columns)).collect()
    }
}

/// One step of one lane.
struct Step {
    ids: LaneIds,
    slots: Vec<u32>,
}

/// One lane's thread.
struct Lane<'a> {
    store: &'a RowStore,
    steps: Vec<Step>,
    out: Pages,
    records: Records,
    way: Way,
    row_words: usize,
    is_half: bool,
}

impl<'a> Lane<'a> {
    fn new(
        store: &'a RowStore,
        config: &ShardConfig,
        columns: &[Vec<Vec<u32>>],
    ) -> Result<Lane<'a>, BenchError> {
        let slots = Slots::of(store, config);
        let step = |columns: &Vec<Vec<u32>>| {
            let ids = LaneIds::of(columns, store);
            let slots = ids.ids.iter().enumerate().flat_map(|(table, ids)| slots.all(table, ids)).collect();
            Step { ids, slots }
        };
        let steps: Vec<Step> = columns.iter().map(step).collect();
        let longest = steps.iter().map(|step| step.slots.len()).max().unwrap_or(0);
        let row_bytes = config.embedding.storage.bytes() * config.width();
        let records = Records::new(slots.count(), config.record_bytes() as usize)?;
        let mut out = Pages::filled(longest * row_bytes / 4, |_| 0)?;
        let row_words = row_bytes / 4;
        let way = match steps.first() {
            Some(step) => {
                let words = step.slots.len() * row_words;
                records.tune_gather(&step.slots, &mut out[..words])
            }
            None => records.tune_gather(&[], &mut []),
        };
        let is_half = config.embedding.storage.bytes() == 2;
        Ok(Lane { store, steps, out, records, way, row_words, is_half })
    }

    /// Words that a round moves.
    fn words(&self, round: usize) -> usize {
        self.steps[round % self.steps.len()].slots.len() * self.row_words
    }
}

/// Gathers a step's tables one after another into `out`.
fn gather(store: &RowStore, ids: &LaneIds, out: &mut [u32], row_words: usize, is_half: bool) {
    let mut rest = out;
    for (table, ids) in (0u32..).zip(&ids.ids) {
        let (part, after) = rest.split_at_mut(ids.len() * row_words);
        let out = match is_half {
            true => RowsOut::Bf16(bytemuck::cast_slice_mut(part)),
            false => RowsOut::F32(bytemuck::cast_slice_mut(part)),
        };
        store.gather(TableIndex(table), ids, out);
        rest = after;
    }
}

impl Contest for Lane<'_> {
    fn ours(&mut self, round: usize) -> Result<(), BenchError> {
        let words = self.words(round);
        let step = &self.steps[round % self.steps.len()];
        gather(self.store, &step.ids, &mut self.out[..words], self.row_words, self.is_half);
        Ok(())
    }

    fn limit(&mut self, round: usize) -> Result<(), BenchError> {
        let words = self.words(round);
        let step = &self.steps[round % self.steps.len()];
        self.records.gather(&step.slots, &mut self.out[..words], self.way);
        Ok(())
    }
}

/// Rows that were never written: made, not read.
fn measure_virtual(
    sizes: &Sizes,
    config: &ShardConfig,
    storage: &str,
    store: &RowStore,
    report: &mut Report,
) -> Result<(), BenchError> {
    let ids = Ids::new(sizes.seed, &config.tables, Distribution::Uniform, sizes.exponent);
    let columns: Vec<Vec<u32>> = (0..ids.tables()).map(|table| ids.column(0, table, sizes.tokens)).collect();
    let ids = LaneIds::of(&columns, store);
    let row_words = config.embedding.storage.bytes() * config.width() / 4;
    let mut out = Pages::filled(ids.len() * row_words, |_| 0)?;
    let (rows, bytes) = (ids.len() as u64, 4 * out.len() as u64);
    let once = |_| {
        let start = Instant::now();
        gather(store, &ids, &mut out, row_words, storage == "bf16");
        Sample { seconds: start.elapsed().as_secs_f64(), rows, bytes }
    };
    let samples: Vec<Sample> = (0..sizes.repetitions.min(5)).map(once).collect();
    report.figures.push(Figure::new(format!("gather of virtual rows, {storage}, 1 lane"), &samples));
    Ok(())
}
