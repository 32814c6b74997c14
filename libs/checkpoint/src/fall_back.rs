//! Past a damaged checkpoint: whether it is one, which older one there is to go on from, and what is set aside for that.
//!
//! A checkpoint is set aside only where there is another to go on from, so that a run never looks as if it had none.

use polygram_domain::Step;

use crate::commit::{Damaged, Latest};
use crate::error::CheckpointError;
use crate::fault::Fault;
use crate::keys;
use crate::manifest::Manifest;
use crate::roll_back::RollBack;
use crate::store::RunStore;

impl RunStore {
    /// Looks at what somebody could not believe of the checkpoint of `step`: its manifest, that all objects are there with
    /// their lengths, and every byte of the object `key`, if it is one of them. `None`: all of that is what was written.
    /// A store that fails is an error, not a fault.
    pub async fn find_fault(&self, step: Step, key: &str) -> Result<Option<Fault>, CheckpointError> {
        let manifest = match self.verified(step, &self.data_sizes().await?).await? {
            Ok(manifest) => manifest,
            Err(Damaged { key, reason, .. }) => return Ok(Some(Fault { key, reason })),
        };
        let found = if *key == keys::config(&manifest.config.0) {
            self.read_config(&manifest.config).await.map(drop)
        } else if let Some(entry) = manifest.objects.iter().find(|entry| entry.key == key) {
            self.check_object(entry).await
        } else {
            Ok(())
        };
        match found {
            Ok(()) => Ok(None),
            Err(error) if error.is_damage() => {
                Ok(Some(Fault { key: key.to_owned(), reason: error.to_string() }))
            }
            Err(error) => Err(error),
        }
    }

    /// The newest checkpoint before `step` whose manifest verifies and whose objects are all there with their lengths, and
    /// the damaged ones between.
    pub async fn latest_before(&self, step: Step) -> Result<Latest, CheckpointError> {
        let mut steps = self.committed_steps().await?;
        steps.retain(|there| *there < step);
        self.latest_of(steps).await
    }

    /// Moves the manifest of `step`, of which a fault was found that no length need tell, to `ckpt/damaged/`. One that is
    /// not there any more is no error. For the one coordinator of the run, where there is an older one to go on from.
    pub async fn set_aside_faulty(&self, step: Step) -> Result<(), CheckpointError> {
        match self.get(&keys::manifest(step)).await {
            Ok(bytes) => self.move_aside(step, bytes).await,
            Err(CheckpointError::Missing { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Checkpoints that were set aside, newest first, but for those that a way back from a spike has ended: a run that has
    /// any had more to go on from than its beginning.
    pub async fn set_aside_as_damaged(
        &self,
        roll_backs: &[RollBack],
    ) -> Result<Vec<Damaged>, CheckpointError> {
        let mut found = Vec::new();
        for object in self.list(keys::DAMAGED).await?.into_iter().rev() {
            let Some(step) = keys::step_of_damaged(&object.key) else { continue };
            let bytes = self.get(&object.key).await?;
            let manifest = Manifest::decode(&object.key, &bytes, (self.run(), step));
            let is_ended = |manifest: &Manifest| roll_backs.iter().any(|back| back.supersedes(manifest));
            if !manifest.is_ok_and(|manifest| is_ended(&manifest)) {
                found.push(Damaged { step, key: object.key, reason: "it was set aside as damaged".into() });
            }
        }
        Ok(found)
    }
}
