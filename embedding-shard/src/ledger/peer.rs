//! Who asks a shard for something.

use polygram_domain::Rank;

/// Who asks: a worker, on one of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The connection that answers go to.
    pub connection: u64,
    /// The worker.
    pub rank: Rank,
}
