//! A worker as a member of a run: data and compute thread, restore, connections, start, steps, end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::NamedTensor;
use polygram_collective::{Bound, Membership as RankMembership, Tcp};
use polygram_domain::control::Assignment;
use polygram_domain::run_spec::RunSpec;
use polygram_domain::spikes::{Memory, PolicyState};
use polygram_domain::{Rank, Step};
use polygram_faults::{Point, pass};
use polygram_member::{Inbox, Listening, MemberError, Membership, Role, Stage, Stores, stores::Resumption};
use polygram_process::Panicked;
use polygram_row_exchange::{ClientLimits, ClientOptions, Hello, RowClient, RowExchange};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::checkpoints::{CheckpointChannels, CheckpointProgress};
use crate::compute_thread::{self, ComputeThread, SessionLinks, StartOrder, Thread};
use crate::error::WorkerError;
use crate::input::{Cells, input_queue};
use crate::observe::MetricsDesk;
use crate::policy::Policy;
use crate::ranks::{Meeting, Ranks};
use crate::restore;
use crate::row_desk::row_desk;
use crate::snapshot;
use crate::stop_request::StopRequest;
use crate::training::Training;

/// Where a worker listens for the other ranks; the port is chosen by the system.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// Address to bind.
    pub ip: IpAddr,
    /// Address that the other ranks are given, if not the bound one.
    pub advertise: Option<IpAddr>,
}

/// The role, for one membership after another.
pub struct WorkerRole {
    listen: Listen,
    metrics: MetricsDesk,
    /// The compute thread of the present membership.
    thread: Option<Thread>,
}

/// A worker before its assignment.
pub struct OpenedWorker {
    listener: Bound,
    stores: Stores,
    cells: Cells,
    compute: ComputeThread,
}

/// A worker that is ready: state restored, ranks and shards connected.
pub struct PreparedWorker {
    stores: Stores,
    cells: Cells,
    links: Links,
    start: oneshot::Sender<StartOrder>,
    outcome: oneshot::Receiver<Result<Step, WorkerError>>,
    assignment: Assignment,
}

/// The peers, and what the run remembers of its spikes.
struct Links {
    ranks: Ranks,
    client: RowClient,
    policy: Policy,
}

impl WorkerRole {
    /// A worker that listens there; its metrics are shown by `metrics`.
    pub fn new(listen: Listen, metrics: MetricsDesk) -> WorkerRole {
        WorkerRole { listen, metrics, thread: None }
    }
}

impl Role for WorkerRole {
    type Error = WorkerError;
    type Bound = Bound;
    type Opened = OpenedWorker;
    type Prepared = PreparedWorker;

    async fn bind(&mut self) -> Result<(Bound, Listening), WorkerError> {
        let address = SocketAddr::new(self.listen.ip, 0);
        let listener = Tcp::bind(address).map_err(|source| MemberError::Listen { address, source })?;
        let bound = listener.address();
        let advertise = self.listen.advertise.map(|ip| SocketAddr::new(ip, bound.port()));
        Ok((listener, Listening { bound, advertise }))
    }

    async fn open(&mut self, listener: Bound, membership: &Membership) -> Result<OpenedWorker, WorkerError> {
        let (spec, rank) = (&membership.spec, rank_of(membership));
        let stores = Stores::open(membership)?;
        // Ranks of one machine read the same weights.
        let stores = if spec.topology.workers > 1 { stores.shared() } else { stores };
        let cells = {
            let spec = Arc::clone(spec);
            tokio::task::spawn_blocking(move || Cells::open(spec, rank))
                .await
                .map_err(|error| Panicked::of_task("opening data", error))??
        };
        let (compute, thread) = compute_thread::spawn(Arc::clone(spec), rank)?;
        self.thread = Some(thread);
        Ok(OpenedWorker { listener, stores, cells, compute })
    }

