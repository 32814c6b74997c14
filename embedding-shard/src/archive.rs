//! Where snapshots of rows go, and the run's store as one such place.

use std::pin::Pin;
use std::sync::Arc;

use polygram_checkpoint::{CheckpointError, Manifest, Part, RowRecord, RowWriter, RunStore, TableShape};
use polygram_domain::{Step, TableIndex};
use polygram_faults::{Point, pass};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::rows::DecayLog;
use crate::server::SnapshotRows;
use crate::shard::Shard;

/// Why a snapshot was not archived.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The store refused it.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The shard stopped meanwhile.
    #[error("the shard stopped before its rows were written")]
    Stopped,
    /// Nobody takes the report of what was written.
    #[error("nobody takes the report of what was written")]
    Unreported,
}

/// A place for snapshots. One call per snapshot; training goes on meanwhile.
pub trait RowArchive: Send + Sync {
    /// Takes all of a snapshot's rows. They exist only if this returns without an error.
    fn archive<'a>(
        &'a self,
        rows: SnapshotRows,
    ) -> Pin<Box<dyn Future<Output = Result<(), ArchiveError>> + Send + 'a>>;
}

/// Writes snapshots to the run's store and hands on what was written.
#[derive(Debug)]
pub struct StoreArchive {
    store: RunStore,
    config: Arc<ShardConfig>,
    parts: mpsc::Sender<Part>,
}

impl StoreArchive {
    /// Archives into `store`; each snapshot's [`Part`] goes to `parts`.
    pub fn new(store: RunStore, config: ShardConfig, parts: mpsc::Sender<Part>) -> StoreArchive {
        StoreArchive { store, config: Arc::new(config), parts }
    }

    async fn write(&self, mut rows: SnapshotRows) -> Result<(), ArchiveError> {
        let (step, member) = (rows.version(), format!("shard-{}", self.config.index));
        let mut objects = Vec::new();
        for spec in self.config.tables.iter() {
            let shape = TableShape::of(spec, self.config.state_values());
            let mut writer = RowWriter::new(&self.store, step, &member, shape, self.config.buckets())?;
            while let Some(records) = rows.next(spec.index).await? {
                for record in &records {
                    let values = &record.values;
                    writer.push(RowRecord { row: record.row, updates: record.updates, values }).await?;
                }
            }
            objects.extend(writer.finish().await?);
        }
        let decays = self.config.embedding.all_rows_decay();
        let table_decay = decays.then(|| rows.decayed().units());
        let part = Part { member, step, objects, cursor: None, table_decay };
        pass(Point::ShardUploaded);
        self.parts.send(part).await.map_err(|_| ArchiveError::Unreported)
    }
}

impl RowArchive for StoreArchive {
    fn archive<'a>(
        &'a self,
        rows: SnapshotRows,
    ) -> Pin<Box<dyn Future<Output = Result<(), ArchiveError>> + Send + 'a>> {
        Box::pin(self.write(rows))
    }
}

/// Why rows were not restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The store's part.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The shard's part.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

/// Reads a shard's rows, and only those, from a manifest of any topology.
pub async fn restore(shard: &mut Shard, store: &RunStore, manifest: &Manifest) -> Result<(), RestoreError> {
    let config = Arc::clone(shard.config());
    for index in 0..config.tables.len() as u32 {
        let table = TableIndex(index);
        store
            .read_rows(manifest, table, config.buckets(), |row| {
                shard.restore_row(table, row).map_err(RestoreError::from)
            })
            .await?;
    }
    shard.set_version(Step(manifest.step.0));
    shard.set_decayed(DecayLog::from_units(manifest.table_decay.unwrap_or(0)));
    Ok(())
}
