//! The one task that owns the state: events in, actions out. It decides nothing; [`crate::core`] does.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use polygram_checkpoint::Part;
use polygram_domain::Step;
use polygram_domain::control::{Directive, MemberId, MemberRef, RunStatus, WatchEvent};
use polygram_faults::{Point, pass};
use polygram_proto::control::Joined;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use crate::beat::{self, Beat};
use crate::clock::Clock;
use crate::core::{Action, Event, Level, Outcome, Record, Reply, State, Ticket, apply};
use crate::messages::{Answer, Input, Order, Refusal, Reports};
use crate::upload::ReadUpload;

/// Directives that may wait for one member; a member that reads none of so many is stuck.
const DIRECTIVES: usize = 32;
/// Events that a slow watcher may be behind; what it misses beyond is not repeated.
const WATCH_EVENTS: usize = 1024;

/// A call that waits for the core's answer.
enum Pending {
    Join(Answer<Joined>),
    Attend { member: MemberId, reports: Reports, answer: Answer<mpsc::Receiver<Directive>> },
    Upload { new: Option<(Step, MemberRef)>, answer: Answer<()> },
    Stop(Answer<String>),
}

/// What is told to members when they join, beside their admission.
#[derive(Clone, Debug)]
pub(crate) struct Welcome {
    pub(crate) config_toml: String,
    pub(crate) root: String,
}

/// Where the driver's words go.
pub(crate) struct Outlets {
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) status: watch::Sender<Arc<RunStatus>>,
}

/// The owner of the state.
pub(crate) struct Driver {
    state: State,
    clock: Clock,
    welcome: Welcome,
    outlets: Outlets,
    watchers: broadcast::Sender<WatchEvent>,
    pending: HashMap<Ticket, Pending>,
    tickets: u64,
    streams: HashMap<MemberId, mpsc::Sender<Directive>>,
    parts: BTreeMap<(Step, MemberRef), Arc<Part>>,
    readers: JoinSet<()>,
    events: VecDeque<Event>,
    outcome: Option<Outcome>,
}

impl Driver {
    pub(crate) fn new(state: State, clock: Clock, welcome: Welcome, outlets: Outlets) -> Driver {
        Driver {
            state,
            clock,
            welcome,
            outlets,
            watchers: broadcast::Sender::new(WATCH_EVENTS),
            pending: HashMap::new(),
            tickets: 0,
            streams: HashMap::new(),
            parts: BTreeMap::new(),
            readers: JoinSet::new(),
            events: VecDeque::new(),
            outcome: None,
        }
    }

