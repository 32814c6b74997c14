//! Uploads this rank's share of checkpoints.

use polygram_checkpoint::{Part, RunStore, Waits};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{CheckpointKind, CheckpointRef, Rank};
use polygram_faults::{Point, pass};
use polygram_proto::control::{Reporter, Upload};
use tokio::sync::mpsc;

use crate::checkpoints::Snapshot;
use crate::error::WorkerError;

/// The run's checkpoints, and its recovery points where there are any and their place can be used.
#[derive(Clone, Debug)]
pub struct Stores {
    /// What is committed.
    pub commits: RunStore,
    /// What is kept in between.
    pub points: Option<RunStore>,
}

impl Stores {
    /// Opens them under `root`. A place of recovery points that cannot be used is told and left.
    pub fn open(root: &str, spec: &RunSpec) -> Result<Stores, WorkerError> {
        let commits = RunStore::open(root, &spec.name)?;
        let points = RunStore::of_points(root, spec).unwrap_or_else(|error| {
            tracing::warn!(%error, "recovery points are not written by this rank");
            None
        });
        // Ranks of one machine read the same weights.
        Ok(match spec.topology.workers {
            0 | 1 => Stores { commits, points },
            _ => Stores { commits: commits.shared(), points: points.map(RunStore::shared) },
        })
    }

    /// The same, where waits for the commits' store are told.
    pub fn with_waits(self, waits: Waits) -> Stores {
        Stores { commits: self.commits.with_waits(waits), ..self }
    }

    /// Where checkpoints of a kind are.
    pub fn of(&self, kind: CheckpointKind) -> Option<&RunStore> {
        match kind {
            CheckpointKind::Commit => Some(&self.commits),
            CheckpointKind::Point => self.points.as_ref(),
        }
    }
}

/// Writes each snapshot that arrives and reports it to the coordinator, until the compute thread is done. A part of a recovery
/// point that cannot be written is reported as such.
pub async fn upload(
    stores: Stores,
    rank: Rank,
    reporter: Reporter,
    mut snapshots: mpsc::Receiver<Snapshot>,
) -> Result<(), WorkerError> {
    while let Some(snapshot) = snapshots.recv().await {
        let CheckpointRef { step, kind } = snapshot.checkpoint;
        let written = match stores.of(kind) {
            Some(store) => write(store, rank, snapshot).await,
            None => Err(WorkerError::NoPlace(snapshot.checkpoint)),
        };
        let upload = match (written, kind) {
            (Ok(json), _) => Upload::Part { kind, json },
            (Err(error @ (WorkerError::Checkpoint(_) | WorkerError::NoPlace(_))), CheckpointKind::Point) => {
                tracing::warn!(%step, %error, "this rank's part of a recovery point is not written");
                Upload::NotWritten { reason: error.to_string() }
            }
            (Err(error), _) => return Err(error),
        };
        pass(Point::WorkerUploaded);
        reporter.report_upload(step, upload).await?;
        pass(Point::WorkerReported);
    }
    Ok(())
}

/// Writes a snapshot; answers its part as JSON.
async fn write(store: &RunStore, rank: Rank, snapshot: Snapshot) -> Result<String, WorkerError> {
    let Snapshot { checkpoint: CheckpointRef { step, .. }, tensors, cursor } = snapshot;
    let member = format!("worker-{rank}");
    let objects = store.write_tensors(step, &member, tensors).await?;
    let part = Part { member, step, objects, cursor, table_decay: None };
    serde_json::to_string(&part).map_err(|source| WorkerError::Io {
        what: format!("cannot describe this rank's part of checkpoint {step}"),
        source: source.into(),
    })
}
