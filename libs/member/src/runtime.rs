//! The sequence of a membership, for every role: join, prepare, ready, run, failure report; then join again or return.
//!
//! What always holds:
//! * Whatever ends a membership, [`Role::shutdown`] runs before the next one begins or the member returns, and the session
//!   with the coordinator has ended by then.
//! * What [`Role::prepare`] returns always reaches [`Role::run`], which ends it. Nothing happens in between that could
//!   lose it: a Ready that cannot be sent is no error here, [`Inbox::next`] tells the role why the session is over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygram_domain::control::{Assignment, MemberRef, MemberReport, Phase};
use polygram_domain::{RunFile, RunSpec};
use polygram_process::StopSignals;
use polygram_process::address::for_peers;
use polygram_proto::control::{
    ControlError, JoinOptions, Joined, MemberSession, Reporter, Token, rejoin_patience,
};

use crate::error::{MemberError, RoleError};
use crate::failure::{Disposition, FailureReply, MemberFailure};
use crate::inbox::Inbox;
use crate::options::MemberOptions;
use crate::signals::SignalPolicy;

/// Where a role listens for its peers.
#[derive(Clone, Copy, Debug)]
pub struct Listening {
    /// The bound address.
    pub bound: SocketAddr,
    /// Where peers reach it, if not there.
    pub advertise: Option<SocketAddr>,
}

/// What a member knows of the run that it is in.
pub struct Membership {
    /// Which member it is.
    pub member: MemberRef,
    /// The run's secret.
    pub token: Token,
    /// The address that peers are given.
    pub address: SocketAddr,
    /// What the coordinator said when it admitted this member.
    pub joined: Joined,
    /// The run's configuration.
    pub spec: Arc<RunSpec>,
    /// Reports to the coordinator.
    pub reporter: Reporter,
}

/// How far a membership has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Admitted.
    Joined,
    /// The assignment has come.
    Assigned,
    /// About to report that it is ready.
    Ready,
}

/// What a member does in a run. One value serves one membership after another.
pub trait Role: Send {
    /// Why it fails.
    type Error: RoleError;
    /// Bound listeners.
    type Bound: Send;
    /// What stands before the assignment.
    type Opened: Send;
    /// What is ready to run.
    type Prepared: Send;

    /// Binds the listeners whose address peers are given.
    fn bind(&mut self) -> impl Future<Output = Result<(Self::Bound, Listening), Self::Error>> + Send;

    /// Does what needs no assignment.
    fn open(
        &mut self,
        bound: Self::Bound,
        membership: &Membership,
    ) -> impl Future<Output = Result<Self::Opened, Self::Error>> + Send;

