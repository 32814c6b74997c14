//! One step, top to bottom: the page to read first.
//!
//! ```text
//! for each of this rank's cells:   rows arrive → forward, backward → push row gradients
//! with the last cell's backward:   dense gradients are summed over cells and ranks, bucket by bucket   (fixed tree)
//! then:                            losses, routing counts
//! prepare:                         shards sum row gradients, give finite? and Σ g² per bucket
//! agree:                           every rank has the same norm and loss, or nobody goes on
//! commit | abort:                  shards update rows, each rank its part of the dense parameters, which then comes to
//!                                  all; step + 1
//! at a boundary:                   checkpoint, evaluation, stop
//! ```
//! It runs on the compute thread. Sockets live on the other side of [`RowDesk`] and [`Boundary`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use polygram_collective::Collective;
use polygram_domain::checkpoint::checkpoint_due;
use polygram_domain::run_spec::RunSpec;
use polygram_domain::sum_tree::SumTree;
use polygram_domain::{Cell, CheckpointKind, Step, StepOutcome};
use polygram_faults::{Point, pass};
use polygram_proto::bulk::SnapshotOrder;
use polygram_proto::control::{Fingerprint, Phase, StepMetrics, StepProof};

use crate::agreement::{self, Opinion};
use crate::boundary::Boundary;
use crate::compute::{CellResult, Compute, DenseUpdate, TakeBucket};
use crate::error::WorkerError;
use crate::gradients::{GradientSums, SummedGradient};
use crate::host_copy::HostCopy;
use crate::input::InputQueue;
use crate::norm::{self, SquareSums};
use crate::policy::{Finding, Policy};
use crate::row_desk::{CommitOrder, RowDesk};

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
    /// Cells with their rows, in order.
    pub input: InputQueue,
    /// The shards.
    pub rows: RowDesk,
    /// Commits, evaluations, reports and the wish to stop.
    pub boundary: Boundary,
    /// What checkpoints are written from.
    pub host_copy: HostCopy,
    /// Steps that are not finite, spikes, and samples left out.
    pub policy: Policy,
}

/// Sums over cells that travel beside the dense gradient.
struct StepSums {
    loss: f64,
    routing_counts: Vec<u64>,
    data_wait: Duration,
    embedding_wait: Duration,
}

impl Trainer {
    /// Runs updates from `start` until the last step of this session or an agreed stop; returns the state version
    /// reached, which is committed.
    pub fn run(mut self, start: Step) -> Result<Step, WorkerError> {
        let last = Step(self.spec.last_step());
        let mut step = start;
        let mut ended = Instant::now();
        while step < last {
            self.boundary.begin_step();
            let begun = Instant::now();
            let (boundary_seconds, commit_under_way) =
                ((begun - ended).as_secs_f64(), self.boundary.is_busy());
            let sums = self.compute_cells(step)?;
            let outcome = self.finish_step(step, sums, begun)?;
            step = step.next();
            self.input.allow(step);
            ended = Instant::now();
            let report = StepMetrics { boundary_seconds, commit_under_way, ..outcome.report };
            self.boundary.report_step(report)?;
            self.evaluate_if_due(step)?;
            if let Some(kind) = outcome.checkpoint {
                self.boundary.keep((step, kind), self.compute.as_ref(), &mut self.host_copy)?;
            }
            if outcome.stop {
                break;
            }
        }
        self.boundary.await_checkpoint(step)?;
        Ok(step)
    }

