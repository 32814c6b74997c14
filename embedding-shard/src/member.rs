//! A shard's life in a run: bind, join, assignment, restore, ready, serve, end.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_checkpoint::{CheckpointError, Part, RunStore};
use polygram_domain::{ConfigError, RunFile, RunSpec, ShardIndex, Step};
use polygram_proto::control::{
    Assignment, ControlError, Directive, Directives, Failure, JoinOptions, Joined, MemberRef, MemberReport,
    MemberSession, Phase, Progress, Reporter, Token,
};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::archive::{RestoreError, StoreArchive, restore};
use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::outside::{Outside, Services};
use crate::shard::{Shard, ShardStatus};

/// A failed shard waits so long for the coordinator's answer.
const CONFESSION: Duration = Duration::from_secs(5);
/// Parts whose report is not accepted yet, at most.
const PARTS_IN_FLIGHT: usize = 4;

/// How a shard finds its run.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// The coordinator's `host:port`.
    pub coordinator: String,
    /// This shard's index.
    pub index: ShardIndex,
    /// The run's secret.
    pub token: Token,
    /// Address to listen on for the workers; port 0: the system chooses.
    pub listen: SocketAddr,
    /// Address to answer reads on.
    pub query_listen: Option<SocketAddr>,
    /// Address to tell metrics on.
    pub metrics_listen: Option<SocketAddr>,
}

