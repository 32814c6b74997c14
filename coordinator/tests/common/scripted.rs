//! A member whose behaviour a test scripts: the runtime of every member, with a role that reports what it is told and does
//! what the test orders.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_domain::FailureKind;
use polygram_domain::control::{
    Assignment, DamagedCheckpoint, Directive, Heartbeat, MemberRef, MemberReport, Phase,
};
use polygram_member::{
    FailureCause, FailureOrigin, Inbox, Listening, MemberError, MemberEvent, MemberFailure, MemberOptions,
    Membership, Role, RoleError, Stage, bind, run,
};
use polygram_proto::control::{Joined, Reporter};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing in a test waits longer than this.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Why a scripted member left.
#[derive(Debug, thiserror::Error)]
pub enum ScriptedError {
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("{}", .0.message)]
    Ordered(MemberFailure),
}

impl RoleError for ScriptedError {
    fn failure(&self) -> MemberFailure {
        match self {
            ScriptedError::Member(error) => error.failure(),
            ScriptedError::Ordered(failure) => failure.clone(),
        }
    }
}

/// What a test orders.
enum Order {
    Ready,
    /// To be ready only once the session is lost, without having looked.
    ReadyWhenLost,
    Fail(MemberFailure),
}

/// What a membership was told: directives, and how it ended if no directive ended it.
type Told = Result<Directive, MemberFailure>;

/// The test's ends of one membership.
struct Seat {
    reporter: Reporter,
    joined: Joined,
    told: UnboundedReceiver<Told>,
    orders: UnboundedSender<Order>,
}

/// The member's ends. Its listener is bound as long as the membership lasts.
pub struct Script {
    orders: UnboundedReceiver<Order>,
    _listener: TcpListener,
}

impl Script {
    /// Waits for an order, which may be to fail; a test that is gone orders nothing.
    async fn ordered(&mut self) -> Result<Order, ScriptedError> {
        match self.orders.recv().await {
            Some(Order::Fail(failure)) => Err(ScriptedError::Ordered(failure)),
            Some(order) => Ok(order),
            None => std::future::pending().await,
        }
    }
}

/// The role. It listens at the same address in every membership, so that one that has not ended is noticed.
pub struct ScriptedRole {
    listen: SocketAddr,
    seats: UnboundedSender<Seat>,
    told: Option<UnboundedSender<Told>>,
}

impl ScriptedRole {
    fn tell(&self, told: Told) {
        if let Some(to) = &self.told {
            // A test that looks away needs no answer.
            let _unread = to.send(told);
        }
    }
}

impl Role for ScriptedRole {
    type Error = ScriptedError;
    type Bound = TcpListener;
    type Opened = Script;
    type Prepared = Script;

    async fn bind(&mut self) -> Result<(TcpListener, Listening), ScriptedError> {
        let (listener, bound) = bind(self.listen).await?;
        self.listen = bound;
        Ok((listener, Listening { bound, advertise: None }))
    }

    async fn open(
        &mut self,
        listener: TcpListener,
        membership: &Membership,
    ) -> Result<Script, ScriptedError> {
        let (told_sender, told) = mpsc::unbounded_channel();
        let (orders_sender, orders) = mpsc::unbounded_channel();
        self.told = Some(told_sender);
        let (reporter, joined) = (membership.reporter.clone(), membership.joined.clone());
        let _unread = self.seats.send(Seat { reporter, joined, told, orders: orders_sender });
        Ok(Script { orders, _listener: listener })
    }

