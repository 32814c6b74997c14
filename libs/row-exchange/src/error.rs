//! How a worker's exchange with the shards fails.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use polygram_domain::{Cell, FailureKind, Rank, ShardIndex, Step};

use crate::frame::WireError;
use crate::message::{Reason, Refusal};

/// Why.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Cause {
    /// The connection was not made.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The shard did not admit this worker.
    #[error("the shard refused this worker: {}", .0.text)]
    NotAdmitted(Refusal),
    /// The shard refused a request.
    #[error("the shard refused step {step}, cell {cell}: {}", refusal.text)]
    Refused {
        /// Step of the refused request.
        step: Step,
        /// Cell of the refused request.
        cell: Cell,
        /// Reason and sentence.
        refusal: Refusal,
    },
    /// The connection ended.
    #[error("connection lost: {0}")]
    Lost(String),
    /// Whoever listens at the shard's address is none of the run.
    #[error("{0}")]
    Stranger(String),
    /// The shard took nothing for too long.
    #[error("connection lost: it took no data for {:.1} s", .0.as_secs_f64())]
    Stalled(Duration),
    /// Nothing came from the shard for too long, not even a heartbeat.
    #[error("worker {rank} hears nothing from shard {shard} for {:.1} s", waited.as_secs_f64())]
    Silent {
        /// The worker that waited.
        rank: Rank,
        /// The shard that was not heard.
        shard: usize,
        /// How long.
        waited: Duration,
    },
    /// The shard sent what this program cannot take.
    #[error("bad answer: {0}")]
    Answer(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The call itself is wrong.
    #[error("bad call: {0}")]
    Call(String),
}

impl Cause {
    /// Whether the program or its environment failed.
    pub fn kind(&self) -> FailureKind {
        match self {
            Cause::Connect(_) => FailureKind::Connect,
            Cause::Silent { .. } | Cause::Stalled(_) => FailureKind::Timeout,
            Cause::Lost(_) => FailureKind::Reset,
            Cause::NotAdmitted(refusal) | Cause::Refused { refusal, .. }
                if refusal.reason == Reason::Silent =>
            {
                FailureKind::Timeout
            }
            // A shard that sends heartbeats and does not answer for so long is a fault of the program.
            Cause::Deadline(_)
            | Cause::NotAdmitted(_)
            | Cause::Refused { .. }
            | Cause::Stranger(_)
            | Cause::Answer(_)
            | Cause::Call(_) => FailureKind::Program,
        }
    }
}

impl From<WireError> for Cause {
    fn from(error: WireError) -> Cause {
        Cause::Answer(error.to_string())
    }
}

/// A failed exchange: with whom, about what, why.
#[derive(Clone, Debug, PartialEq)]
pub struct RowError {
    /// The shard and its address; `None` when the call was wrong for all.
    pub shard: Option<(ShardIndex, SocketAddr)>,
    /// Step of the failed future.
    pub step: Option<Step>,
    /// Cell of the failed future, where it has one.
    pub cell: Option<Cell>,
    /// Why.
    pub cause: Cause,
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shard {
            Some((shard, address)) => write!(f, "embedding shard {shard} at {address}")?,
            None => write!(f, "embedding shards")?,
        }
        if let Some(step) = self.step {
            write!(f, ", step {step}")?;
        }
        if let Some(cell) = self.cell {
            write!(f, ", cell {cell}")?;
        }
        write!(f, ": {}", self.cause)
    }
}

impl std::error::Error for RowError {}
