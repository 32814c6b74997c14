//! The whole protocol over processes: one worker (this one), shards in processes of their own, loopback between. Lookup,
//! push and commit of a step, and in turns with it the same bytes over plain TCP. Bytes are those of rows and of row
//! gradients, as they travel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use polygram_domain::embedding::RowType;
use polygram_domain::{Cell, MicroBatchRef, Rank, RunSpec, ShardIndex, Step, TableSet};
use polygram_ngram::UniqueRows;
use polygram_row_exchange::{
    ClientLimits, ClientOptions, Commit, Hello, RowClient, RowExchange, SnapshotOrder, UniqueIds,
    rows_of_shard,
};

use super::args::{ExchangeArgs, Sizes};
use super::error::BenchError;
use super::ids::{Distribution, Ids};
use super::process::{GENERATION, Process, link_key};
use super::report::{Figure, Report, Sample, median};
use super::tcp::{BLOCK_BYTES, Lines};

/// A peer that is silent for so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Connections per shard that plain TCP is tried with.
const CONNECTIONS: [usize; 2] = [1, 2];

/// Measures every kind of ids.
pub(super) fn measure(sizes: &Sizes, args: &ExchangeArgs, report: &mut Report) -> Result<(), BenchError> {
    let more = [format!("topology.shards={}", args.shards), format!("training.cells={}", args.cells)];
    let file = sizes.file(&more)?;
    let spec = file.resolve()?;
    let runtime = runtime()?;
    for &distribution in &sizes.ids {
        let processes = Process::start_all(&file, args.shards)?;
        let exchange = Exchange { sizes, spec: &spec, processes: &processes };
        runtime.block_on(exchange.measure(distribution, report))?;
        for (index, process) in (0u32..).zip(processes) {
            if let Some(error) = process.end()?.error {
                return Err(BenchError::Process { index, what: format!("failed: {error}") });
            }
        }
    }
    Ok(())
}

/// A worker's runtime.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, BenchError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(BenchError::io("cannot start the I/O runtime"))
}

/// A worker of the run, connected to all shards.
pub(super) async fn connect(spec: &RunSpec, processes: &[Process]) -> Result<RowClient, BenchError> {
    let addresses: Vec<_> = processes.iter().map(|process| process.rows).collect();
    let hello = Hello {
        run: spec.name.clone(),
        generation: GENERATION,
        rank: Rank(0),
        workers: spec.topology.workers,
        key: link_key(),
    };
    let limits = ClientLimits::from(PATIENCE);
    let options = ClientOptions::of(&spec.embedding, limits);
    Ok(RowClient::connect(&addresses, hello, Arc::new(spec.tables()), options).await?)
}

/// A step's distinct ids, cell by cell: the tokens divide among cells in order.
pub(super) fn cells_of(ids: &Ids, step: u64, tokens: usize, cells: u32) -> Vec<Arc<UniqueIds>> {
    let columns: Vec<Vec<u32>> = (0..ids.tables()).map(|table| ids.column(step, table, tokens)).collect();
    let bound = |cell: u32| tokens * cell as usize / cells as usize;
    let cell = |cell: u32| {
        let mut unique = UniqueIds { offsets: vec![0], rows: Vec::new() };
        for column in &columns {
            unique.rows.extend(UniqueRows::of(&column[bound(cell)..bound(cell + 1)], 1).rows);
            unique.offsets.push(unique.rows.len());
        }
        Arc::new(unique)
    };
    (0..cells).map(cell).collect()
}

/// Values of a row; all tables have the same.
pub(super) fn width_of(tables: &TableSet) -> usize {
    tables.iter().next().map_or(0, |table| table.width as usize)
}

/// Rows of a step that belong to each shard.
fn rows_by_shard(cells: &[Arc<UniqueIds>], tables: &TableSet, shards: u32) -> Vec<u64> {
    let mut counts = vec![0u64; shards as usize];
    for (shard, count) in (0u32..).zip(&mut counts) {
        for (table, spec) in tables.iter().take(tables.tables_per_site() as usize).enumerate() {
            let owned = rows_of_shard(spec, ShardIndex(shard), shards);
            for cell in cells {
                let rows = &cell.rows[cell.offsets[table]..cell.offsets[table + 1]];
                let below = |end: u32| rows.partition_point(|row| *row < end);
                *count += (below(owned.end) - below(owned.start)) as u64;
            }
        }
    }
    counts
}

/// Seconds of a step's parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) lookup: f64,
    /// Until all shards have every gradient and have answered with their sums of squares.
    pub(super) push: f64,
    pub(super) commit: f64,
}

