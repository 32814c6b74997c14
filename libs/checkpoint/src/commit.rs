//! The commit point, the latest checkpoint, and retention.
//!
//! A checkpoint is whole or it does not exist: its objects are in the store before its manifest is created, and
//! retention removes the manifest before its objects.

use std::collections::BTreeMap;

use bytes::Bytes;
use polygram_domain::Step;

use crate::error::CheckpointError;
use crate::garbage::References;
use crate::keys;
use crate::manifest::Manifest;
use crate::object::ObjectEntry;
use crate::store::RunStore;
use crate::transfer::Created;

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The checkpoint exists from now on.
    Now,
    /// The very same manifest was committed before: a retry whose first answer was lost.
    Before,
}

/// A manifest that does not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its step, by its name.
    pub step: Step,
    /// Its object.
    pub key: String,
    /// What is wrong, naming the object.
    pub reason: String,
}

/// The newest checkpoint that verifies, and the damaged ones that are newer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    /// The checkpoint to restore, if there is one.
    pub manifest: Option<Manifest>,
    /// Newer manifests that were passed over, newest first.
    pub damaged: Vec<Damaged>,
}

/// What retention removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Checkpoints that are left and verify, newest first.
    pub kept: Vec<Step>,
    /// Checkpoints that are gone.
    pub removed: Vec<Step>,
    /// Data objects that are gone.
    pub removed_objects: usize,
    /// Their length.
    pub removed_bytes: u64,
}

impl RunStore {
    /// Commits a checkpoint: verifies that every object is in the store with its length, then creates the manifest.
    /// Of several writers of one step exactly one succeeds.
    ///
    /// Errors: [`CheckpointError::AlreadyCommitted`] if the step has another manifest; [`CheckpointError::Missing`] or
    /// [`CheckpointError::Damaged`] if an object is not there or has another length.
    pub async fn commit(&self, manifest: &Manifest) -> Result<Committed, CheckpointError> {
        let key = keys::manifest(manifest.step);
        let bytes = self.sealed_manifest(&key, manifest).await?;
        match self.put_new(&key, bytes).await? {
            Created::New => Ok(Committed::Now),
            Created::Same => Ok(Committed::Before),
            Created::Other => {
                let (run, step) = (manifest.run.clone(), manifest.step);
                Err(CheckpointError::AlreadyCommitted { run, step, key })
            }
        }
    }

    /// Writes another manifest over the one of its step, which must be there: for a state that was written anew.
    pub(crate) async fn replace(&self, manifest: &Manifest) -> Result<Committed, CheckpointError> {
        let key = keys::manifest(manifest.step);
        let bytes = self.sealed_manifest(&key, manifest).await?;
        if self.get(&key).await? == bytes {
            return Ok(Committed::Before);
        }
        self.put(&key, bytes.into()).await.map(|()| Committed::Now)
    }

    /// A manifest's bytes, once all its objects are in the store with their lengths.
    async fn sealed_manifest(&self, key: &str, manifest: &Manifest) -> Result<Bytes, CheckpointError> {
        if manifest.run != self.run().as_str() {
            let (found, expected) = (&manifest.run, self.run().as_str());
            let reason = format!("it is of run {found:?}, the store is of {expected:?}");
            return Err(CheckpointError::input(key, reason));
        }
        check_sizes(manifest, &self.data_sizes().await?)?;
        Ok(Bytes::from(manifest.encode(key)?))
    }

    /// Steps that have a manifest, verified or not, ascending.
    pub async fn committed_steps(&self) -> Result<Vec<Step>, CheckpointError> {
        let listed = self.list(keys::COMMIT).await?;
        let mut steps: Vec<Step> = listed.iter().filter_map(|o| keys::step_of_manifest(&o.key)).collect();
        steps.sort();
        Ok(steps)
    }

    /// Reads the manifest of a step. Its objects are not looked at; they are verified when they are read.
    pub async fn read_manifest(&self, step: Step) -> Result<Manifest, CheckpointError> {
        let key = keys::manifest(step);
        let decode = |bytes: Bytes| Manifest::decode(&key, &bytes, self.run(), step);
        match decode(self.get(&key).await?) {
            // The store may be sound and the way from it not.
            Err(error @ CheckpointError::Damaged { .. }) => {
                tracing::warn!(key, %error, "read again");
                decode(self.get(&key).await?)
            }
            other => other,
        }
    }

    /// The newest checkpoint whose manifest verifies and whose objects are all in the store with their lengths.
    /// Damaged newer ones are passed over with a warning and reported. A store that fails is an error, not damage.
    pub async fn latest_manifest(&self) -> Result<Latest, CheckpointError> {
        let steps = self.committed_steps().await?;
        self.latest_of(steps).await
    }

