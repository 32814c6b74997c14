//! A worker's life: join, assignment, connections, restore, start, steps, end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polygram_checkpoint::{NamedTensor, RunStore};
use polygram_collective::{AbortHandle, Bound, Membership, Tcp};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{Rank, RunFile, Step};
use polygram_proto::bulk::{ClientLimits, ClientOptions, Hello, RowClient};
use polygram_proto::control::{
    Assignment, Directive, Directives, Failure, JoinOptions, Joined, MemberRef, MemberReport, MemberSession,
    Phase, Reporter, Token,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::boundary::{Boundary, PhaseClock};
use crate::compute_thread::{self, ComputeThread, StartOrder};
use crate::error::WorkerError;
use crate::fault::Fault;
use crate::input::{Cells, input_queue};
use crate::ranks::{Meeting, Ranks};
use crate::restore;
use crate::row_desk::row_desk;
use crate::snapshot;

/// How a worker finds its run.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The coordinator's `host:port`.
    pub coordinator: String,
    /// This worker's rank.
    pub rank: Rank,
    /// The run's secret.
    pub token: Token,
    /// Address to listen on for the other ranks; its port is chosen by the system.
    pub listen: IpAddr,
}

/// Takes part in a run until its end. Errors have been reported to the coordinator.
pub async fn run(options: WorkerOptions) -> Result<(), WorkerError> {
    let address = SocketAddr::new(options.listen, 0);
    let listener = Tcp::bind(address)
        .map_err(|source| WorkerError::Io { what: format!("cannot listen on {address}"), source })?;
    let member = MemberRef::worker(options.rank);
    let join = JoinOptions::new(options.coordinator, options.token, member, listener.address());
    let (session, joined) = MemberSession::join(join).await?;
    let (reporter, mut directives) = session.split();
    let result =
        Life { rank: options.rank, reporter: reporter.clone(), joined }.live(listener, &mut directives).await;
    match result {
        Ok(()) => Ok(directives.leave().await?),
        Err(error) => {
            confess(&error, &reporter, &mut directives).await;
            Err(error)
        }
    }
}

/// Reports a failure and gives the coordinator a moment to answer, so that it learns who failed and why.
async fn confess(error: &WorkerError, reporter: &Reporter, directives: &mut Directives) {
    if matches!(error, WorkerError::Aborted(_) | WorkerError::Control(_)) {
        return;
    }
    let (step, phase) = reporter.progress().get();
    let failure = Failure { message: error.to_string(), step, phase, suspect: error.suspect() };
    if let Err(lost) = reporter.report(MemberReport::Failed(failure)).await {
        tracing::warn!(%lost, "cannot report the failure");
        return;
    }
    let answer = async {
        while let Ok(directive) = directives.next().await {
            if matches!(directive, Directive::Abort(_) | Directive::Exit) {
                break;
            }
        }
    };
    if tokio::time::timeout(Duration::from_secs(5), answer).await.is_err() {
        tracing::warn!("the coordinator did not answer the failure report");
    }
}

/// One membership.
struct Life {
    rank: Rank,
    reporter: Reporter,
    joined: Joined,
}

