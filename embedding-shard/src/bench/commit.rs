//! Sums of duplicates and row updates against reads and writes of the same bytes: contributions read, weights and
//! optimizer state read and written.

use polygram_domain::TableIndex;

use super::args::Sizes;
use super::error::BenchError;
use super::ids::{Distribution, Ids};
use super::limit::{Records, Updates, Way};
use super::pages::Pages;
use super::race::{Contest, race};
use super::report::{Report, Sample};
use super::setup::{Distinct, LaneIds, RATES, Slots, config, stores, write_all};
use crate::config::ShardConfig;
use crate::rows::RowStore;

/// Measures the optimizers with every number of lanes and every kind of ids.
pub(super) fn measure(sizes: &Sizes, report: &mut Report) -> Result<(), BenchError> {
    for optimizer in ["adam", "rowwise_adagrad"] {
        for &lanes in &sizes.lanes {
            let overrides =
                [format!("embedding.lanes={lanes}"), format!("embedding.optimizer=\"{optimizer}\"")];
            let spec = sizes.spec(&overrides)?;
            let config = config(&spec);
            let mut stores = stores(&config)?;
            for store in &mut stores {
                write_all(store, &config)?;
            }
            let mut homes = stores
                .into_iter()
                .map(|store| Home::new(store, &config))
                .collect::<Result<Vec<Home>, BenchError>>()?;
            for &distribution in &sizes.ids {
                let columns = columns(sizes, &config, distribution);
                let mut parts = homes
                    .iter_mut()
                    .map(|home| Lane::new(home, &config, &columns))
                    .collect::<Result<Vec<Lane<'_>>, BenchError>>()?;
                let times = race(&mut parts, sizes.repetitions)?;
                let samples = |seconds: &[f64]| samples(&parts, seconds);
                let name = format!("{}_{lanes}", distribution.name());
                let key = format!("commit_vs_limit_{optimizer}");
                report.pair(&key, &name, &samples(&times.ours), &samples(&times.limit));
            }
        }
    }
    Ok(())
}

fn columns(sizes: &Sizes, config: &ShardConfig, distribution: Distribution) -> Vec<Vec<Vec<u32>>> {
    let ids = Ids::new(sizes.seed, &config.tables, distribution, sizes.exponent);
    let step = |step| (0..ids.tables()).map(|table| ids.column(step, table, sizes.tokens)).collect();
    (0..sizes.steps as u64).map(step).collect()
}

fn samples(parts: &[Lane<'_>], seconds: &[f64]) -> Vec<Sample> {
    let sample = |(round, &seconds): (usize, &f64)| {
        let steps = || parts.iter().map(|part| &part.steps[round % part.steps.len()]);
        let rows: usize = steps().map(|step| step.slots.len()).sum();
        let contributions: usize = steps().map(|step| step.order.len()).sum();
        let record_words = parts.first().map_or(0, |part| part.record_words);
        let width = parts.first().map_or(0, |part| part.width);
        let bytes = 4 * (contributions * width + 2 * rows * record_words);
        Sample { seconds, rows: rows as u64, bytes: bytes as u64 }
    };
    seconds.iter().enumerate().map(sample).collect()
}

/// A lane's rows and the limit's.
struct Home {
    store: RowStore,
    records: Records,
    slots: Slots,
}

impl Home {
    fn new(store: RowStore, config: &ShardConfig) -> Result<Home, BenchError> {
        let slots = Slots::of(&store, config);
        let records = Records::new(slots.count(), config.record_bytes() as usize)?;
        Ok(Home { store, records, slots })
    }
}

/// One step of one lane.
struct Step {
    /// By table.
    distinct: Vec<Distinct>,
    /// Of all tables, for the limit.
    slots: Vec<u32>,
    starts: Vec<u32>,
    order: Vec<u32>,
}

impl Step {
    fn of(columns: &[Vec<u32>], home: &Home) -> Step {
        let lane = LaneIds::of(columns, &home.store);
        let mut step = Step { distinct: Vec::new(), slots: Vec::new(), starts: vec![0], order: Vec::new() };
        for (table, ids) in lane.ids.iter().enumerate() {
            let before = step.order.len() as u32;
            let distinct = Distinct::of(ids, |index| before + index as u32);
            step.slots.extend(home.slots.all(table, &distinct.rows));
            step.starts.extend(distinct.starts.iter().skip(1).map(|start| before + start));
            step.order.extend_from_slice(&distinct.order);
            step.distinct.push(distinct);
        }
        step
    }
}

/// One lane's thread.
struct Lane<'a> {
    home: &'a mut Home,
    steps: Vec<Step>,
    /// Contributions `[n, width]`.
    values: Pages,
    width: usize,
    record_words: usize,
    way: Way,
}

impl<'a> Lane<'a> {
    fn new(
        home: &'a mut Home,
        config: &ShardConfig,
        columns: &[Vec<Vec<u32>>],
    ) -> Result<Lane<'a>, BenchError> {
        let width = config.width();
        let steps: Vec<Step> = columns.iter().map(|columns| Step::of(columns, home)).collect();
        let longest = steps.iter().map(|step| step.order.len()).max().unwrap_or(0);
        let values = Pages::filled(longest * width, |index| (1e-3 * (index % 17) as f32 - 8e-3).to_bits())?;
        let record_words = width + config.embedding.optimizer.state_values(width);
        let mut lane = Lane { home, steps, values, width, record_words, way: Way::first() };
        if !lane.steps.is_empty() {
            let (records, work) = lane.limit_of(0);
            lane.way = records.tune_update(&work);
        }
        Ok(lane)
    }

    fn limit_of(&mut self, round: usize) -> (&mut Records, Updates<'_>) {
        let Step { slots, starts, order, .. } = &self.steps[round % self.steps.len()];
        let (words, width, values) = (self.record_words, self.width, &self.values[..]);
        (&mut self.home.records, Updates { slots, words, width, values, starts, order })
    }
}

impl Contest for Lane<'_> {
    fn ours(&mut self, round: usize) -> Result<(), BenchError> {
        let step = &self.steps[round % self.steps.len()];
        for (table, distinct) in (0u32..).zip(&step.distinct) {
            let sums = distinct.sums(self.values.floats(), self.width);
            self.home.store.update(TableIndex(table), &distinct.rows, &sums, RATES)?;
        }
        self.home.store.finish_step(RATES.lr);
        Ok(())
    }

    fn limit(&mut self, round: usize) -> Result<(), BenchError> {
        let way = self.way;
        let (records, work) = self.limit_of(round);
        records.update(&work, way);
        Ok(())
    }
}
