//! A worker's time in a run: one membership after another. Where the run goes back to its last commit, and where the
//! coordinator is lost, everything of the membership is taken down, and the worker joins again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use polygram_collective::Tcp;
use polygram_domain::Rank;
use polygram_faults::{Point, pass};
use polygram_process::address::for_peers;
use polygram_proto::control::{
    AbortKind, ControlError, Directive, Directives, Failure, JoinOptions, MemberRef, MemberReport,
    MemberSession, Recall, Reporter, Token, rejoin_patience,
};

use crate::error::WorkerError;
use crate::life::Life;
use crate::observe::MetricsDesk;
use polygram_process::StopSignals;

/// A worker that failed waits so long for the coordinator's answer.
const CONFESSION: Duration = Duration::from_secs(5);

/// Where a worker listens for the other ranks; the port is chosen by the system.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// Address to bind.
    pub ip: IpAddr,
    /// Address that the other ranks are given, if not the bound one.
    pub advertise: Option<IpAddr>,
}

/// How a worker finds its run.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The coordinator's `host:port`.
    pub coordinator: String,
    /// This worker's rank.
    pub rank: Rank,
    /// The run's secret.
    pub token: Token,
    /// Where it listens for the other ranks.
    pub listen: Listen,
    /// Where its metrics are told.
    pub metrics: MetricsDesk,
}

/// Takes part in a run until its end. Errors have been reported to the coordinator.
pub async fn run(options: WorkerOptions) -> Result<(), WorkerError> {
    take_part(&options, &Recall::default(), &mut StopSignals::listen().map_err(WorkerError::Signals)?).await
}

/// The same, until `recall` is called.
pub(crate) async fn take_part(
    options: &WorkerOptions,
    recall: &Recall,
    signals: &mut StopSignals,
) -> Result<(), WorkerError> {
    let mut patience = None;
    loop {
        let ended = member(options, recall, patience, signals).await;
        let Err(Ended { error, rejoin: Some(again) }) = ended else {
            return ended.map_err(|ended| ended.error);
        };
        tracing::warn!(reason = %error, "joining again");
        patience = Some(again);
    }
}

/// The end of a membership.
struct Ended {
    error: WorkerError,
    /// How long joining again is tried, if it makes sense.
    rejoin: Option<Duration>,
}

impl From<WorkerError> for Ended {
    fn from(error: WorkerError) -> Ended {
        Ended { error, rejoin: None }
    }
}

/// One membership, from join to leave.
async fn member(
    options: &WorkerOptions,
    recall: &Recall,
    patience: Option<Duration>,
    signals: &mut StopSignals,
) -> Result<(), Ended> {
    let address = SocketAddr::new(options.listen.ip, 0);
    let listener = Tcp::bind(address)
        .map_err(|source| WorkerError::Io { what: format!("cannot listen on {address}"), source })?;
    let bound = listener.address();
    let advertised = match options.listen.advertise {
        Some(ip) => SocketAddr::new(ip, bound.port()),
        None => for_peers(bound, &options.coordinator).await.map_err(WorkerError::from)?,
    };
    let member = MemberRef::worker(options.rank);
    let (coordinator, token) = (options.coordinator.clone(), options.token.clone());
    let mut join = JoinOptions::new(coordinator, token, member, advertised);
    join.deadline = patience.unwrap_or(join.deadline);
    join.recall = recall.clone();
    let joining = MemberSession::join(join);
    let joined = tokio::select! {
        joined = joining => joined,
        () = signals.at_least(1) => return Err(WorkerError::Signalled.into()),
    };
    let (session, joined) = joined.map_err(|error| {
        // It was there a moment ago.
        let rejoin = patience.filter(|_| matches!(error, ControlError::Lost { .. }));
        Ended { error: error.into(), rejoin }
    })?;
    pass(Point::WorkerJoined);
    let patience = rejoin_patience(joined.failure_detection);
    let (reporter, mut directives) = session.split();
    let life = Life {
        rank: options.rank,
        key: options.token.link_key(),
        reporter: reporter.clone(),
        joined,
        metrics: options.metrics.clone(),
    };
    let error = match life.live(listener, &mut directives, signals).await {
        Ok(()) => return Ok(directives.leave().await.map_err(WorkerError::from)?),
        Err(error) => error,
    };
    let verdict = confess(&error, &reporter, &mut directives).await;
    let rejoin = error.is_of_others() && verdict != Verdict::Over;
    Err(Ended { error, rejoin: rejoin.then_some(patience) })
}

/// What the coordinator makes of a membership's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The run goes on with another generation.
    GoesOn,
    /// The run is over.
    Over,
    /// It did not say.
    Unknown,
}

/// Reports a failure and gives the coordinator a moment to answer, so that it learns who failed and why.
async fn confess(error: &WorkerError, reporter: &Reporter, directives: &mut Directives) -> Verdict {
    match error {
        WorkerError::Aborted(_) => return Verdict::Over,
        WorkerError::RolledBack(_) => return Verdict::GoesOn,
        WorkerError::Control(_) => return Verdict::Unknown,
        _ => {}
    }
    let (step, phase) = reporter.progress().get();
    let roll_back = matches!(error, WorkerError::GoBack { .. });
    let (message, suspect, damaged) = (error.to_string(), error.suspect(), error.damaged());
    let kind = error.kind();
    let failure = Failure { message, step, phase, suspect, roll_back, damaged, kind };
    if let Err(lost) = reporter.report(MemberReport::Failed(failure)).await {
        tracing::warn!(%lost, "cannot report the failure");
        return Verdict::Unknown;
    }
    let answer = async {
        loop {
            match directives.next().await {
                Ok(Directive::Abort(abort)) => {
                    break match abort.kind {
                        AbortKind::Rejoin { .. } => Verdict::GoesOn,
                        AbortKind::End => Verdict::Over,
                    };
                }
                Ok(Directive::Exit) => break Verdict::Over,
                Ok(_) => {}
                Err(_lost) => break Verdict::Unknown,
            }
        }
    };
    tokio::time::timeout(CONFESSION, answer).await.unwrap_or_else(|_| {
        tracing::warn!("the coordinator did not answer the failure report");
        Verdict::Unknown
    })
}
