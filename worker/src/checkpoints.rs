//! This rank's share of checkpoints, seen from the compute thread: copy the state, hand it over for upload, and wait for
//! the commit.
//!
//! What always holds: at most one checkpoint of this rank is being written. Training goes on meanwhile; the next
//! checkpoint and the end of training wait for it.

use std::sync::Arc;
use std::time::Instant;

use polygram_checkpoint::{Cursor, NamedTensor};
use polygram_domain::checkpoint::checkpoint_due;
use polygram_domain::control::Phase;
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{CheckpointKind, CheckpointRef, Rank, Step};
use polygram_faults::{Point, pass};
use polygram_row_exchange::SnapshotOrder;
use tokio::sync::{mpsc, watch};

use crate::compute::Compute;
use crate::error::WorkerError;
use crate::host_copy::HostCopy;
use crate::observe::WorkerView;
use crate::phases::Phases;

/// This rank's share of a checkpoint, on its way to the store.
pub struct Snapshot {
    /// The checkpoint.
    pub checkpoint: CheckpointRef,
    /// Its tensors.
    pub tensors: Vec<NamedTensor>,
    /// The data cursor, from rank 0 only.
    pub cursor: Option<Cursor>,
}

/// What the coordinator has reported about checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointProgress {
    /// State version of the newest checkpoint that is no longer being written.
    pub step: Option<Step>,
    /// State version of the newest recovery point that is kept; one that was not written everywhere is discarded.
    pub point: Option<Step>,
}

/// The session's ends of the channels of a [`CheckpointWriter`].
pub struct CheckpointChannels {
    /// Shares of checkpoints to upload.
    pub snapshots: mpsc::Sender<Snapshot>,
    /// Progress of their commits.
    pub progress: watch::Receiver<CheckpointProgress>,
}

/// Writes this rank's share of checkpoints.
pub struct CheckpointWriter {
    spec: Arc<RunSpec>,
    rank: Rank,
    channels: CheckpointChannels,
    view: WorkerView,
    host_copy: HostCopy,
    /// The checkpoint that was started and not waited for.
    pending: Option<Step>,
}

impl CheckpointWriter {
    /// For `rank`; wait times are counted in `view`.
    pub fn new(
        spec: Arc<RunSpec>,
        rank: Rank,
        channels: CheckpointChannels,
        view: WorkerView,
        host_copy: HostCopy,
    ) -> CheckpointWriter {
        CheckpointWriter { spec, rank, channels, view, host_copy, pending: None }
    }

    /// Whether a checkpoint is being written that this rank has a share in.
    pub fn is_writing(&self) -> bool {
        self.pending.is_some_and(|step| self.channels.progress.borrow().step < Some(step))
    }

    /// Memory of the copy that checkpoints are written from.
    pub fn copy_bytes(&self) -> u64 {
        self.host_copy.bytes()
    }

    /// The checkpoint that the boundary at `reached` asks for. A recovery point is not worth waiting for the checkpoint
    /// before: where one `is_writing` on any rank, there is none.
    pub fn due(&self, reached: Step, boundary: StepBoundary) -> Option<CheckpointRef> {
        let rules = (&self.spec.checkpoint, self.spec.recovery_points.as_ref());
        let kind = checkpoint_due(rules, reached, boundary.is_last)?;
        let is_skipped = boundary.is_writing && kind == CheckpointKind::Point;
        (!is_skipped).then_some(CheckpointRef { step: reached, kind })
    }

    /// What the shards write for `checkpoint`.
    pub fn snapshot_order(&self, checkpoint: Option<CheckpointRef>) -> SnapshotOrder {
        match checkpoint.map(|checkpoint| checkpoint.kind) {
            None => SnapshotOrder::None,
            Some(CheckpointKind::Commit) => SnapshotOrder::Commit,
            Some(CheckpointKind::Point) => {
                SnapshotOrder::Point { after: self.channels.progress.borrow().point }
            }
        }
    }

