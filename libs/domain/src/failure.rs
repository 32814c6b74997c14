//! What kind of failure ends a member's part in a run.

use serde::{Deserialize, Serialize};

/// Whether a failure is one of the program or of its environment. The same program fails again where it failed before; an
/// environment heals, so that trying again makes sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The program, its configuration or its data.
    #[default]
    Program,
    /// No connection to a peer was made.
    Connect,
    /// A peer was not heard, or took nothing, for too long.
    Timeout,
    /// A connection to a peer broke.
    Reset,
    /// The object store did not answer, or answered with an error of its own.
    Store,
    /// The store is full, or refuses, or is gone: a person has to mend it.
    StoreUnusable,
    /// A signal asked this process to end.
    Signal,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [FailureKind; 7] = [
        FailureKind::Program,
        FailureKind::Connect,
        FailureKind::Timeout,
        FailureKind::Reset,
        FailureKind::Store,
        FailureKind::StoreUnusable,
        FailureKind::Signal,
    ];

    /// Whether the environment failed, and not the program.
    pub fn is_environment(self) -> bool {
        self != FailureKind::Program
    }
}
