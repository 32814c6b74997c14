//! Ways back that a run took from spikes: each an object that is made once, and from then on decides.
//!
//! What a run leaves out is what its last way back says. A checkpoint behind the point that one of them goes back to,
//! made by a run that did not know of it, is of a past that counts no more: it is set aside.

use bytes::Bytes;
use polygram_domain::spikes::{LeftOut, PolicyState};
use polygram_domain::{SCHEMA_VERSION, Step};
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::keys;
use crate::manifest::Manifest;
use crate::sealed::{seal, unseal};
use crate::store::RunStore;
use crate::transfer::Created;

/// A way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// Version of this object.
    pub schema: u32,
    /// Its number, from 1.
    pub number: u64,
    /// Updates applied before the spike.
    pub at: Step,
    /// State version that the run went back to.
    pub to: Step,
    /// What the spike was, one sentence.
    pub cause: String,
    /// All that the run leaves out from then on.
    pub left_out: LeftOut,
    /// Updates applied before each spike that the run ever went back from, this one the last.
    pub ways_back: Vec<u64>,
}

impl RollBack {
    /// A way back from the spike after `at` updates to version `to`, of a run that left out `before` and leaves out `more`.
    pub fn new(before: &PolicyState, (at, to): (Step, Step), cause: String, more: &LeftOut) -> RollBack {
        let PolicyState { mut left_out, mut ways_back, .. } = before.clone();
        more.ranges().iter().for_each(|[start, end]| left_out.add(*start..*end));
        ways_back.push(at.0);
        RollBack { schema: SCHEMA_VERSION, number: 0, at, to, cause, left_out, ways_back }
    }

    /// Whether a checkpoint is of the past that this way back has ended.
    pub(crate) fn supersedes(&self, manifest: &Manifest) -> bool {
        manifest.step > self.to && manifest.policy.ways_back.len() < self.ways_back.len()
    }
}

impl RunStore {
    /// Every way back that the store has, in order. The oldest may be gone: later ones say all that they said. A gap between
    /// others is damage.
    pub async fn roll_backs(&self) -> Result<Vec<RollBack>, CheckpointError> {
        let listed = self.list(keys::ROLL_BACK).await?;
        let mut numbers: Vec<u64> = listed.iter().filter_map(|o| keys::roll_back_of(&o.key)).collect();
        numbers.sort_unstable();
        let mut found: Vec<RollBack> = Vec::with_capacity(numbers.len());
        for number in numbers {
            let wanted = found.last().map_or(number, |last| last.number + 1);
            let key = keys::roll_back(wanted);
            if number != wanted {
                return Err(CheckpointError::damaged(&key, "it is missing, though later ones are there"));
            }
            let record: RollBack = unseal(&key, &self.get(&key).await?)?;
            if record.number != wanted {
                return Err(CheckpointError::damaged(&key, format!("it is number {}", record.number)));
            }
            found.push(record);
        }
        Ok(found)
    }

    /// Decides on a way back: from now on it has happened, whoever leads the run. Answers its number.
    ///
    /// Errors: [`CheckpointError::AlreadyExists`] if another coordinator has decided on one meanwhile.
    pub async fn decide_roll_back(&self, record: RollBack) -> Result<u64, CheckpointError> {
        let number = self.roll_backs().await?.last().map_or(0, |last| last.number) + 1;
        let key = keys::roll_back(number);
        let sealed = seal(&key, &RollBack { number, ..record })?;
        match self.put_new(&key, Bytes::from(sealed)).await? {
            Created::New | Created::Same => Ok(number),
            Created::Other => Err(CheckpointError::AlreadyExists { key }),
        }
    }

    /// Sets aside the checkpoints that ways back have made void, newest first. Nothing is left of it to do the second
    /// time. Answers their steps.
    pub async fn set_aside_superseded(&self, roll_backs: &[RollBack]) -> Result<Vec<Step>, CheckpointError> {
        let mut gone = Vec::new();
        if roll_backs.is_empty() {
            return Ok(gone);
        }
        for step in self.committed_steps().await?.into_iter().rev() {
            let manifest = match self.read_manifest(step).await {
                Ok(manifest) => manifest,
                // Whether it is damaged, others say.
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            if roll_backs.iter().any(|roll_back| roll_back.supersedes(&manifest)) {
                self.move_aside(step, self.get(&keys::manifest(step)).await?).await?;
                gone.push(step);
            }
        }
        Ok(gone)
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

    /// Copies the ways back to `target`, which has none.
    pub async fn copy_roll_backs(&self, target: &RunStore) -> Result<(), CheckpointError> {
        for record in self.roll_backs().await? {
            target.decide_roll_back(record).await?;
        }
        Ok(())
    }
}

/// What a run that goes on from `manifest` remembers, its ways back included.
pub fn policy_of(manifest: Option<&Manifest>, roll_backs: &[RollBack]) -> PolicyState {
    let mut policy = manifest.map(|manifest| manifest.policy.clone()).unwrap_or_default();
    if let Some(last) = roll_backs.last() {
        last.left_out.ranges().iter().for_each(|[start, end]| policy.left_out.add(*start..*end));
        if last.ways_back.len() > policy.ways_back.len() {
            policy.ways_back.clone_from(&last.ways_back);
        }
    }
    policy
}
