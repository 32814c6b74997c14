//! Rollbacks: which checkpoint a run goes back to, and what is not gone on from any more.
//!
//! A rollback from a spike is an object that is made once, and from then on decides. What a run leaves out is what its last
//! rollback says. A checkpoint behind the point that one of them goes back to, made by a run that did not know of it, is of a
//! past that counts no more: it is quarantined. Past a damaged checkpoint it is first found whether it is one, and which older
//! one there is: a run never looks as if it had none.

use bytes::Bytes;
use polygram_domain::spikes::{LeftOut, PolicyState};
use polygram_domain::{SCHEMA_VERSION, Step};
use serde::{Deserialize, Serialize};

use crate::commit::{Damaged, Latest};
use crate::error::CheckpointError;
use crate::fault::Fault;
use crate::keys;
use crate::manifest::Manifest;
use crate::quarantine::QuarantineReason;
use crate::sealed::{seal, unseal};
use crate::store::RunStore;
use crate::transfer::Created;

/// A rollback from a spike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRecord {
    /// Version of this object.
    pub schema: u32,
    /// Its number, from 1.
    pub number: u64,
    /// Updates applied before the spike.
    pub at: Step,
    /// State version that the run goes back to.
    pub to: Step,
    /// What the spike was, one sentence.
    pub cause: String,
    /// All that the run leaves out from then on.
    pub left_out: LeftOut,
    /// Updates applied before each spike that the run was ever rolled back from, this one the last.
    pub ways_back: Vec<u64>,
}

impl RollbackRecord {
    /// A rollback from the spike after `at` updates to version `to`, of a run that left out `before` and leaves out `more`.
    pub fn new(
        before: &PolicyState,
        (at, to): (Step, Step),
        cause: String,
        more: &LeftOut,
    ) -> RollbackRecord {
        let PolicyState { mut left_out, mut ways_back, .. } = before.clone();
        more.ranges().iter().for_each(|[start, end]| left_out.add(*start..*end));
        ways_back.push(at.0);
        RollbackRecord { schema: SCHEMA_VERSION, number: 0, at, to, cause, left_out, ways_back }
    }

    /// Whether a checkpoint is of the past that this rollback has ended.
    pub(crate) fn supersedes(&self, manifest: &Manifest) -> bool {
        manifest.step > self.to && manifest.policy.ways_back.len() < self.ways_back.len()
    }
}

impl RunStore {
    /// Every rollback that the store has, in order. The oldest may be gone: later ones say all that they said. A gap between
    /// others is damage.
    pub async fn rollbacks(&self) -> Result<Vec<RollbackRecord>, CheckpointError> {
        let listed = self.list(keys::ROLLBACK).await?;
        let mut numbers: Vec<u64> = listed.iter().filter_map(|o| keys::rollback_of(&o.key)).collect();
        numbers.sort_unstable();
        let mut found: Vec<RollbackRecord> = Vec::with_capacity(numbers.len());
        for number in numbers {
            let wanted = found.last().map_or(number, |last| last.number + 1);
            let key = keys::rollback(wanted);
            if number != wanted {
                return Err(CheckpointError::damaged(&key, "it is missing, though later ones are there"));
            }
            let record: RollbackRecord = unseal(&key, &self.get(&key).await?)?;
            if record.number != wanted {
                return Err(CheckpointError::damaged(&key, format!("it is number {}", record.number)));
            }
            found.push(record);
        }
        Ok(found)
    }

    /// Decides on a rollback: from now on it has happened, whoever leads the run. Answers its number.
    ///
    /// Errors: [`CheckpointError::AlreadyExists`] if another coordinator has decided on one meanwhile.
    pub async fn decide_rollback(&self, record: RollbackRecord) -> Result<u64, CheckpointError> {
        let number = self.rollbacks().await?.last().map_or(0, |last| last.number) + 1;
        let key = keys::rollback(number);
        let sealed = seal(&key, &RollbackRecord { number, ..record })?;
        match self.put_new(&key, Bytes::from(sealed)).await? {
            Created::New | Created::Same => Ok(number),
            Created::Other => Err(CheckpointError::AlreadyExists { key }),
        }
    }

    /// Quarantines the checkpoints that rollbacks have ended, newest first. Nothing is left of it to do the second time.
    /// Answers their steps.
    pub async fn quarantine_superseded(
        &self,
        rollbacks: &[RollbackRecord],
    ) -> Result<Vec<Step>, CheckpointError> {
        let mut gone = Vec::new();
        if rollbacks.is_empty() {
            return Ok(gone);
        }
        for step in self.committed_steps().await?.into_iter().rev() {
            let manifest = match self.read_manifest(step).await {
                Ok(manifest) => manifest,
                // Whether it is damaged, others say.
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            if rollbacks.iter().any(|rollback| rollback.supersedes(&manifest))
                && self.quarantine(step, &QuarantineReason::Superseded).await?
            {
                gone.push(step);
            }
        }
        Ok(gone)
    }

    /// Quarantined checkpoints, newest first, but for those that a rollback has ended: a run that has any had more to go on
    /// from than its beginning.
    pub async fn quarantined_as_damaged(
        &self,
        rollbacks: &[RollbackRecord],
    ) -> Result<Vec<Damaged>, CheckpointError> {
        let mut found = Vec::new();
        for object in self.list(keys::DAMAGED).await?.into_iter().rev() {
            let Some(step) = keys::step_of_damaged(&object.key) else { continue };
            let bytes: Bytes = self.get(&object.key).await?;
            let manifest = Manifest::decode(&object.key, &bytes, self.run(), step);
            let is_ended = |manifest: &Manifest| rollbacks.iter().any(|back| back.supersedes(manifest));
            if !manifest.is_ok_and(|manifest| is_ended(&manifest)) {
                found.push(Damaged { step, key: object.key, reason: "it was quarantined as damaged".into() });
            }
        }
        Ok(found)
    }

    /// The newest checkpoint at or before `step` whose manifest verifies and whose objects have their lengths.
    pub async fn sound_at_or_before(&self, step: Step) -> Result<Option<Manifest>, CheckpointError> {
        let sizes = self.data_sizes().await?;
        for step in self.committed_steps().await?.into_iter().rev().filter(|there| *there <= step) {
            match self.verified(step, &sizes).await? {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(damaged) => tracing::warn!(step = step.0, damaged.reason, "checkpoint passed over"),
            }
        }
        Ok(None)
    }

    /// Looks at what somebody reported damaged of the checkpoint of `step`: its manifest, that all objects are there with
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

    /// Copies the rollbacks to `target`, which has none.
    pub async fn copy_rollbacks(&self, target: &RunStore) -> Result<(), CheckpointError> {
        for record in self.rollbacks().await? {
            target.decide_rollback(record).await?;
        }
        Ok(())
    }
}

/// What a run that goes on from `manifest` remembers, its rollbacks included.
pub fn policy_of(manifest: Option<&Manifest>, rollbacks: &[RollbackRecord]) -> PolicyState {
    let mut policy = manifest.map(|manifest| manifest.policy.clone()).unwrap_or_default();
    if let Some(last) = rollbacks.last() {
        last.left_out.ranges().iter().for_each(|[start, end]| policy.left_out.add(*start..*end));
        if last.ways_back.len() > policy.ways_back.len() {
            policy.ways_back.clone_from(&last.ways_back);
        }
    }
    policy
}
