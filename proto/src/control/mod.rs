//! The control plane: who is in the run, at which step, what is committed.
//!
//! gRPC service `polygram.control.v1.Coordinator` (schema/control.proto). The generated types ([`wire`]) stop here
//! and in the coordinator's `service.rs`: everybody else speaks the types of this module, which are checked on
//! receipt. A member of a run (worker or shard) holds a [`MemberSession`]; the operator holds an
//! [`OperatorClient`].

pub mod announcement;
pub mod error;
pub mod guard;
pub mod joining;
pub mod member;
pub mod operator;
pub mod progress;
pub mod recall;
pub mod token;

pub(crate) mod convert;
pub(crate) mod transport;

pub use announcement::Announcement;
pub use error::{ControlError, Malformed};
pub use guard::Guarded;
pub use joining::{JoinRequest, Joined, Upload, UploadReport};
pub use member::{Directives, JoinOptions, MemberSession, Reporter, rejoin_patience};
pub use operator::{OperatorClient, WatchStream};
pub use progress::Progress;
pub use recall::Recall;
pub use token::Token;

/// Largest control message either side accepts, in bytes: a part of a checkpoint lists every tensor it holds.
pub const MESSAGE_LIMIT_BYTES: usize = 64 << 20;

/// Calls of the coordinator that only look, and need no token.
pub const OPEN_CALLS: &[&str] = &[
    "/polygram.control.v1.Coordinator/Status",
    "/polygram.control.v1.Coordinator/Watch",
    "/polygram.control.v1.Coordinator/WaitingMetrics",
];

/// Types generated from the schema. Only the conversions here and the coordinator's `service.rs` name them.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    tonic::include_proto!("polygram.control.v1");
}
