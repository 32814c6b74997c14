//! Members, runs, operators and clock of one schedule.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use polygram_domain::control::{MemberRef, Role, StopMode};
use polygram_domain::run_spec::ElasticitySpec;
use polygram_proto::pool::{JobId, JobState, Placement, PoolMemberId, Seat};

use super::super::event::Admission;
use super::super::job::JobRecord;
use super::super::{Action, Event, Needs, Reply, Rules, SessionEnd, State, apply};
use super::checker::Checker;
use super::{SEED, Weather};
use crate::core::{Ticket, Time};
use crate::random::Random;

mod members;

/// After this, nothing goes wrong any more.
pub(super) const CALM: u64 = 120_000;
/// No schedule may take longer than this.
const HORIZON: u64 = 1_500_000;
const RULES: Rules = Rules { silence_ms: 10_000, return_ms: 5_000, closing_ms: 60_000, retry_ms: 1_000 };

#[derive(Clone, Debug)]
enum Happening {
    ToCore(u64, Event),
    /// The member hears from the coordinator of this number.
    ToMember(usize, u64, Word),
    /// The member tries to open a stream.
    Offer(usize, u64),
    Beat(usize, u64),
    Work(JobId, u32),
    EndOf(JobId, u32, SessionEnd),
    /// The member says that it lives, and does nothing else.
    Hang,
    Wake(usize, u64),
    /// A member's time in a seat is over.
    Leaves(usize, u64, Seat),
    Submit,
    Cancel,
    Die,
    Respawn(usize),
    Freeze,
    Thaw(usize, u64),
    BreakStream,
    Terminate,
    KillCoordinator,
    StartCoordinator,
    Tick(u64),
}

#[derive(Clone, Debug)]
enum Word {
    Place(Placement),
    Withdraw(Seat),
}

/// A process that offers itself.
#[derive(Clone, Debug)]
struct Agent {
    role: Role,
    /// Which start of this process; 0: dead.
    life: u64,
    lives: u64,
    frozen: bool,
    hangs: bool,
    /// The stream that it has, by the coordinator's number.
    stream: Option<u64>,
    wanted: Option<Seat>,
    seat: Option<Seat>,
}

/// A session at work in the coordinator's process.
#[derive(Clone, Debug)]
struct Session {
    number: u32,
    workers: u32,
    is_asked: bool,
    has_started: bool,
    /// What the pool was last told of who is missing.
    awaited: BTreeSet<MemberRef>,
}

pub(super) struct World {
    seed: u64,
    random: Random,
    weather: Weather,
    now: Time,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    scheduled: u64,
    state: State,
    /// The coordinator's number; streams and sessions of another are gone.
    coordinator: u64,
    is_up: bool,
    /// The file.
    kept: BTreeMap<JobId, JobRecord>,
    needs: BTreeMap<JobId, Needs>,
    /// What is left to do of each run, in its store: a unit is done by all members of a session together.
    work: BTreeMap<JobId, u64>,
    agents: Vec<Agent>,
    sessions: BTreeMap<JobId, Session>,
    to_submit: u64,
    tickets: u64,
    cancelling: BTreeMap<Ticket, JobId>,
    pub(super) checker: Checker,
}

impl World {
    pub(super) fn new(seed: u64, weather: Weather) -> World {
        let mut random = Random(seed ^ SEED);
        let agent = |role| Agent {
            role,
            life: 1,
            lives: 1,
            frozen: false,
            hangs: false,
            stream: None,
            wanted: None,
            seat: None,
        };
        let (workers, shards) = (1 + random.below(6), 1 + random.below(4));
        let agents = (0..workers).map(|_| agent(Role::Worker)).chain((0..shards).map(|_| agent(Role::Shard)));
        let mut world = World {
            seed,
            random,
            weather: weather.clone(),
            now: Time(1),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            scheduled: 0,
            state: State::new(RULES, Vec::new(), Time(1)),
            coordinator: 1,
            is_up: true,
            kept: BTreeMap::new(),
            needs: BTreeMap::new(),
            work: BTreeMap::new(),
            agents: agents.collect(),
            sessions: BTreeMap::new(),
            to_submit: 0,
            tickets: 0,
            cancelling: BTreeMap::new(),
            checker: Checker::default(),
        };
        for index in 0..world.agents.len() {
            let after = world.random.below(3000);
            world.after(after, Happening::Offer(index, 1));
        }
        world.after(0, Happening::Tick(1));
        world.to_submit = 1 + world.random.below(8);
        let troubles = [
            (world.to_submit, Happening::Submit),
            (weather.cancels, Happening::Cancel),
            (weather.deaths, Happening::Die),
            (weather.freezes, Happening::Freeze),
            (weather.hangs, Happening::Hang),
            (weather.broken_streams, Happening::BreakStream),
            (weather.terminations, Happening::Terminate),
            (weather.coordinator_kills, Happening::KillCoordinator),
        ];
        for (count, happening) in troubles {
            for _ in 0..count {
                let at = world.random.below(CALM);
                world.after(at, happening.clone());
            }
        }
        world
    }

