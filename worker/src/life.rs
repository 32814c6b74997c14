//! One membership of a worker: assignment, connections, restore, start, steps, end.

use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::{NamedTensor, Waits};
use polygram_collective::{Bound, Membership};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::spikes::{Memory, PolicyState};
use polygram_domain::{CheckpointKind, CheckpointRef, Rank, RankLayout, RunFile};
use polygram_faults::{Point, pass};
use polygram_handshake::LinkKey;
use polygram_process::Panicked;
use polygram_proto::control::{Assignment, Directive, Directives, Joined, MemberReport, Phase, Reporter};
use polygram_row_exchange::{ClientLimits, ClientOptions, Hello, RowClient, RowExchange};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::checkpoints::{CheckpointChannels, CheckpointProgress};
use crate::compute_thread::{self, ComputeThread, SessionLinks, StartOrder};
use crate::error::WorkerError;
use crate::input::{Cells, input_queue};
use crate::observe::MetricsDesk;
use crate::policy::Policy;
use crate::ranks::{Meeting, Ranks};
use crate::restore;
use crate::row_desk::row_desk;
use crate::snapshot::{self, Stores};
use crate::stop_request::StopRequest;
use crate::training::Training;
use polygram_process::StopSignals;

/// One membership.
pub struct Life {
    /// This worker's rank.
    pub rank: Rank,
    /// Of the run's token: what peers must know.
    pub key: LinkKey,
    /// Reports to the coordinator.
    pub reporter: Reporter,
    /// What the coordinator said at the door.
    pub joined: Joined,
    /// Where its metrics are told.
    pub metrics: MetricsDesk,
}

/// Everything that a membership has brought up before it starts.
struct Prepared {
    ranks: Ranks,
    client: RowClient,
    policy: Policy,
}

impl Life {
    /// Lives it to its end. Whatever the end, the compute thread has ended too when this returns, unless the error says
    /// that it has not.
    pub async fn live(
        &self,
        listener: Bound,
        directives: &mut Directives,
        signals: &mut StopSignals,
    ) -> Result<(), WorkerError> {
        let file = RunFile::parse(&self.joined.config_toml, "configuration from the coordinator", &[])?;
        let spec = Arc::new(file.resolve()?);
        let waits = Waits::told_to(self.reporter.progress().store_wait().clone());
        let stores = Stores::open(&self.joined.root, &spec)?.with_waits(waits);
        let cells = {
            let spec = Arc::clone(&spec);
            let rank = self.rank;
            tokio::task::spawn_blocking(move || Cells::open(spec, rank))
                .await
                .map_err(|error| Panicked::of_task("opening data", error))??
        };
        let (compute, thread) = compute_thread::spawn(Arc::clone(&spec), self.rank)?;
        let work = Work { spec, stores, cells };
        let inbox = Inbox { directives, signals };
        let lived = self.train(work, listener, compute, inbox).await;
        // All that held the thread's other ends is gone by now, so it ends as soon as it looks up.
        match (lived, thread.ended(self.joined.failure_detection).await) {
            (lived, true) => lived,
            (lived, false) => {
                let cause = lived.err().map_or("the run is over".to_owned(), |error| error.to_string());
                Err(WorkerError::Stuck { cause, seconds: self.joined.failure_detection.as_secs_f64() })
            }
        }
    }

    async fn train(
        &self,
        work: Work,
        listener: Bound,
        compute: ComputeThread,
        inbox: Inbox<'_>,
    ) -> Result<(), WorkerError> {
        let Inbox { directives, signals } = inbox;
        let Work { spec, stores, cells } = work;
        let progress = self.reporter.progress();
        let ComputeThread { restore, ready, start, mut outcome } = compute;
        let Some(assignment) = before_start(directives, signals, assigned).await? else { return Ok(()) };
        pass(Point::WorkerAssigned);
        progress.set(assignment.resume_step, Phase::Restoring);
        let prepared = {
            let prepare = async {
                let restored = self.restore(&spec, &stores, &assignment, restore).await;
                if ready.await.is_err() {
                    // An engine that was given half a checkpoint has less to say than what stopped the other half.
                    if matches!(&restored, Err(error) if error.damaged().is_some()) {
                        restored?;
                    }
                    // The engine failed: its own error says more than the closed channel.
                    return Err((&mut outcome).await.map_or(WorkerError::OtherSide("compute"), |result| {
                        result.err().unwrap_or(WorkerError::OtherSide("compute"))
                    }));
                }
                let memory = restored?;
                pass(Point::WorkerRestored);
                let ranks = self.connect_ranks(&spec, listener, &assignment).await?;
                pass(Point::WorkerMet);
                let client = self.connect_shards(&spec, &assignment).await?;
                let left_out = assignment.left_out.clone();
                let state = PolicyState { memory, left_out, ways_back: assignment.ways_back.clone() };
                Ok(Prepared { ranks, client, policy: Policy::new(&spec, state) })
            };
            // Peers that are gone would be waited for long: the coordinator's word ends that.
            tokio::select! {
                prepared = prepare => prepared?,
                ended = before_start(directives, signals, |_| None::<()>) => {
                    return ended.map(|_never| ());
                }
            }
        };
        let Prepared { ranks, client, policy } = prepared;
        progress.set(assignment.resume_step, Phase::Ready);
        pass(Point::WorkerReady);
        self.reporter.report(MemberReport::Ready { assignment: assignment.hash() }).await?;

        let started = |directive| matches!(directive, Directive::Start).then_some(());
        let Some(()) = before_start(directives, signals, started).await? else { return Ok(()) };
        pass(Point::WorkerStarted);
        let before = CheckpointProgress { step: None, point: assignment.resume_point() };
        let (committed, checkpoint_progress) = watch::channel(before);
        let (snapshots, to_upload) = mpsc::channel(1);
        let stop = StopRequest::default();
        let view = self.metrics.begin(&spec.name, self.rank);
        let ranks = ranks.counted(&view);
        let aborts = ranks.abort_handles();
        let cells = cells.leaving_out(assignment.left_out.clone());
        let (input, declaring, fetching) =
            input_queue(cells, client.clone(), self.reporter.clone(), assignment.resume_step);
        let (rows, desk) = row_desk(client);
        let mut tasks = JoinSet::new();
        tasks.spawn(declaring);
        tasks.spawn(fetching);
        tasks.spawn(desk);
        tasks.spawn(snapshot::upload(stores, self.rank, self.reporter.clone(), to_upload));
        let session = SessionLinks {
            reporter: self.reporter.clone(),
            view,
            stop: stop.clone(),
            checkpoints: CheckpointChannels { snapshots, progress: checkpoint_progress },
        };
        let order = StartOrder { start: assignment.resume_step, ranks, input, rows, session, policy };
        if start.send(order).is_err() {
            return Err(WorkerError::OtherSide("compute"));
        }
        Training { tasks, aborts, stop, checkpoints: committed, outcome }
            .watch(&self.reporter, directives, signals)
            .await
    }

