//! Serving: accepts workers, runs the lanes' threads and the engine between them, and ends them all.

mod connection;
mod door;
mod engine;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use polygram_domain::Step;
use polygram_process::panics::{self, Panicked};
use tokio::sync::{mpsc, watch};

use crate::archive::RowArchive;
use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::lane::{Command, Lane, Report};
use crate::observe::LaneObserver;
use crate::query::Peek;
use crate::rows::RowStore;
use crate::selection::RowCounts;
use crate::status::ShardStatus;
pub use door::Door;
use engine::Engine;

/// Commands that wait for a lane at most.
const QUEUE_COMMANDS: usize = 64;
/// Last words get so long to reach the workers.
const GOODBYE: Duration = Duration::from_secs(5);

/// What is served.
pub(crate) struct Job {
    pub(crate) config: Arc<ShardConfig>,
    pub(crate) version: Step,
    pub(crate) stores: Vec<RowStore>,
    pub(crate) archive: Option<Arc<dyn RowArchive>>,
    pub(crate) status: watch::Sender<ShardStatus>,
    /// One a lane.
    pub(crate) observers: Vec<LaneObserver>,
    /// Questions from outside the run.
    pub(crate) peeks: mpsc::Receiver<Peek>,
}

type Ended = (Step, Vec<RowStore>, watch::Sender<ShardStatus>);

/// Serves until `shutdown` or a failure; gives version, rows and status back.
pub(crate) async fn serve(
    job: Job,
    mut door: Door,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Ended, ShardError> {
    let Job { config, version, stores, archive, status, observers, mut peeks } = job;
    let decayed = stores.first().map(RowStore::decayed).unwrap_or_default();
    let of_lane = |store: &RowStore| RowCounts { written: store.written(), changed: store.changed() };
    let rows: Vec<RowCounts> = stores.iter().map(of_lane).collect();
    // A lane has at most three reports a step on their way, and steps beyond the window are refused: the queue holds
    // them all, so that a lane never waits for an engine that waits for a lane.
    let open_steps = config.embedding.prefetch_steps as usize + 4;
    let (report, mut reports) = mpsc::channel(4 * open_steps * stores.len() + 1);
    let mut threads = Vec::with_capacity(stores.len());
    let mut lanes = Vec::with_capacity(stores.len());
    let homes = stores.into_iter().zip(observers).zip(config.lane_buckets());
    for (index, ((store, observer), buckets)) in homes.enumerate() {
        let lane = Lane::new(Arc::clone(&config), &buckets, version, store, observer);
        let (commands, queue) = mpsc::channel(QUEUE_COMMANDS);
        threads.push(start(index, lane, queue, report.clone())?);
        lanes.push(commands);
    }
    drop(report);
    let mut engine = Engine::new(door.fence.clone(), version, rows, lanes, status);
    (engine.archive, engine.decayed) = (archive, decayed);
    let written = engine.rows().written;
    engine.status.send_modify(|status| (status.version, status.written_rows) = (version, written));
    let inlets = Inlets { door: &mut door, reports: &mut reports, peeks: &mut peeks };
    let served = run(&mut engine, inlets, shutdown).await;

    // Nobody connects to a shard that ends.
    door.close();
    if let Err(error) = &served {
        tracing::error!(%error, "the shard gives up");
        engine.say_goodbye(error);
    }
    engine.snapshots.shutdown().await;
    let (version, status) = (engine.ledger.version(), engine.status.clone());
    drop(engine);
    // Without the engine, lanes and connections run out of senders and end by themselves, or are ended.
    door.ended(if served.is_err() { GOODBYE } else { Duration::ZERO }).await;
    let stores = join(threads, &mut reports).await?;
    served.map(|()| (version, stores, status))
}

/// Where work comes from.
struct Inlets<'a> {
    door: &'a mut Door,
    reports: &'a mut mpsc::Receiver<(usize, Report)>,
    peeks: &'a mut mpsc::Receiver<Peek>,
}

async fn run(
    engine: &mut Engine,
    Inlets { door, reports, peeks }: Inlets<'_>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ShardError> {
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            Some((lane, report)) = reports.recv() => engine.report(lane, report).await?,
            Some(joined) = engine.snapshots.join_next() => {
                let ended = joined.map_err(|error| ShardError::Snapshot {
                    version: engine.ledger.version(),
                    reason: Panicked::of_task("its task", error).to_string(),
                    problem: None,
                })?;
                engine.snapshot_ended(ended).await?;
            }
            Some(event) = door.events.recv() => engine.event(event).await?,
            Some(peek) = peeks.recv() => engine.peek(peek).await?,
        }
    }
}

fn start(
    index: usize,
    lane: Lane,
    queue: mpsc::Receiver<Command>,
    reports: mpsc::Sender<(usize, Report)>,
) -> Result<JoinHandle<Option<RowStore>>, ShardError> {
    let work = move || {
        let ended = panics::catch(&format!("lane {index}"), || lane.run(index, queue, &reports));
        match ended.unwrap_or_else(|panic| Err(panic.into())) {
            Ok(store) => Some(store),
            Err(error) => {
                if reports.blocking_send((index, Report::Failed(error))).is_err() {
                    tracing::error!(lane = index, "a lane failed after its engine ended");
                }
                None
            }
        }
    };
    std::thread::Builder::new()
        .name(format!("lane-{index}"))
        .spawn(work)
        .map_err(|source| ShardError::Thread { lane: index, source })
}

/// Waits for the lanes. Reports that nobody needs any more are let go, so that no lane waits for them.
async fn join(
    threads: Vec<JoinHandle<Option<RowStore>>>,
    reports: &mut mpsc::Receiver<(usize, Report)>,
) -> Result<Vec<RowStore>, ShardError> {
    let mut failure = None;
    while let Some((_, report)) = reports.recv().await {
        if let Report::Failed(error) = report {
            failure.get_or_insert(error);
        }
    }
    // All lanes have let go of their reports: their threads are ending.
    let mut stores = Vec::with_capacity(threads.len());
    for (index, thread) in threads.into_iter().enumerate() {
        match thread.join() {
            Ok(Some(store)) => stores.push(store),
            Ok(None) | Err(_) => {
                failure.get_or_insert(ShardError::Lane(index));
            }
        }
    }
    failure.map_or(Ok(stores), Err)
}
