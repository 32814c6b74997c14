//! The one thread that owns the engine, from its first tensor to its last.

use std::convert::Infallible;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use polygram_checkpoint::NamedTensor;
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{Rank, Step};
use polygram_process::panics::{self, Panicked};
use polygram_proto::control::Reporter;
use tokio::sync::{mpsc, oneshot};

use crate::checkpoints::{CheckpointChannels, CheckpointWriter};
use crate::compute::{Compute, ComputeError};
use crate::engine::engine_of;
use crate::error::WorkerError;
use crate::gradients::GradientSums;
use crate::host_copy::HostCopy;
use crate::input::InputQueue;
use crate::norm::SquareSums;
use crate::observe::{StepReporter, WorkerView};
use crate::phases::Phases;
use crate::policy::Policy;
use crate::ranks::Ranks;
use crate::row_desk::RowDesk;
use crate::step::Trainer;
use crate::stop_request::StopRequest;

/// What training needs beside the engine.
pub struct StartOrder {
    /// State version to go on from.
    pub start: Step,
    /// The other ranks.
    pub ranks: Ranks,
    /// Cells with their rows.
    pub input: InputQueue,
    /// The shards.
    pub rows: RowDesk,
    /// The session.
    pub session: SessionLinks,
    /// What becomes of steps that should not be applied.
    pub policy: Policy,
}

/// What joins the compute thread to the session.
pub struct SessionLinks {
    /// Reports to the coordinator, and step and phase for heartbeats.
    pub reporter: Reporter,
    /// Numbers for whoever scrapes this worker.
    pub view: WorkerView,
    /// Set by a Stop directive or a signal.
    pub stop: StopRequest,
    /// Shares of checkpoints, and their progress.
    pub checkpoints: CheckpointChannels,
}

/// The session's handle on the compute thread.
pub struct ComputeThread {
    /// Tensors of the checkpoint to go on from; drop it when all are sent.
    pub restore: mpsc::Sender<NamedTensor>,
    /// Answered when the engine stands and everything sent is imported.
    pub ready: oneshot::Receiver<()>,
    /// Begins training.
    pub start: oneshot::Sender<StartOrder>,
    /// The state version reached, or why not.
    pub outcome: oneshot::Receiver<Result<Step, WorkerError>>,
}

/// The thread itself, apart from its channels.
pub struct Thread {
    alive: oneshot::Receiver<Infallible>,
    thread: JoinHandle<()>,
}

impl Thread {
    /// Whether it has ended within `patience`, and with it everything that it owned, other threads too. Then it is joined.
    pub async fn ended(self, patience: Duration) -> bool {
        // Nothing is ever sent: the channel closes when the thread lets go of its end.
        let has_ended = tokio::time::timeout(patience, self.alive).await.is_ok();
        if has_ended && let Err(panic) = self.thread.join() {
            // What panicked before was the outcome; this came when its parts were dropped.
            let panic = Panicked::of_thread("compute thread", panic.as_ref());
            tracing::error!(%panic, "compute ended abnormally");
        }
        has_ended
    }
}

/// Starts the thread. It ends by itself when its orders' senders are dropped.
pub fn spawn(spec: Arc<RunSpec>, rank: Rank) -> Result<(ComputeThread, Thread), WorkerError> {
    let (restore, tensors) = mpsc::channel(4);
    let (ready_sender, ready) = oneshot::channel();
    let (start, order) = oneshot::channel();
    let (outcome_sender, outcome) = oneshot::channel();
    let (life, alive) = oneshot::channel();
    let body = move || {
        // Outlives the result: whoever learns of a failure aborts the calls that the trainer's other threads wait in, and only
        // then can dropping the trainer join them.
        let mut trainer = None;
        let result = panics::catch("compute thread", || {
            run_engine(EngineStart { spec, rank, tensors, ready: ready_sender, order }, &mut trainer)
        });
        let result = result.unwrap_or_else(|panic| Err(panic.into()));
        if let Err(unread) = outcome_sender.send(result) {
            tracing::debug!(?unread, "nobody waits for the outcome of compute");
        }
        drop(trainer);
        drop(life);
    };
    let thread = std::thread::Builder::new()
        .name("compute".into())
        .spawn(body)
        .map_err(|source| WorkerError::Io { what: "cannot start the compute thread".into(), source })?;
    Ok((ComputeThread { restore, ready, start, outcome }, Thread { alive, thread }))
}

/// What the thread begins with.
struct EngineStart {
    spec: Arc<RunSpec>,
    rank: Rank,
    tensors: mpsc::Receiver<NamedTensor>,
    ready: oneshot::Sender<()>,
    order: oneshot::Receiver<StartOrder>,
}

/// Makes and restores the engine, waits for the order to start, and trains; `trainer` is left to the caller.
fn run_engine(start: EngineStart, trainer: &mut Option<Trainer>) -> Result<Step, WorkerError> {
    let EngineStart { spec, rank, mut tensors, ready, order } = start;
    let mut compute: Box<dyn Compute> = engine_of(&spec, rank)?;
    compute.restore(&mut std::iter::from_fn(|| tensors.blocking_recv()))?;
    let values = compute.state().iter().map(|view| view.values.len()).sum();
    let host_copy = HostCopy::prepare(values, spec.device.threads as usize)?;
    if ready.send(()).is_err() {
        return Err(WorkerError::OtherSide("session"));
    }
    let StartOrder { start, ranks, input, rows, session, policy } =
        order.blocking_recv().map_err(|_| WorkerError::OtherSide("session"))?;
    let SessionLinks { reporter, view, stop, checkpoints } = session;
    let Ranks { workers: collective, sums, experts } = ranks;
    let phases = Phases::new(reporter.progress());
    if let Some(experts) = experts {
        compute.join(experts, phases.exchange_watch())?;
    }
    let gradients = GradientSums::start(Arc::new(compute.layout().clone()), sums)?;
    let square_sums = SquareSums::of(&spec).map_err(ComputeError::Size)?;
    let reports = StepReporter::new(rank, reporter, view.clone());
    let checkpoints = CheckpointWriter::new(Arc::clone(&spec), rank, checkpoints, view, host_copy);
    let trainer = trainer.insert(Trainer {
        spec,
        compute,
        collective,
        gradients,
        square_sums,
        input,
        rows,
        phases,
        reports,
        checkpoints,
        stop,
        policy,
    });
    trainer.run(start)
}
