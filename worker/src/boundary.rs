//! What happens between steps, seen from the compute thread: progress, reports, commits, the wish to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use polygram_checkpoint::{Cursor, NamedTensor};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{CheckpointKind, Rank, Step};
use polygram_faults::{Point, pass};
use polygram_proto::control::{
    Evaluation, MemberReport, Phase, PhaseSeconds, Progress, Reporter, StepMetrics,
};
use tokio::sync::{mpsc, watch};

use crate::compute::{Compute, ExchangeWatch};
use crate::error::WorkerError;
use crate::host_copy::HostCopy;
use crate::memory::Resident;
use crate::observe::WorkerView;

/// This rank's share of a checkpoint, on its way to the store.
pub struct Snapshot {
    /// State version.
    pub step: Step,
    /// What it is for.
    pub kind: CheckpointKind,
    /// Its tensors.
    pub tensors: Vec<NamedTensor>,
    /// The data cursor, from rank 0 only.
    pub cursor: Option<Cursor>,
}

/// What became of checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// State version of the newest one that is not on its way any more.
    pub step: Option<Step>,
    /// That of the newest recovery point that is kept; one may be given up.
    pub point: Option<Step>,
}

/// Where the time of a step goes.
#[derive(Debug)]
pub struct PhaseClock {
    /// The phase that lasts, and since when.
    now: (Phase, Instant),
    seconds: PhaseSeconds,
}

impl Default for PhaseClock {
    fn default() -> PhaseClock {
        PhaseClock { now: (Phase::Starting, Instant::now()), seconds: PhaseSeconds::default() }
    }
}

impl PhaseClock {
    fn enter(&mut self, phase: Phase) {
        let (last, since) = std::mem::replace(&mut self.now, (phase, Instant::now()));
        self.seconds.add(last, (self.now.1 - since).as_secs_f64());
    }
}

/// The compute thread's handle on the session.
pub struct Boundary {
    /// The run.
    pub spec: Arc<RunSpec>,
    /// This rank.
    pub rank: Rank,
    /// Step and phase, shown in heartbeats.
    pub progress: Progress,
    /// Time by phase.
    pub clock: PhaseClock,
    /// Reports to the coordinator.
    pub reporter: Reporter,
    /// Numbers for whoever scrapes this worker.
    pub view: WorkerView,
    /// Set by a Stop directive or a signal.
    pub stop: Arc<AtomicBool>,
    /// Shares of checkpoints to upload.
    pub snapshots: mpsc::Sender<Snapshot>,
    /// What became of checkpoints so far.
    pub settled: watch::Receiver<Settled>,
    /// The checkpoint that was not awaited yet.
    pub awaited: Option<Step>,
}

impl Boundary {
    /// Notes where this rank is.
    pub fn enter(&mut self, step: Step, phase: Phase) {
        self.progress.set(step, phase);
        self.clock.enter(phase);
        polygram_faults::enter(step.0, phase.as_str());
    }

    /// What the expert exchange tells whether it waits: others then see this rank exchange instead of compute.
    pub fn exchange_watch(&self) -> ExchangeWatch {
        let progress = self.progress.clone();
        let mut before = Phase::Computing;
        Box::new(move |waits| {
            let (step, phase) = progress.get();
            if !waits {
                return progress.set(step, before);
            }
            before = phase;
            progress.set(step, Phase::Exchanging);
            polygram_faults::enter(step.0, Phase::Exchanging.as_str());
        })
    }

    /// Counts the time of a new step.
    pub fn begin_step(&mut self) {
        self.clock = PhaseClock::default();
    }

    /// Time by phase since the step began.
    pub fn phases(&mut self) -> PhaseSeconds {
        self.clock.enter(self.clock.now.0);
        self.clock.seconds
    }

    /// Whether this rank was asked to stop.
    pub fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Notes a finished step; rank 0 reports it, with the memory that it has.
    pub fn report_step(&self, metrics: StepMetrics) -> Result<(), WorkerError> {
        self.view.step(metrics);
        if self.rank != Rank(0) {
            return Ok(());
        }
        let Resident { bytes, peak_bytes } = Resident::now();
        let metrics = StepMetrics { resident_bytes: bytes, peak_resident_bytes: peak_bytes, ..metrics };
        Ok(self.reporter.report_blocking(MemberReport::Metrics(metrics))?)
    }

    /// Rank 0 reports the loss on a held-out set.
    pub fn report_evaluation(&self, evaluation: Evaluation) -> Result<(), WorkerError> {
        if self.rank != Rank(0) {
            return Ok(());
        }
        Ok(self.reporter.report_blocking(MemberReport::Evaluation(evaluation))?)
    }

    /// Copies the part of state version `step` that this rank is the one to keep, and has it uploaded beside training. Blocks
    /// while the checkpoint before is on its way.
    pub fn keep(
        &mut self,
        (step, kind): (Step, CheckpointKind),
        compute: &dyn Compute,
        host_copy: &mut HostCopy,
    ) -> Result<(), WorkerError> {
        self.await_checkpoint(step)?;
        self.enter(step, Phase::Snapshotting);
        let begun = Instant::now();
        let tensors = host_copy.take(compute.state(), || !self.snapshots.is_closed())?;
        pass(Point::WorkerSnapshotTaken);
        tracing::info!(
            step = step.0,
            of = kind.noun(),
            mebibytes = host_copy.bytes() >> 20,
            seconds = begun.elapsed().as_secs_f64(),
            "state copied; it is written while training goes on"
        );
        let cursor = (self.rank == Rank(0)).then(|| Cursor {
            samples: step.0 * self.spec.samples_per_step(),
            tokens: step.0 * self.spec.tokens_per_step(),
        });
        let snapshot = Snapshot { step, kind, tensors, cursor };
        self.snapshots.blocking_send(snapshot).map_err(|_| WorkerError::OtherSide("session"))?;
        self.awaited = Some(step);
        Ok(())
    }

    /// Whether a checkpoint is on its way that this rank has a part in.
    pub fn is_busy(&self) -> bool {
        self.awaited.is_some_and(|step| self.settled.borrow().step < Some(step))
    }

    /// The newest recovery point that is kept, where no checkpoint is on its way.
    pub fn last_point(&self) -> Option<Step> {
        self.settled.borrow().point
    }

    /// Blocks until the checkpoint that is on its way, if there is one, has come to its end; `step` is where this rank is.
    pub fn await_checkpoint(&mut self, step: Step) -> Result<(), WorkerError> {
        let Some(awaited) = self.awaited.take() else { return Ok(()) };
        self.enter(step, Phase::Uploading);
        let begun = Instant::now();
        let wait = self.settled.wait_for(|settled| settled.step >= Some(awaited));
        futures::executor::block_on(wait).map_err(|_| WorkerError::OtherSide("session"))?;
        self.view.waited_for_commit(begun.elapsed());
        pass(Point::WorkerCommitted);
        Ok(())
    }
}
