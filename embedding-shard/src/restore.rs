//! Rows of a checkpoint of any topology into a shard.

use std::sync::Arc;

use polygram_checkpoint::{CheckpointError, Manifest, ObjectEntry, RowScope, RunStore};
use polygram_domain::{RowRef, Step, TableIndex};
use thiserror::Error;

use crate::archive::Chain;
use crate::error::ShardError;
use crate::rows::DecayLog;
use crate::shard::Shard;

/// Why rows were not restored.
#[derive(Debug, Error)]
pub enum RowsError {
    /// The store's part.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The shard's part.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

/// Reads a shard's rows, and only those, from a manifest of any topology. Rows that the manifest has as changed count as
/// changed since the objects that [`chain_of`] names.
pub async fn restore(shard: &mut Shard, store: &RunStore, manifest: &Manifest) -> Result<(), RowsError> {
    let config = Arc::clone(shard.config());
    for index in 0..config.tables.len() as u32 {
        let table = TableIndex(index);
        store
            .read_scoped_rows(manifest, table, config.buckets(), |row, scope| {
                let number = row.row;
                shard.restore_row(table, row)?;
                if scope == RowScope::Changed {
                    shard.mark_changed(RowRef { table, row: number });
                }
                Ok::<_, RowsError>(())
            })
            .await?;
    }
    shard.set_version(Step(manifest.step.0));
    shard.set_decayed(DecayLog::from_units(manifest.table_decay.unwrap_or(0)));
    Ok(())
}

/// What the next recovery point of a shard may go on from that was restored from the recovery point `manifest`: nothing where
/// its objects hold rows of other shards too.
pub fn chain_of(shard: &Shard, manifest: &Manifest) -> Option<Chain> {
    let own = shard.config().buckets();
    let mut all: Vec<ObjectEntry> = Vec::new();
    for index in 0..shard.config().tables.len() as u32 {
        for (buckets, entry) in manifest.row_objects(TableIndex(index)) {
            if buckets.end <= own.start || own.end <= buckets.start {
                continue;
            }
            if buckets.start < own.start || own.end < buckets.end {
                return None;
            }
            all.push(entry.clone());
        }
    }
    Some(Chain { last: manifest.step, all })
}
