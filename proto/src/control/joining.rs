//! Entering a run, and reporting a part of a checkpoint.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_domain::{Generation, Step};

use crate::control::membership::{Incarnation, MemberId, MemberRef};

/// A process asks for its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// Version of every message it speaks.
    pub schema_version: u32,
    /// The slot it wants.
    pub member: MemberRef,
    /// This start of the process.
    pub incarnation: Incarnation,
    /// Its process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// Where peers reach its data plane.
    pub data_address: SocketAddr,
}

/// A slot was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The admission, named in every report.
    pub member: MemberId,
    /// The generation it lives in.
    pub generation: Generation,
    /// The effective configuration of the run, TOML.
    pub config_toml: String,
    /// Root of the object store.
    pub root: String,
    /// How often the session reports where it is.
    pub heartbeat_interval: Duration,
    /// A member silent for so long is lost.
    pub failure_detection: Duration,
    /// Which start of the run this is, from 1.
    pub attempt: u32,
}

/// A member's part of a checkpoint is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadReport {
    /// The sender's admission.
    pub member: MemberId,
    /// The generation the sender lives in.
    pub generation: Generation,
    /// Updates applied in the checkpoint.
    pub step: Step,
    /// The part, as the checkpoint crate writes it.
    pub part_json: String,
}
