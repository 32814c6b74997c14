//! Heartbeats on a connection, where nothing else is written.

use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::codec::{FrameWriter, LinkError};
use super::frame::Outgoing;
use super::queue::SendQueue;

/// Heartbeats within the time after which a peer counts as silent.
const BEATS: u32 = 4;

/// Heartbeats of one connection.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    every: Duration,
    frame: Outgoing,
}

impl Heartbeats {
    /// `frame` again and again, for a peer that counts this side as silent after `silence`.
    pub fn new(silence: Duration, frame: Outgoing) -> Heartbeats {
        Heartbeats { every: (silence / BEATS).max(Duration::from_millis(1)), frame }
    }

    /// Sends heartbeats until `until` resolves.
    ///
    /// # Errors
    /// A connection that ends meanwhile.
    pub async fn send_until<T, W: AsyncWrite + Unpin>(
        &self,
        writer: &mut FrameWriter<W>,
        until: impl Future<Output = T>,
    ) -> Result<T, LinkError> {
        let mut until = std::pin::pin!(until);
        let mut beats = interval_at(Instant::now() + self.every, self.every);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                ended = &mut until => return Ok(ended),
                _instant = beats.tick() => writer.write(&self.frame).await?,
            }
        }
    }
}

/// Writes the frames of `queue` for connection `connection` until the queue is closed, and heartbeats where there are
/// none.
///
/// # Errors
/// A connection that ends before.
pub async fn write_queue<W: AsyncWrite + Unpin>(
    mut writer: FrameWriter<W>,
    queue: &SendQueue,
    connection: u32,
    heartbeats: Option<Heartbeats>,
) -> Result<(), LinkError> {
    match heartbeats {
        None => {
            while let Some(frame) = queue.next(connection).await {
                writer.write(&frame).await?;
            }
        }
        Some(Heartbeats { every, frame: heartbeat }) => {
            let mut beats = interval_at(Instant::now() + every, every);
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                // While frames are there, nobody looks at the clock: they are the heartbeats.
                let next = tokio::select! {
                    biased;
                    frame = queue.next(connection) => frame,
                    _instant = beats.tick() => Some(heartbeat.clone()),
                };
                let Some(frame) = next else { break };
                writer.write(&frame).await?;
            }
        }
    }
    writer.close().await
}