/// One step of one worker: rows in, the same values out as gradients.
pub(super) async fn step(
    client: &RowClient,
    number: u64,
    cells: &[Arc<UniqueIds>],
) -> Result<Parts, BenchError> {
    let step = Step(number);
    let at = |cell| MicroBatchRef { step, index: Cell(cell) };
    let start = Instant::now();
    let lookups: Vec<_> = (0u32..)
        .zip(cells)
        .map(|(cell, ids)| tokio::spawn(client.lookup(at(cell), Arc::clone(ids))))
        .collect();
    let mut rows = Vec::with_capacity(cells.len());
    for lookup in lookups {
        rows.push(lookup.await.map_err(|_| BenchError::Thread)??);
    }
    let looked_up = Instant::now();
    for (cell, rows) in (0u32..).zip(rows) {
        client.push(at(cell), rows).await?;
    }
    client.prepare(step).await?;
    let pushed = Instant::now();
    client.commit(step, Commit { scale: 1.0, lr: 1e-3, snapshot: SnapshotOrder::None }).await?;
    let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
    Ok(Parts {
        lookup: seconds(start, looked_up),
        push: seconds(looked_up, pushed),
        commit: pushed.elapsed().as_secs_f64(),
    })
}

struct Exchange<'a> {
    sizes: &'a Sizes,
    spec: &'a RunSpec,
    processes: &'a [Process],
}

/// Samples of one way.
#[derive(Default)]
struct Ways {
    down: Vec<Sample>,
    up: Vec<Sample>,
    both: Vec<Sample>,
}

impl Ways {
    fn add(&mut self, rows: u64, [down, up]: [(f64, u64); 2]) {
        let sample = |(seconds, bytes)| Sample { seconds, rows, bytes };
        self.down.push(sample(down));
        self.up.push(sample(up));
        self.both.push(Sample { seconds: down.0 + up.0, rows: 2 * rows, bytes: down.1 + up.1 });
    }

    fn seconds(&self) -> f64 {
        median(&self.both.iter().map(|sample| sample.seconds).collect::<Vec<f64>>())
    }
}

impl Exchange<'_> {
    async fn measure(&self, distribution: Distribution, report: &mut Report) -> Result<(), BenchError> {
        let Sizes { seed, exponent, tokens, .. } = *self.sizes;
        let tables = self.spec.tables();
        let width = width_of(&tables);
        let ids = Ids::new(seed, &tables, distribution, exponent);
        let steps: Vec<_> = (0..self.sizes.steps as u64)
            .map(|step| cells_of(&ids, step, tokens, self.spec.training.cells))
            .collect();
        let client = connect(self.spec, self.processes).await?;
        let servers: Vec<_> = self.processes.iter().map(|process| process.tcp).collect();
        let mut lines = CONNECTIONS
            .iter()
            .map(|each| Lines::connect(&servers, *each))
            .collect::<Result<Vec<Lines>, _>>()?;
        let (mut ours, mut plain) = (Ways::default(), CONNECTIONS.map(|_| Ways::default()));
        let mut cached = CONNECTIONS.map(|_| Ways::default());
        let mut commits = Vec::new();
        // The first time round, rows are written; it does not count.
        for turn in 0..steps.len() + self.sizes.repetitions {
            let cells = &steps[turn % steps.len()];
            let by_shard = rows_by_shard(cells, &tables, self.processes.len() as u32);
            let rows: u64 = by_shard.iter().sum();
            let none = vec![0; by_shard.len()];
            let bytes = |of: RowType| {
                let row = (of.bytes() * width) as u64;
                by_shard.iter().map(|rows| rows * row).collect::<Vec<u64>>()
            };
            let wire = self.spec.embedding.wire;
            let (down, up) = (bytes(wire.rows), bytes(wire.gradients));
            let (down_total, up_total) = (down.iter().sum(), up.iter().sum());
            let parts = step(&client, turn as u64, cells).await?;
            let is_counted = turn >= steps.len();
            if is_counted {
                ours.add(rows, [(parts.lookup, down_total), (parts.push, up_total)]);
                let seconds = parts.lookup + parts.push + parts.commit;
                commits.push((Sample { seconds: parts.commit, rows, bytes: up_total }, seconds));
            }
            for (lines, (plain, cached)) in lines.iter_mut().zip(plain.iter_mut().zip(&mut cached)) {
                for (ways, most) in [(plain, usize::MAX), (cached, BLOCK_BYTES)] {
                    let down_seconds = lines.exchange(&down, &none, most)?;
                    let up_seconds = lines.exchange(&none, &up, most)?;
                    if is_counted {
                        ways.add(rows, [(down_seconds, down_total), (up_seconds, up_total)]);
                    }
                }
            }
        }
        client.close().await?;
        let [best, cached] =
            [plain, cached].map(|[one, two]| if one.seconds() <= two.seconds() { one } else { two });
        let name = distribution.name();
        report.pair("exchange_vs_tcp", name, &ours.both, &best.both);
        report.pair("exchange_vs_cached_tcp", name, &ours.both, &cached.both);
        report.pair("exchange_lookup_vs_tcp", name, &ours.down, &best.down);
        report.pair("exchange_push_vs_tcp", name, &ours.up, &best.up);
        let commit: Vec<Sample> = commits.iter().map(|(sample, _)| *sample).collect();
        let whole: Vec<Sample> =
            commits.iter().map(|(s, seconds)| Sample { seconds: *seconds, ..*s }).collect();
        report.figures.push(Figure::new(format!("exchange {name}: commit"), &commit));
        report.figures.push(Figure::new(format!("exchange {name}: lookup, push and commit"), &whole));
        Ok(())
    }
}
