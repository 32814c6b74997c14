//! Pinned checkpoints: retention and collection leave them alone. A pin is an object named by the step.

use std::collections::BTreeSet;

use bytes::Bytes;
use polygram_domain::Step;

use crate::error::CheckpointError;
use crate::keys;
use crate::store::RunStore;

impl RunStore {
    /// Pins the checkpoint of `step`. Pinning again is no error.
    ///
    /// Errors: [`CheckpointError::Missing`] if there is no such checkpoint, or if retention took it meanwhile.
    pub async fn pin(&self, step: Step) -> Result<(), CheckpointError> {
        let key = keys::manifest(step);
        if !self.committed_steps().await?.contains(&step) {
            return Err(CheckpointError::Missing { key });
        }
        self.put_once(&keys::pin(step), Bytes::from("pinned\n")).await?;
        if self.committed_steps().await?.contains(&step) {
            return Ok(());
        }
        self.unpin(step).await?;
        Err(CheckpointError::Missing { key })
    }

    /// Takes the pin away; retention will treat the checkpoint as any other. Without a pin it is no error.
    pub async fn unpin(&self, step: Step) -> Result<(), CheckpointError> {
        self.delete(&keys::pin(step)).await
    }

    /// Steps that are pinned.
    pub async fn pinned_steps(&self) -> Result<BTreeSet<Step>, CheckpointError> {
        let listed = self.list(keys::PIN).await?;
        Ok(listed.iter().filter_map(|object| keys::step_of_pin(&object.key)).collect())
    }
}
