//! Uploads this rank's share of checkpoints.

use polygram_checkpoint::{Part, RunStore};
use polygram_domain::{CheckpointKind, CheckpointRef, Rank};
use polygram_faults::{Point, pass};
use polygram_member::Stores;
use polygram_proto::control::{Reporter, Upload};
use tokio::sync::mpsc;

use crate::checkpoints::Snapshot;
use crate::error::WorkerError;

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
