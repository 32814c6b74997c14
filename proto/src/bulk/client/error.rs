//! How a worker's exchange with the shards fails.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use polygram_domain::{Cell, ShardIndex, Step};

use crate::bulk::frame::WireError;
use crate::bulk::message::Refusal;

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
