//! Reports of rank 0 to the coordinator: what a step was, and what it took.

use polygram_domain::control::{Evaluation, Fingerprint, MemberReport, StepMetrics, StepProof};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{Rank, StepOutcome};
use polygram_proto::control::Reporter;

use super::WorkerView;
use crate::error::WorkerError;
use crate::input::InputWaits;
use crate::memory::Resident;
use crate::phases::StepTiming;
use crate::policy::Finding;

/// Everything that is reported of one step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Step, loss and norm.
    pub finding: Finding,
    /// Whether it was applied.
    pub outcome: StepOutcome,
    /// Learning rate of the dense parameters.
    pub lr: f64,
    /// Number of its first sample.
    pub first_sample: u64,
    /// Fingerprint of the rows that it updated.
    pub rows: u64,
    /// Fingerprint of the dense weights after it.
    pub dense: u64,
    /// Waits for input.
    pub waits: InputWaits,
    /// Wall time.
    pub timing: StepTiming,
    /// Optimizer state of this rank.
    pub optimizer_bytes: u64,
    /// Memory of this rank for snapshots.
    pub snapshot_bytes: u64,
}

impl StepReport {
    /// The numbers on the wire. The memory of the process, and whether a checkpoint was being written when the step began,
    /// are for the caller to add.
    pub fn build(self, spec: &RunSpec) -> StepMetrics {
        StepMetrics {
            step: self.finding.step,
            loss: self.finding.loss,
            grad_norm: self.finding.norm,
            lr: self.lr,
            tokens: spec.tokens_per_step(),
            seconds: self.timing.seconds,
            data_wait_seconds: self.waits.data.as_secs_f64(),
            embedding_wait_seconds: self.waits.embedding.as_secs_f64(),
            optimizer_bytes: self.optimizer_bytes,
            boundary_seconds: self.timing.boundary_seconds,
            snapshot_bytes: self.snapshot_bytes,
            phases: self.timing.phases,
            proof: StepProof {
                first_sample: self.first_sample,
                samples: spec.samples_per_step(),
                outcome: self.outcome,
                rows: Fingerprint(self.rows),
                dense: Fingerprint(self.dense),
            },
            ..StepMetrics::default()
        }
    }
}

/// The compute thread's reports.
pub struct StepReporter {
    rank: Rank,
    reporter: Reporter,
    view: WorkerView,
}

impl StepReporter {
    /// Of `rank`; its latest step is shown in `view`.
    pub fn new(rank: Rank, reporter: Reporter, view: WorkerView) -> StepReporter {
        StepReporter { rank, reporter, view }
    }

    /// Counts the rows of a micro-batch: values received, and values of gradients sent.
    pub fn count_rows(&self, received: usize, sent: usize) {
        self.view.rows(received, sent);
    }

    /// Shows a finished step in this rank's metrics; rank 0 reports it, with the memory that its process has.
    pub fn step(&self, metrics: StepMetrics) -> Result<(), WorkerError> {
        self.view.step(metrics);
        if self.rank != Rank(0) {
            return Ok(());
        }
        let Resident { bytes, peak_bytes } = Resident::now();
        let metrics = StepMetrics { resident_bytes: bytes, peak_resident_bytes: peak_bytes, ..metrics };
        Ok(self.reporter.report_blocking(MemberReport::Metrics(metrics))?)
    }

    /// Rank 0 reports the loss on a held-out set.
    pub fn evaluation(&self, evaluation: Evaluation) -> Result<(), WorkerError> {
        if self.rank != Rank(0) {
            return Ok(());
        }
        Ok(self.reporter.report_blocking(MemberReport::Evaluation(evaluation))?)
    }
}
