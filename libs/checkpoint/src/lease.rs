//! The leader's lease: a small object that the coordinator of a run writes again every few seconds, so that others see from
//! any machine who leads the run and whether it still does.
//!
//! It decides nothing about commits: terms do ([`crate::term`]). Whether a leader is alive is judged by whether its lease
//! changes while one looks, never by comparing clocks of two machines.

use std::time::Duration;

use bytes::Bytes;
use polygram_domain::SCHEMA_VERSION;
use polygram_process::{Presence, ProcessIdentity, unix_ms};
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::keys;
use crate::sealed::{seal, unseal};
use crate::store::RunStore;
use crate::term::{CoordinatorAddress, CoordinatorRecord, Term};

/// A lease is renewed this often. Every renewal is a request to the store, which may cost money.
pub const RENEWAL_PERIOD: Duration = Duration::from_secs(5);
/// A lease that is not renewed for so many periods has a leader that is silent.
const MISSED_RENEWALS: u32 = 3;
/// How often a lease is read by somebody who waits for its renewal.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Who leads a run, and when it was last heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Version of this object.
    pub schema: u32,
    /// The leader's term.
    pub term: Term,
    /// Address of its control service, `host:port`.
    pub address: String,
    /// Its process.
    pub process: ProcessIdentity,
    /// How often it was renewed.
    pub renewals: u64,
    /// When it was last renewed by the leader's clock, milliseconds since 1970 UTC; for people.
    pub renewed_unix_ms: u64,
    /// A leader that does not renew it for so long is silent, in milliseconds.
    pub silence_ms: u64,
    /// The leader has ended and leads no more.
    pub is_released: bool,
}

impl Lease {
    /// The lease of this process, which has claimed `term`. Members that are silent for `failure_detection` are lost, and so
    /// is a leader, but for a few renewals at least.
    pub fn new(term: Term, claim: &CoordinatorAddress, failure_detection: Duration) -> Lease {
        let silence = failure_detection.max(MISSED_RENEWALS * RENEWAL_PERIOD);
        Lease {
            schema: SCHEMA_VERSION,
            term,
            address: claim.address.clone(),
            process: ProcessIdentity::current(),
            renewals: 0,
            renewed_unix_ms: unix_ms(),
            silence_ms: u64::try_from(silence.as_millis()).unwrap_or(u64::MAX),
            is_released: false,
        }
    }

    /// The same lease, renewed now.
    pub fn renewed(self) -> Lease {
        Lease { renewals: self.renewals.wrapping_add(1), renewed_unix_ms: unix_ms(), ..self }
    }

    /// The same lease, given up.
    pub fn released(self) -> Lease {
        Lease { is_released: true, ..self.renewed() }
    }

    /// Time since its last renewal, as far as two clocks agree: nothing where it lies in this clock's future.
    pub fn age(&self) -> Duration {
        Duration::from_millis(unix_ms().saturating_sub(self.renewed_unix_ms))
    }

    /// The leader in words, with its host and when it was last heard.
    pub fn leader(&self) -> String {
        let ProcessIdentity { host, pid, .. } = &self.process;
        format!(
            "the coordinator on host {host} (pid {pid} at {}), last heard {:.0} s ago",
            self.address,
            self.age().as_secs_f64()
        )
    }

    fn silence(&self) -> Duration {
        // Bounded, since it is read from a file: nobody waits for longer than an hour.
        Duration::from_millis(self.silence_ms).min(Duration::from_secs(3600))
    }

    /// Whether by the clocks alone it was renewed lately.
    pub fn is_fresh(&self) -> bool {
        unix_ms().abs_diff(self.renewed_unix_ms) <= self.silence().as_millis() as u64
    }
}

/// What is known of the leader that a run had last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// Nobody leads the run: it never was led, its leader has given it up, or has ended on this machine.
    Vacant,
    /// There is a lease; its leader is alive if it renews it.
    Leased(Box<Lease>),
    /// A coordinator has claimed the run and left no lease: it ended within its first moments, or is an older build's.
    Claimed(CoordinatorRecord),
}

impl RunStore {
    /// The lease, if there is one. One that cannot be understood counts as none, with a warning: it is written again within
    /// seconds if anybody leads the run.
    pub async fn read_lease(&self) -> Result<Option<Lease>, CheckpointError> {
        let bytes = match self.get(keys::LEASE).await {
            Err(CheckpointError::Missing { .. }) => return Ok(None),
            other => other?,
        };
        match unseal(keys::LEASE, &bytes) {
            Ok(lease) => Ok(Some(lease)),
            Err(error @ CheckpointError::Damaged { .. }) => {
                tracing::warn!(%error, "the leader's lease is not understood");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the lease over the one that is there.
    pub async fn write_lease(&self, lease: &Lease) -> Result<(), CheckpointError> {
        let sealed = Bytes::from(seal(keys::LEASE, lease)?);
        self.put(keys::LEASE, sealed.into()).await
    }

    /// Who leads the run, by one read of its objects.
    pub async fn leadership(&self) -> Result<Leadership, CheckpointError> {
        let record = self.latest_coordinator().await?;
        let lease = self.read_lease().await?;
        // A lease of an older term is that of a leader who was taken over from.
        let newest = record.as_ref().map(|record| record.term);
        if let Some(lease) = lease.filter(|lease| Some(lease.term) >= newest) {
            let has_ended = lease.process.presence() == Presence::Gone;
            let is_vacant = lease.is_released || has_ended;
            return Ok(if is_vacant { Leadership::Vacant } else { Leadership::Leased(Box::new(lease)) });
        }
        let presence = |record: &CoordinatorRecord| record.process.as_ref().map(ProcessIdentity::presence);
        Ok(match record {
            Some(record) if presence(&record) != Some(Presence::Gone) => Leadership::Claimed(record),
            _ => Leadership::Vacant,
        })
    }

    /// Waits until `seen` is renewed or replaced, and answers the new lease; nothing where its leader ends, or stays silent for
    /// as long as the lease says.
    pub async fn await_renewal(&self, seen: &Lease) -> Result<Option<Lease>, CheckpointError> {
        let looking = tokio::time::Instant::now();
        while looking.elapsed() < seen.silence() {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match self.read_lease().await? {
                Some(lease) if lease.is_released => return Ok(None),
                Some(lease) if lease != *seen => return Ok(Some(lease)),
                _ if seen.process.presence() == Presence::Gone => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }
}