impl Life {
    async fn live(&self, listener: Bound, directives: &mut Directives) -> Result<(), WorkerError> {
        let fault = Fault::ordered(self.rank)?;
        let file = RunFile::parse(&self.joined.config_toml, "configuration from the coordinator", &[])?;
        let spec = Arc::new(file.resolve()?);
        let progress = self.reporter.progress();
        let store = RunStore::open(&self.joined.root, &spec.name)?;
        let cells = {
            let spec = Arc::clone(&spec);
            let rank = self.rank;
            tokio::task::spawn_blocking(move || Cells::open(spec, rank))
                .await
                .map_err(|_| WorkerError::OtherSide("data"))??
        };
        let compute = compute_thread::spawn(Arc::clone(&spec), self.rank)?;
        let assignment = self.assignment(directives).await?;

        progress.set(assignment.resume_step, Phase::Restoring);
        let ComputeThread { restore, ready, start, outcome } = compute;
        let restored = self.restore(&spec, &store, &assignment, restore).await;
        if ready.await.is_err() {
            // The engine failed: its own error says more than the closed channel.
            return Err(outcome.await.map_or(WorkerError::OtherSide("compute"), |result| {
                result.err().unwrap_or(WorkerError::OtherSide("compute"))
            }));
        }
        restored?;
        let ranks = self.connect_ranks(&spec, listener, &assignment).await?;
        let client = self.connect_shards(&spec, &assignment).await?;
        progress.set(assignment.resume_step, Phase::Ready);
        self.reporter.report(MemberReport::Ready { assignment: assignment.hash() }).await?;

        wait_for(directives, |directive| matches!(directive, Directive::Start).then_some(())).await?;
        let (committed_sender, committed) = watch::channel(None);
        let (snapshots, to_upload) = mpsc::channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let aborts = ranks.abort_handles();
        let (input, declaring, fetching) =
            input_queue(cells, client.clone(), self.reporter.clone(), assignment.resume_step);
        let (rows, desk) = row_desk(client);
        let mut tasks = JoinSet::new();
        tasks.spawn(declaring);
        tasks.spawn(fetching);
        tasks.spawn(desk);
        tasks.spawn(snapshot::upload(store, self.rank, self.reporter.clone(), to_upload));
        let boundary = Boundary {
            clock: PhaseClock::default(),
            fault,
            spec: Arc::clone(&spec),
            rank: self.rank,
            progress,
            reporter: self.reporter.clone(),
            stop: Arc::clone(&stop),
            snapshots,
            committed,
        };
        let order = StartOrder { start: assignment.resume_step, ranks, input, rows, boundary };
        if start.send(order).is_err() {
            return Err(WorkerError::OtherSide("compute"));
        }
        Training { tasks, aborts, stop, committed: committed_sender, outcome, signals: signals()? }
            .watch(self, directives)
            .await
    }

    async fn assignment(&self, directives: &mut Directives) -> Result<Assignment, WorkerError> {
        wait_for(directives, |directive| match directive {
            Directive::Assign(assignment) => Some(assignment),
            _ => None,
        })
        .await
    }

    /// Sends the checkpoint's dense tensors to the engine, if there is a checkpoint.
    async fn restore(
        &self,
        spec: &RunSpec,
        store: &RunStore,
        assignment: &Assignment,
        engine: mpsc::Sender<NamedTensor>,
    ) -> Result<(), WorkerError> {
        if assignment.resume_manifest.is_none() {
            return Ok(());
        }
        let manifest = restore::manifest_at(store, spec, assignment.resume_step).await?;
        restore::dense_state(store, &manifest, (spec, self.rank), engine).await
    }

    /// Meets the other ranks.
    async fn connect_ranks(
        &self,
        spec: &Arc<RunSpec>,
        listener: Bound,
        assignment: &Assignment,
    ) -> Result<Ranks, WorkerError> {
        let membership = Membership::new(spec.name.as_str(), assignment.generation, self.rank);
        let (addresses, deadline) = (assignment.workers.clone(), self.joined.failure_detection);
        let spec = Arc::clone(spec);
        let met = tokio::task::spawn_blocking(move || {
            let patience = patience(&spec);
            let meeting = Meeting { membership: &membership, addresses: &addresses, deadline, patience };
            Ranks::meet(&spec, listener, &meeting)
        });
        Ok(met.await.map_err(|_| WorkerError::OtherSide("collective"))??)
    }

