//! A whole step in one process, as a library of embedding tables does it: forward (the row of every id, in the order of
//! ids, duplicates included), then backward with the update fused in (distinct rows, sums of duplicates, one update a
//! row). What is compared with other libraries by benches/peers, on the same ids.

use std::io::{BufRead, Write};
use std::ops::Range;
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
        forward(columns, (&self.stores, &lanes), self.width, self.out.floats_mut())?;
        let half = Instant::now();
        backward(&lanes, &mut self.stores, self.width, self.gradients.floats())?;
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

/// Which ids are whose.
fn divide(columns: &[Vec<u32>], stores: &[RowStore]) -> Result<Vec<LaneIds>, BenchError> {
    on_threads(stores.iter(), |store| Ok(LaneIds::of(columns, store)))
}

/// Every id's row, in its place. Each thread takes as many tokens of every table, whosever their rows are.
fn forward(
    columns: &[Vec<u32>],
    (stores, lanes): (&[RowStore], &[LaneIds]),
    width: usize,
    out: &mut [f32],
) -> Result<(), BenchError> {
    let threads = stores.len();
    let mut shares: Vec<Vec<Share>> = stores.iter().map(|_| Vec::new()).collect();
    let (mut rest, mut start) = (out, 0);
    for (table, column) in columns.iter().enumerate() {
        for (thread, share) in shares.iter_mut().enumerate() {
            let end = |thread: usize| column.len() * thread / threads;
            let tokens = end(thread)..end(thread + 1);
            let (part, after) = rest.split_at_mut(tokens.len() * width);
            share.push(Share { table, positions: start + tokens.start..start + tokens.end, out: part });
            rest = after;
        }
        start += column.len();
    }
    on_threads(shares.into_iter(), |share| {
        let mut places = Vec::new();
        for Share { table, positions, out } in share {
            for (store, lane) in stores.iter().zip(lanes) {
                let (ids, all) = (&lane.ids[table], &lane.positions[table]);
                let first = all.partition_point(|&at| (at as usize) < positions.start);
                let last = all.partition_point(|&at| (at as usize) < positions.end);
                places.clear();
                places.extend(all[first..last].iter().map(|&at| at - positions.start as u32));
                store.scatter(TableIndex(table as u32), &ids[first..last], &places, out);
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Some tokens of one table.
struct Share<'a> {
    table: usize,
    /// Among the ids of all tables.
    positions: Range<usize>,
    /// Their rows `[positions, width]`.
    out: &'a mut [f32],
}

/// Each lane's distinct rows get the sums of their gradients.
fn backward(
    lanes: &[LaneIds],
    stores: &mut [RowStore],
    width: usize,
    gradients: &[f32],
) -> Result<(), BenchError> {
    on_threads(lanes.iter().zip(stores), |(lane, store)| {
        for (table, (ids, positions)) in (0u32..).zip(lane.ids.iter().zip(&lane.positions)) {
            let distinct = Distinct::of(ids, |index| positions[index]);
            store.update(TableIndex(table), &distinct.rows, &distinct.sums(gradients, width), RATES)?;
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
