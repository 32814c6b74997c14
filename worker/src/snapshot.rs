//! Uploads this rank's share of checkpoints.

use polygram_checkpoint::{Part, RunStore};
use polygram_domain::Rank;
use polygram_faults::{Point, pass};
use polygram_proto::control::Reporter;
use tokio::sync::mpsc;

use crate::boundary::Snapshot;
use crate::error::WorkerError;

/// Writes each snapshot that arrives and reports it to the coordinator, until the compute thread is done.
pub async fn upload(
    store: RunStore,
    rank: Rank,
    reporter: Reporter,
    mut snapshots: mpsc::Receiver<Snapshot>,
) -> Result<(), WorkerError> {
    let member = format!("worker-{rank}");
    while let Some(Snapshot { step, tensors, cursor }) = snapshots.recv().await {
        let objects = store.write_tensors(step, &member, tensors).await?;
        pass(Point::WorkerUploaded);
        let part = Part { member: member.clone(), step, objects, cursor, table_decay: None };
        let part_json = serde_json::to_string(&part).map_err(|source| WorkerError::Io {
            what: format!("cannot describe this rank's part of checkpoint {step}"),
            source: source.into(),
        })?;
        reporter.report_upload(step, part_json).await?;
        pass(Point::WorkerReported);
    }
    Ok(())
}
