//! Entering a run, and reporting a part of a checkpoint.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_domain::control::{Incarnation, MemberId, MemberRef};
use polygram_domain::{CheckpointKind, Generation, Step};

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

/// A member is done with its part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadReport {
    /// The sender's admission.
    pub member: MemberId,
    /// The generation the sender lives in.
    pub generation: Generation,
    /// Updates applied in the checkpoint.
    pub step: Step,
    /// What there is to tell of it.
    pub upload: Upload,
}

/// What became of a member's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upload {
    /// It is in the store.
    Part {
        /// What the checkpoint is for.
        kind: CheckpointKind,
        /// The part, as the checkpoint crate writes it.
        json: String,
    },
    /// It is one of a recovery point and could not be written.
    NotWritten {
        /// One sentence.
        reason: String,
    },
}