    /// Sends the checkpoint's dense tensors to the engine, if there is a checkpoint. Answers what it remembers of spikes.
    async fn restore(
        &self,
        spec: &RunSpec,
        stores: &Stores,
        assignment: &Assignment,
        engine: mpsc::Sender<NamedTensor>,
    ) -> Result<Memory, WorkerError> {
        if assignment.resume_manifest.is_none() {
            return Ok(Memory::default());
        }
        let (step, kind) = (assignment.resume_step, assignment.resume_kind);
        let store = stores.of(kind).ok_or(WorkerError::NoPlace(CheckpointRef { step, kind }))?;
        // A recovery point that fails is not gone back to again, whatever is wrong with it: nobody has to look.
        let unrestored = |error| match error {
            WorkerError::Checkpoint(source) if kind == CheckpointKind::Commit => {
                WorkerError::Unrestored { step, source }
            }
            other => other,
        };
        let store = store.clone().counting_into(self.reporter.progress().restored_bytes());
        let manifest = restore::manifest_at(&store, spec, step).await.map_err(unrestored)?;
        let layout = RankLayout::of(&spec.model, &spec.topology, self.rank).map_err(WorkerError::Resume)?;
        let restored = restore::dense_state(&store, &manifest, &layout, engine).await;
        restored.map_err(unrestored)?;
        Ok(manifest.policy.memory)
    }

    /// Meets the other ranks.
    async fn connect_ranks(
        &self,
        spec: &Arc<RunSpec>,
        listener: Bound,
        assignment: &Assignment,
    ) -> Result<Ranks, WorkerError> {
        let membership = Membership::new(spec.name.as_str(), assignment.generation, self.rank, self.key);
        let (addresses, deadline) = (assignment.workers.clone(), self.joined.failure_detection);
        let spec = Arc::clone(spec);
        let met = tokio::task::spawn_blocking(move || {
            let patience = patience(&spec);
            let meeting = Meeting { membership: &membership, addresses: &addresses, deadline, patience };
            Ranks::meet(&spec, listener, &meeting)
        });
        Ok(met.await.map_err(|error| Panicked::of_task("connecting ranks", error))??)
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
            key: self.key,
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

/// What may end a membership at any time.
struct Inbox<'a> {
    directives: &'a mut Directives,
    signals: &'a mut StopSignals,
}

/// What a membership works with from its first moment.
struct Work {
    spec: Arc<RunSpec>,
    stores: Stores,
    cells: Cells,
}

/// How long to wait for a peer that is alive: a step, a checkpoint or an evaluation of another rank may take many times
/// the failure detection. The dead are found by heartbeats and broken connections long before.
fn patience(spec: &RunSpec) -> Duration {
    Duration::from_secs_f64(spec.failure_detection_seconds * 60.0)
}

fn assigned(directive: Directive) -> Option<Assignment> {
    match directive {
        Directive::Assign(assignment) => Some(assignment),
        _ => None,
    }
}

/// Waits for one directive before the start; `None` where the run ends without this worker's help. Abort, a signal and
/// the end of the session are errors.
async fn before_start<T>(
    directives: &mut Directives,
    signals: &mut StopSignals,
    mut pick: impl FnMut(Directive) -> Option<T>,
) -> Result<Option<T>, WorkerError> {
    loop {
        let directive = tokio::select! {
            directive = directives.next() => directive?,
            () = signals.at_least(1) => return Err(WorkerError::Signalled),
        };
        match directive {
            Directive::Abort(abort) => return Err(abort.into()),
            Directive::Exit => return Ok(None),
            directive => {
                if let Some(picked) = pick(directive) {
                    return Ok(Some(picked));
                }
            }
        }
    }
}
