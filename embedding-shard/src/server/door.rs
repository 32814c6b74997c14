//! The accepting side of a shard: who comes, who has proved that it belongs to the run, and who waits to be admitted.
//!
//! It is open from the moment that the shard has its place in a generation, also while rows are restored: workers that
//! wait then get heartbeats instead of silence.
//!
//! What always holds: a failing `accept` ends nothing; connections that have not passed the handshake are bounded in
//! number, time and bytes; every connection's task ends before the door's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygram_handshake::{LinkKey, Progress, Waiting, most_waiting};
use polygram_proto::accept::Acceptor;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::timeout;

use super::connection::{self, Event, Fence, Newcomer};
use crate::config::ShardConfig;

/// Requests that wait for the engine at most; the bytes of gradients among them are bounded by credit.
const QUEUE_EVENTS: usize = 64;

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

async fn accept_all(
    listener: TcpListener,
    fence: Fence,
    events: mpsc::Sender<Event>,
    mut closing: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut waiting: Waiting<(SocketAddr, AbortHandle)> = Waiting::new(most_waiting(fence.connections()));
    let (mut accepted, mut acceptor) = (0u64, Acceptor::new(listener));
    loop {
        tokio::select! {
            biased;
            // An error is the door's own end.
            _closed = closing.wait_for(|closing| *closing) => break,
            Some(joined) = connections.join_next() => log_abnormal(joined),
            (stream, from) = acceptor.accept() => {
                accepted += 1;
                let newcomer = Newcomer { stream, from, number: accepted, progress: Progress::default() };
                admit(newcomer, &fence, &events, &mut connections, &mut waiting);
            }
        }
    }
    drop((acceptor, events));
    while let Some(joined) = connections.join_next().await {
        log_abnormal(joined);
    }
}

/// Begins to serve a connection; where too many wait already, another one is ended for it.
fn admit(
    newcomer: Newcomer,
    fence: &Fence,
    events: &mpsc::Sender<Event>,
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
