//! Terms: which coordinator is the run's. A term is claimed by creating its object; the highest one rules.

use bytes::Bytes;
use polygram_domain::SCHEMA_VERSION;
use polygram_process::ProcessIdentity;
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::keys;
use crate::sealed::{seal, unseal};
use crate::store::RunStore;
use crate::transfer::Created;

/// Number of a coordinator's rule over a run, from 1; a fencing number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

/// Where a coordinator is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorAddress {
    /// Address of its control service, `host:port`.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// When it started, milliseconds since 1970 UTC.
    pub started_unix_ms: u64,
}

/// A claimed term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorRecord {
    /// Version of this object.
    pub schema: u32,
    /// The term.
    pub term: Term,
    /// Address of the coordinator's control service, `host:port`.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// When it started, milliseconds since 1970 UTC.
    pub started_unix_ms: u64,
    /// Which process that is, on which machine; `None` in a record that an earlier build wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessIdentity>,
}

impl CoordinatorRecord {
    /// The coordinator in words, with its host where that is known.
    pub fn leader(&self) -> String {
        let host =
            self.process.as_ref().map_or(String::new(), |process| format!(" on host {}", process.host));
        format!("the coordinator{host} (pid {} at {})", self.pid, self.address)
    }
}

impl RunStore {
    /// Claims the next term. Of several coordinators each gets a term of its own, and the highest rules.
    pub async fn claim_term(&self, claim: &CoordinatorAddress) -> Result<Term, CheckpointError> {
        // Records may outlive the terms of their attempts, where a store removes what is old; so may the last lease.
        let leased = self.read_lease().await?.map(|lease| lease.term.0);
        let last = self.highest_term().await?.max(self.highest_attempt().await?).max(leased);
        let mut term = last.map_or(1, |term| term.saturating_add(1));
        loop {
            let key = keys::term(term);
            let record = CoordinatorRecord {
                schema: SCHEMA_VERSION,
                term: Term(term),
                address: claim.address.clone(),
                pid: claim.pid,
                started_unix_ms: claim.started_unix_ms,
                process: Some(ProcessIdentity::current()).filter(|process| process.pid == claim.pid),
            };
            match self.put_new(&key, Bytes::from(seal(&key, &record)?)).await? {
                // The very same claim is this one, its answer lost: no two coordinators share an address and a process.
                Created::New | Created::Same => return Ok(Term(term)),
                Created::Other if term == u64::MAX => {
                    return Err(CheckpointError::AlreadyExists { key });
                }
                Created::Other => term += 1,
            }
        }
    }

    /// The coordinator of the highest term, or `None` if the run never had one.
    pub async fn latest_coordinator(&self) -> Result<Option<CoordinatorRecord>, CheckpointError> {
        let Some(term) = self.highest_term().await? else { return Ok(None) };
        let key = keys::term(term);
        let record: CoordinatorRecord = unseal(&key, &self.get(&key).await?)?;
        if record.term != Term(term) {
            return Err(CheckpointError::damaged(&key, format!("it speaks of term {}", record.term.0)));
        }
        Ok(Some(record))
    }

    /// Whether `held` still rules; to be asked before a commit.
    ///
    /// Errors: [`CheckpointError::Fenced`] if a higher term has been claimed.
    pub async fn check_term(&self, held: Term) -> Result<(), CheckpointError> {
        match self.highest_term().await? {
            Some(current) if current > held.0 => {
                // Who it is makes the message better; that there is one is known.
                let by = self.latest_coordinator().await.ok().flatten();
                let by = by.map_or("another coordinator".into(), |record| record.leader());
                Err(CheckpointError::Fenced { held: held.0, current, by })
            }
            _ => Ok(()),
        }
    }

    async fn highest_term(&self) -> Result<Option<u64>, CheckpointError> {
        let listed = self.list(keys::COORD).await?;
        Ok(listed.iter().filter_map(|object| keys::term_of(&object.key)).max())
    }
}
