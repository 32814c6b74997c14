//! The one task that owns a pool's state and the file it is kept in: events in, actions out. It decides nothing;
//! [`super::core`] does. What is to be kept is on disk before anything that follows from it is done.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use polygram_domain::RunFile;
use polygram_domain::control::{RunStatus, StopMode};
use polygram_proto::control::Token;
use polygram_proto::pool::{JobId, JobStatus, MemberWord, Offering, PoolMemberId, PoolWord, Submission};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use super::core::event::Admission;
use super::core::{Action, Event, Needs, Reply, State, apply};
use super::messages::{Answer, Input, Numbers, Words};
use super::session::{LedTo, Session};
use super::store::{Store, StoreError};
use crate::beat::{self, Beat};
use crate::clock::Clock;
use crate::core::{Level, Ticket};

/// Words that may wait for one member; a member that reads none of so many is stuck.
const WORDS: usize = 32;
/// How often time passes for the core.
const TICK: Duration = Duration::from_millis(200);

/// A call that waits for the core's answer.
enum Pending {
    Submit(Answer<JobId>),
    Cancel(Answer<String>),
}

/// An open session.
struct Leading {
    session: u32,
    interrupts: mpsc::Sender<String>,
    statuses: Option<watch::Receiver<Arc<RunStatus>>>,
}

impl Leading {
    /// Times that its run went back because a member was lost.
    fn restarts(&self) -> u64 {
        self.statuses.as_ref().map_or(0, |statuses| statuses.borrow().restarts.into())
    }
}

/// What sessions are made of.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) root: String,
    pub(super) listen: IpAddr,
    pub(super) token: Token,
    pub(super) inbox: mpsc::Sender<Input>,
}

/// The owner of the state.
pub(super) struct Driver {
    state: State,
    clock: Clock,
    store: Arc<Mutex<Store>>,
    ground: Ground,
    pending: HashMap<Ticket, Pending>,
    tickets: u64,
    connections: HashMap<PoolMemberId, (u64, mpsc::Sender<PoolWord>)>,
    connected: u64,
    readers: JoinSet<()>,
    sessions: HashMap<JobId, Leading>,
    /// Of sessions that have ended.
    restarts: u64,
    leading: JoinSet<(JobId, u32, LedTo)>,
    events: VecDeque<Event>,
    may_leave: bool,
}

impl Driver {
    pub(super) fn new(state: State, clock: Clock, store: Store, ground: Ground) -> Driver {
        Driver {
            state,
            clock,
            store: Arc::new(Mutex::new(store)),
            ground,
            pending: HashMap::new(),
            tickets: 0,
            connections: HashMap::new(),
            connected: 0,
            readers: JoinSet::new(),
            sessions: HashMap::new(),
            restarts: 0,
            leading: JoinSet::new(),
            events: VecDeque::new(),
            may_leave: false,
        }
    }

