//! What can go wrong, with the place, the ranks concerned and what to do.
//!
//! All ranks named here are ranks of the run, whatever their seats in the group.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygram_domain::{FailureKind, Rank};

use crate::call::{Call, Op};

/// Where a call failed: which rank of which group, in which call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The group's name.
    pub group: Arc<str>,
    /// The rank of the run that reports.
    pub rank: Rank,
    /// The call it was in.
    pub call: Call,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of group {}, {}", self.rank, self.group, self.call)
    }
}

/// Why a collective call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CollectiveError {
    /// A sum in tree order needs a power of two of ranks. Nothing was sent; other calls still work.
    #[error(
        "{op} sums along a binary tree and needs a power of two of ranks, but the group has {world_size}"
    )]
    WorldSize {
        /// The call refused.
        op: Op,
        /// Ranks in the group.
        world_size: u32,
    },
    /// The caller's arguments cannot be right. Nothing was sent; other calls still work.
    #[error("{op}: {detail}")]
    Argument {
        /// The call refused.
        op: Op,
        /// What is wrong with them.
        detail: String,
    },
    /// Two ranks make different calls: the program's control flow differs between ranks.
    #[error(
        "{place}: rank {peer} is in {theirs}, but this rank is in {}; all ranks of a group must make the same \
         calls in the same order",
        place.call
    )]
    Mismatch {
        /// This rank and its call.
        place: Box<Place>,
        /// The rank that disagrees.
        peer: Rank,
        /// Its call.
        theirs: Call,
    },
    /// For `failure_detection` not a byte moved; `silent` are the ranks that all waiting goes back to.
    #[error("{place}: nothing from {} for {:.1} s; {heard}", ranks(silent), waited.as_secs_f64())]
    TimedOut {
        /// This rank and its call.
        place: Box<Place>,
        /// The ranks not heard from. Found through the peers: a rank that itself waits for another is not named.
        silent: Vec<Rank>,
        /// What was last heard of them, in words.
        heard: String,
        /// `failure_detection`.
        waited: Duration,
    },
    /// The connection to a peer broke: it died, left, or the network did.
    #[error("{place}: lost rank {peer}: {detail}")]
    PeerLost {
        /// This rank and its call.
        place: Box<Place>,
        /// The rank lost.
        peer: Rank,
        /// How it was lost.
        detail: String,
    },
    /// A peer sent no heartbeat: its host is cut off from this one, or stands still.
    #[error("{place}: rank {} hears nothing from rank {peer} for {:.1} s", place.rank, waited.as_secs_f64())]
    Unheard {
        /// This rank and its call.
        place: Box<Place>,
        /// The rank that was not heard.
        peer: Rank,
        /// For how long.
        waited: Duration,
    },
    /// Another rank failed and said why.
    #[error("{place}: rank {origin} failed: {reason}")]
    PeerFailed {
        /// This rank and its call.
        place: Box<Place>,
        /// The rank whose failure it is.
        origin: Rank,
        /// The rank that one blames, where it blames one.
        suspect: Option<Rank>,
        /// Its words.
        reason: String,
    },
    /// An [`crate::AbortHandle`] of this rank was used.
    #[error("{place}: aborted: {reason}{}", if waiting.is_empty() { String::new() } else { format!(" (waiting for {})", ranks(waiting)) })]
    Aborted {
        /// This rank and its call.
        place: Box<Place>,
        /// The abort's reason.
        reason: String,
        /// The ranks this one was waiting for.
        waiting: Vec<Rank>,
    },
    /// Bytes from a peer are not what was sent.
    #[error("{place}: corrupt message from rank {peer}: {detail}")]
    Corrupt {
        /// This rank and its call.
        place: Box<Place>,
        /// The sender.
        peer: Rank,
        /// What does not fit.
        detail: String,
    },
    /// A sum of u64 does not fit into 64 bits.
    #[error("{place}: a sum over ranks does not fit into 64 bits")]
    Overflow {
        /// This rank and its call.
        place: Box<Place>,
    },
    /// A fault ordered for tests.
    #[error("{place}: fault injected here")]
    Injected {
        /// This rank and its call.
        place: Box<Place>,
    },
    /// An earlier call failed, and with it the group.
    #[error("rank {rank} of group {group}: the group is unusable since an earlier call failed: {first}")]
    Failed {
        /// The group's name.
        group: Arc<str>,
        /// The rank that reports.
        rank: Rank,
        /// The earlier error, in words.
        first: String,
    },
}

