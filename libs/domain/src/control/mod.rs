//! The control plane's nouns: who is in a run, at which step, what members report and what the coordinator answers.
//!
//! The wire (gRPC) converts to and from these types and checks what it receives; everybody else speaks them.

pub mod assignment;
pub mod counts;
pub mod damage;
pub mod membership;
pub mod report;
pub mod status;
pub mod stop;

pub use assignment::{Abort, AbortKind, Assignment, AssignmentHash, Culprit, Directive};
pub use counts::{
    CollisionStatus, Fingerprint, InputReport, InputStatus, Mark, RowsStatus, RunFingerprint, ShardReport,
    TableRows, TableStatus, common_marks,
};
pub use damage::{CheckpointPlace, DamagedCheckpoint};
pub use membership::{Incarnation, MemberId, MemberRef, Phase, Role};
pub use report::{
    Envelope, Evaluation, Failure, Heartbeat, MemberReport, PhaseSeconds, StepMetrics, StepProof,
};
pub use status::{MemberStatus, Reason, Rollback, RunState, RunStatus, Stall, WatchEvent};
pub use stop::StopMode;