    /// Copies this rank's share of `checkpoint`, which is uploaded while training goes on. Blocks while the checkpoint
    /// before is being written.
    pub fn start_checkpoint(
        &mut self,
        checkpoint: CheckpointRef,
        compute: &dyn Compute,
        phases: &mut Phases,
    ) -> Result<(), WorkerError> {
        let step = checkpoint.step;
        self.wait_for_commit(step, phases)?;
        phases.enter(step, Phase::Snapshotting);
        let began = Instant::now();
        let snapshots = &self.channels.snapshots;
        let tensors = self.host_copy.take(compute.state(), || !snapshots.is_closed())?;
        pass(Point::WorkerSnapshotTaken);
        tracing::info!(
            step = step.0,
            of = checkpoint.kind.noun(),
            mebibytes = self.host_copy.bytes() >> 20,
            seconds = began.elapsed().as_secs_f64(),
            "state copied; it is written while training goes on"
        );
        let cursor = (self.rank == Rank(0)).then(|| Cursor {
            samples: step.0 * self.spec.samples_per_step(),
            tokens: step.0 * self.spec.tokens_per_step(),
        });
        let snapshot = Snapshot { checkpoint, tensors, cursor };
        snapshots.blocking_send(snapshot).map_err(|_| WorkerError::OtherSide("session"))?;
        self.pending = Some(step);
        Ok(())
    }

    /// Blocks until the checkpoint that is being written is committed or discarded; this rank is at `step`.
    pub fn wait_for_commit(&mut self, step: Step, phases: &mut Phases) -> Result<(), WorkerError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        phases.enter(step, Phase::Uploading);
        let began = Instant::now();
        let wait = self.channels.progress.wait_for(|progress| progress.step >= Some(pending));
        futures::executor::block_on(wait).map_err(|_| WorkerError::OtherSide("session"))?;
        self.view.waited_for_commit(began.elapsed());
        pass(Point::WorkerCommitted);
        Ok(())
    }
}

/// What all ranks agree on at a step boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepBoundary {
    /// Training ends here.
    pub is_last: bool,
    /// Some rank's share of a checkpoint is being written.
    pub is_writing: bool,
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunFile;

    use super::*;

    fn writer(progress: CheckpointProgress) -> (CheckpointWriter, watch::Sender<CheckpointProgress>) {
        let text = include_str!("../../configs/tiny.toml");
        let sets = ["recovery_points.every_steps=5".to_owned(), "checkpoint.every_steps=20".to_owned()];
        let spec = RunFile::parse(text, "tiny", &sets).and_then(|file| file.resolve()).unwrap();
        let (sender, progress) = watch::channel(progress);
        let channels = CheckpointChannels { snapshots: mpsc::channel(1).0, progress };
        let host_copy = HostCopy::prepare(1, 1).unwrap();
        (CheckpointWriter::new(Arc::new(spec), Rank(0), channels, WorkerView::default(), host_copy), sender)
    }

    #[test]
    fn a_recovery_point_does_not_wait_for_the_checkpoint_before() {
        let (writer, _progress) = writer(CheckpointProgress::default());
        let due = |step, is_last, is_writing| {
            let checkpoint = writer.due(Step(step), StepBoundary { is_last, is_writing })?;
            assert_eq!(checkpoint.step, Step(step));
            Some(checkpoint.kind)
        };
        let (commit, point) = (Some(CheckpointKind::Commit), Some(CheckpointKind::Point));
        assert_eq!(
            [due(4, false, false), due(5, false, false), due(20, false, false)],
            [None, point, commit]
        );
        assert_eq!([due(5, false, true), due(20, false, true), due(5, true, true)], [None, commit, commit]);
    }

    #[test]
    fn a_checkpoint_is_written_until_it_is_committed_or_discarded() {
        let kept = Some(Step(15));
        let (mut writer, sender) = writer(CheckpointProgress { step: kept, point: kept });
        assert!(!writer.is_writing());
        writer.pending = Some(Step(20));
        assert!(writer.is_writing());
        let at = |kind| Some(CheckpointRef { step: Step(20), kind });
        assert_eq!(writer.snapshot_order(None), SnapshotOrder::None);
        assert_eq!(writer.snapshot_order(at(CheckpointKind::Commit)), SnapshotOrder::Commit);
        assert_eq!(writer.snapshot_order(at(CheckpointKind::Point)), SnapshotOrder::Point { after: kept });
        sender.send_modify(|progress| progress.step = Some(Step(20)));
        assert!(!writer.is_writing());
    }
}
