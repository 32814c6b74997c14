//! Who a member is: its role, its slot, its incarnation, and what it is doing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Rank, ShardIndex};

/// What a member does in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Computes cells; its index is its rank.
    Worker,
    /// Owns buckets of the tables; its index is its shard index.
    Shard,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Worker => "worker",
            Role::Shard => "shard",
        })
    }
}

/// A slot of the run: worker of a rank, or shard of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberRef {
    /// Worker or shard.
    pub role: Role,
    /// Rank or shard index, from 0.
    pub index: u32,
}

impl MemberRef {
    /// The worker of `rank`.
    pub fn worker(rank: Rank) -> MemberRef {
        MemberRef { role: Role::Worker, index: rank.0 }
    }

    /// The shard of `index`.
    pub fn shard(index: ShardIndex) -> MemberRef {
        MemberRef { role: Role::Shard, index: index.0 }
    }
}

impl fmt::Display for MemberRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.index)
    }
}

/// One admission of one process, given by the coordinator; never reused within an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// One start of one process, drawn at random by the process. Joining again with the same incarnation is the same
/// request; another incarnation is another process that wants the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation(pub u64);

macro_rules! phases {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// What a member is doing right now. It says what a silent member was last seen at.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum Phase { $($(#[$doc])* $name),* }

        impl Phase {
            /// Every phase, in the order of a member's life.
            pub const ALL: &'static [Phase] = &[$(Phase::$name),*];

            /// The phase as one word.
            pub fn as_str(self) -> &'static str {
                match self { $(Phase::$name => $text),* }
            }
        }
    };
}

phases! {
    /// Process is up, not yet assigned.
    Starting = "starting",
    /// Connecting to peers and restoring state.
    Restoring = "restoring",
    /// Restored; waiting for the start.
    Ready = "ready",
    /// Waiting for tokens.
    Loading = "loading",
    /// Waiting for rows.
    Lookup = "lookup",
    /// Forward and backward.
    Computing = "computing",
    /// Waiting for tokens of other ranks, or for what their experts made of this one's.
    Exchanging = "exchanging",
    /// In a collective.
    Reducing = "reducing",
    /// Sending row gradients.
    Pushing = "pushing",
    /// Two-phase update: norms, clip, optimizer.
    Updating = "updating",
    /// A shard at work.
    Serving = "serving",
    /// Copying state for a checkpoint.
    Snapshotting = "snapshotting",
    /// Writing a checkpoint to the store.
    Uploading = "uploading",
    /// Held-out evaluation.
    Evaluating = "evaluating",
    /// All steps done and reported.
    Finished = "finished",
    /// On its way out.
    Leaving = "leaving",
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
