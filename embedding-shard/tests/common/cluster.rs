//! Shards of one run on loopback, and workers that train a [`Workload`] on them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use polygram_domain::philox::{Purpose, Stream};
use polygram_domain::{Cell, Generation, MicroBatchRef, Rank, RunSpec, ShardIndex, Step};
use polygram_embedding_shard::{Door, Record, Shard, ShardConfig, ShardError};
use polygram_handshake::LinkKey;
use polygram_row_exchange::{
    ClientLimits, ClientOptions, Commit, Hello, Prepared, RowClient, RowError, RowExchange, SnapshotOrder,
};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Workload;

pub(crate) const GENERATION: Generation = Generation(3);
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Of the token that all members of these runs know.
pub(crate) fn key() -> LinkKey {
    LinkKey::of_secret(b"a secret of these tests")
}

type Served = (oneshot::Sender<()>, JoinHandle<Result<Shard, ShardError>>);

pub(crate) struct Cluster {
    pub(crate) spec: RunSpec,
    pub(crate) addresses: Vec<SocketAddr>,
    shards: Vec<Served>,
}

pub(crate) fn new_shard(spec: &RunSpec, index: u32) -> Shard {
    Shard::new(ShardConfig::of(spec, ShardIndex(index), GENERATION)).unwrap()
}

impl Cluster {
    pub(crate) async fn start(spec: &RunSpec) -> Cluster {
        let shards = (0..spec.topology.shards).map(|index| new_shard(spec, index)).collect();
        Cluster::serve(spec, shards).await
    }

    pub(crate) async fn serve(spec: &RunSpec, shards: Vec<Shard>) -> Cluster {
        let mut cluster = Cluster { spec: spec.clone(), addresses: Vec::new(), shards: Vec::new() };
        for shard in shards {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            cluster.addresses.push(listener.local_addr().unwrap());
            let (stop, stopped) = oneshot::channel();
            let door = Door::open(listener, shard.config(), key());
            let served = tokio::spawn(shard.serve(door, async move {
                let _dropped = stopped.await;
            }));
            cluster.shards.push((stop, served));
        }
        cluster
    }

    pub(crate) fn hello(&self, rank: u32) -> Hello {
        Hello {
            run: self.spec.name.clone(),
            generation: GENERATION,
            rank: Rank(rank),
            workers: self.spec.topology.workers,
            key: key(),
        }
    }

    pub(crate) async fn client(&self, rank: u32, chunk_bytes: usize) -> RowClient {
        let limits = ClientLimits { connect: DEADLINE, reply: DEADLINE, chunk_bytes };
        let tables = Arc::new(self.spec.tables());
        let options = ClientOptions::of(&self.spec.embedding, limits);
        RowClient::connect(&self.addresses, self.hello(rank), tables, options).await.unwrap()
    }

    /// Stops all shards and gives them back.
    pub(crate) async fn stop(self) -> Vec<Result<Shard, ShardError>> {
        let mut ended = Vec::new();
        for (stop, served) in self.shards {
            let _ended = stop.send(());
            ended.push(served.await.unwrap());
        }
        ended
    }

    /// Stops all shards; their rows by table and row.
    pub(crate) async fn into_records(self) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        for shard in self.stop().await {
            records.extend(shard.unwrap().records());
        }
        records.sort_by_key(|record| (record.table, record.row));
        records
    }
}

/// What one worker saw: rows of each (step, cell), and each step's sums.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) rows: BTreeMap<(Step, Cell), Vec<f32>>,
    pub(crate) prepared: BTreeMap<Step, Prepared>,
}

/// One worker of a made-up training.
pub(crate) struct Trainer {
    pub(crate) workload: Workload,
    pub(crate) rank: Rank,
    pub(crate) client: RowClient,
    /// Shuffles what may be shuffled.
    pub(crate) shuffle: u64,
    /// Steps that end with a snapshot, and what it is for.
    pub(crate) snapshots: Vec<(u64, SnapshotOrder)>,
}

impl Trainer {
    fn shuffled(&self, cells: Range<u32>, salt: u64) -> Vec<Cell> {
        let stream = Stream::new(self.shuffle, Purpose::SampleOrder);
        let mut cells: Vec<Cell> = cells.map(Cell).collect();
        cells.sort_by_key(|cell| stream.words(salt, u64::from(cell.0))[0]);
        cells
    }

    /// Trains `steps`, looking up as far ahead as the run allows.
    pub(crate) async fn train(&self, spec: &RunSpec, steps: Range<u64>) -> Result<Seen, RowError> {
        let cells = spec.topology.cells_of(self.rank, spec.training.cells);
        let ahead = u64::from(spec.embedding.prefetch_steps);
        let mut seen = Seen::default();
        let mut lookups = BTreeMap::new();
        let mut next = steps.start;
        for step in steps.clone() {
            while next <= (step + ahead).min(steps.end - 1) {
                for cell in self.shuffled(cells.clone(), next) {
                    let ids = self.workload.ids(spec, Step(next), cell);
                    lookups.insert(
                        (next, cell),
                        tokio::spawn(
                            self.client.lookup(MicroBatchRef { step: Step(next), index: cell }, ids),
                        ),
                    );
                    if self.shuffle.is_multiple_of(3) {
                        tokio::task::yield_now().await;
                    }
                }
                next += 1;
            }
            let step_number = step;
            let step = Step(step);
            for cell in self.shuffled(cells.clone(), !step.0) {
                let rows = lookups.remove(&(step_number, cell)).unwrap().await.unwrap()?;
                let grads = self.workload.gradients(step, cell, &rows);
                seen.rows.insert((step, cell), rows);
                self.client.push(MicroBatchRef { step, index: cell }, grads).await?;
            }
            let prepared = self.client.prepare(step).await?;
            let ordered = self.snapshots.iter().find(|(at, _)| *at == step.0);
            let snapshot = ordered.map(|(_, order)| *order).unwrap_or_default();
            match prepared.finite {
                true => {
                    let commit = Commit { snapshot, ..self.workload.commit(step) };
                    self.client.commit(step, commit).await?;
                }
                false => self.client.abort(step, snapshot).await?,
            }
            seen.prepared.insert(step, prepared);
        }
        Ok(seen)
    }
}

/// All workers of a run train `steps`; chunk sizes and orders follow `shuffle`.
pub(crate) async fn train_all(
    cluster: &Cluster,
    workload: Workload,
    (steps, snapshots): (Range<u64>, Vec<(u64, SnapshotOrder)>),
    shuffle: u64,
) -> Vec<Seen> {
    let mut workers = Vec::new();
    for rank in 0..cluster.spec.topology.workers {
        let client = cluster.client(rank, [64, 1000, 1 << 20][(shuffle % 3) as usize]).await;
        let trainer = Trainer {
            workload,
            rank: Rank(rank),
            client,
            shuffle: shuffle * 31 + 7 * u64::from(rank),
            snapshots: snapshots.clone(),
        };
        let (spec, steps) = (cluster.spec.clone(), steps.clone());
        workers.push(tokio::spawn(async move {
            let seen = trainer.train(&spec, steps).await.unwrap();
            trainer.client.close().await.unwrap();
            seen
        }));
    }
    let mut seen = Vec::new();
    for worker in workers {
        seen.push(worker.await.unwrap());
    }
    seen
}
