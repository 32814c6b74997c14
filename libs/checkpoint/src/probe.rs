//! Whether a store can commit: asked once, before anything is written that matters.

use bytes::Bytes;
use object_store::Error;
use object_store::path::Path;

use crate::error::CheckpointError;
use crate::root::Root;
use crate::transfer::{Created, Place};

impl Root {
    /// Makes sure that a Create of a name that exists fails, by trying it on an object of its own, which is removed.
    ///
    /// Errors: [`CheckpointError::NoConditionalCreate`] if it does not; [`CheckpointError::Refused`] if the store cannot
    /// be reached or written at all.
    pub async fn probe_conditional_create(&self) -> Result<(), CheckpointError> {
        // A name of its own, so that two probes at once do not meet.
        let name = format!("probe/{:016x}-{:08x}", random(), std::process::id());
        let place = Place { path: Path::from(name.as_str()), key: &name };
        let result = self.probe(&place).await;
        let removed = self.delete(&place).await;
        result?;
        removed
    }

    async fn probe(&self, place: &Place<'_>) -> Result<(), CheckpointError> {
        let refused = |reason: &str| {
            Err(CheckpointError::NoConditionalCreate { root: self.name().to_owned(), reason: reason.into() })
        };
        for (content, expected) in [("first", Created::New), ("second", Created::Other)] {
            match self.create(place, Bytes::from(content)).await {
                Ok(found) if found == expected => {}
                // The first answer was lost, the object is ours.
                Ok(Created::Same) if expected == Created::New => {}
                Ok(_) => return refused("an object was created twice under one name"),
                Err(CheckpointError::Store(failed))
                    if matches!(failed.source, Error::NotImplemented { .. } | Error::NotSupported { .. }) =>
                {
                    return refused("it does not know such writes");
                }
                Err(error) => return Err(error),
            }
        }
        match self.get(place).await? {
            bytes if bytes == "first" => Ok(()),
            _ => refused("a refused write changed the object all the same"),
        }
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