    async fn prepare(
        &mut self,
        mut script: Script,
        assignment: Assignment,
        membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> Result<Option<Script>, ScriptedError> {
        self.tell(Ok(Directive::Assign(assignment)));
        let Some(order) = inbox.unless_ended(script.ordered()).await? else { return Ok(None) };
        if let Order::ReadyWhenLost = order {
            lost(&membership.reporter).await;
        }
        Ok(Some(script))
    }

    async fn run(
        &mut self,
        mut script: Script,
        _membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> Result<(), ScriptedError> {
        loop {
            tokio::select! {
                event = inbox.next() => self.tell(Ok(match event? {
                    MemberEvent::Exit => return Ok(()),
                    MemberEvent::Start => Directive::Start,
                    MemberEvent::Stop { reason } => Directive::Stop { reason },
                    MemberEvent::Committed { step } => Directive::Committed { step },
                    MemberEvent::PointSettled { step, kept } => Directive::PointSettled { step, kept },
                })),
                ordered = script.ordered() => drop(ordered?),
            }
        }
    }

    async fn shutdown(
        &mut self,
        result: Result<(), ScriptedError>,
        _membership: &Membership,
    ) -> Result<(), ScriptedError> {
        self.tell(match &result {
            Ok(()) => Ok(Directive::Exit),
            Err(ScriptedError::Member(MemberError::RunEnded(abort) | MemberError::RunRestarts(abort))) => {
                Ok(Directive::Abort(abort.clone()))
            }
            Err(error) => Err(error.failure()),
        });
        self.told = None;
        result
    }

    fn reached(&self, _stage: Stage) {}
}

/// Resolves when the session is lost: nothing can be reported any more.
pub async fn lost(reporter: &Reporter) {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let beat = || {
        let (step, phase) = reporter.progress().get();
        MemberReport::Heartbeat(Heartbeat { step, phase, restored_bytes: 0, store_wait: None })
    };
    while reporter.report(beat()).await.is_ok() {
        look.tick().await;
    }
}

/// A scripted member, as the test sees it. Dropping it is the death of its process.
pub struct Member {
    pub who: MemberRef,
    pub reporter: Reporter,
    pub joined: Joined,
    told: UnboundedReceiver<Told>,
    orders: UnboundedSender<Order>,
    seats: UnboundedReceiver<Seat>,
    task: JoinHandle<Result<(), ScriptedError>>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Member {
    /// Begins one, which is in the run when this returns.
    pub async fn join(options: MemberOptions) -> Result<Member, ScriptedError> {
        let (seats_sender, mut seats) = mpsc::unbounded_channel();
        let who = options.member;
        let mut role = ScriptedRole { listen: ([127, 0, 0, 1], 0).into(), seats: seats_sender, told: None };
        let mut task = tokio::spawn(async move { run(&options, &mut role).await });
        let Some(seat) = timeout(PATIENCE, seats.recv()).await.expect("it joins") else {
            return Err((&mut task).await.unwrap().expect_err("it was in no run"));
        };
        let Seat { reporter, joined, told, orders } = seat;
        Ok(Member { who, reporter, joined, told, orders, seats, task })
    }

    async fn told(&mut self) -> Told {
        let told = timeout(PATIENCE, self.told.recv()).await;
        told.unwrap_or_else(|_| panic!("{} waits for a directive", self.who))
            .expect("its membership ended before")
    }

    /// The next directive. One that ends the membership comes when it has ended.
    pub async fn directive(&mut self) -> Directive {
        self.told().await.unwrap()
    }

    /// How the membership ended that no directive ended.
    pub async fn failed(&mut self) -> MemberFailure {
        self.told().await.unwrap_err()
    }

    /// Its assignment; it is ready.
    pub async fn assigned(&mut self) -> Assignment {
        let Directive::Assign(assignment) = self.directive().await else { panic!("no assignment") };
        self.ready();
        assignment
    }

    /// Lets it report that it is ready.
    pub fn ready(&self) {
        self.orders.send(Order::Ready).unwrap_or_else(|_| panic!("{} has left", self.who));
    }

    /// Lets it report that it is ready when that cannot be reported any more.
    pub fn ready_when_lost(&self) {
        self.orders.send(Order::ReadyWhenLost).unwrap_or_else(|_| panic!("{} has left", self.who));
    }

    /// Lets it fail.
    pub fn fail(&self, failure: MemberFailure) {
        self.orders.send(Order::Fail(failure)).unwrap_or_else(|_| panic!("{} has left", self.who));
    }

    /// Lets it fail by a bug of its own, at `step` while computing.
    pub fn fail_at(&self, step: u64, message: &str) {
        self.reporter.progress().set(polygram_domain::Step(step), Phase::Computing);
        self.fail(MemberFailure::own(FailureKind::Program, message.into()));
    }

    /// Lets it report a checkpoint as damaged.
    pub fn report_damage(&self, damaged: DamagedCheckpoint) {
        let message = format!("not restored: {}", damaged.reason);
        let (origin, cause) = (FailureOrigin::Own, FailureCause::DamagedCheckpoint(damaged));
        self.fail(MemberFailure { origin, cause, message });
    }

    /// It joins again by itself: this is its next membership.
    pub async fn rejoined(&mut self) {
        let seat = timeout(PATIENCE, self.seats.recv()).await;
        let seat = seat.unwrap_or_else(|_| panic!("{} joins again", self.who)).expect("it left the run");
        let Seat { reporter, joined, told, orders } = seat;
        (self.reporter, self.joined, self.told, self.orders) = (reporter, joined, told, orders);
    }

    /// It leaves the run, for this reason.
    pub async fn left(mut self) -> Result<(), ScriptedError> {
        let left = timeout(PATIENCE, &mut self.task).await;
        left.unwrap_or_else(|_| panic!("{} leaves", self.who)).unwrap()
    }

    /// Through as many memberships as it takes, until the run starts; the assignment that it started with.
    pub async fn until_started(&mut self) -> Assignment {
        let mut assigned = None;
        loop {
            match self.directive().await {
                Directive::Assign(assignment) => {
                    assigned = Some(assignment);
                    self.ready();
                }
                Directive::Start => return assigned.expect("an assignment comes before the start"),
                Directive::Abort(_) => self.rejoined().await,
                _ => {}
            }
        }
    }
}