    /// Leads the run to its end. Dropping the outlets at the end tells the recorder to finish.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        mut interrupts: mpsc::Receiver<String>,
    ) -> (Outcome, RunStatus) {
        let period = self.state.settings().timeouts.heartbeat() / 2;
        let mut beat = Beat::every(period.max(Duration::from_millis(5)));
        let mut interruptible = true;
        tracing::info!(state = %self.state.run_state(), "{}", self.state.message());
        let outcome = loop {
            if let Some(outcome) = self.outcome {
                break outcome;
            }
            if beat.is_due() {
                for input in beat::arrived(&mut inbox) {
                    self.take(input);
                    self.settle_events();
                }
                while let Some(reader) = self.readers.try_join_next() {
                    report_reader(reader);
                }
                self.events.push_back(Event::Tick);
                self.settle_events();
                self.publish_progress();
                beat.passed();
                continue;
            }
            tokio::select! {
                biased;
                interrupt = interrupts.recv(), if interruptible => match interrupt {
                    Some(reason) => self.events.push_back(Event::Interrupt { reason }),
                    None => interruptible = false,
                },
                Some(input) = inbox.recv() => self.take(input),
                Some(reader) = self.readers.join_next(), if !self.readers.is_empty() => report_reader(reader),
                () = tokio::time::sleep_until(beat.due()) => {}
            }
            self.settle_events();
        };
        self.streams.clear();
        self.readers.shutdown().await;
        let status = self.state.status(self.clock.now());
        self.outlets.status.send_replace(Arc::new(status.clone()));
        (outcome, status)
    }

    /// Steps change no state: whoever follows the status is given them with each tick.
    fn publish_progress(&self) {
        let status = &self.outlets.status;
        if status.receiver_count() > 0 && status.borrow().step != self.state.step() {
            status.send_replace(Arc::new(self.state.status(self.clock.now())));
        }
    }

    /// Turns an input into an event, remembering whom to answer.
    fn take(&mut self, input: Input) {
        match input {
            Input::Happened(event) => self.events.push_back(event),
            Input::Join { request, answer } => {
                let ticket = self.ticket(Pending::Join(answer));
                self.events.push_back(Event::Join { ticket, request });
            }
            Input::Attend { member, generation, reports, answer } => {
                let ticket = self.ticket(Pending::Attend { member, reports, answer });
                self.events.push_back(Event::Attend { ticket, member, generation });
            }
            Input::Upload { report, answer } => self.take_upload(report, answer),
            Input::Stop { mode, reason, answer } => {
                let ticket = self.ticket(Pending::Stop(answer));
                self.events.push_back(Event::Stop { ticket, mode, reason });
            }
            // A caller that has gone meanwhile does not want its answer: both sends may be dropped.
            Input::Status { answer } => {
                let _gone = answer.send(self.state.status(self.clock.now()));
            }
            // Only the recorder knows what the store has.
            Input::WaitingMetrics { answer } => self.order(Order::Waiting(answer)),
            Input::Watch { answer } => {
                let status = self.state.status(self.clock.now());
                let _gone = answer.send((status, self.watchers.subscribe()));
            }
        }
    }

    fn take_upload(&mut self, report: ReadUpload, answer: Answer<()>) {
        let ReadUpload { member, generation, step, uploaded, part } = report;
        // Nobody's part is for the core to refuse.
        let of_generation = generation == self.state.generation();
        let who = self.state.who(member).filter(|_| of_generation);
        let new = match who.zip(part) {
            Some((who, part)) => match self.parts.get(&(step, who)) {
                Some(known) if *known != part => {
                    let refusal = format!("{who} reported two different parts of step {step}");
                    return send(answer, Err(Refusal::No(refusal)));
                }
                Some(_) => None,
                None => {
                    // The part must be at hand when the core orders the commit; a refusal takes it away again.
                    self.parts.insert((step, who), part);
                    Some((step, who))
                }
            },
            None => None,
        };
        let ticket = self.ticket(Pending::Upload { new, answer });
        self.events.push_back(Event::Upload { ticket, member, generation, step, uploaded });
    }

    fn ticket(&mut self, pending: Pending) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.pending.insert(ticket, pending);
        ticket
    }

    /// Applies events until none is left; acting on one may bring about another.
    fn settle_events(&mut self) {
        while let Some(event) = self.events.pop_front() {
            if let Event::StreamEnded { member, .. } = &event {
                self.streams.remove(member);
            }
            for action in apply(&mut self.state, event, self.clock.now()) {
                self.act(action);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Reply { ticket, answer } => self.answer(ticket, answer),
            Action::Direct { member, directive } => self.direct(member, directive),
            Action::Commit { step } => {
                pass(Point::CoordinatorPartsComplete);
                let parts = self.parts_of(step);
                self.order(Order::Commit { step, parts });
            }
            Action::KeepPoint { step } => {
                pass(Point::CoordinatorPartsComplete);
                let parts = self.parts_of(step);
                self.order(Order::KeepPoint { step, parts });
            }
            Action::ResolveRollback { id, request } => self.order(Order::ResolveRollback { id, request }),
            Action::DropParts { before } => self.parts.retain(|(step, _), _| *step >= before),
            Action::Record(record) => self.record(record),
            Action::StatusChanged => {
                let status = self.state.status(self.clock.now());
                self.outlets.status.send_replace(Arc::new(status.clone()));
                self.show(WatchEvent::Status(Box::new(status)));
            }
            Action::Log(level, line) => match level {
                Level::Debug => tracing::debug!("{line}"),
                Level::Info => tracing::info!("{line}"),
                Level::Warn => tracing::warn!("{line}"),
                Level::Error => tracing::error!("{line}"),
            },
            Action::End(outcome) => self.outcome = Some(outcome),
        }
    }

    fn parts_of(&self, step: Step) -> Vec<Arc<Part>> {
        let of_step = self.parts.iter().filter(|((at, _), _)| *at == step);
        of_step.map(|(_, part)| Arc::clone(part)).collect()
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Reply, String>) {
        match (self.pending.remove(&ticket), answer) {
            (Some(Pending::Join(caller)), Ok(Reply::Admitted { member, generation })) => {
                pass(Point::CoordinatorAdmitted);
                let (settings, welcome) = (self.state.settings(), self.welcome.clone());
                let joined = Joined {
                    member,
                    generation,
                    config_toml: welcome.config_toml,
                    root: welcome.root,
                    heartbeat_interval: settings.timeouts.heartbeat(),
                    failure_detection: settings.timeouts.detection(),
                    attempt: settings.attempt,
                };
                send(caller, Ok(joined));
            }
            (Some(Pending::Attend { member, reports, answer }), Ok(Reply::Attending)) => {
                let (directives, receiver) = mpsc::channel(DIRECTIVES);
                self.streams.insert(member, directives);
                self.readers.spawn(read(member, reports, self.outlets.inbox.clone()));
                send(answer, Ok(receiver));
            }
            (Some(Pending::Upload { answer, .. }), Ok(Reply::PartNoted)) => {
                pass(Point::CoordinatorPartNoted);
                send(answer, Ok(()));
            }
            (Some(Pending::Stop(caller)), Ok(Reply::Stopping(message))) => send(caller, Ok(message)),
            (Some(pending), Ok(Reply::Later(why))) => self.refuse(pending, Refusal::Later(why)),
            (Some(pending), Err(why)) => self.refuse(pending, Refusal::No(why)),
            (Some(_), Ok(reply)) => tracing::error!(?reply, "an answer does not fit its call"),
            (None, _) => tracing::error!(ticket = ticket.0, "an answer has no call"),
        }
    }

    fn refuse(&mut self, pending: Pending, refusal: Refusal) {
        match pending {
            Pending::Join(caller) => send(caller, Err(refusal)),
            Pending::Attend { answer, .. } => send(answer, Err(refusal)),
            Pending::Upload { new, answer } => {
                if let Some(key) = new {
                    self.parts.remove(&key);
                }
                send(answer, Err(refusal));
            }
            Pending::Stop(caller) => send(caller, Err(refusal)),
        }
    }

    fn direct(&mut self, member: MemberId, directive: Directive) {
        let Some(stream) = self.streams.get(&member) else { return };
        let point = match &directive {
            Directive::Assign(_) => Some(Point::CoordinatorAssigned),
            Directive::Start => Some(Point::CoordinatorStarted),
            Directive::Exit => Some(Point::CoordinatorOver),
            _ => None,
        };
        if let Some(point) = point {
            pass(point);
        }
        // A closed stream reports its own end.
        if let Err(mpsc::error::TrySendError::Full(_)) = stream.try_send(directive) {
            let message = "it does not read its directives".to_owned();
            self.events.push_back(Event::StreamEnded { member, message });
        }
    }

    fn record(&mut self, record: Record) {
        match record {
            Record::Metrics(metrics) => {
                self.order(Order::Step(metrics));
                self.show(WatchEvent::Metrics(metrics));
            }
            Record::Evaluation(evaluation) => {
                self.order(Order::Evaluation(evaluation.clone()));
                self.show(WatchEvent::Evaluation(evaluation));
            }
            Record::ResumedAt(step) => self.order(Order::ResumeAt(step)),
            Record::Failure(line) => self.order(Order::Failure(line)),
            Record::Committed(step) => self.show(WatchEvent::Committed { step }),
        }
    }

    fn order(&mut self, order: Order) {
        if let Err(refused) = self.outlets.orders.try_send(order) {
            let message = match refused {
                mpsc::error::TrySendError::Full(_) => "the store is too slow: too much waits to be recorded",
                mpsc::error::TrySendError::Closed(_) => "the recorder has ended",
            };
            self.events.push_back(Event::StoreFailed { message: message.into() });
        }
    }

    fn show(&self, event: WatchEvent) {
        // Nobody watching is no error.
        let _watchers = self.watchers.send(event);
    }
}

