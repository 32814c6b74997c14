//! A coordinator at work: server, driver and recorder, from the first member to the last.

use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::Waits;
use polygram_domain::control::RunStatus;
use polygram_proto::accept::Acceptor;
use polygram_proto::control::wire::coordinator_server::CoordinatorServer;
use polygram_proto::control::{Guarded, MESSAGE_LIMIT_BYTES, OPEN_CALLS, Token};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Server;

use crate::core::{Event, Outcome};
use crate::driver::{Driver, Outlets, Welcome};
use crate::leadership;
use crate::messages::Input;
use crate::metrics;
use crate::opening::Opened;
use crate::recorder::Recorder;
use crate::service::Door;

/// Inputs that may wait for the driver.
const INBOX: usize = 1024;
/// Orders that may wait while the recorder waits for the store, minutes long at any speed of training.
const ORDERS: usize = 1 << 18;
/// Connections have this long to end once nothing is served any more.
const CLOSING: Duration = Duration::from_secs(2);

/// A run that was led to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Good or bad.
    pub outcome: Outcome,
    /// The last status.
    pub status: RunStatus,
}

/// What broke under the coordinator itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The server stopped.
    #[error("the control server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// A task panicked.
    #[error("the {task} failed: {source}")]
    Task {
        /// Which.
        task: &'static str,
        /// Its panic.
        source: JoinError,
    },
}

/// Leads `opened` on `listener` until it is over and the members have left. Each text on `interrupts` is a request to
/// end: the first commits and stops, the second aborts.
pub async fn serve(
    opened: Opened,
    listener: TcpListener,
    token: Token,
    interrupts: mpsc::Receiver<String>,
) -> Result<Ended, ServeError> {
    let timeouts = opened.state.settings().timeouts;
    let (inbox, inputs) = mpsc::channel(INBOX);
    let (orders, waiting_orders) = mpsc::channel(ORDERS);
    let status = opened.status;
    let mut statuses = status.subscribe();
    statuses.mark_changed();

    let released = CancellationToken::new();
    let lease = leadership::keep(opened.store.clone(), opened.lease, inbox.clone(), released.clone());
    let leading = AbortOnDropHandle::new(tokio::spawn(lease));
    let (waits, waiting) = watch::channel(None);
    let trouble = waiting.clone();
    let _told = AbortOnDropHandle::new(tokio::spawn(tell_waits(waiting, inbox.clone())));
    let recorder = Recorder {
        store: opened.store.with_waits(Waits::told_to(waits)),
        spec: Arc::new(opened.spec),
        config: opened.config,
        config_toml: opened.config_toml.clone(),
        term: opened.term,
        claim: opened.claim,
        points: opened.points,
        base: opened.base,
        quarantined: opened.quarantined,
        policy: opened.policy,
        orders: waiting_orders,
        status: statuses,
        driver: inbox.clone(),
    };
    // Dropping this future ends both tasks with it.
    let recording = AbortOnDropHandle::new(tokio::spawn(recorder.run()));
    let closing = CancellationToken::new();
    let door = CoordinatorServer::new(Door { inbox: inbox.clone() })
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
    let door = Guarded::new(door, token).except(OPEN_CALLS);
    let server = Server::builder()
        .http2_keepalive_interval(Some(timeouts.detection()))
        .http2_keepalive_timeout(Some(timeouts.detection()))
        .add_service(door)
        .serve_with_incoming_shutdown(Acceptor::new(listener), closing.clone().cancelled_owned());
    let serving = AbortOnDropHandle::new(tokio::spawn(server));

    // Ends with this function: whoever scrapes then, finds nobody.
    let _scraped = opened.metrics.map(|listener| {
        let first = RunStatus::clone(&status.borrow());
        AbortOnDropHandle::new(tokio::spawn(metrics::serve(listener, first, inbox.clone())))
    });

    let welcome = Welcome { config_toml: opened.config_toml, root: opened.root };
    let driver = Driver::new(opened.state, opened.clock, welcome, Outlets { inbox, orders, status });
    let (outcome, status) = driver.run(inputs, interrupts).await;

    // Nobody waits for the scan; it ends with the run.
    bounded(opened.scan, Duration::ZERO, "scan for forgotten recovery points").await?;
    // The driver's end has closed the recorder's orders.
    let patience = timeouts.detection().max(Duration::from_secs(10));
    let recorded = tokio::select! {
        recorded = bounded(recording, patience, "recorder") => recorded?,
        // A store in trouble is not waited for any more.
        () = lasting(trouble) => None,
    };
    if recorded.is_none() {
        // What was committed is in the store; how the run ended is told all the same.
        tracing::error!("the store did not take the last records in time: status and metrics lag");
    }
    released.cancel();
    // One that the store does not take in time is not renewed either.
    let patience = if recorded.is_some() { CLOSING } else { Duration::ZERO };
    bounded(leading, patience, "renewal of the lease").await?;
    closing.cancel();
    // A connection that somebody keeps open does not keep the coordinator.
    if let Some(result) = bounded(serving, CLOSING, "control server").await? {
        result?;
    }
    Ok(Ended { outcome, status })
}

/// Tells the driver of the recorder's waits for the store.
async fn tell_waits(mut waiting: watch::Receiver<Option<String>>, driver: mpsc::Sender<Input>) {
    while waiting.changed().await.is_ok() {
        let sentence = waiting.borrow_and_update().clone();
        if driver.send(Input::Happened(Event::StoreWait { sentence })).await.is_err() {
            return;
        }
    }
}

/// Resolves once a wait for the store has lasted for [`CLOSING`].
async fn lasting(mut waiting: watch::Receiver<Option<String>>) {
    loop {
        if waiting.wait_for(Option::is_some).await.is_err() {
            return std::future::pending().await;
        }
        tokio::select! {
            () = tokio::time::sleep(CLOSING) => return,
            _over = waiting.wait_for(Option::is_none) => {}
        }
    }
}

/// Joins a task; `None` when it took longer than `patience` and was cut off.
async fn bounded<T>(
    task: AbortOnDropHandle<T>,
    patience: Duration,
    name: &'static str,
) -> Result<Option<T>, ServeError> {
    match tokio::time::timeout(patience, task).await {
        Ok(joined) => joined.map(Some).map_err(|source| ServeError::Task { task: name, source }),
        Err(_elapsed) => Ok(None),
    }
}
