//! A whole step in one process, as a library of embedding tables does it: forward (the row of every id, in the order of
//! ids, duplicates included), then backward with the update fused in (distinct rows, sums of duplicates, one update a
//! row). What is compared with other libraries by benches/peers, on the same ids.

use std::io::{BufRead, Write};
use std::time::Instant;

use polygram_domain::TableIndex;
use serde_json::json;

use super::args::{Sizes, StepArgs, Written};
use super::error::BenchError;
use super::ids::{Distribution, Ids, Steps, read};
use super::pages::Pages;
use super::report::{Figure, Report, Sample};
use super::setup::{Distinct, LaneIds, RATES, config, stores, write, write_all};
use crate::config::ShardConfig;
use crate::rows::RowStore;

/// Measures whole steps, or runs them as they are asked for.
pub(super) fn measure(sizes: &Sizes, args: &StepArgs, report: &mut Report) -> Result<(), BenchError> {
    for &lanes in &sizes.lanes {
        let config = config(&sizes.spec(&[format!("embedding.lanes={lanes}")])?);
        for &distribution in &sizes.ids {
            let (steps, name) = match &args.id_file {
                Some(path) => (read(path, &config.tables, sizes.tokens)?, "of the file".to_owned()),
                None => (made(sizes, &config, distribution), distribution.name().to_owned()),
            };
            let mut stepper = Stepper::new(&config, args.written, steps)?;
            if args.on_request {
                return stepper.serve();
            }
            let optimizer = format!("{:?}", config.embedding.optimizer);
            let name = format!("step of {optimizer}, ids {name}, {lanes} lanes");
            stepper.report(sizes.repetitions, &name, report)?;
            if args.id_file.is_some() {
                break;
            }
        }
    }
    Ok(())
}

fn made(sizes: &Sizes, config: &ShardConfig, distribution: Distribution) -> Steps {
    let ids = Ids::new(sizes.seed, &config.tables, distribution, sizes.exponent);
    let step = |step| (0..ids.tables()).map(|table| ids.column(step, table, sizes.tokens)).collect();
    (0..sizes.steps as u64).map(step).collect()
}

/// Seconds of the two halves of a step.
#[derive(Clone, Copy, Debug)]
struct Halves {
    forward: f64,
    backward: f64,
}

/// Stores and the buffers of a step.
struct Stepper {
    stores: Vec<RowStore>,
    steps: Steps,
    width: usize,
    /// Rows of all ids `[tables, tokens, width]`.
    out: Pages,
    /// Gradients of all ids, alike.
    gradients: Pages,
    next: usize,
}

impl Stepper {
    fn new(config: &ShardConfig, written: Written, steps: Steps) -> Result<Stepper, BenchError> {
        let mut stores = stores(config)?;
        for store in &mut stores {
            match written {
                Written::All => write_all(store, config)?,
                Written::Used => {
                    for step in &steps {
                        for (table, ids) in (0u32..).zip(&LaneIds::of(step, store).ids) {
                            let distinct = Distinct::of(ids, |index| index as u32);
                            write(store, TableIndex(table), &distinct.rows)?;
                        }
                    }
                }
            }
        }
        let width = config.width();
        let ids = steps.iter().map(|step| step.iter().map(Vec::len).sum()).max().unwrap_or(0);
        let out = Pages::filled(ids * width, |_| 0)?;
        let gradients = Pages::filled(ids * width, |index| (1e-3 * (index % 17) as f32 - 8e-3).to_bits())?;
        Ok(Stepper { stores, steps, width, out, gradients, next: 0 })
    }

    /// The next step.
    fn run(&mut self) -> Result<(Halves, u64), BenchError> {
        let columns = &self.steps[self.next % self.steps.len()];
        self.next += 1;
        let start = Instant::now();
        let lanes = divide(columns, &self.stores)?;
        forward(columns, &self.stores, &lanes, self.width, self.out.floats_mut())?;
        let half = Instant::now();
        backward(columns, &lanes, &mut self.stores, self.width, self.gradients.floats())?;
        let end = Instant::now();
        let halves = Halves { forward: (half - start).as_secs_f64(), backward: (end - half).as_secs_f64() };
        Ok((halves, columns.iter().map(|column| column.len() as u64).sum()))
    }

