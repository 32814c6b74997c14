//! Removing one checkpoint. Nothing is written, so that it can be done where no room is left.

use std::collections::{BTreeMap, BTreeSet};

use polygram_domain::Step;

use crate::error::CheckpointError;
use crate::keys;
use crate::store::RunStore;

/// What went with a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Data objects.
    pub objects: usize,
    /// Their length.
    pub bytes: u64,
}

impl RunStore {
    /// Removes the checkpoint of `step` and its pin: first the manifest, then the data objects that no other checkpoint
    /// names. Objects of a manifest that is damaged stay for collection ([`RunStore::garbage`]).
    ///
    /// Errors: [`CheckpointError::Missing`] if there is no such checkpoint; [`CheckpointError::Schema`] if another build
    /// wrote it, and only that one knows what it names.
    pub async fn remove_checkpoint(&self, step: Step) -> Result<Removed, CheckpointError> {
        let objects = match self.read_manifest(step).await {
            Ok(manifest) => manifest.objects,
            Err(CheckpointError::Damaged { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut own: BTreeMap<String, u64> =
            objects.into_iter().map(|object| (object.key, object.bytes)).collect();
        for other in self.committed_steps().await?.into_iter().filter(|other| *other != step) {
            match self.read_manifest(other).await {
                Ok(manifest) => {
                    let named: BTreeSet<String> = manifest.objects.into_iter().map(|o| o.key).collect();
                    own.retain(|key, _| !named.contains(key));
                }
                // It may be repaired: what could be its own stays.
                Err(error) if error.is_damage() => {
                    own.retain(|key, _| keys::step_of_data(key).is_some_and(|of| of > other));
                }
                Err(error) => return Err(error),
            }
        }
        self.delete(&keys::manifest(step)).await?;
        self.unpin(step).await?;
        for key in own.keys() {
            self.delete(key).await?;
        }
        Ok(Removed { objects: own.len(), bytes: own.values().sum() })
    }
}
