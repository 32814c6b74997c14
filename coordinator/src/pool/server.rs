//! A pool's coordinator at work: server and driver, until it is told to end.

use std::time::Duration;

use polygram_proto::accept::Acceptor;
use polygram_proto::control::{Guarded, MESSAGE_LIMIT_BYTES, Token};
use polygram_proto::pool::wire::pool_server::PoolServer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Server;

use super::core::{Rules, State};
use super::driver::{Driver, Ground};
use super::metrics;
use super::service::Door;
use super::store::{Store, StoreError};
use crate::clock::Clock;

/// Inputs that may wait for the driver.
const INBOX: usize = 1024;
/// Connections have this long to end once nothing is served any more.
const CLOSING: Duration = Duration::from_secs(2);

/// What a pool is made of.
#[derive(Debug)]
pub struct Pool {
    /// What its queue is kept in.
    pub store: Store,
    /// Root of the object store of its runs.
    pub root: String,
    /// The secret of the pool and of all its runs.
    pub token: Token,
    /// Time limits.
    pub rules: Rules,
    /// Where it tells its metrics.
    pub metrics: Option<TcpListener>,
}

/// What broke under the pool itself. Its jobs are as they were last kept.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The queue cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server stopped.
    #[error("the pool's server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// Its listener is gone.
    #[error("the pool does not listen: {0}")]
    Listener(#[from] std::io::Error),
    /// A task panicked.
    #[error("a task of the pool failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Leads `pool` on `listener`, on a runtime of several threads. Each text on `interrupts` is a request to end: the first
/// has every run commit and stop, the second stops them at once, the third does not wait.
pub async fn serve(
    pool: Pool,
    listener: TcpListener,
    interrupts: mpsc::Receiver<String>,
) -> Result<(), PoolError> {
    let Pool { store, root, token, rules, metrics: scraped } = pool;
    let address = listener.local_addr()?;
    let clock = Clock::start();
    let kept = store.jobs()?;
    tracing::info!(%address, root, jobs = kept.len(), "the pool listens");
    let state = State::new(rules, kept, clock.now());
    let (inbox, inputs) = mpsc::channel(INBOX);
    let closing = CancellationToken::new();
    let door = PoolServer::new(Door { inbox: inbox.clone() })
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
    let door = Guarded::new(door, token.clone());
    let server = Server::builder()
        .add_service(door)
        .serve_with_incoming_shutdown(Acceptor::new(listener), closing.clone().cancelled_owned());
    let serving = AbortOnDropHandle::new(tokio::spawn(server));
    // Ends with this function: whoever scrapes then, finds nobody.
    let _scraping =
        scraped.map(|listener| AbortOnDropHandle::new(tokio::spawn(metrics::serve(listener, inbox.clone()))));
    let ground = Ground { root, listen: address.ip(), token, inbox };
    let led = Driver::new(state, clock, store, ground).run(inputs, interrupts).await;
    closing.cancel();
    // A connection that somebody keeps open does not keep the process.
    if let Ok(joined) = tokio::time::timeout(CLOSING, serving).await {
        joined??;
    }
    Ok(led?)
}