    fn report(&mut self, repetitions: usize, name: &str, report: &mut Report) -> Result<(), BenchError> {
        let (mut forward, mut backward, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..repetitions + 2 {
            let (halves, rows) = self.run()?;
            if turn >= 2 {
                let sample = |seconds| Sample { seconds, rows, bytes: rows * self.width as u64 * 4 };
                forward.push(sample(halves.forward));
                backward.push(sample(halves.backward));
                whole.push(sample(halves.forward + halves.backward));
            }
        }
        report.figures.push(Figure::new(format!("{name}: forward"), &forward));
        report.figures.push(Figure::new(format!("{name}: backward"), &backward));
        report.figures.push(Figure::new(format!("{name}: whole"), &whole));
        Ok(())
    }

    /// Says that it is ready, then runs a step for each line that comes.
    fn serve(&mut self) -> Result<(), BenchError> {
        let mut out = std::io::stdout().lock();
        let mut say = |value: serde_json::Value| {
            writeln!(out, "{value}").and_then(|()| out.flush()).map_err(BenchError::io("cannot answer"))
        };
        let written: u64 = self.stores.iter().map(RowStore::written).sum();
        say(json!({ "ready": true, "written_rows": written }))?;
        for line in std::io::stdin().lock().lines() {
            line.map_err(BenchError::io("cannot read standard input"))?;
            let (Halves { forward, backward }, rows) = self.run()?;
            say(json!({ "forward": forward, "backward": backward, "rows": rows }))?;
        }
        Ok(())
    }
}

/// Runs `part` for every item on a thread of its own; one item runs here.
fn on_threads<T: Send, R: Send>(
    items: impl ExactSizeIterator<Item = T>,
    part: impl Fn(T) -> Result<R, BenchError> + Sync,
) -> Result<Vec<R>, BenchError> {
    if items.len() == 1 {
        return items.map(part).collect();
    }
    std::thread::scope(|scope| {
        let part = &part;
        let threads: Vec<_> = items.map(|item| scope.spawn(move || part(item))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| BenchError::Thread)?).collect()
    })
}

/// The distinct rows of one lane, table by table, and the ids' places among those of their table.
type LaneRows = Vec<Distinct>;

/// What is whose.
fn divide(columns: &[Vec<u32>], stores: &[RowStore]) -> Result<Vec<LaneRows>, BenchError> {
    on_threads(stores.iter(), |store| {
        let lane = LaneIds::of(columns, store);
        let mut first = 0;
        let tables = lane.ids.iter().zip(&lane.positions).zip(columns);
        Ok(tables
            .map(|((ids, positions), column)| {
                let distinct = Distinct::of(ids, |index| positions[index] - first);
                first += column.len() as u32;
                distinct
            })
            .collect())
    })
}

/// Every id's row, in its place. Each thread takes tables of its own, whosever their rows are.
fn forward(
    columns: &[Vec<u32>],
    stores: &[RowStore],
    lanes: &[LaneRows],
    width: usize,
    out: &mut [f32],
) -> Result<(), BenchError> {
    let mut shares: Vec<Vec<(usize, &mut [f32])>> = stores.iter().map(|_| Vec::new()).collect();
    let mut rest = out;
    for (table, column) in columns.iter().enumerate() {
        let (rows, after) = rest.split_at_mut(column.len() * width);
        shares[table % stores.len()].push((table, rows));
        rest = after;
    }
    on_threads(shares.into_iter(), |share| {
        for (table, out) in share {
            for (store, lane) in stores.iter().zip(lanes) {
                let distinct = &lane[table];
                store.scatter(
                    TableIndex(table as u32),
                    &distinct.rows,
                    |row| distinct.contributions(row),
                    out,
                );
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Each lane's distinct rows get the sums of their gradients.
fn backward(
    columns: &[Vec<u32>],
    lanes: &[LaneRows],
    stores: &mut [RowStore],
    width: usize,
    gradients: &[f32],
) -> Result<(), BenchError> {
    on_threads(lanes.iter().zip(stores), |(lane, store)| {
        let mut rest = gradients;
        for ((table, distinct), column) in (0u32..).zip(lane).zip(columns) {
            let (of_table, after) = rest.split_at(column.len() * width);
            rest = after;
            store.update(TableIndex(table), &distinct.rows, &distinct.sums(of_table, width), RATES)?;
        }
        store.finish_step(RATES.lr);
        Ok(())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::bench::args::BenchArgs;

    /// One lane and three give the same rows and the same updates.
    #[test]
    fn lanes_change_nothing() {
        let line = "bench --rows 503 --width 8 --orders 3 --heads 2 --tokens 200 --steps 3";
        let sizes = BenchArgs::try_parse_from(line.split(' ')).unwrap().sizes;
        let outcome = |lanes: u32| {
            let config = config(&sizes.spec(&[format!("embedding.lanes={lanes}")]).unwrap());
            let steps = made(&sizes, &config, Distribution::Zipf);
            let mut stepper = Stepper::new(&config, Written::Used, steps).unwrap();
            let mut seen = Vec::new();
            for _ in 0..4 {
                assert_eq!(stepper.run().unwrap().1, 800);
                seen.extend_from_slice(&stepper.out);
            }
            seen
        };
        let one = outcome(1);
        assert_ne!(one[..6400], one[19200..], "the second round sees the first one's updates");
        assert_eq!(one, outcome(3));
    }
}