    /// The same among `steps`, which ascend.
    pub(crate) async fn latest_of(&self, steps: Vec<Step>) -> Result<Latest, CheckpointError> {
        let mut latest = Latest { manifest: None, damaged: Vec::new() };
        if steps.is_empty() {
            return Ok(latest);
        }
        let sizes = self.data_sizes().await?;
        for step in steps.into_iter().rev() {
            match self.verified(step, &sizes).await? {
                Ok(manifest) => {
                    latest.manifest = Some(manifest);
                    break;
                }
                Err(damaged) => {
                    tracing::warn!(
                        run = %self.run(), step = step.0, reason = damaged.reason,
                        "checkpoint passed over"
                    );
                    latest.damaged.push(damaged);
                }
            }
        }
        Ok(latest)
    }

    /// Keeps the newest `keep` (at least 1) checkpoints that verify, and all that are pinned, with their objects. Other
    /// older manifests are removed first, then the objects that no manifest left names. Objects of steps after the newest
    /// verified checkpoint are never touched: they may be on their way into the next one. Damaged manifests that are
    /// pinned or newer than the oldest kept stay, and so do objects of their steps; so does what quarantined manifests name
    /// that would still be kept. What another build wrote always stays.
    pub async fn retain(&self, keep: usize) -> Result<Retained, CheckpointError> {
        let objects = self.list(keys::DATA).await?;
        let sizes = objects.iter().map(|object| (object.key.clone(), object.bytes)).collect();
        let pinned = self.pinned_steps().await?;
        let mut retained = Retained::default();
        let mut references = References::default();
        let mut counted = 0;
        // The oldest checkpoint that counts, once there are as many as are kept.
        let mut oldest = None;
        for step in self.committed_steps().await?.into_iter().rev() {
            let is_old = counted >= keep.max(1) && !pinned.contains(&step);
            if is_old && !self.spare_of_another_build(step, &mut references).await? {
                self.delete(&keys::manifest(step)).await?;
                retained.removed.push(step);
            }
            if is_old {
                continue;
            }
            match self.verified(step, &sizes).await {
                Ok(Ok(manifest)) => {
                    references.newest = references.newest.max(Some(step));
                    references.keys.extend(manifest.objects.into_iter().map(|object| object.key));
                    retained.kept.push(step);
                    counted += usize::from(!pinned.contains(&step));
                    if counted >= keep.max(1) {
                        oldest.get_or_insert(step);
                    }
                }
                Ok(Err(_damaged)) => {
                    references.unreadable.insert(step);
                }
                Err(error) if error.is_of_another_build() => {
                    self.spare_of_another_build(step, &mut references).await?;
                }
                Err(error) => return Err(error),
            }
        }
        self.spare_quarantined(oldest, &pinned, &mut references).await?;
        let unneeded = references.unneeded(objects);
        self.remove_garbage(&unneeded).await?;
        retained.removed_objects = unneeded.len();
        retained.removed_bytes = unneeded.iter().fold(0, |sum, object| sum.saturating_add(object.bytes));
        Ok(retained)
    }

    /// The manifest of a step if it and its objects' lengths verify; the outer error is the store's.
    pub(crate) async fn verified(
        &self,
        step: Step,
        sizes: &BTreeMap<String, u64>,
    ) -> Result<Result<Manifest, Damaged>, CheckpointError> {
        let read = self.read_manifest(step).await;
        match read.and_then(|manifest| check_sizes(&manifest, sizes).map(|()| manifest)) {
            Ok(manifest) => Ok(Ok(manifest)),
            Err(error) if error.is_damage() => {
                Ok(Err(Damaged { step, key: keys::manifest(step), reason: error.to_string() }))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn data_sizes(&self) -> Result<BTreeMap<String, u64>, CheckpointError> {
        let listed = self.list(keys::DATA).await?;
        Ok(listed.into_iter().map(|object| (object.key, object.bytes)).collect())
    }
}

fn check_sizes(manifest: &Manifest, sizes: &BTreeMap<String, u64>) -> Result<(), CheckpointError> {
    manifest.objects.iter().try_for_each(|ObjectEntry { key, bytes, .. }| match sizes.get(key) {
        None => Err(CheckpointError::Missing { key: key.clone() }),
        Some(found) if found == bytes => Ok(()),
        Some(found) => {
            Err(CheckpointError::damaged(key, format!("{found} bytes long, {bytes} were written")))
        }
    })
}