    fn after(&mut self, millis: u64, happening: Happening) {
        self.scheduled += 1;
        self.queue.push(Reverse((self.now.0 + millis, self.scheduled)));
        self.happenings.insert(self.scheduled, happening);
    }

    /// Lives until every job is over.
    pub(super) fn run(&mut self) {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            self.now = Time(at);
            let all_submitted = self.to_submit == 0 && self.now.0 > CALM;
            if all_submitted && self.is_up && self.kept.values().all(|record| record.state.is_over()) {
                return;
            }
            assert!(at < HORIZON, "seed {}: not over: {:#?} {:#?}", self.seed, self.kept, self.state.members);
            let happening = self.happenings.remove(&number).expect("scheduled once");
            self.happen(happening);
        }
    }

    pub(super) fn assert_all_over(&self) {
        assert_eq!(self.kept.len(), self.needs.len());
        for (id, record) in &self.kept {
            assert!(record.state.is_over(), "job {id}: {record:?}");
            let is_cancelled = self.checker.cancelled.contains(id);
            let may_be = is_cancelled || record.state != JobState::Cancelled;
            assert!(may_be, "job {id} was cancelled by nobody");
            let done = self.work[id] == 0;
            assert_eq!(
                done && !is_cancelled,
                record.state == JobState::Completed && !is_cancelled,
                "job {id}: {record:?}"
            );
            assert!(self.weather.bad_runs > 0 || record.state != JobState::Failed, "job {id}: {record:?}");
        }
    }

    pub(super) fn assert_all_done(&self) {
        self.assert_all_over();
        for (id, record) in &self.kept {
            assert_eq!(record.state, JobState::Completed, "job {id}: {record:?}");
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::ToCore(coordinator, event) => {
                if coordinator == self.coordinator && self.is_up {
                    self.apply(event);
                }
            }
            Happening::Tick(coordinator) => {
                if coordinator == self.coordinator && self.is_up {
                    self.apply(Event::Tick);
                    self.after(500, Happening::Tick(coordinator));
                }
            }
            Happening::ToMember(index, coordinator, word) => self.hear(index, coordinator, word),
            Happening::Offer(index, life) => self.offer(index, life),
            Happening::Beat(index, life) => self.beat(index, life),
            Happening::Work(job, number) => self.do_work(job, number),
            Happening::EndOf(job, number, end) => {
                if self.sessions.get(&job).is_some_and(|session| session.number == number) {
                    self.sessions.remove(&job);
                    self.apply(Event::SessionEnded { job, session: number, end });
                }
            }
            Happening::Leaves(index, life, seat) => self.leave(index, life, seat),
            Happening::Submit => self.submit(),
            Happening::Cancel => self.cancel(),
            Happening::Die => {
                if let Some(index) = self.anybody() {
                    self.die(index);
                    let after = self.random.below(60_000);
                    self.after(after, Happening::Respawn(index));
                }
            }
            Happening::Respawn(index) => {
                let agent = &mut self.agents[index];
                if agent.life == 0 {
                    agent.lives += 1;
                    agent.life = agent.lives;
                    let life = agent.life;
                    self.after(100, Happening::Offer(index, life));
                }
            }
            Happening::Freeze => {
                if let Some(index) = self.anybody() {
                    self.agents[index].frozen = true;
                    let (after, life) = (self.random.below(30_000), self.agents[index].life);
                    self.after(after, Happening::Thaw(index, life));
                }
            }
            Happening::Thaw(index, life) => self.thaw(index, life),
            Happening::Hang => {
                if let Some(index) = self.anybody() {
                    self.agents[index].hangs = true;
                    let (after, life) = (self.random.below(90_000), self.agents[index].life);
                    self.after(after, Happening::Wake(index, life));
                }
            }
            Happening::Wake(index, life) => {
                let agent = &mut self.agents[index];
                agent.hangs &= agent.life != life;
            }
            Happening::BreakStream => {
                if let Some(index) = self.anybody() {
                    self.break_stream(index);
                }
            }
            Happening::Terminate => self.terminate(),
            Happening::KillCoordinator => {
                if std::mem::replace(&mut self.is_up, false) {
                    self.sessions.clear();
                    self.cancelling.clear();
                    let after = 100 + self.random.below(20_000);
                    self.after(after, Happening::StartCoordinator);
                }
            }
            Happening::StartCoordinator => self.start_coordinator(),
        }
    }

    fn anybody(&mut self) -> Option<usize> {
        let living: Vec<usize> = (0..self.agents.len()).filter(|i| self.agents[*i].life > 0).collect();
        (!living.is_empty()).then(|| living[self.random.below(living.len() as u64) as usize])
    }

    fn id(index: usize, life: u64) -> PoolMemberId {
        // Younger processes may well come before older ones.
        PoolMemberId((life << 8 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn index_of(&self, member: PoolMemberId) -> Option<usize> {
        (0..self.agents.len())
            .find(|i| World::id(*i, self.agents[*i].life) == member && self.agents[*i].life > 0)
    }

    fn apply(&mut self, event: Event) {
        let actions = apply(&mut self.state, event, self.now);
        for action in actions {
            self.act(action);
        }
        self.checker.check(&self.state, &self.kept, self.now);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Admit { record, .. } => {
                self.work.insert(record.job, 2 + self.random.below(40));
                assert!(self.kept.insert(record.job, record).is_none());
            }
            Action::Save { record, .. } => {
                let before = self.kept.insert(record.job, record.clone()).expect("admitted before");
                if record.workers > 0 && before.workers > 0 {
                    self.checker.shrunk += u64::from(record.workers < before.workers);
                    self.checker.grown += u64::from(record.workers > before.workers);
                }
                self.checker.preempted += u64::from(record.reason.starts_with("it makes way"));
            }
            Action::Reply { ticket, answer: Ok(Reply::Cancelling(_)) } => {
                self.checker.cancelled.extend(self.cancelling.remove(&ticket));
            }
            Action::Open { job, session, workers, .. } => self.open(job, session, workers),
            Action::End { job, mode, .. } => self.end(job, mode),
            Action::Place { member, placement } => self.tell(member, Word::Place(placement)),
            Action::Withdraw { member, seat } => self.tell(member, Word::Withdraw(seat)),
            Action::Drop { member } => {
                if let Some(index) = self.index_of(member) {
                    self.break_stream(index);
                }
            }
            Action::Reply { .. } | Action::Log(..) => {}
            Action::Exit => panic!("nobody asked it to leave"),
        }
    }

    fn open(&mut self, job: JobId, number: u32, workers: u32) {
        let fresh =
            Session { number, workers, is_asked: false, has_started: false, awaited: BTreeSet::new() };
        assert!(self.sessions.insert(job, fresh).is_none(), "job {job} is led twice");
        let after = 50 + self.random.below(500);
        if self.random.once_in(self.weather.bad_runs) {
            let end = SessionEnd::Failed("a bug".into());
            return self.after(after, Happening::EndOf(job, number, end));
        }
        if self.work[&job] == 0 {
            let end = SessionEnd::Completed("nothing was left".into());
            return self.after(after, Happening::EndOf(job, number, end));
        }
        let address = "127.0.0.1:1".parse().expect("legal");
        let opened = Event::Opened { job, session: number, address };
        self.after(after, Happening::ToCore(self.coordinator, opened));
        self.after(after + 500, Happening::Work(job, number));
    }

    fn attending(&self, job: JobId, number: u32) -> Vec<usize> {
        let sits = |agent: &Agent| {
            agent.life > 0
                && !agent.frozen
                && !agent.hangs
                && agent.seat.is_some_and(|seat| (seat.job, seat.session) == (job, number))
        };
        (0..self.agents.len()).filter(|i| sits(&self.agents[*i])).collect()
    }

    fn is_whole(&self, job: JobId) -> bool {
        self.missing(job).is_some_and(|missing| missing.is_empty())
    }

    /// Slots of an open session in which nobody attends.
    fn missing(&self, job: JobId) -> Option<BTreeSet<MemberRef>> {
        let session = self.sessions.get(&job)?;
        let slots = |role, count: u32| (0..count).map(move |index| MemberRef { role, index });
        let wanted = slots(Role::Worker, session.workers).chain(slots(Role::Shard, self.needs[&job].shards));
        let mut missing: BTreeSet<MemberRef> = wanted.collect();
        for index in self.attending(job, session.number) {
            missing.remove(&self.agents[index].seat.expect("it attends").slot);
        }
        Some(missing)
    }

    /// The run's own coordinator says who is missing.
    fn tell_missing(&mut self, job: JobId) {
        let Some(missing) = self.missing(job) else { return };
        let session = self.sessions.get_mut(&job).expect("looked at");
        if session.awaited != missing {
            session.awaited = missing.clone();
            let awaited = Event::Awaited { job, session: session.number, slots: missing };
            self.after(1, Happening::ToCore(self.coordinator, awaited));
        }
    }

    fn do_work(&mut self, job: JobId, number: u32) {
        if self.sessions.get(&job).is_none_or(|session| session.number != number || session.is_asked) {
            return;
        }
        self.tell_missing(job);
        if self.is_whole(job) {
            let session = self.sessions.get_mut(&job).expect("looked at");
            if !std::mem::replace(&mut session.has_started, true) {
                let started = Event::RunStarted { job, session: number };
                self.after(1, Happening::ToCore(self.coordinator, started));
            }
            let left = self.work.get_mut(&job).expect("admitted");
            *left -= 1;
            if *left == 0 {
                return self.finish(job, number, SessionEnd::Completed("all done".into()));
            }
        }
        self.after(1000, Happening::Work(job, number));
    }

    /// The run is over: its members leave, then the session ends.
    fn finish(&mut self, job: JobId, number: u32, end: SessionEnd) {
        if let Some(session) = self.sessions.get_mut(&job) {
            session.is_asked = true;
        }
        let over = Event::RunOver { job, session: number };
        let after = self.random.below(20);
        self.after(after, Happening::ToCore(self.coordinator, over));
        for index in self.attending(job, number) {
            let (after, life) = (self.random.below(200), self.agents[index].life);
            let seat = self.agents[index].seat.expect("it attends");
            self.after(after, Happening::Leaves(index, life, seat));
        }
        let after = 50 + self.random.below(300);
        self.after(after, Happening::EndOf(job, number, end));
    }

    fn end(&mut self, job: JobId, mode: StopMode) {
        let Some(session) = self.sessions.get(&job) else { return };
        let (number, was_asked) = (session.number, session.is_asked);
        let end = match mode {
            StopMode::Commit => SessionEnd::Stopped("asked".into()),
            StopMode::Abort => SessionEnd::Failed("aborted".into()),
        };
        if !was_asked {
            self.finish(job, number, end);
        }
    }

    /// A member of some run is told to end: the run stops, and the process goes.
    fn terminate(&mut self) {
        let Some(index) = self.anybody() else { return };
        if let Some(seat) = self.agents[index].seat
            && self.sessions.get(&seat.job).is_some_and(|s| s.number == seat.session && !s.is_asked)
            && self.is_whole(seat.job)
        {
            self.finish(seat.job, seat.session, SessionEnd::Stopped("a member was told to end".into()));
        }
        self.die(index);
        self.after(20_000, Happening::Respawn(index));
    }

    fn submit(&mut self) {
        if !self.is_up {
            return self.after(1000, Happening::Submit);
        }
        self.to_submit -= 1;
        let workers_there = self.agents.iter().filter(|agent| agent.role == Role::Worker).count() as u64;
        let shards_there = self.agents.len() as u64 - workers_there;
        let most = workers_there.ilog2();
        let workers = 1 << self.random.below(u64::from(most) + 1);
        let fewest = if self.random.once_in(2) { workers } else { 1 };
        let needs = Needs {
            workers,
            shards: 1 + self.random.below(shards_there) as u32,
            elasticity: ElasticitySpec {
                min_workers: fewest,
                wait_for_members_seconds: self.random.below(10) as f64,
                resize_seconds: self.random.below(20) as f64,
            },
            total_steps: 1,
            detection_ms: 1000 + self.random.below(5000),
        };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let admission = Admission {
            run: format!("run-{}", self.tickets),
            priority: self.random.below(3) as i32 - 1,
            preemptible: self.random.once_in(2),
            needs: needs.clone(),
            config_toml: Arc::from("a run file"),
        };
        let id = JobId(self.kept.len() as u64 + 1);
        self.needs.insert(id, needs);
        self.apply(Event::Submit { ticket, admission });
        assert!(self.kept.contains_key(&id), "job {id} was not kept before it was answered");
    }

    fn cancel(&mut self) {
        if !self.is_up || self.kept.is_empty() {
            return;
        }
        let job = JobId(1 + self.random.below(self.kept.len() as u64));
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.cancelling.insert(ticket, job);
        self.apply(Event::Cancel { ticket, job });
    }

    /// Another coordinator takes the file, and nothing else.
    fn start_coordinator(&mut self) {
        self.coordinator += 1;
        self.is_up = true;
        let kept = self
            .kept
            .values()
            .map(|record| (record.clone(), self.needs[&record.job].clone(), Arc::from("a run file")));
        let state = State::new(RULES, kept.collect(), self.now);
        let before: Vec<&JobRecord> = self.state.records().collect();
        let after: Vec<&JobRecord> = state.records().collect();
        assert_eq!(before, after, "the queue after a restart is not the one before");
        self.state = state;
        self.after(0, Happening::Tick(self.coordinator));
        for index in 0..self.agents.len() {
            let (life, after) = (self.agents[index].life, self.random.below(2000));
            self.after(after, Happening::Offer(index, life));
        }
    }
}
