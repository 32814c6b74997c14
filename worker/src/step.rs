//! One step, top to bottom: the page to read first.
//!
//! ```text
//! for each micro-batch of this rank:   rows arrive → forward, backward → push row gradients
//! with the last backward:              dense gradients are summed over micro-batches and ranks, bucket by bucket
//! prepare:                             shards sum row gradients, return finite? and Σ g² per bucket
//! agree:                               one exchange of summaries: every rank has the same loss, norm and counts, or
//!                                      nobody commits
//! commit | abort:                      shards update rows, each rank its part of the dense parameters, which then goes
//!                                      to all; step + 1
//! compare:                             one exchange of results: fingerprint of all dense weights
//! at a boundary:                       checkpoint, evaluation, stop
//! ```
//! It runs on the compute thread and opens no socket: the session is behind [`RowDesk`], [`InputQueue`], [`StepReporter`] and
//! [`CheckpointWriter`].

use std::sync::Arc;

use polygram_collective::Collective;
use polygram_domain::control::{Phase, StepMetrics};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::sum_tree::SumTree;
use polygram_domain::{Cell, CheckpointRef, MicroBatchRef, Step, StepOutcome};

use crate::checkpoints::{CheckpointWriter, StepBoundary};
use crate::compute::{self, Compute, DenseUpdate, TakeBucket};
use crate::error::WorkerError;
use crate::gradients::{GradientSums, SummedGradient};
use crate::input::{InputQueue, InputWaits};
use crate::norm::{self, RowSummary, SquareSums};
use crate::observe::{StepReport, StepReporter};
use crate::phases::Phases;
use crate::policy::{Finding, Policy};
use crate::row_desk::{CommitOrder, RowDesk};
use crate::stop_request::StopRequest;
use crate::summary::{StepResult, StepSummary};

/// Everything that the steps of one rank work with.
pub struct Trainer {
    /// The run.
    pub spec: Arc<RunSpec>,
    /// The model, on this device.
    pub compute: Box<dyn Compute>,
    /// The other ranks.
    pub collective: Box<dyn Collective>,
    /// Sums of dense gradients over ranks.
    pub gradients: GradientSums,
    /// The order of the dense gradient's sums of squares.
    pub square_sums: SquareSums,
    /// Micro-batches with their rows, in order.
    pub input: InputQueue,
    /// The shards.
    pub rows: RowDesk,
    /// Step and phase, and their time.
    pub phases: Phases,
    /// Reports to the coordinator.
    pub reports: StepReporter,
    /// This rank's share of checkpoints.
    pub checkpoints: CheckpointWriter,
    /// Set when the run is to stop at the next boundary.
    pub stop: StopRequest,
    /// Steps that are not finite, spikes, and samples left out.
    pub policy: Policy,
}

/// Sums over this rank's micro-batches that travel beside the dense gradient.
#[derive(Default)]
struct StepSums {
    loss: f64,
    routing_counts: Vec<u64>,
    waits: InputWaits,
}

/// What a finished step leads to.
struct Finished {
    report: StepMetrics,
    checkpoint: Option<CheckpointRef>,
    stop: bool,
}

impl Trainer {
    /// Runs updates from `start` until the last step of this session or an agreed stop; returns the state version
    /// reached, which is committed.
    pub fn run(&mut self, start: Step) -> Result<Step, WorkerError> {
        let last = Step(self.spec.last_step());
        let mut step = start;
        while step < last {
            self.phases.begin_step();
            let commit_under_way = self.checkpoints.is_writing();
            let sums = self.compute_micro_batches(step)?;
            let finished = self.finish_step(step, sums)?;
            step = step.next();
            self.input.allow(step);
            self.reports.step(StepMetrics { commit_under_way, ..finished.report })?;
            self.evaluate_if_due(step)?;
            if let Some(checkpoint) = finished.checkpoint {
                self.checkpoints.start_checkpoint(checkpoint, self.compute.as_ref(), &mut self.phases)?;
            }
            if finished.stop {
                break;
            }
        }
        self.checkpoints.wait_for_commit(step, &mut self.phases)?;
        Ok(step)
    }

