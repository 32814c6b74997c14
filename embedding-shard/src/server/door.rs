//! The accepting side of a shard: who comes, who has proved that it belongs to the run, and who waits to be admitted.
//!
//! It is open from the moment that the shard has its place in a generation, also while rows are restored: workers that
//! wait then get signs of life instead of silence.
//!
//! What always holds: a failing `accept` ends nothing; connections that have not passed the handshake are bounded in
//! number, time and bytes; every connection's task ends before the door's.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygram_handshake::{LinkKey, Progress, Waiting, most_waiting};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{self, Event, Fence, Newcomer};
use crate::config::ShardConfig;

/// Requests that wait for the engine at most; the bytes of gradients among them are bounded by credit.
const QUEUE_EVENTS: usize = 64;
/// Pause after a failing `accept`, doubled up to [`LONGEST_PAUSE`] while it fails.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The connections of a shard. Dropped, it ends them all.
pub struct Door {
    pub(super) fence: Fence,
    pub(super) events: mpsc::Receiver<Event>,
    closing: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Door {
    /// Accepts connections on `listener` for the shard of `config`, of those that know `key`. Must run on a tokio runtime.
    pub fn open(listener: TcpListener, config: &Arc<ShardConfig>, key: LinkKey) -> Door {
        let fence = Fence::new(Arc::clone(config), key);
        let (event, events) = mpsc::channel(QUEUE_EVENTS);
        let (closing, closed) = watch::channel(false);
        let accepting = tokio::spawn(accept_all(listener, fence.clone(), event, closed));
        Door { fence, events, closing, accepting }
    }

    /// Accepts nobody any more. The listener's address is free soon after.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Waits until all connections have ended, and ends those that have not after `patience`.
    pub(crate) async fn ended(mut self, patience: Duration) {
        self.close();
        self.events.close();
        // Events that nobody takes must not hold a connection back.
        while self.events.try_recv().is_ok() {}
        if timeout(patience, &mut self.accepting).await.is_err() {
            self.accepting.abort();
            // What an aborted task says is that it was aborted.
            let _aborted = (&mut self.accepting).await;
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// When `accept` is tried again, and whether its failure was logged.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
    until: Option<Instant>,
}

impl Pause {
    async fn over(&self) {
        if let Some(until) = self.until {
            sleep_until(until).await;
        }
    }

    fn succeeded(&mut self) {
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "connections are accepted again");
        }
        *self = Pause::default();
    }

    /// `accept` failed: the peer was gone before it was accepted, or the process is out of files or memory.
    fn failed(&mut self, error: &io::Error) {
        if self.failures == 0 {
            tracing::error!(%error, "cannot accept a connection; trying again until it works");
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(Instant::now() + pause);
    }
}

async fn accept_all(
    listener: TcpListener,
    fence: Fence,
    events: mpsc::Sender<Event>,
    mut closing: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut waiting: Waiting<(SocketAddr, AbortHandle)> = Waiting::new(most_waiting(fence.connections()));
    let (mut accepted, mut pause) = (0u64, Pause::default());
    loop {
        let accept = async {
            pause.over().await;
            listener.accept().await
        };
        tokio::select! {
            biased;
            // An error is the door's own end.
            _closed = closing.wait_for(|closing| *closing) => break,
            Some(joined) = connections.join_next() => log_abnormal(joined),
            incoming = accept => match incoming {
                Err(error) => pause.failed(&error),
                Ok((stream, from)) => {
                    pause.succeeded();
                    accepted += 1;
                    let newcomer = Newcomer { stream, from, number: accepted, progress: Progress::default() };
                    admit(newcomer, (&fence, &events), &mut connections, &mut waiting);
                }
            },
        }
    }
    drop((listener, events));
    while let Some(joined) = connections.join_next().await {
        log_abnormal(joined);
    }
}

/// Begins to serve a connection; where too many wait already, another one is ended for it.
fn admit(
    newcomer: Newcomer,
    (fence, events): (&Fence, &mpsc::Sender<Event>),
    connections: &mut JoinSet<()>,
    waiting: &mut Waiting<(SocketAddr, AbortHandle)>,
) {
    let (from, progress) = (newcomer.from, newcomer.progress.clone());
    let task = connections.spawn(connection::serve(newcomer, fence.clone(), events.clone()));
    if let Some((from, task)) = waiting.add(progress, (from, task)) {
        fence.strangers().note(from, &"too many connections have not proved who they are");
        task.abort();
    }
}

fn log_abnormal(joined: Result<(), tokio::task::JoinError>) {
    if let Err(error) = joined
        && !error.is_cancelled()
    {
        tracing::error!(%error, "a connection's task ended abnormally");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever fails, it is tried again, ever more slowly up to a limit.
    #[test]
    fn a_failing_accept_is_tried_again_after_a_pause() {
        let mut pause = Pause::default();
        let errors =
            [libc::ECONNABORTED, libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EPERM];
        let mut last = Duration::ZERO;
        for error in errors.into_iter().cycle().take(40) {
            let before = Instant::now();
            pause.failed(&io::Error::from_raw_os_error(error));
            let wait = pause.until.unwrap() - before;
            assert!(wait >= last.min(LONGEST_PAUSE) && wait <= LONGEST_PAUSE * 2, "{wait:?} after {last:?}");
            last = wait - Duration::from_millis(1);
        }
        assert!(last > LONGEST_PAUSE / 2);
        pause.succeeded();
        assert!(pause.until.is_none());
    }
}
