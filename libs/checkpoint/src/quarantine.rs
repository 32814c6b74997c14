//! Quarantine: the manifest of a checkpoint that nobody is to go on from moves to `ckpt/damaged/`, so that its step can be
//! committed again. Its objects stay for as long as the checkpoint would have been kept.
//!
//! What always holds: a manifest that another build or another run wrote is never moved; one that is not there any more is no
//! error. For the one coordinator of the run, where there is another checkpoint to go on from.

use polygram_domain::Step;

use crate::error::CheckpointError;
use crate::fault::Fault;
use crate::keys;
use crate::manifest::Manifest;
use crate::store::RunStore;

/// Why a checkpoint is quarantined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuarantineReason {
    /// Its manifest or the length of an object is not what was written. This is looked at again before.
    Damaged,
    /// This fault was found, which lengths need not show.
    Faulty(Fault),
    /// A rollback has ended the past that it belongs to.
    Superseded,
    /// It is a recovery point that cannot be gone on from, for this reason.
    Unusable(String),
}

impl RunStore {
    /// Quarantines the checkpoint of `step`. Answers whether it was there.
    ///
    /// Errors: [`CheckpointError::Input`] for one that is said to be [`QuarantineReason::Damaged`] and verifies;
    /// [`CheckpointError::Schema`] and [`CheckpointError::OtherRun`] for one that is not this run's and build's.
    pub async fn quarantine(&self, step: Step, reason: &QuarantineReason) -> Result<bool, CheckpointError> {
        let key = keys::manifest(step);
        let bytes = match self.get(&key).await {
            Err(CheckpointError::Missing { .. }) => return Ok(false),
            other => other?,
        };
        if let Err(error) = Manifest::decode(&key, &bytes, self.run(), step)
            && !error.is_damage()
        {
            return Err(error);
        }
        if *reason == QuarantineReason::Damaged
            && self.verified(step, &self.data_sizes().await?).await?.is_ok()
        {
            return Err(CheckpointError::input(key, "it verifies; it is not quarantined"));
        }
        let hash = blake3::hash(&bytes).to_hex();
        self.put_once(&keys::damaged(step, hash.as_str()), bytes).await?;
        self.delete(&key).await?;
        tracing::debug!(step = step.0, ?reason, "quarantined");
        Ok(true)
    }
}