fn report_reader(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a reader of member reports failed");
    }
}

/// Forwards what a member says until its stream ends.
async fn read(member: MemberId, mut reports: Reports, inbox: mpsc::Sender<Input>) {
    let message = loop {
        match reports.next().await {
            Some(Ok(envelope)) if envelope.member != member => {
                break format!("it reported as admission {}", envelope.member.0);
            }
            Some(Ok(envelope)) => {
                if inbox.send(Input::Happened(Event::Report(envelope))).await.is_err() {
                    return;
                }
            }
            Some(Err(message)) => break message,
            None => break "it left without a word".to_owned(),
        }
    };
    if inbox.send(Input::Happened(Event::StreamEnded { member, message })).await.is_err() {
        tracing::debug!("the driver is gone");
    }
}

/// Answers a call; a caller that has gone meanwhile does not want the answer.
fn send<T>(caller: Answer<T>, answer: Result<T, Refusal>) {
    let _gone = caller.send(answer);
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunFile;
    use polygram_domain::control::{Incarnation, Reason, RunState};
    use polygram_proto::control::JoinRequest;
    use tokio::sync::oneshot;

    use super::*;
    use crate::core::Settings;

    /// A caller that asks without a pause does not keep the run from noticing that a member is silent.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_flooded_inbox_does_not_keep_time_from_passing() {
        let text = include_str!("../../configs/tiny.toml");
        let sets = ["run.failure_detection_seconds=1", "recovery.max_restarts=0"].map(str::to_owned);
        let spec = RunFile::parse(text, "tiny.toml", &sets).unwrap().resolve().unwrap();
        let settings = Settings::of(&spec, (None, Default::default()), 1);
        let clock = Clock::start();
        let state = State::new(settings, clock.now());
        let (inbox, inputs) = mpsc::channel(64);
        let (orders, _orders) = mpsc::channel(1024);
        let (status, _) = watch::channel(Arc::new(state.status(clock.now())));
        let outlets = Outlets { inbox: inbox.clone(), orders, status };
        let welcome = Welcome { config_toml: String::new(), root: String::new() };
        let (_interrupts, interrupts) = mpsc::channel(1);
        let driver = tokio::spawn(Driver::new(state, clock, welcome, outlets).run(inputs, interrupts));

        let request = JoinRequest {
            schema_version: polygram_domain::SCHEMA_VERSION,
            member: MemberRef::worker(polygram_domain::Rank(0)),
            incarnation: Incarnation(1),
            pid: 1,
            host: "box".into(),
            data_address: ([127, 0, 0, 1], 1).into(),
        };
        let (answer, joined) = oneshot::channel();
        inbox.send(Input::Join { request, answer }).await.ok().unwrap();
        joined.await.unwrap().unwrap();
        // It never attends; and others fill the inbox faster than it is read.
        let mut flood = JoinSet::new();
        for _ in 0..8 {
            let inbox = inbox.clone();
            flood.spawn(async move {
                loop {
                    let (answer, _unread) = oneshot::channel();
                    if inbox.send(Input::Status { answer }).await.is_err() {
                        return;
                    }
                }
            });
        }
        let ended = tokio::time::timeout(Duration::from_secs(20), driver).await;
        let (outcome, status) = ended.expect("the silent member is noticed").unwrap();
        assert_eq!(
            (outcome, status.state, status.reason),
            (Outcome::Bad, RunState::Failed, Reason::MemberSilent)
        );
    }
}
