//! What resuming needs beside a checkpoint, written again with every commit.
//!
//! Rules of a store that remove old objects go by age. They find the frozen configuration and the coordinator's term,
//! which are as old as the run's attempt, while the newest checkpoint is young.

use bytes::Bytes;

use crate::config::ConfigHash;
use crate::error::CheckpointError;
use crate::keys;
use crate::store::RunStore;
use crate::term::Term;

/// A coordinator's record of its term, as it is stored.
#[derive(Clone, Debug)]
pub struct TermObject {
    key: String,
    bytes: Bytes,
}

impl RunStore {
    /// The record of a term, to be renewed later.
    pub async fn term_object(&self, term: Term) -> Result<TermObject, CheckpointError> {
        let key = keys::term(term.0);
        let bytes = self.get(&key).await?;
        Ok(TermObject { key, bytes })
    }

    /// Writes the frozen configuration and the record of the term again, with the content that they have: their age is
    /// that of the commit that follows.
    pub async fn renew(&self, config_toml: &str, term: &TermObject) -> Result<(), CheckpointError> {
        let config = keys::config(&ConfigHash::of(config_toml).0);
        let toml = Bytes::from(config_toml.to_owned());
        let (config, term) = (self.put(&config, toml.into()), self.put(&term.key, term.bytes.clone().into()));
        futures::future::try_join(config, term).await.map(drop)
    }
}