    async fn connect_shards(
        &self,
        spec: &RunSpec,
        assignment: &Assignment,
    ) -> Result<RowClient, WorkerError> {
        let hello = Hello {
            run: spec.name.clone(),
            generation: assignment.generation,
            rank: self.rank,
            workers: spec.topology.workers,
        };
        let limits = ClientLimits { reply: patience(spec), ..self.joined.failure_detection.into() };
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
}

/// How long to wait for a peer that is alive: a step, a checkpoint or an evaluation of another rank may take many times
/// the failure detection. The dead are found by heartbeats and broken connections long before.
fn patience(spec: &RunSpec) -> Duration {
    Duration::from_secs_f64(spec.failure_detection_seconds * 60.0)
}

/// Waits for one directive; an Abort or the end of the session is an error, Stop before the start ends the wait too.
async fn wait_for<T>(
    directives: &mut Directives,
    mut pick: impl FnMut(Directive) -> Option<T>,
) -> Result<T, WorkerError> {
    loop {
        match directives.next().await? {
            Directive::Abort(abort) => return Err(WorkerError::Aborted(abort.reason)),
            Directive::Exit => return Err(WorkerError::Aborted("the run ended before it started".into())),
            directive => {
                if let Some(picked) = pick(directive) {
                    return Ok(picked);
                }
            }
        }
    }
}

/// A training run in progress, watched from the session.
struct Training {
    tasks: JoinSet<Result<(), WorkerError>>,
    aborts: Vec<AbortHandle>,
    stop: Arc<AtomicBool>,
    committed: watch::Sender<Option<Step>>,
    outcome: tokio::sync::oneshot::Receiver<Result<Step, WorkerError>>,
    signals: [Signal; 2],
}

/// SIGINT and SIGTERM, from now on.
fn signals() -> Result<[Signal; 2], WorkerError> {
    let listen = |kind| {
        signal(kind).map_err(|source| WorkerError::Io { what: "cannot listen for signals".into(), source })
    };
    Ok([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?])
}

/// Resolves at the next signal.
async fn asked_to_stop([interrupt, terminate]: &mut [Signal; 2]) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

impl Training {
    /// Follows directives and tasks until the coordinator says Exit. The first failure ends everything; a failure that
    /// only says "the other side has ended" gives way to that other side's own.
    async fn watch(mut self, life: &Life, directives: &mut Directives) -> Result<(), WorkerError> {
        let mut finished = false;
        let failure = loop {
            tokio::select! {
                directive = directives.next() => match directive {
                    Ok(Directive::Stop { reason }) => {
                        tracing::info!(reason, "asked to commit and stop");
                        self.stop.store(true, Ordering::Relaxed);
                    }
                    Ok(Directive::Committed { step }) => {
                        self.committed.send_replace(Some(step));
                    }
                    Ok(Directive::Exit) if finished => return Ok(()),
                    Ok(Directive::Exit) => break WorkerError::Aborted("told to exit before the last step".into()),
                    Ok(Directive::Abort(abort)) => break WorkerError::Aborted(abort.reason),
                    Ok(Directive::Assign(_) | Directive::Start) => {}
                    Err(error) => break error.into(),
                },
                () = asked_to_stop(&mut self.signals) => {
                    tracing::info!("signalled: the run commits and stops at the next boundary");
                    self.stop.store(true, Ordering::Relaxed);
                }
                outcome = &mut self.outcome, if !finished => match outcome {
                    Ok(Ok(step)) => {
                        life.reporter.progress().set(step, Phase::Finished);
                        life.reporter.report(MemberReport::Finished { step }).await?;
                        finished = true;
                    }
                    Ok(Err(error)) => break error,
                    Err(_) => break WorkerError::OtherSide("compute"),
                },
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break error,
                    Err(panicked) => break WorkerError::Io {
                        what: "a task of this worker ended abnormally".into(),
                        source: std::io::Error::other(panicked),
                    },
                },
            }
        };
        let reason = failure.to_string();
        self.aborts.iter().for_each(|group| group.abort(reason.clone()));
        Err(self.root_cause(failure).await)
    }

    /// What `failure` is a consequence of, if some task of this process knows better.
    async fn root_cause(mut self, failure: WorkerError) -> WorkerError {
        if !matches!(failure, WorkerError::OtherSide(_)) {
            return failure;
        }
        let better = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Ok(Err(error)) = ended
                    && !matches!(error, WorkerError::OtherSide(_))
                {
                    return Some(error);
                }
            }
            match self.outcome.await {
                Ok(Err(error)) => Some(error),
                _ => None,
            }
        };
        tokio::time::timeout(Duration::from_secs(2), better).await.ok().flatten().unwrap_or(failure)
    }
}