    /// Forward, backward and push of this rank's cells.
    fn compute_cells(&mut self, step: Step) -> Result<StepSums, WorkerError> {
        let rank = self.collective.rank();
        let cells = self.spec.topology.cells_of(rank, self.spec.training.cells);
        let last = cells.end - 1;
        let mut losses = SumTree::default();
        let mut sums = StepSums {
            loss: 0.0,
            routing_counts: Vec::new(),
            data_wait: Duration::ZERO,
            embedding_wait: Duration::ZERO,
        };
        self.gradients.begin()?;
        for cell in cells.map(Cell) {
            self.boundary.enter(step, Phase::Lookup);
            let ready = self.input.next(step, cell)?;
            sums.data_wait += ready.data_wait;
            sums.embedding_wait += ready.embedding_wait;
            self.boundary.enter(step, Phase::Computing);
            let mut take = |bucket: usize, sum: Vec<f32>| self.gradients.sum(bucket, sum);
            let take = (cell.0 == last).then_some(&mut take as &mut TakeBucket<'_>);
            let result = self
                .compute
                .forward_backward(&ready.work, take)
                .map_err(|source| WorkerError::Compute { step, cell, source })?;
            let CellResult { mut loss_sum, mut row_gradients_suw, routing_counts, .. } = result;
            if let Some(factor) = polygram_faults::poison(self.policy.samples_of(step, cell)) {
                loss_sum *= factor;
                row_gradients_suw.iter_mut().for_each(|gradient| *gradient *= factor as f32);
            }
            losses.push(loss_sum, |a, b| a + b);
            if sums.routing_counts.is_empty() {
                sums.routing_counts = routing_counts;
            } else {
                sums.routing_counts.iter_mut().zip(&routing_counts).for_each(|(sum, count)| *sum += count);
            }
            self.boundary.view.rows(ready.work.rows_suw.len(), row_gradients_suw.len());
            self.boundary.enter(step, Phase::Pushing);
            pass(Point::WorkerBeforePush);
            self.rows.push(step, cell, row_gradients_suw)?;
        }
        sums.loss = losses.finish(|a, b| a + b).unwrap_or(0.0);
        Ok(sums)
    }

    /// Reduce, prepare, agree, then commit or abort.
    fn finish_step(
        &mut self,
        step: Step,
        mut sums: StepSums,
        begun: Instant,
    ) -> Result<Outcome, WorkerError> {
        let spec = Arc::clone(&self.spec);
        let training = &spec.training;
        pass(Point::WorkerBeforePrepare);
        let prepared = self.rows.prepare(step)?;

        self.boundary.enter(step, Phase::Reducing);
        let summed = self.gradients.finish()?;
        let dense_square_sum = self.square_sums.total(step, &summed.square_sums, self.collective.as_mut())?;
        let mut loss = [sums.loss];
        self.collective.all_reduce_f64(&mut loss)?;
        self.collective.all_reduce_u64(&mut sums.routing_counts)?;
        let tokens = spec.tokens_per_step();
        let loss = loss[0] / tokens as f64;

        let prepared = prepared.wait()?;
        pass(Point::WorkerAfterPrepare);
        let gradient = norm::clip(training, dense_square_sum, &prepared);
        let (stop, busy) = (self.boundary.stop_wanted(), self.boundary.is_busy());
        let opinion = Opinion { step, loss, grad_norm: gradient.norm, stop, busy };
        let agreed = agreement::agree(self.collective.as_mut(), &opinion)?;
        pass(Point::WorkerAgreed);
        let finding = Finding { step, loss, norm: gradient.norm, rows_finite: prepared.finite };
        let outcome = self.policy.judge(&finding)?;
        let applies = outcome == StepOutcome::Applied;

        let reached = step.next();
        let stop = agreed.stop || reached.0 >= spec.last_step();
        let due = checkpoint_due((&spec.checkpoint, spec.recovery_points.as_ref()), reached, stop);
        // A recovery point is not worth waiting for the checkpoint before.
        let checkpoint = due.filter(|kind| *kind == CheckpointKind::Commit || !agreed.busy);
        let lr = training.schedule.lr(step.0);
        self.boundary.enter(step, Phase::Updating);
        let order = CommitOrder {
            scale: gradient.table_scale,
            lr: (lr * spec.embedding.lr_multiplier) as f32,
            snapshot: match checkpoint {
                None => SnapshotOrder::None,
                Some(CheckpointKind::Commit) => SnapshotOrder::Commit,
                Some(CheckpointKind::Point) => SnapshotOrder::Point { after: self.boundary.last_point() },
            },
            skip: !applies,
        };
        let committed = self.rows.commit(step, order)?;
        pass(Point::WorkerAfterCommit);
        if applies {
            let update = DenseUpdate {
                update: step.0 + 1,
                lr,
                scale: gradient.dense_scale,
                routing_counts: &sums.routing_counts,
                bias_rate: training.balance.bias_rate_at(step.0),
            };
            self.update(step, &update, &summed)?;
        } else {
            tracing::warn!(
                step = step.0,
                loss,
                grad_norm = gradient.norm,
                "{outcome}: step skipped everywhere"
            );
        }
        self.compute.recycle(summed);
        // While the shards apply their part.
        let dense = agreement::wrapping_sum(self.collective.as_mut(), self.compute.fingerprint())?;
        let rows = committed.wait()?;
        self.policy.note(outcome, &finding);
        let phases = self.boundary.phases();
        Ok(Outcome {
            checkpoint,
            stop,
            report: StepMetrics {
                step,
                loss,
                grad_norm: gradient.norm,
                lr,
                tokens,
                seconds: begun.elapsed().as_secs_f64(),
                data_wait_seconds: sums.data_wait.as_secs_f64(),
                embedding_wait_seconds: sums.embedding_wait.as_secs_f64(),
                optimizer_bytes: self.compute.optimizer_bytes(),
                snapshot_bytes: self.host_copy.bytes(),
                phases,
                proof: StepProof {
                    first_sample: self.policy.first_sample(step),
                    samples: spec.samples_per_step(),
                    outcome,
                    rows: Fingerprint(rows),
                    dense: Fingerprint(dense),
                },
                ..StepMetrics::default()
            },
        })
    }

    /// Updates this rank's part of the dense parameters and gets the other parts.
    fn update(
        &mut self,
        step: Step,
        update: &DenseUpdate<'_>,
        gradient: &SummedGradient,
    ) -> Result<(), WorkerError> {
        let weights = self.compute.apply(update, gradient)?;
        pass(Point::WorkerApplied);
        self.boundary.enter(step, Phase::Reducing);
        self.gradients.spread(weights)?;
        self.boundary.enter(step, Phase::Updating);
        Ok(self.compute.applied(update)?)
    }

    /// Held-out losses at state version `step`, each summed over evaluation cells in the fixed tree.
    fn evaluate_if_due(&mut self, step: Step) -> Result<(), WorkerError> {
        let Some(evaluation) = &self.spec.evaluation else { return Ok(()) };
        if !step.0.is_multiple_of(evaluation.every_steps) && step.0 != self.spec.last_step() {
            return Ok(());
        }
        self.boundary.enter(step, Phase::Evaluating);
        crate::evaluate::evaluate(self, step)
    }
}

/// What a finished step leads to.
struct Outcome {
    report: StepMetrics,
    checkpoint: Option<CheckpointKind>,
    stop: bool,
}
