//! What a process needs to be a member of a run.

use polygram_domain::control::MemberRef;
use polygram_proto::control::{Recall, Token};

/// How a member finds its run.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// The coordinator's `host:port`.
    pub coordinator: String,
    /// Which member it is.
    pub member: MemberRef,
    /// The run's secret.
    pub token: Token,
    /// Ends the membership from outside the run.
    pub recall: Recall,
}