/// Why a shard's life ended badly.
#[derive(Debug, Error)]
pub enum MemberError {
    /// The listener was not bound.
    #[error("cannot listen on {address}: {source}; choose another address, or port 0 for a free port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The session with the coordinator.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The configuration from the coordinator.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The run's store.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The checkpoint's rows.
    #[error("rows were not restored: {0}")]
    Restore(#[from] RestoreError),
    /// The checkpoint is not of this run's shape.
    #[error("the checkpoint of step {step} cannot be resumed from: {reason}")]
    Resume {
        /// Its step.
        step: Step,
        /// What does not hold.
        reason: String,
    },
    /// The assignment does not fit this shard.
    #[error("{0}")]
    Assignment(String),
    /// Serving.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The coordinator ended the run.
    #[error("the run was aborted: {0}")]
    Aborted(String),
    /// The report of a snapshot could not be written.
    #[error("the report of a snapshot cannot be written as JSON: {0}")]
    Part(#[from] serde_json::Error),
    /// A task of this process ended abnormally.
    #[error("a task of this shard ended abnormally: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Takes part in a run until its end. Errors have been reported to the coordinator where it is there to hear them.
pub async fn run(options: MemberOptions) -> Result<(), MemberError> {
    // A terminal's Ctrl-C reaches the whole process group; only the coordinator decides what it means.
    let interrupts = signal(SignalKind::interrupt());
    if let Err(error) = &interrupts {
        tracing::warn!(%error, "interrupts are not ignored");
    }
    let MemberOptions { coordinator, index, token, listen, query_listen, metrics_listen } = options;
    let (listener, address) = bind(listen).await?;
    let services = Services::bind(token.clone(), query_listen, metrics_listen).await?;
    let join = JoinOptions::new(coordinator, token, MemberRef::shard(index), address);
    let (session, joined) = MemberSession::join(join).await?;
    let (reporter, mut directives) = session.split();
    let life = Life { index, reporter, joined };
    match life.live(listener, services, &mut directives).await {
        Ok(()) => Ok(directives.leave().await?),
        Err(error) => {
            life.confess(&error, &mut directives).await;
            Err(error)
        }
    }
}

/// A listener and the address it got.
pub(crate) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), MemberError> {
    let unbound = |source| MemberError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(unbound)?;
    let bound = listener.local_addr().map_err(unbound)?;
    Ok((listener, bound))
}

/// One membership.
struct Life {
    index: ShardIndex,
    reporter: Reporter,
    joined: Joined,
}

impl Life {
    async fn live(
        &self,
        listener: TcpListener,
        services: Services,
        directives: &mut Directives,
    ) -> Result<(), MemberError> {
        let file = RunFile::parse(&self.joined.config_toml, "configuration from the coordinator", &[])?;
        let spec = file.resolve()?;
        let store = RunStore::open(&self.joined.root, &spec.name)?;
        let progress = self.reporter.progress();
        let Some(assignment) = assignment(directives).await? else { return Ok(()) };
        progress.set(assignment.resume_step, Phase::Restoring);
        let config = ShardConfig::of(&spec, self.index, assignment.generation);
        if self.index.0 >= spec.topology.shards || assignment.shards.len() != spec.topology.shards as usize {
            let (shards, listed) = (spec.topology.shards, assignment.shards.len());
            let text = format!("shard {} in a run of {shards} shards, {listed} of them assigned", self.index);
            return Err(MemberError::Assignment(text));
        }
        let mut shard = Shard::new(config.clone())?;
        if assignment.resume_manifest.is_some() {
            restore_from(&mut shard, &store, &spec, assignment.resume_step).await?;
        }
        let (parts, uploaded) = mpsc::channel(PARTS_IN_FLIGHT);
        let shard = shard.with_archive(std::sync::Arc::new(StoreArchive::new(store, config, parts)));
        let status = shard.status();
        let outside = services.start(&shard, self.reporter.clone());
        let (shutdown, stop) = oneshot::channel::<()>();
        let served = tokio::spawn(shard.serve(listener, async move {
            // Dropped or sent: the shard is to stop either way.
            let _either_way = stop.await;
        }));
        let uploads = tokio::spawn(report_uploads(self.reporter.clone(), uploaded));
        progress.set(assignment.resume_step, Phase::Ready);
        self.reporter.report(MemberReport::Ready { assignment: assignment.hash() }).await?;
        Serving { served, uploads, shutdown, status, progress, outside }.watch(directives).await
    }

    /// Reports a failure and gives the coordinator a moment to answer, so that it learns who failed and why.
    async fn confess(&self, error: &MemberError, directives: &mut Directives) {
        if matches!(error, MemberError::Aborted(_) | MemberError::Control(_)) {
            return;
        }
        let (step, phase) = self.reporter.progress().get();
        let failure = Failure { message: error.to_string(), step, phase, suspect: None };
        if let Err(lost) = self.reporter.report(MemberReport::Failed(failure)).await {
            tracing::warn!(%lost, "the failure was not reported");
            return;
        }
        let answer = async {
            while let Ok(directive) = directives.next().await {
                if matches!(directive, Directive::Abort(_) | Directive::Exit) {
                    break;
                }
            }
        };
        if timeout(CONFESSION, answer).await.is_err() {
            tracing::warn!("the coordinator did not answer the failure report");
        }
    }
}

/// The assignment, or `None` where the run ends before it starts.
async fn assignment(directives: &mut Directives) -> Result<Option<Assignment>, MemberError> {
    loop {
        match directives.next().await? {
            Directive::Assign(assignment) => return Ok(Some(assignment)),
            Directive::Abort(abort) => return Err(MemberError::Aborted(abort.reason)),
            Directive::Exit => return Ok(None),
            Directive::Start | Directive::Stop { .. } | Directive::Committed { .. } => {}
        }
    }
}

async fn restore_from(
    shard: &mut Shard,
    store: &RunStore,
    spec: &RunSpec,
    step: Step,
) -> Result<(), MemberError> {
    let manifest = store.read_manifest(step).await?;
    manifest.check_cover(spec).map_err(|error| MemberError::Resume { step, reason: error.to_string() })?;
    restore(shard, store, &manifest).await?;
    tracing::info!(%step, rows = shard.written(), "rows restored");
    Ok(())
}

/// Tells the coordinator of every snapshot that is in the store.
async fn report_uploads(reporter: Reporter, mut parts: mpsc::Receiver<Part>) -> Result<(), MemberError> {
    while let Some(part) = parts.recv().await {
        let step = part.step;
        reporter.report_upload(step, serde_json::to_string(&part)?).await?;
    }
    Ok(())
}

/// A shard at work, watched from the session.
struct Serving {
    served: JoinHandle<Result<Shard, ShardError>>,
    uploads: JoinHandle<Result<(), MemberError>>,
    shutdown: oneshot::Sender<()>,
    status: tokio::sync::watch::Receiver<ShardStatus>,
    progress: Progress,
    outside: Outside,
}

impl Serving {
    /// Follows directives until Exit; the first failure of any part ends it.
    async fn watch(mut self, directives: &mut Directives) -> Result<(), MemberError> {
        let mut uploads_ended = false;
        let failure = loop {
            tokio::select! {
                directive = directives.next() => match directive {
                    Ok(Directive::Exit) => break None,
                    Ok(Directive::Abort(abort)) => break Some(MemberError::Aborted(abort.reason)),
                    Ok(Directive::Start) => self.progress.phase(Phase::Serving),
                    Ok(Directive::Assign(_) | Directive::Stop { .. } | Directive::Committed { .. }) => {}
                    Err(error) => break Some(error.into()),
                },
                served = &mut self.served => {
                    self.uploads.abort();
                    return match served? {
                        Ok(_) => Ok(()),
                        Err(error) => Err(error.into()),
                    };
                }
                ended = &mut self.uploads, if !uploads_ended => match ended? {
                    Ok(()) => uploads_ended = true,
                    Err(error) => break Some(error),
                },
                Ok(()) = self.status.changed() => {
                    let ShardStatus { version, is_snapshotting, .. } = *self.status.borrow_and_update();
                    let phase = if is_snapshotting { Phase::Snapshotting } else { Phase::Serving };
                    let (_, before) = self.progress.get();
                    self.progress.set(version, phase);
                    if phase != before {
                        self.outside.report().await;
                    }
                }
                () = self.outside.next() => {}
            }
        };
        drop(self.shutdown);
        let served = self.served.await?;
        self.uploads.abort();
        match (failure, served) {
            (Some(failure), _) => Err(failure),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(_)) => Ok(()),
        }
    }
}