    /// Leads the pool until it is told to end and its sessions have ended.
    ///
    /// # Errors
    /// Where the queue cannot be kept any more.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        mut interrupts: mpsc::Receiver<String>,
    ) -> Result<(), StoreError> {
        let mut beat = Beat::every(TICK);
        let mut interruptible = true;
        while !self.may_leave {
            if beat.is_due() {
                for input in beat::arrived(&mut inbox) {
                    self.take(input);
                    self.settle_events().await?;
                }
                while let Some(ended) = self.leading.try_join_next() {
                    self.session_ended(ended);
                }
                while let Some(reader) = self.readers.try_join_next() {
                    report_reader(reader);
                }
                self.events.push_back(Event::Tick);
                self.settle_events().await?;
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
                Some(ended) = self.leading.join_next(), if !self.leading.is_empty() => {
                    self.session_ended(ended);
                }
                Some(reader) = self.readers.join_next(), if !self.readers.is_empty() => report_reader(reader),
                () = tokio::time::sleep_until(beat.due()) => {}
            }
            self.settle_events().await?;
        }
        self.connections.clear();
        self.readers.shutdown().await;
        self.leading.shutdown().await;
        Ok(())
    }

    /// Applies events until none is left; acting on one may bring about another.
    async fn settle_events(&mut self) -> Result<(), StoreError> {
        while let Some(event) = self.events.pop_front() {
            for action in apply(&mut self.state, event, self.clock.now()) {
                self.act(action).await?;
            }
        }
        Ok(())
    }

    fn session_ended(&mut self, ended: Result<(JobId, u32, LedTo), JoinError>) {
        match ended {
            Ok((job, session, LedTo { end, progress })) => {
                self.restarts += self.sessions.remove(&job).map_or(0, |leading| leading.restarts());
                self.events.extend(progress.map(|progress| Event::Progressed { job, progress }));
                self.events.push_back(Event::SessionEnded { job, session, end });
            }
            Err(error) => tracing::error!(%error, "the task around a session failed"),
        }
    }

    /// Changes the queue on a thread where it may block. What is to be kept is on disk when this returns.
    async fn keep(
        &self,
        change: impl FnOnce(&mut Store) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let store = Arc::clone(&self.store);
        let kept = tokio::task::spawn_blocking(move || {
            change(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match kept.await {
            Ok(kept) => kept,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(ended) => Err(StoreError::Ended(ended)),
        }
    }

    /// Turns an input into an event, remembering whom to answer. A caller that has gone meanwhile does not want its
    /// answer.
    fn take(&mut self, input: Input) {
        match input {
            Input::Happened(event) => self.events.push_back(event),
            Input::Opened { job, session, address, statuses } => {
                if let Some(leading) = self.sessions.get_mut(&job).filter(|l| l.session == session) {
                    leading.statuses = Some(statuses);
                }
                self.events.push_back(Event::Opened { job, session, address });
            }
            Input::Offer { offering, words, answer } => self.take_offer(offering, words, answer),
            Input::Word { member, connection, word } => {
                if self.connections.get(&member).is_some_and(|(current, _)| *current == connection) {
                    self.take_word(member, word);
                }
            }
            Input::Hung { member, connection, message } => {
                if self.connections.get(&member).is_some_and(|(current, _)| *current == connection) {
                    self.connections.remove(&member);
                    self.events.push_back(Event::Gone { member, message });
                }
            }
            Input::Submit { submission, answer } => match admission(submission) {
                Ok(admission) => {
                    let ticket = self.ticket(Pending::Submit(answer));
                    self.events.push_back(Event::Submit { ticket, admission });
                }
                Err(refusal) => drop(answer.send(Err(refusal))),
            },
            Input::Cancel { job, answer } => {
                let ticket = self.ticket(Pending::Cancel(answer));
                self.events.push_back(Event::Cancel { ticket, job });
            }
            Input::Jobs { answer } => drop(answer.send(self.job_statuses())),
            Input::Members { answer } => drop(answer.send(self.state.member_statuses(self.clock.now()))),
            Input::Numbers { answer } => drop(answer.send(self.numbers())),
        }
    }

    fn take_offer(
        &mut self,
        offering: Offering,
        words: Words,
        answer: oneshot::Sender<mpsc::Receiver<PoolWord>>,
    ) {
        self.connected += 1;
        let (member, connection) = (offering.member, self.connected);
        let (sender, receiver) = mpsc::channel(WORDS);
        // An older stream of the same process ends with its sender.
        self.connections.insert(member, (connection, sender));
        self.readers.spawn(read(member, connection, words, self.ground.inbox.clone()));
        let _gone = answer.send(receiver);
        self.events.push_back(Event::Offered(offering));
    }

    fn take_word(&mut self, member: PoolMemberId, word: MemberWord) {
        match word {
            MemberWord::Alive => self.events.push_back(Event::Alive { member }),
            MemberWord::Released { seat, failure } => {
                self.events.push_back(Event::Released { member, seat, failure });
            }
            MemberWord::Offering(_) => {
                let message = "it offered itself twice on one stream".to_owned();
                self.connections.remove(&member);
                self.events.push_back(Event::Gone { member, message });
            }
        }
    }

    fn job_statuses(&self) -> Vec<JobStatus> {
        let mut jobs = self.state.job_statuses();
        for job in &mut jobs {
            let leading = self.sessions.get(&job.job).and_then(|leading| leading.statuses.as_ref());
            let Some(status) = leading.map(|statuses| statuses.borrow().clone()) else { continue };
            (job.step, job.last_commit) = (Some(status.step.0), status.last_commit.map(|step| step.0));
            if !job.state.is_over() {
                job.reason = format!("{}; its run is {}: {}", job.reason, status.state, status.message);
            }
        }
        jobs
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            jobs: self.state.job_statuses(),
            members: self.state.member_statuses(self.clock.now()),
            tallies: self.state.tallies(),
            restarts: self.restarts + self.sessions.values().map(Leading::restarts).sum::<u64>(),
        }
    }

    fn ticket(&mut self, pending: Pending) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.pending.insert(ticket, pending);
        ticket
    }

    async fn act(&mut self, action: Action) -> Result<(), StoreError> {
        let now = self.clock.now();
        match action {
            Action::Admit { record, config_toml } => {
                self.keep(move |store| store.admit(&record, &config_toml, now)).await?;
            }
            Action::Save { record, word } => {
                self.keep(move |store| store.save(&record, &word, now)).await?;
            }
            Action::Reply { ticket, answer } => self.answer(ticket, answer),
            Action::Open { job, session, workers, config_toml } => {
                self.open(job, session, workers, config_toml);
            }
            Action::End { job, mode, reason } => self.end(job, mode, reason),
            Action::Place { member, placement } => self.send(member, PoolWord::Place(placement)),
            Action::Withdraw { member, seat } => self.send(member, PoolWord::Withdraw(seat)),
            Action::Drop { member } => drop(self.connections.remove(&member)),
            Action::Log(level, line) => match level {
                Level::Debug => tracing::debug!("{line}"),
                Level::Info => tracing::info!("{line}"),
                Level::Warn => tracing::warn!("{line}"),
                Level::Error => tracing::error!("{line}"),
            },
            Action::Exit => self.may_leave = true,
        }
        Ok(())
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Reply, String>) {
        match (self.pending.remove(&ticket), answer) {
            (Some(Pending::Submit(caller)), Ok(Reply::Submitted(job))) => drop(caller.send(Ok(job))),
            (Some(Pending::Cancel(caller)), Ok(Reply::Cancelling(text))) => drop(caller.send(Ok(text))),
            (Some(Pending::Submit(caller)), Err(refusal)) => drop(caller.send(Err(refusal))),
            (Some(Pending::Cancel(caller)), Err(refusal)) => drop(caller.send(Err(refusal))),
            (_, reply) => tracing::error!(?reply, "an answer does not fit its call"),
        }
    }

    fn open(&mut self, job: JobId, session: u32, workers: u32, config_toml: Arc<str>) {
        let Ground { root, listen, token, inbox } = self.ground.clone();
        let (interrupts, waiting) = mpsc::channel(4);
        self.sessions.insert(job, Leading { session, interrupts, statuses: None });
        let led = Session { job, session, workers, config_toml, root, listen, token, inbox };
        self.leading.spawn(async move {
            // A task of its own, so that a bug in one run ends that run alone.
            let leading = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(led.lead(waiting)));
            let end = leading
                .await
                .unwrap_or_else(|panic| LedTo::failed(format!("its coordinator ended abnormally: {panic}")));
            (job, session, end)
        });
    }

    fn end(&mut self, job: JobId, mode: StopMode, reason: String) {
        let Some(leading) = self.sessions.get(&job) else { return };
        let mode = match mode {
            StopMode::Commit => "commit and stop",
            StopMode::Abort => "stop at once",
        };
        tracing::info!(%job, mode, reason, "ending the session");
        // A session that is over takes no more of them.
        if let Err(unheard) = leading.interrupts.try_send(reason) {
            tracing::debug!(%job, %unheard, "the session has ended already");
        }
    }

    fn send(&mut self, member: PoolMemberId, word: PoolWord) {
        let Some((_, connection)) = self.connections.get(&member) else { return };
        // A closed stream reports its own end.
        if let Err(mpsc::error::TrySendError::Full(_)) = connection.try_send(word) {
            self.connections.remove(&member);
            let message = "it does not read what it is told".to_owned();
            self.events.push_back(Event::Gone { member, message });
        }
    }
}

fn report_reader(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a reader of a member's words failed");
    }
}

/// Reads a submission; the refusal is one sentence.
fn admission(submission: Submission) -> Result<Admission, String> {
    let Submission { config_toml, priority, preemptible } = submission;
    let file = RunFile::parse(&config_toml, "submitted run file", &[]).map_err(|e| e.to_string())?;
    let spec = file.resolve().map_err(|e| e.to_string())?;
    let (run, needs) = (spec.name.to_string(), Needs::of(&spec));
    Ok(Admission { run, priority, preemptible, needs, config_toml: config_toml.into() })
}

/// Forwards what a member says until its stream ends.
async fn read(member: PoolMemberId, connection: u64, mut words: Words, inbox: mpsc::Sender<Input>) {
    let message = loop {
        match words.next().await {
            Some(Ok(word)) => {
                if inbox.send(Input::Word { member, connection, word }).await.is_err() {
                    return;
                }
            }
            Some(Err(message)) => break message,
            None => break "it left".to_owned(),
        }
    };
    if inbox.send(Input::Hung { member, connection, message }).await.is_err() {
        tracing::debug!("the pool's driver is gone");
    }
}
