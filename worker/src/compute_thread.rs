//! The one thread that owns the engine, from its first tensor to its last.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::NamedTensor;
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{Rank, Step};
use tokio::sync::{mpsc, oneshot};

use crate::boundary::Boundary;
use crate::compute::{Compute, ComputeError, engine_of};
use crate::error::WorkerError;
use crate::gradients::GradientSums;
use crate::host_copy::HostCopy;
use crate::input::InputQueue;
use crate::norm::SquareSums;
use crate::policy::Policy;
use crate::ranks::Ranks;
use crate::row_desk::RowDesk;
use crate::step::Trainer;

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
    pub boundary: Boundary,
    /// What becomes of steps that should not be applied.
    pub policy: Policy,
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

/// The thread's life, apart from what it says.
pub struct Thread {
    alive: oneshot::Receiver<Infallible>,
}

impl Thread {
    /// Whether it has ended within `patience`, and with it everything that it owned.
    pub async fn ended(self, patience: Duration) -> bool {
        // Nothing is ever sent: the channel closes when the thread lets go of its end.
        tokio::time::timeout(patience, self.alive).await.is_ok()
    }
}

/// Starts the thread. It ends by itself when its orders' senders are dropped.
pub fn spawn(spec: Arc<RunSpec>, rank: Rank) -> Result<(ComputeThread, Thread), WorkerError> {
    let (restore, tensors) = mpsc::channel(4);
    let (ready_sender, ready) = oneshot::channel();
    let (start, order) = oneshot::channel();
    let (outcome_sender, outcome) = oneshot::channel();
    let (life, alive) = oneshot::channel();
    std::thread::Builder::new()
        .name("compute".into())
        .spawn(move || {
            let result = engine_life(spec, rank, tensors, ready_sender, order);
            if let Err(unread) = outcome_sender.send(result) {
                tracing::debug!(?unread, "nobody waits for the outcome of compute");
            }
            drop(life);
        })
        .map_err(|source| WorkerError::Io { what: "cannot start the compute thread".into(), source })?;
    Ok((ComputeThread { restore, ready, start, outcome }, Thread { alive }))
}

fn engine_life(
    spec: Arc<RunSpec>,
    rank: Rank,
    mut tensors: mpsc::Receiver<NamedTensor>,
    ready: oneshot::Sender<()>,
    order: oneshot::Receiver<StartOrder>,
) -> Result<Step, WorkerError> {
    let mut compute: Box<dyn Compute> = engine_of(&spec, rank)?;
    compute.restore(&mut std::iter::from_fn(|| tensors.blocking_recv()))?;
    let values = compute.state().iter().map(|view| view.values.len()).sum();
    let host_copy = HostCopy::prepare(values, spec.device.threads as usize)?;
    if ready.send(()).is_err() {
        return Err(WorkerError::OtherSide("session"));
    }
    let StartOrder { start, ranks, input, rows, boundary, policy } =
        order.blocking_recv().map_err(|_| WorkerError::OtherSide("session"))?;
    let Ranks { workers, sums, experts } = ranks;
    if let Some(experts) = experts {
        compute.join(experts, boundary.exchange_watch())?;
    }
    let gradients = GradientSums::start(Arc::new(compute.layout().clone()), sums)?;
    let square_sums = SquareSums::of(&spec).map_err(ComputeError::Size)?;
    let collective = workers;
    Trainer { spec, compute, collective, gradients, square_sums, input, rows, boundary, policy, host_copy }
        .run(start)
}