    /// Forward, backward and push of this rank's micro-batches.
    fn compute_micro_batches(&mut self, step: Step) -> Result<StepSums, WorkerError> {
        let cells = self.spec.topology.cells_of(self.collective.rank(), self.spec.training.cells);
        let last = cells.end - 1;
        let mut losses = SumTree::default();
        let mut sums = StepSums::default();
        self.gradients.begin()?;
        for index in cells.map(Cell) {
            let at = MicroBatchRef { step, index };
            self.phases.enter(step, Phase::Lookup);
            let ready = self.input.next(at)?;
            sums.waits += ready.waits;
            self.phases.enter(step, Phase::Computing);
            let mut take = |bucket: usize, sum: Vec<f32>| self.gradients.sum(bucket, sum);
            let take = (index.0 == last).then_some(&mut take as &mut TakeBucket<'_>);
            let result = compute::run_micro_batch(self.compute.as_mut(), &ready.work, take)
                .map_err(|source| WorkerError::Compute { at, source })?;
            losses.push(result.loss_sum, |a, b| a + b);
            if sums.routing_counts.is_empty() {
                sums.routing_counts = result.routing_counts;
            } else {
                let counts = sums.routing_counts.iter_mut().zip(&result.routing_counts);
                counts.for_each(|(sum, count)| *sum += count);
            }
            self.reports.count_rows(ready.work.rows_suw.len(), result.row_gradients_suw.len());
            self.phases.enter(step, Phase::Pushing);
            self.rows.push(at, result.row_gradients_suw)?;
        }
        sums.loss = losses.finish(|a, b| a + b).unwrap_or(0.0);
        Ok(sums)
    }

    /// Prepare, agree, commit or abort, compare.
    fn finish_step(&mut self, step: Step, sums: StepSums) -> Result<Finished, WorkerError> {
        let spec = Arc::clone(&self.spec);
        let prepared = self.rows.prepare(step)?;
        self.phases.enter(step, Phase::Reducing);
        let mut gradient = self.gradients.finish()?;
        let summary = StepSummary {
            step,
            loss_sum: sums.loss,
            rows: RowSummary::from(&prepared.wait()?),
            square_sums: std::mem::take(&mut gradient.square_sums),
            routing_counts: sums.routing_counts,
            stop: self.stop.is_set(),
            is_writing: self.checkpoints.is_writing(),
        };
        let agreed = summary.exchange(self.collective.as_mut(), &self.square_sums)?;

        let loss = agreed.loss_sum / spec.tokens_per_step() as f64;
        let clipped = norm::clip(&spec.training, agreed.dense_square_sum, &agreed.rows);
        let finding = Finding { step, loss, norm: clipped.norm, rows_finite: agreed.rows.finite };
        let outcome = self.policy.judge(&finding)?;
        let reached = step.next();
        let stop = agreed.stop || reached.0 >= spec.last_step();
        let boundary = StepBoundary { is_last: stop, is_writing: agreed.is_writing };
        let checkpoint = self.checkpoints.due(reached, boundary);
        let lr = spec.training.schedule.lr(step.0);

        self.phases.enter(step, Phase::Updating);
        let order = CommitOrder {
            scale: clipped.table_scale,
            lr: (lr * spec.embedding.lr_multiplier) as f32,
            snapshot: self.checkpoints.snapshot_order(checkpoint),
            skip: outcome != StepOutcome::Applied,
        };
        let committed = self.rows.commit(step, order)?;
        if outcome == StepOutcome::Applied {
            let update = DenseUpdate {
                update: reached.0,
                lr,
                scale: clipped.dense_scale,
                routing_counts: &agreed.routing_counts,
                bias_rate: spec.training.balance.bias_rate_at(step.0),
            };
            self.update(step, &update, &gradient)?;
        } else {
            let grad_norm = clipped.norm;
            tracing::warn!(step = step.0, loss, grad_norm, "{outcome}: step skipped everywhere");
        }
        self.compute.recycle(gradient);
        // While the shards apply their part.
        let result = StepResult { step, loss, norm: clipped.norm, fingerprint: self.compute.fingerprint() };
        let dense = result.exchange(self.collective.as_mut())?;
        let rows = committed.wait()?;
        self.policy.note(outcome, &finding);
        let report = StepReport {
            finding,
            outcome,
            lr,
            first_sample: self.policy.first_sample(step),
            rows,
            dense,
            waits: sums.waits,
            timing: self.phases.end_step(),
            optimizer_bytes: self.compute.optimizer_bytes(),
            snapshot_bytes: self.checkpoints.copy_bytes(),
        };
        Ok(Finished { report: report.build(&spec), checkpoint, stop })
    }

    /// Updates this rank's part of the dense parameters and gets the other parts.
    fn update(
        &mut self,
        step: Step,
        update: &DenseUpdate<'_>,
        gradient: &SummedGradient,
    ) -> Result<(), WorkerError> {
        let weights = self.compute.apply(update, gradient)?;
        self.phases.enter(step, Phase::Reducing);
        self.gradients.spread(weights)?;
        self.phases.enter(step, Phase::Updating);
        Ok(self.compute.applied(update)?)
    }
}
