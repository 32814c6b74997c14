//! What a rank knows of itself, once it has joined.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::membership::Membership;
use super::pulse::Pulse;

/// What a rank keeps of how it joined, to join groups within the group.
#[derive(Clone, Debug)]
pub(super) struct Home {
    pub(super) membership: Membership,
    /// Where other ranks reach it.
    pub(super) ip: IpAddr,
    /// The longest time that joining may take.
    pub(super) deadline: Duration,
    /// Heartbeats of all ranks of the run on other hosts.
    pub(super) pulse: Option<Arc<Pulse>>,
}
