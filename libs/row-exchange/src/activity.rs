//! Whether bytes come on a connection.
//!
//! What always holds: a connection is silent only while its reader waits for bytes and none come. A reader that is busy
//! with what came before is not waiting, and a process that stood still itself counts that time once, not as silence of
//! its peer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// Looks within the time after which a peer counts as silent.
const LOOKS: u32 = 8;
/// Set while a reader waits for bytes.
const WAITING: u64 = 1;

/// Whether bytes come, as its reader sees it. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct ReadActivity(Arc<AtomicU64>);

impl ReadActivity {
    /// Resolves once the reader has waited for `limit` and nothing came. Dropping the future loses nothing but time.
    pub async fn silent_for(&self, limit: Duration) {
        let period = (limit / LOOKS).max(Duration::from_millis(1));
        let mut looks = interval_at(Instant::now() + period, period);
        // A process that stood still has heard nobody meanwhile: that counts as one look.
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut silent) = (self.0.load(Ordering::Relaxed), 0);
        while silent < LOOKS {
            looks.tick().await;
            let now = self.0.load(Ordering::Relaxed);
            silent = if now == last && now & WAITING != 0 { silent + 1 } else { 0 };
            last = now;
        }
    }

    /// Bytes came. There is one reader, so nothing is lost between the two steps.
    fn came(&self) {
        self.0.store((self.0.load(Ordering::Relaxed) | WAITING).wrapping_add(1), Ordering::Relaxed);
    }

    fn waits(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) | WAITING, Ordering::Relaxed);
    }
}

/// A stream that notes when bytes come.
#[derive(Debug)]
pub(super) struct Watched<R> {
    stream: R,
    pub(super) activity: ReadActivity,
}

impl<R> Watched<R> {
    pub(super) fn new(stream: R) -> Watched<R> {
        Watched { stream, activity: ReadActivity::default() }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match polled {
            Poll::Ready(_) => self.activity.came(),
            Poll::Pending => self.activity.waits(),
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(400);
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Whatever does not come to a stream that nobody reads is not missed; what comes is a heartbeat.
    #[tokio::test]
    async fn silence_is_a_reader_that_waits_in_vain() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut watched = Watched::new(far);
        let activity = watched.activity.clone();
        assert!(timeout(LIMIT * 2, activity.silent_for(LIMIT)).await.is_err(), "nobody reads");
        let reader = tokio::spawn(async move {
            let mut byte = [0];
            while watched.read_exact(&mut byte).await.is_ok() {}
        });
        let silent = activity.silent_for(LIMIT);
        tokio::pin!(silent);
        for _ in 0..32 {
            assert!(timeout(LIMIT / 16, &mut silent).await.is_err(), "bytes come");
            near.write_all(&[1]).await.unwrap();
        }
        let last = Instant::now();
        timeout(PATIENCE, silent).await.expect("silence is noticed");
        assert!(last.elapsed() >= LIMIT * 6 / 8, "{:?}", last.elapsed());
        drop(near);
        reader.await.unwrap();
    }
}
