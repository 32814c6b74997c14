//! A checkpoint copied to another store, byte for byte.

use crate::error::CheckpointError;
use crate::manifest::Manifest;
use crate::store::RunStore;

impl RunStore {
    /// Copies a checkpoint with its configuration to `target`, which is of a run of the same name, and commits it there.
    /// Every object is verified on the way; memory holds one at a time.
    pub async fn copy_checkpoint(
        &self,
        manifest: &Manifest,
        target: &RunStore,
    ) -> Result<(), CheckpointError> {
        target.put_config(&self.read_config(&manifest.config).await?).await?;
        for entry in &manifest.objects {
            let bytes = self.read_object(entry).await?;
            target.put(&entry.key, bytes.into()).await?;
        }
        target.commit(manifest).await.map(drop)
    }
}
