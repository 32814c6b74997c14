//! Data objects that no checkpoint needs any more, and their removal.

use std::collections::BTreeSet;

use polygram_domain::Step;

use crate::error::CheckpointError;
use crate::keys;
use crate::store::{Listed, RunStore};

/// What a run's checkpoints refer to.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// Objects that a checkpoint names.
    pub(crate) keys: BTreeSet<String>,
    /// Steps whose manifest cannot be read: all their objects are spared, for it may be repaired.
    pub(crate) unreadable: BTreeSet<Step>,
    /// The newest checkpoint whose manifest and lengths verify; objects of later steps may be on their way into the
    /// next one.
    pub(crate) newest: Option<Step>,
}

impl References {
    /// Those of `objects` that nobody needs: of no later step than the newest checkpoint, and named by none.
    pub(crate) fn unneeded(&self, objects: impl IntoIterator<Item = Listed>) -> Vec<Listed> {
        let Some(newest) = self.newest else { return Vec::new() };
        let is_unneeded = |object: &Listed| {
            keys::step_of_data(&object.key).is_some_and(|step| {
                step <= newest && !self.unreadable.contains(&step) && !self.keys.contains(&object.key)
            })
        };
        objects.into_iter().filter(is_unneeded).collect()
    }
}

impl RunStore {
    /// Data objects that no checkpoint names and that belong to no commit under way: what attempts have left that were
    /// aborted, and retention that was interrupted. Objects of steps after the newest checkpoint that verifies are never
    /// among them, nor are those of steps whose manifest cannot be read.
    pub async fn garbage(&self) -> Result<Vec<Listed>, CheckpointError> {
        // Objects first: what is listed now and named by a manifest that comes later is of a later step, too.
        let objects = self.list(keys::DATA).await?;
        let sizes = objects.iter().map(|object| (object.key.clone(), object.bytes)).collect();
        let mut references = References::default();
        for step in self.committed_steps().await?.into_iter().rev() {
            match self.verified(step, &sizes).await? {
                Ok(manifest) => {
                    references.newest = references.newest.max(Some(step));
                    references.keys.extend(manifest.objects.into_iter().map(|object| object.key));
                }
                Err(_) => {
                    // What it names can be known where only objects are missing.
                    match self.read_manifest(step).await {
                        Ok(manifest) => references.keys.extend(manifest.objects.into_iter().map(|o| o.key)),
                        Err(error) if error.is_damage() => {
                            references.unreadable.insert(step);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(references.unneeded(objects))
    }

    /// Removes what [`RunStore::garbage`] found.
    pub async fn remove_garbage(&self, garbage: &[Listed]) -> Result<(), CheckpointError> {
        for object in garbage {
            self.delete(&object.key).await?;
        }
        Ok(())
    }
}
