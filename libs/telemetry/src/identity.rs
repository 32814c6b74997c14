//! Who speaks: the run, role and rank of a process.

use std::fmt;

/// What a process does in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Schedules the run.
    Coordinator,
    /// Computes.
    Worker,
    /// Owns table rows.
    Shard,
    /// The operator's program.
    Cli,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Coordinator => "coordinator",
            Role::Worker => "worker",
            Role::Shard => "shard",
            Role::Cli => "cli",
        })
    }
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Run, as named.
    pub run: String,
    /// Role.
    pub role: Role,
    /// Rank of a worker, index of a shard; others have none.
    pub index: Option<u32>,
}
