//! What a run leaves behind, to be compared with what another one left.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::{Cluster, Digest};

/// What a run leaves: its digest, every recorded step, and its ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Of its newest commit.
    pub digest: Digest,
    /// The bits of loss, gradient norm and rate of every step, by the state version it made.
    pub metrics: BTreeMap<u64, [u64; 3]>,
    /// Its lines.
    pub ledger: Vec<String>,
}

impl Cluster {
    /// What the run has left by now.
    pub fn trace(&self) -> Result<Trace> {
        Ok(Trace { digest: self.digest()?, metrics: self.metrics()?, ledger: self.ledger()? })
    }
}
