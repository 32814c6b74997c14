//! Greetings: what worker and shard tell each other before the first request.

use std::time::Duration;

use polygram_domain::embedding::{RowType, SameHost, WireSpec};
use polygram_domain::{Rank, ShardIndex, Step, TableSet};

use super::frame::{WireError, fnv1a};
use super::payload::malformed;
use super::same_host::{OFFER_WORDS, Offer};

/// Connections between a worker and a shard at most.
pub const MAX_CONNECTIONS: u32 = 64;

/// Hash of the tables' sizes, so that a worker and a shard of different models refuse each other.
pub fn tables_hash(tables: &TableSet) -> u64 {
    let mut words = vec![tables.tables_per_site()];
    for table in tables.iter() {
        words.extend([table.index.0, table.site_table, table.rows, table.width]);
    }
    fnv1a(bytemuck::cast_slice(&words))
}

/// Who a worker is, and which of its connections this is. The first one is admitted alone and carries every request;
/// the others only widen the way for rows and gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloBody {
    /// The worker.
    pub rank: Rank,
    /// Workers in the run.
    pub workers: u32,
    /// [`tables_hash`] of its model.
    pub tables: u64,
    /// Random number of this client, the same on all its connections.
    pub incarnation: u64,
    /// This connection, from 0.
    pub connection: u32,
    /// Connections that the worker makes to this shard at most.
    pub connections: u32,
    /// How values travel; the shard must say the same.
    pub wire: WireSpec,
    /// Whether the worker would share memory.
    pub same_host: SameHost,
    /// Payload bytes of rows that may be on their way to the worker.
    pub window_bytes: u32,
    /// The worker gives up a shard that it has not heard for so long.
    pub silence_ms: u32,
}

impl HelloBody {
    /// A worker with one TCP connection, f32 values and a window of 16 MiB, which waits
    /// for half a minute.
    pub fn plain(rank: Rank, workers: u32, tables: &TableSet) -> HelloBody {
        HelloBody {
            rank,
            workers,
            tables: tables_hash(tables),
            incarnation: 0,
            connection: 0,
            connections: 1,
            wire: WireSpec::default(),
            same_host: SameHost::Tcp,
            window_bytes: 16 << 20,
            silence_ms: 30_000,
        }
    }

    pub(super) fn encode(&self) -> Vec<u32> {
        let [tables_low, tables_high] = halves(self.tables);
        let [low, high] = halves(self.incarnation);
        vec![
            self.rank.0,
            self.workers,
            tables_low,
            tables_high,
            low,
            high,
            self.connection,
            self.connections,
            code_of(self.wire.rows),
            code_of(self.wire.gradients),
            u32::from(self.same_host == SameHost::Auto),
            self.window_bytes,
            self.silence_ms,
        ]
    }

    pub(super) fn decode(words: &[u32]) -> Result<HelloBody, WireError> {
        const NAME: &str = "hello";
        let &[
            rank,
            workers,
            tables_low,
            tables_high,
            low,
            high,
            connection,
            connections,
            rows,
            gradients,
            path @ (0 | 1),
            window_bytes,
            silence_ms @ (1..),
        ] = words
        else {
            return malformed(
                NAME,
                format!("{} words, a path that is not 0 or 1, or a silence of 0 ms", words.len()),
            );
        };
        if !(1..=MAX_CONNECTIONS).contains(&connections) || connection >= connections || window_bytes == 0 {
            let rule =
                format!("connection {connection} of {connections} with a window of {window_bytes} bytes");
            return malformed(NAME, rule);
        }
        Ok(HelloBody {
            rank: Rank(rank),
            workers,
            tables: whole(tables_low, tables_high),
            incarnation: whole(low, high),
            connection,
            connections,
            wire: WireSpec { rows: type_of(rows)?, gradients: type_of(gradients)? },
            same_host: if path == 1 { SameHost::Auto } else { SameHost::Tcp },
            window_bytes,
            silence_ms,
        })
    }

    /// [`HelloBody::silence_ms`] as a duration.
    pub fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms.into())
    }
}

/// Who a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WelcomeBody {
    /// The shard.
    pub shard: ShardIndex,
    /// Shards in the run.
    pub shards: u32,
    /// Its version: updates in its rows.
    pub version: Step,
    /// Payload bytes of gradients that may be on their way to the shard.
    pub window_bytes: u32,
    /// The shard gives up a worker that it has not heard for so long.
    pub silence_ms: u32,
    /// Where the two could meet to share memory; the worker answers an offer by PATH.
    pub offer: Option<Offer>,
}

impl WelcomeBody {
    pub(super) fn encode(&self) -> Vec<u32> {
        let [low, high] = halves(self.version.0);
        let mut words = vec![self.shard.0, self.shards, low, high, self.window_bytes, self.silence_ms];
        words.extend(self.offer.iter().flat_map(Offer::encode));
        words
    }

    pub(super) fn decode(words: &[u32]) -> Result<WelcomeBody, WireError> {
        const NAME: &str = "welcome";
        let [shard, shards, low, high, window_bytes @ (1..), silence_ms @ (1..), offer @ ..] = words else {
            return malformed(NAME, format!("{} words, or a window of 0 bytes or ms", words.len()));
        };
        let offer = match <&[u32; OFFER_WORDS]>::try_from(offer) {
            Ok(words) => Some(Offer::decode(words)),
            Err(_) if offer.is_empty() => None,
            Err(_) => return malformed(NAME, format!("an offer of {} words", offer.len())),
        };
        Ok(WelcomeBody {
            shard: ShardIndex(*shard),
            shards: *shards,
            version: Step(whole(*low, *high)),
            window_bytes: *window_bytes,
            silence_ms: *silence_ms,
            offer,
        })
    }

    /// [`WelcomeBody::silence_ms`] as a duration.
    pub fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms.into())
    }
}

/// A duration as whole milliseconds, from 1, for the wire.
pub fn silence_ms(silence: Duration) -> u32 {
    u32::try_from(silence.as_millis()).unwrap_or(u32::MAX).max(1)
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn whole(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}

fn code_of(kind: RowType) -> u32 {
    match kind {
        RowType::F32 => 0,
        RowType::Bf16 => 1,
    }
}

fn type_of(code: u32) -> Result<RowType, WireError> {
    match code {
        0 => Ok(RowType::F32),
        1 => Ok(RowType::Bf16),
        other => malformed("hello", format!("values of unknown type {other}")),
    }
}
