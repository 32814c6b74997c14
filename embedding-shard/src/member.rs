//! A shard's time in a run: one membership after another. Where the run goes back to its last commit, and where the
//! coordinator is lost, everything of the membership is taken down, and the shard joins again.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_checkpoint::{CheckpointError, StoreProblem};
use polygram_domain::{ConfigError, FailureKind, ShardIndex, Step};
use polygram_faults::{Point, pass};
use polygram_process::address::{AddressError, for_peers};
use polygram_process::{Panicked, StopSignals};
use polygram_proto::control::{
    Abort, AbortKind, CheckpointPlace, ControlError, DamagedCheckpoint, JoinOptions, MemberRef,
    MemberSession, OperatorClient, Recall, StopMode, Token, rejoin_patience,
};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinError;

use crate::error::ShardError;
use crate::life::Life;
use crate::outside::Services;
use crate::restore::RestoreError;

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
    /// Where workers reach it, if not there.
    pub advertise: Option<SocketAddr>,
    /// Address to answer reads on.
    pub query_listen: Option<SocketAddr>,
    /// Address to tell metrics on.
    pub metrics_listen: Option<SocketAddr>,
    /// Ends it from outside the run.
    pub recall: Recall,
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
    /// No address can be given to the workers.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The session with the coordinator.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The configuration from the coordinator.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The run's store.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The checkpoint to go on from cannot be read.
    #[error("the checkpoint of step {step} was not restored: {source}")]
    Unrestored {
        /// Its step.
        step: Step,
        /// Cause.
        source: CheckpointError,
    },
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
    /// The run goes back to its last commit, with another generation of members.
    #[error("the run goes back to its last commit: {0}")]
    RolledBack(String),
    /// The report of a snapshot could not be written.
    #[error("the report of a snapshot cannot be written as JSON: {0}")]
    Part(#[from] serde_json::Error),
    /// A task of this process panicked: a bug.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// Signals cannot be listened for.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    /// A signal came again, or the run could not be asked to stop.
    #[error("ended by a signal, without a commit; the run goes back to its last one")]
    Signalled,
}

impl MemberError {
    /// The checkpoint that could not be restored because what was read of it is not what was written.
    pub fn damaged(&self) -> Option<DamagedCheckpoint> {
        let MemberError::Unrestored { step, source } = self else { return None };
        let (place, reason) = (CheckpointPlace::commit(*step), source.to_string());
        source.object_at_fault().map(|key| DamagedCheckpoint { place, key, reason })
    }

    /// Whether the program or its environment failed.
    pub fn kind(&self) -> FailureKind {
        let problem = match self {
            MemberError::Control(_) => return FailureKind::Reset,
            MemberError::Signalled => return FailureKind::Signal,
            MemberError::Store(error)
            | MemberError::Unrestored { source: error, .. }
            | MemberError::Restore(RestoreError::Store(error)) => error.store_problem(),
            MemberError::Shard(ShardError::Snapshot { problem, .. }) => *problem,
            _ => None,
        };
        problem.map_or(FailureKind::Program, StoreProblem::failure_kind)
    }
}

/// Takes part in a run until its end, in one membership after another. Errors have been reported to the coordinator
/// where it is there to hear them.
pub async fn run(options: MemberOptions) -> Result<(), MemberError> {
    let mut signals = StopSignals::listen().map_err(MemberError::Signals)?;
    run_until_signalled(&options, &mut signals).await
}

/// The same, until `signals` end it: SIGINT and SIGTERM mean the same in every role. The first asks the run to commit and
/// stop; the second, or a run that cannot be asked, ends this member at once.
pub(crate) async fn run_until_signalled(
    options: &MemberOptions,
    signals: &mut StopSignals,
) -> Result<(), MemberError> {
    tokio::select! {
        ended = memberships(options) => ended,
        error = handle_signals(options, signals) => Err(error),
    }
}