    async fn prepare(
        &mut self,
        opened: OpenedWorker,
        assignment: Assignment,
        membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> Result<Option<PreparedWorker>, WorkerError> {
        let OpenedWorker { listener, stores, cells, compute } = opened;
        let ComputeThread { restore, ready, start, mut outcome } = compute;
        let links = async {
            let restored = restored(&stores, &assignment, membership, restore).await;
            if ready.await.is_err() {
                return Err(engine_failure(restored, &mut outcome).await);
            }
            let memory = restored?;
            pass(Point::WorkerRestored);
            let ranks = connect_ranks(listener, &assignment, membership).await?;
            pass(Point::WorkerMet);
            let client = connect_shards(&assignment, membership).await?;
            let (left_out, ways_back) = (assignment.left_out.clone(), assignment.ways_back.clone());
            let state = PolicyState { memory, left_out, ways_back };
            Ok(Links { ranks, client, policy: Policy::new(&membership.spec, state) })
        };
        let Some(links) = inbox.unless_ended(links).await? else { return Ok(None) };
        Ok(Some(PreparedWorker { stores, cells, links, start, outcome, assignment }))
    }

    async fn run(
        &mut self,
        prepared: PreparedWorker,
        membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> Result<(), WorkerError> {
        let Some(()) = inbox.started().await? else { return Ok(()) };
        pass(Point::WorkerStarted);
        let mut training = self.train(prepared, membership);
        let result = training.follow(&membership.reporter, inbox).await;
        training.end(result).await
    }

    async fn shutdown(
        &mut self,
        result: Result<(), WorkerError>,
        membership: &Membership,
    ) -> Result<(), WorkerError> {
        // All that held the thread's other ends is gone by now, so it ends as soon as it looks up.
        let patience = membership.joined.failure_detection;
        let Some(thread) = self.thread.take() else { return result };
        if thread.ended(patience).await {
            return result;
        }
        let cause = result.err().map_or("the run is over".to_owned(), |error| error.to_string());
        Err(WorkerError::Stuck { cause, seconds: patience.as_secs_f64() })
    }

    fn reached(&self, stage: Stage) {
        pass(match stage {
            Stage::Joined => Point::WorkerJoined,
            Stage::Assigned => Point::WorkerAssigned,
            Stage::Ready => Point::WorkerReady,
        });
    }

    fn released(&mut self) {
        self.metrics.end("pool");
    }
}

impl WorkerRole {
    /// Begins to train: input, rows and uploads as tasks, and the compute thread.
    fn train(&self, prepared: PreparedWorker, membership: &Membership) -> Training {
        let PreparedWorker { stores, cells, links, start, outcome, assignment } = prepared;
        let Links { ranks, client, policy } = links;
        let (rank, reporter) = (rank_of(membership), &membership.reporter);
        let before = CheckpointProgress { step: None, point: assignment.resume_point() };
        let (committed, checkpoint_progress) = watch::channel(before);
        let (snapshots, to_upload) = mpsc::channel(1);
        let stop = StopRequest::default();
        let view = self.metrics.begin(&membership.spec.name, rank);
        let ranks = ranks.counted(&view);
        let aborts = ranks.abort_handles();
        let cells = cells.leaving_out(assignment.left_out);
        let (input, declaring, fetching) =
            input_queue(cells, client.clone(), reporter.clone(), assignment.resume_step);
        let (rows, desk) = row_desk(client);
        let mut tasks = JoinSet::new();
        tasks.spawn(declaring);
        tasks.spawn(fetching);
        tasks.spawn(desk);
        tasks.spawn(snapshot::upload(stores, rank, reporter.clone(), to_upload));
        let session = SessionLinks {
            reporter: reporter.clone(),
            view,
            stop: stop.clone(),
            checkpoints: CheckpointChannels { snapshots, progress: checkpoint_progress },
        };
        let order = StartOrder { start: assignment.resume_step, ranks, input, rows, session, policy };
        if start.send(order).is_err() {
            tracing::debug!("compute has ended before the start; its outcome says why");
        }
        Training { tasks, aborts, stop, checkpoints: committed, outcome }
    }
}

fn rank_of(membership: &Membership) -> Rank {
    Rank(membership.member.index)
}

/// How long to wait for a peer that is alive: a step, a checkpoint or an evaluation of another rank may take many times
/// the failure detection. The dead are found by heartbeats and broken connections long before.
fn patience(spec: &RunSpec) -> Duration {
    Duration::from_secs_f64(spec.failure_detection_seconds * 60.0)
}

/// Why the engine did not become ready. What stopped the restore comes first: an engine that was given half a checkpoint
/// fails of that. Otherwise the engine's own error says more than its closed channel.
async fn engine_failure(
    restored: Result<Memory, WorkerError>,
    outcome: &mut oneshot::Receiver<Result<Step, WorkerError>>,
) -> WorkerError {
    match restored {
        Ok(_) | Err(WorkerError::OtherSide(_)) => match outcome.await {
            Ok(Err(error)) => error,
            _ => WorkerError::OtherSide("compute"),
        },
        Err(error) => error,
    }
}

/// Sends the checkpoint's dense tensors to the engine, if there is a checkpoint. Answers what it remembers of spikes.
async fn restored(
    stores: &Stores,
    assignment: &Assignment,
    membership: &Membership,
    engine: mpsc::Sender<NamedTensor>,
) -> Result<Memory, WorkerError> {
    let Some(from) = stores.resumption(assignment, membership).await? else { return Ok(Memory::default()) };
    restore::dense_state(&from, &membership.spec, rank_of(membership), engine).await?;
    let Resumption { manifest, .. } = from;
    Ok(manifest.policy.memory)
}

/// Connects the other ranks.
async fn connect_ranks(
    listener: Bound,
    assignment: &Assignment,
    membership: &Membership,
) -> Result<Ranks, WorkerError> {
    let (spec, rank) = (Arc::clone(&membership.spec), rank_of(membership));
    let key = membership.token.link_key();
    let own = RankMembership::new(spec.name.as_str(), assignment.generation, rank, key);
    let (addresses, deadline) = (assignment.workers.clone(), membership.joined.failure_detection);
    let connected = tokio::task::spawn_blocking(move || {
        let patience = patience(&spec);
        let meeting = Meeting { membership: &own, addresses: &addresses, deadline, patience };
        Ranks::meet(&spec, listener, &meeting)
    });
    Ok(connected.await.map_err(|error| Panicked::of_task("connecting ranks", error))??)
}

async fn connect_shards(assignment: &Assignment, membership: &Membership) -> Result<RowClient, WorkerError> {
    let spec = &membership.spec;
    let hello = Hello {
        run: spec.name.clone(),
        generation: assignment.generation,
        rank: rank_of(membership),
        workers: spec.topology.workers,
        key: membership.token.link_key(),
    };
    let limits = ClientLimits { reply: patience(spec), ..membership.joined.failure_detection.into() };
    let options = ClientOptions::of(&spec.embedding, limits);
    let client = RowClient::connect(&assignment.shards, hello, Arc::new(spec.tables()), options).await?;
    if client.version() != assignment.resume_step {
        return Err(WorkerError::Resume(format!(
            "the shards are at step {}, the run resumes at step {}",
            client.version(),
            assignment.resume_step
        )));
    }
    Ok(client)
}
