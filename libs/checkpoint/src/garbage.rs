//! Data objects that no checkpoint needs any more, and their removal.

use std::collections::BTreeSet;

use polygram_domain::Step;
use serde_json::Value;

use crate::error::CheckpointError;
use crate::keys;
use crate::manifest::Manifest;
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
    /// Spares the objects of `step`, and all that a manifest of these bytes names, of any schema.
    fn spare(&mut self, step: Step, manifest: &[u8]) {
        self.unreadable.insert(step);
        let mut open: Vec<Value> = serde_json::from_slice(manifest).into_iter().collect();
        while let Some(value) = open.pop() {
            match value {
                Value::String(text) if keys::step_of_data(&text).is_some() => drop(self.keys.insert(text)),
                Value::Array(values) => open.extend(values),
                Value::Object(members) => open.extend(members.into_iter().map(|(_, value)| value)),
                _ => {}
            }
        }
    }

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
    /// among them, nor are those of steps whose manifest cannot be read, nor what quarantined manifests name that are not older
    /// than every checkpoint.
    pub async fn garbage(&self) -> Result<Vec<Listed>, CheckpointError> {
        // Objects first: what is listed now and named by a manifest that comes later is of a later step, too.
        let objects = self.list(keys::DATA).await?;
        let sizes = objects.iter().map(|object| (object.key.clone(), object.bytes)).collect();
        let mut references = References::default();
        let (pinned, mut oldest) = (self.pinned_steps().await?, None);
        for step in self.committed_steps().await?.into_iter().rev() {
            match self.verified(step, &sizes).await {
                Ok(Ok(manifest)) => {
                    references.newest = references.newest.max(Some(step));
                    references.keys.extend(manifest.objects.into_iter().map(|object| object.key));
                    if !pinned.contains(&step) {
                        oldest = Some(step);
                    }
                }
                Ok(Err(_damaged)) => {
                    // What it names can be known where only objects are missing.
                    match self.read_manifest(step).await {
                        Ok(manifest) => references.keys.extend(manifest.objects.into_iter().map(|o| o.key)),
                        Err(error) if error.is_damage() => {
                            references.unreadable.insert(step);
                        }
                        Err(error) => return Err(error),
                    }
                }
                Err(error) if error.is_of_another_build() => {
                    self.spare_of_another_build(step, &mut references).await?;
                }
                Err(error) => return Err(error),
            }
        }
        self.spare_quarantined(oldest, &pinned, &mut references).await?;
        Ok(references.unneeded(objects))
    }

    /// Whether the manifest of `step` is another build's; what it names is spared then.
    pub(crate) async fn spare_of_another_build(
        &self,
        step: Step,
        references: &mut References,
    ) -> Result<bool, CheckpointError> {
        match self.read_manifest(step).await {
            Err(error) if error.is_of_another_build() => {
                references.spare(step, &self.get(&keys::manifest(step)).await?);
                Ok(true)
            }
            // Missing: another process has removed it. Damaged: reported where manifests are verified.
            Ok(_) => Ok(false),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Spares what quarantined manifests name, for a repaired one is put back by hand: those that are pinned, and those that
    /// are not older than `oldest`, the oldest checkpoint that is kept. What a rollback has ended is not needed again.
    pub(crate) async fn spare_quarantined(
        &self,
        oldest: Option<Step>,
        pinned: &BTreeSet<Step>,
        references: &mut References,
    ) -> Result<(), CheckpointError> {
        let quarantined = self.list(keys::DAMAGED).await?;
        if quarantined.is_empty() {
            return Ok(());
        }
        let rollbacks = self.rollbacks().await?;
        for object in quarantined {
            let Some(step) = keys::step_of_damaged(&object.key) else { continue };
            if oldest.is_some_and(|oldest| step < oldest) && !pinned.contains(&step) {
                continue;
            }
            let bytes = self.get(&object.key).await?;
            let manifest = Manifest::decode(&object.key, &bytes, self.run(), step);
            let is_ended =
                manifest.is_ok_and(|manifest| rollbacks.iter().any(|back| back.supersedes(&manifest)));
            if !is_ended {
                references.spare(step, &bytes);
            }
        }
        Ok(())
    }

    /// Removes what [`RunStore::garbage`] found.
    pub async fn remove_garbage(&self, garbage: &[Listed]) -> Result<(), CheckpointError> {
        for object in garbage {
            self.delete(&object.key).await?;
        }
        Ok(())
    }
}