impl CollectiveError {
    /// Whether the program or its environment failed. A peer that failed for a reason of its own reports it itself.
    pub fn kind(&self) -> FailureKind {
        match self {
            CollectiveError::Unheard { .. } => FailureKind::Timeout,
            CollectiveError::PeerLost { .. } | CollectiveError::PeerFailed { .. } => FailureKind::Reset,
            // A peer that sends heartbeats and does not do its part for so long is a fault of the program.
            CollectiveError::TimedOut { .. }
            | CollectiveError::WorldSize { .. }
            | CollectiveError::Argument { .. }
            | CollectiveError::Mismatch { .. }
            | CollectiveError::Aborted { .. }
            | CollectiveError::Corrupt { .. }
            | CollectiveError::Overflow { .. }
            | CollectiveError::Injected { .. }
            | CollectiveError::Failed { .. } => FailureKind::Program,
        }
    }

    /// The ranks this error points at, to be reported to whoever decides about members. Empty where it accuses
    /// none (an abort, say).
    pub fn suspects(&self) -> Vec<Rank> {
        match self {
            CollectiveError::Mismatch { peer, .. }
            | CollectiveError::PeerLost { peer, .. }
            | CollectiveError::Unheard { peer, .. }
            | CollectiveError::Corrupt { peer, .. } => vec![*peer],
            CollectiveError::TimedOut { silent, .. } => silent.clone(),
            CollectiveError::PeerFailed { origin, suspect, .. } => vec![suspect.unwrap_or(*origin)],
            CollectiveError::Injected { place } | CollectiveError::Overflow { place } => vec![place.rank],
            CollectiveError::WorldSize { .. }
            | CollectiveError::Argument { .. }
            | CollectiveError::Aborted { .. }
            | CollectiveError::Failed { .. } => Vec::new(),
        }
    }
}

/// Why a rank could not join its group.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The addresses, ranks or names given cannot make a group.
    #[error("cannot form group {group}: {detail}")]
    Argument {
        /// The group's name.
        group: String,
        /// What is wrong.
        detail: String,
    },
    /// A peer was reached and would not have this rank.
    #[error("rank {peer} at {address} refused rank {rank}: {reason}")]
    Refused {
        /// The rank that asked.
        rank: Rank,
        /// The rank that refused.
        peer: Rank,
        /// Where it listens.
        address: SocketAddr,
        /// Its words.
        reason: String,
    },
    /// A peer could not be reached, or did not answer as a member does, before the deadline.
    #[error("rank {rank} could not join rank {peer} at {address} within {:.1} s: {detail}", waited.as_secs_f64())]
    Unreachable {
        /// The rank that asked.
        rank: Rank,
        /// The rank looked for.
        peer: Rank,
        /// Where it should listen.
        address: SocketAddr,
        /// Time spent.
        waited: Duration,
        /// The last attempt's failure.
        detail: String,
    },
    /// Higher ranks did not come before the deadline.
    #[error("rank {rank} waited {:.1} s for {}, which did not connect{refused}", waited.as_secs_f64(), ranks(missing))]
    Missing {
        /// The rank that waited.
        rank: Rank,
        /// The ranks that did not come.
        missing: Vec<Rank>,
        /// Time spent.
        waited: Duration,
        /// Connections refused meanwhile, in words; empty when there were none.
        refused: String,
    },
    /// The larger group failed while the ranks told each other who is to sit where.
    #[error("cannot form group {group} out of a larger one: {source}")]
    Collective {
        /// The group that was to be formed.
        group: String,
        /// The larger group's error.
        source: CollectiveError,
    },
    /// The operating system refused something.
    #[error("rank {rank}: {doing}: {source}")]
    Io {
        /// The rank that reports.
        rank: Rank,
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

impl JoinError {
    /// Whether the program or its environment failed.
    pub fn kind(&self) -> FailureKind {
        match self {
            JoinError::Unreachable { .. } | JoinError::Missing { .. } => FailureKind::Connect,
            JoinError::Collective { source, .. } => source.kind(),
            _ => FailureKind::Program,
        }
    }

    /// The ranks of the run that this error points at.
    pub fn suspects(&self) -> Vec<Rank> {
        match self {
            JoinError::Unreachable { peer, .. } => vec![*peer],
            JoinError::Missing { missing, .. } => missing.clone(),
            JoinError::Collective { source, .. } => source.suspects(),
            _ => Vec::new(),
        }
    }
}

/// "rank 3" or "ranks 1, 3".
pub(crate) fn ranks(ranks: &[Rank]) -> String {
    let names: Vec<String> = ranks.iter().map(Rank::to_string).collect();
    match names.len() {
        0 => "no rank".to_string(),
        1 => format!("rank {}", names[0]),
        _ => format!("ranks {}", names.join(", ")),
    }
}