    /// Restores state and connects to peers, inside [`Inbox::unless_ended`]; `None` where the run ends before. On an error
    /// it ends what it has begun, or leaves that to [`Role::shutdown`].
    fn prepare(
        &mut self,
        opened: Self::Opened,
        assignment: Assignment,
        membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> impl Future<Output = Result<Option<Self::Prepared>, Self::Error>> + Send;

    /// Runs until the end of the run or the first failure; all of `prepared` has ended when it returns. `Ok` means that the
    /// coordinator said Exit and the work was done.
    fn run(
        &mut self,
        prepared: Self::Prepared,
        membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Ends all that is left of the membership, which had this result. The answer takes its place.
    fn shutdown(
        &mut self,
        result: Result<(), Self::Error>,
        membership: &Membership,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// The membership has come so far: crash points of tests.
    fn reached(&self, stage: Stage);

    /// A pool has this process back, which is in no run.
    fn released(&mut self) {}
}

/// The end of a member's part in a run.
#[derive(Debug)]
pub(crate) struct Ended<E> {
    pub(crate) error: E,
    pub(crate) failure: MemberFailure,
    pub(crate) disposition: Disposition,
}

impl<E: RoleError> Ended<E> {
    fn of(error: E, reply: FailureReply) -> Ended<E> {
        let failure = error.failure();
        Ended { disposition: failure.disposition(reply), failure, error }
    }
}

/// Takes part in a run until its end, in one membership after another. Failures have been reported to the coordinator
/// where it was there to hear them.
///
/// # Errors
/// Why the member left the run before its end.
pub async fn run<R: Role>(options: &MemberOptions, role: &mut R) -> Result<(), R::Error> {
    let mut signals = StopSignals::listen().map_err(MemberError::Signals)?;
    run_until_signalled(options, role, &mut signals).await.map_err(|ended| ended.error)
}

/// The same, with the signals of a process that listens already.
pub(crate) async fn run_until_signalled<R: Role>(
    options: &MemberOptions,
    role: &mut R,
    signals: &mut StopSignals,
) -> Result<(), Ended<R::Error>> {
    let signals = SignalPolicy::new(signals, options);
    let mut attempts = Memberships { options, signals, join_deadline: None };
    loop {
        match attempts.next(role).await {
            Err(ended) if ended.disposition == Disposition::Rejoin => {
                tracing::warn!(reason = %ended.error, "joining again");
            }
            ended => return ended,
        }
    }
}

/// One membership after another in the same run.
struct Memberships<'a> {
    options: &'a MemberOptions,
    signals: SignalPolicy<'a>,
    /// How long joining is tried, once there was a membership.
    join_deadline: Option<Duration>,
}

impl Memberships<'_> {
    /// One membership, from join to leave.
    async fn next<R: Role>(&mut self, role: &mut R) -> Result<(), Ended<R::Error>> {
        let at_once = |error: R::Error| Ended::of(error, FailureReply::Unknown);
        let (bound, Listening { bound: own, advertise }) = role.bind().await.map_err(at_once)?;
        let address = match advertise {
            Some(address) => Ok(address),
            None => for_peers(own, &self.options.coordinator).await,
        };
        let address = address.map_err(|error| at_once(MemberError::from(error).into()))?;
        let (session, joined) = self.join(address).await?;
        role.reached(Stage::Joined);
        self.join_deadline = Some(rejoin_patience(joined.failure_detection));
        let (reporter, directives) = session.split();
        let mut inbox = Inbox::new(directives, &mut self.signals);
        let result = match Membership::of(self.options, address, joined, reporter.clone()) {
            Ok(membership) => {
                let result = session_of(role, bound, &membership, &mut inbox).await;
                role.shutdown(result, &membership).await
            }
            Err(error) => Err(error.into()),
        };
        let Err(error) = result else {
            let left = inbox.leave().await;
            return left.map_err(|error| Ended::leaving(MemberError::from(error)));
        };
        let failure = error.failure();
        let reply = match failure.is_reported() {
            true => inbox.report_failure(&failure, &reporter).await,
            false => FailureReply::Unknown,
        };
        inbox.close().await;
        Err(Ended::of(error, reply))
    }

    async fn join<E: RoleError>(&mut self, address: SocketAddr) -> Result<(MemberSession, Joined), Ended<E>> {
        let MemberOptions { coordinator, token, member, recall } = self.options;
        let mut join = JoinOptions::new(coordinator, token.clone(), *member, address);
        join.deadline = self.join_deadline.unwrap_or(join.deadline);
        join.recall = recall.clone();
        let joined = tokio::select! {
            joined = MemberSession::join(join) => joined,
            () = self.signals.leave_at_once() => {
                return Err(Ended::of(MemberError::Signalled.into(), FailureReply::Unknown));
            }
        };
        joined.map_err(|error| {
            // Joining has its own deadline. A coordinator that is lost meanwhile was there a moment ago.
            let again = self.join_deadline.is_some() && matches!(error, ControlError::Lost { .. });
            let error = MemberError::from(error);
            if again { Ended::of(error.into(), FailureReply::Unknown) } else { Ended::leaving(error) }
        })
    }
}

impl<E: RoleError> Ended<E> {
    /// The member does not join this run again, whatever the error.
    fn leaving(error: MemberError) -> Ended<E> {
        Ended { failure: error.failure(), error: error.into(), disposition: Disposition::LeaveRun }
    }
}

impl Membership {
    /// What is known of the run once the coordinator has admitted a member.
    fn of(
        options: &MemberOptions,
        address: SocketAddr,
        joined: Joined,
        reporter: Reporter,
    ) -> Result<Membership, MemberError> {
        let file = RunFile::parse(&joined.config_toml, "configuration from the coordinator", &[])?;
        let spec = Arc::new(file.resolve()?);
        let (member, token) = (options.member, options.token.clone());
        Ok(Membership { member, token, address, spec, joined, reporter })
    }
}

/// From the admission to the end of the run, or the first failure.
async fn session_of<R: Role>(
    role: &mut R,
    bound: R::Bound,
    membership: &Membership,
    inbox: &mut Inbox<'_, '_>,
) -> Result<(), R::Error> {
    let opened = role.open(bound, membership).await?;
    let Some(assignment) = inbox.assignment().await? else { return Ok(()) };
    role.reached(Stage::Assigned);
    let progress = membership.reporter.progress();
    let (resume_step, assigned) = (assignment.resume_step, assignment.hash());
    progress.set(resume_step, Phase::Restoring);
    let Some(prepared) = role.prepare(opened, assignment, membership, inbox).await? else { return Ok(()) };
    progress.set(resume_step, Phase::Ready);
    role.reached(Stage::Ready);
    if let Err(lost) = membership.reporter.report(MemberReport::Ready { assignment: assigned }).await {
        // The inbox says it to the role.
        tracing::debug!(%lost, "cannot report that this member is ready");
    }
    role.run(prepared, membership, inbox).await
}
