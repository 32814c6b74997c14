//! Reading everything of a checkpoint and believing nothing.

use crate::error::CheckpointError;
use crate::fault::Fault;
use crate::keys;
use crate::manifest::Manifest;
use crate::store::RunStore;

/// What a look at every object of a checkpoint has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Data objects that were read.
    pub objects: usize,
    /// Their length, as the manifest says it.
    pub bytes: u64,
    /// What is wrong, in the manifest's order; empty if the checkpoint is sound.
    pub faults: Vec<Fault>,
}

impl RunStore {
    /// Reads every object of a checkpoint, its configuration included, and compares it with its checksums
    /// ([`RunStore::read_bytes`] says how far it is). Memory holds a few reads of 8 MiB. A store that fails is an
    /// error, not a fault.
    pub async fn verify(&self, manifest: &Manifest) -> Result<Verified, CheckpointError> {
        let mut verified = Verified::default();
        let mut note = |key: &str, result: Result<(), CheckpointError>| match result {
            Ok(()) => Ok(()),
            Err(error) if error.is_damage() => {
                verified.faults.push(Fault { key: key.to_owned(), reason: error.to_string() });
                Ok(())
            }
            Err(error) => Err(error),
        };
        note(&keys::config(&manifest.config.0), self.read_config(&manifest.config).await.map(drop))?;
        for entry in &manifest.objects {
            note(&entry.key, self.check_object(entry).await)?;
        }
        verified.objects = manifest.objects.len();
        verified.bytes = manifest.bytes();
        Ok(verified)
    }
}
