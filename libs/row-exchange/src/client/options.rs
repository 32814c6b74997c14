//! What a client is told about deadlines, sizes and paths.

use std::time::Duration;

use polygram_domain::embedding::{EmbeddingSpec, SameHost, WireSpec};
use polygram_domain::{Generation, Rank, RunName};
use polygram_handshake::LinkKey;

/// Rows that one shard may have on their way to a client, in payload bytes.
const ROW_WINDOW_BYTES: u32 = 32 << 20;

/// Who is connecting.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The run.
    pub run: RunName,
    /// Its membership generation; shards refuse any other.
    pub generation: Generation,
    /// This worker.
    pub rank: Rank,
    /// Workers in the run.
    pub workers: u32,
    /// Of the run's token: worker and shard prove to each other that they know it.
    pub key: LinkKey,
}

/// A client's deadlines and sizes. A `Duration` stands for both deadlines.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// For a connection to be made, a socket that takes no data, and a shard that sends no heartbeat.
    pub connect: Duration,
    /// For an answer, the welcome of a shard that still restores its rows included. A lookup's answer may wait for
    /// the commits of earlier steps: allow for `prefetch_steps` whole steps.
    pub reply: Duration,
    /// Bytes of row gradients per frame; no result depends on it.
    pub chunk_bytes: usize,
}

impl From<Duration> for ClientLimits {
    fn from(deadline: Duration) -> ClientLimits {
        ClientLimits { connect: deadline, reply: deadline, chunk_bytes: 1 << 20 }
    }
}

/// All that a client is told. Limits alone stand for one connection to each shard, f32 values, and shared memory with
/// the shards of its host.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Deadlines and sizes.
    pub limits: ClientLimits,
    /// How values travel; the shards must say the same.
    pub wire: WireSpec,
    /// Connections to a shard that no memory is shared with.
    pub connections: u32,
    /// Whether memory is shared within a host.
    pub same_host: SameHost,
    /// Rows that one shard may have on their way, in payload bytes; no result depends on it.
    pub row_window_bytes: u32,
}

impl From<ClientLimits> for ClientOptions {
    fn from(limits: ClientLimits) -> ClientOptions {
        ClientOptions {
            limits,
            wire: WireSpec::default(),
            connections: 1,
            same_host: SameHost::Auto,
            row_window_bytes: ROW_WINDOW_BYTES,
        }
    }
}

impl From<Duration> for ClientOptions {
    fn from(deadline: Duration) -> ClientOptions {
        ClientLimits::from(deadline).into()
    }
}

impl ClientOptions {
    /// What a run's settings say.
    pub fn of(embedding: &EmbeddingSpec, limits: ClientLimits) -> ClientOptions {
        ClientOptions {
            wire: embedding.wire,
            connections: embedding.connections,
            same_host: embedding.same_host,
            ..limits.into()
        }
    }
}
