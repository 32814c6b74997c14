//! What is measured, as it is sent to the ranks.

use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Op {
    AllReduce,
    ReduceScatter,
    AllGather,
    AllToAllV,
    Broadcast,
}

/// How a rank's bytes are divided among those it sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Split {
    Equal,
    /// 70 % of all bytes go to rank 0.
    Skewed,
}

/// One measurement. `bytes` are those of the vector to sum, of what a rank brings to a gather or sends to all others
/// and itself together, or of the message.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) op: Op,
    pub(crate) split: Split,
    pub(crate) bytes: usize,
    /// Calls timed together: more than one where one is too short to be timed.
    pub(crate) calls: u32,
}

impl Order {
    pub(crate) fn new(op: Op, split: Split, bytes: usize) -> Order {
        const SHORT: usize = 16 << 10;
        Order { op, split, bytes, calls: if bytes <= SHORT { 200 } else { 1 } }
    }
}