async fn memberships(options: &MemberOptions) -> Result<(), MemberError> {
    let mut patience = None;
    loop {
        let ended = membership(options, patience).await;
        let Err(Ended { error, rejoin: Some(again) }) = ended else {
            return ended.map_err(|ended| ended.error);
        };
        tracing::warn!(reason = %error, "joining again");
        patience = Some(again);
    }
}

/// Asks the run to commit and stop at the first signal. Resolves when this member is to leave at once.
async fn handle_signals(options: &MemberOptions, signals: &mut StopSignals) -> MemberError {
    let MemberOptions { coordinator, token, index, .. } = options;
    signals.at_least(1).await;
    tracing::info!(
        "signalled: the run is asked to commit and stop; once more, and this shard leaves at once"
    );
    let asked = async {
        let mut operator = OperatorClient::connect(coordinator, Some(token)).await?;
        operator.stop(StopMode::Commit, &format!("shard {index} was told to end by a signal")).await
    };
    tokio::select! {
        answer = asked => match answer {
            Ok(answer) => tracing::info!(answer, "the coordinator answered"),
            Err(error) => {
                tracing::error!(%error, "the run could not be asked to stop: leaving without a commit");
                return MemberError::Signalled;
            }
        },
        () = signals.at_least(2) => {}
    }
    signals.at_least(2).await;
    tracing::warn!("signalled again: leaving at once, without a commit");
    MemberError::Signalled
}

/// The end of a membership.
struct Ended {
    error: MemberError,
    /// How long joining again is tried, if it makes sense.
    rejoin: Option<Duration>,
}

impl From<MemberError> for Ended {
    fn from(error: MemberError) -> Ended {
        Ended { error, rejoin: None }
    }
}

/// One membership, from join to leave.
async fn membership(options: &MemberOptions, patience: Option<Duration>) -> Result<(), Ended> {
    let MemberOptions { coordinator, index, token, listen, advertise, query_listen, metrics_listen, recall } =
        options.clone();
    let key = token.link_key();
    let (listener, bound) = bind(listen).await?;
    let address = match advertise {
        Some(address) => address,
        None => for_peers(bound, &coordinator).await.map_err(MemberError::from)?,
    };
    let services =
        Services::bind(token.clone(), query_listen, metrics_listen).await?.reached_at(address.ip());
    let mut join = JoinOptions::new(coordinator, token, MemberRef::shard(index), address);
    join.deadline = patience.unwrap_or(join.deadline);
    join.recall = recall;
    let (session, joined) = MemberSession::join(join).await.map_err(|error| {
        // It was there a moment ago.
        let rejoin = patience.filter(|_| matches!(error, ControlError::Lost { .. }));
        Ended { error: error.into(), rejoin }
    })?;
    pass(Point::ShardJoined);
    let patience = rejoin_patience(joined.failure_detection);
    let (reporter, mut directives) = session.split();
    let life = Life { index, reporter, joined, key };
    let error = match life.live(listener, services, &mut directives).await {
        Ok(()) => return Ok(directives.leave().await.map_err(MemberError::from)?),
        Err(error) => error,
    };
    let goes_on = life.confess(&error, &mut directives).await;
    // After a failure of its own a new process is the better start.
    let rejoin = match &error {
        MemberError::RolledBack(_) => true,
        MemberError::Unrestored { .. } => goes_on && error.damaged().is_some(),
        MemberError::Control(error) => error.may_rejoin(),
        _ => false,
    };
    Err(Ended { error, rejoin: rejoin.then_some(patience) })
}

/// A listener and the address it got.
pub(crate) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), MemberError> {
    let unbound = |source| MemberError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(unbound)?;
    let bound = listener.local_addr().map_err(unbound)?;
    Ok((listener, bound))
}

impl From<JoinError> for MemberError {
    fn from(error: JoinError) -> MemberError {
        Panicked::of_task("a task of this shard", error).into()
    }
}

impl From<Abort> for MemberError {
    fn from(abort: Abort) -> MemberError {
        match abort.kind {
            AbortKind::End => MemberError::Aborted(abort.reason),
            AbortKind::Rejoin { .. } => MemberError::RolledBack(abort.reason),
        }
    }
}
