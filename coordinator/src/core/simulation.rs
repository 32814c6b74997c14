//! Thousands of seeded schedules of a whole run: members as small machines, a network that delays, and in hostile
//! schedules loses, doubles and reorders, processes that die. After every event the invariants of [`super`] are checked
//! from outside, by what was delivered and what was ordered.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use polygram_domain::{SCHEMA_VERSION, Step, Topology};
use polygram_proto::control::{
    AssignmentHash, Culprit, Directive, Envelope, Failure, Heartbeat, Incarnation, JoinRequest, MemberId,
    MemberRef, MemberReport, Phase, Role, RunState, StepMetrics, StopMode,
};

use super::{Action, Event, Outcome, Reply, Resume, Settings, State, Ticket, Time, Timeouts, apply};

/// SplitMix64 (Steele, Lea and Flood 2014): one seed, one schedule.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }

    /// True once in `times`; never for 0.
    fn once_in(&mut self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }
}

/// What may go wrong in a schedule.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// One event in so many is lost; 0: none.
    lost: u64,
    /// One event in so many arrives twice.
    doubled: u64,
    /// One event in so many arrives seconds late.
    late: u64,
    /// One commit in so many fails.
    bad_commit: u64,
    /// A member dies at this time, and its stream ends.
    crash: Option<(usize, u64)>,
    /// A member freezes at this time: its stream stays open.
    freeze: Option<(usize, u64)>,
    /// The operator stops the run at this time.
    stop: Option<(u64, StopMode)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Outside,
    Joined,
    Attending,
    Restoring,
    Running,
    Finished,
    Gone,
}

struct Agent {
    who: MemberRef,
    id: Option<MemberId>,
    stage: Stage,
    hash: Option<AssignmentHash>,
    step: u64,
    unacknowledged: BTreeSet<u64>,
    frozen: bool,
    told_failure: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Delivery {
    ToCore(Event),
    ToAgent(usize, Directive),
    Admitted(usize, MemberId),
    PartNoted(usize, u64),
    Timer(usize),
    Tick,
    Crash(usize),
    Freeze(usize),
    PeerLost(usize),
}

const STEPS: u64 = 9;
const EVERY: u64 = 3;
/// No schedule may take longer than this.
const HORIZON: u64 = 60_000;

struct World {
    seed: u64,
    random: Random,
    weather: Weather,
    now: Time,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    deliveries: BTreeMap<u64, Delivery>,
    scheduled: u64,
    state: State,
    agents: Vec<Agent>,
    crashed: Option<usize>,
    stop_at: Option<u64>,
    tickets: BTreeMap<u64, (usize, u64)>,
    next_ticket: u64,
    checker: Checker,
}

/// The invariants, from what was delivered and what was ordered.
#[derive(Default)]
struct Checker {
    asked: BTreeSet<Ticket>,
    answered: BTreeSet<Ticket>,
    assigned: BTreeMap<MemberId, AssignmentHash>,
    ready: BTreeSet<MemberId>,
    started: BTreeSet<MemberId>,
    open: BTreeSet<MemberId>,
    parts: BTreeMap<Step, BTreeSet<MemberId>>,
    committing: Option<Step>,
    committed: Option<Step>,
    over: Option<(RunState, Time)>,
    culprit: Option<Culprit>,
    ended: Option<Outcome>,
}

impl Checker {
    fn before(&mut self, event: &Event) {
        match event {
            Event::Join { ticket, .. } | Event::Attend { ticket, .. } | Event::Stop { ticket, .. } => {
                self.asked.insert(*ticket);
            }
            Event::Upload { ticket, member, step, .. } => {
                self.asked.insert(*ticket);
                self.parts.entry(*step).or_default().insert(*member);
            }
            Event::Report(Envelope { member, report: MemberReport::Ready { assignment }, .. })
                if self.assigned.get(member) == Some(assignment) && self.open.contains(member) =>
            {
                self.ready.insert(*member);
            }
            Event::StreamEnded { member, .. } => {
                self.open.remove(member);
            }
            Event::CommitDone { step, result } if self.committing == Some(*step) => {
                self.committing = None;
                if result.is_ok() {
                    self.committed = Some(*step);
                }
            }
            _ => {}
        }
    }

    fn after(&mut self, action: &Action, attending: Option<MemberId>, state: &State) {
        let members = state.settings().member_count();
        assert_eq!(self.ended, None, "nothing is done after the end: {action:?}");
        match action {
            Action::Reply { ticket, answer } => {
                assert!(self.asked.contains(ticket), "an answer to nobody");
                assert!(self.answered.insert(*ticket), "one answer a call");
                if let (Ok(Reply::Attending), Some(member)) = (answer, attending) {
                    self.open.insert(member);
                }
            }
            Action::Direct { member, directive } => {
                let opening = attending == Some(*member);
                assert!(opening || self.open.contains(member), "a directive on a stream that is not open");
                match directive {
                    Directive::Assign(assignment) => {
                        assert_eq!(assignment.generation, state.generation(), "one active generation");
                        assert_eq!(assignment.workers.len() + assignment.shards.len(), members);
                        let before = self.assigned.insert(*member, assignment.hash());
                        assert_eq!(before, None, "one assignment a generation");
                        let hashes: BTreeSet<[u8; 32]> = self.assigned.values().map(|h| h.0).collect();
                        assert_eq!(hashes.len(), 1, "one table for all");
                    }
                    Directive::Start => {
                        assert_eq!(self.ready.len(), members, "no start before all are ready");
                        assert!(self.started.insert(*member), "one start");
                    }
                    Directive::Committed { step } => assert_eq!(self.committed, Some(*step)),
                    Directive::Stop { .. } => assert!(self.started.contains(member)),
                    Directive::Abort(_) | Directive::Exit => {}
                }
            }
            Action::Commit { step } => {
                assert_eq!(self.parts[step].len(), members, "no commit without all parts");
                assert_eq!(self.committing, None, "one commit at a time");
                assert!(self.committed.is_none_or(|before| before < *step), "commits ascend");
                self.committing = Some(*step);
            }
            Action::End(outcome) => self.ended = Some(*outcome),
            Action::DropParts { .. } | Action::Record(_) | Action::StatusChanged | Action::Log(..) => {}
        }
    }

    fn settled(&mut self, state: &State, now: Time) {
        let run = state.run_state();
        if let Some((over, since)) = self.over {
            assert_eq!(run, over, "a state that is over is never left");
            let patience = state.settings().timeouts.leave_ms + 1000;
            assert!(self.ended.is_some() || now.since(since) <= patience, "the end comes in bounded time");
        } else if run.is_over() {
            self.over = Some((run, now));
        }
        let culprit = &state.culprit;
        assert!(self.culprit.is_none() || self.culprit == *culprit, "the culprit is the culprit for good");
        self.culprit.clone_from(culprit);
        let bad = run == RunState::Failed;
        assert!(self.ended.is_none_or(|outcome| (outcome == Outcome::Bad) == bad));
    }
}

impl World {
    fn new(seed: u64, topology: Topology, weather: Weather) -> World {
        let mut random = Random(seed);
        let resume = random
            .once_in(2)
            .then(|| Resume { step: Step(random.below(STEPS)), manifest: "ckpt/commit/x.json".into() });
        let settings = Settings {
            run: "sim".into(),
            topology,
            total_steps: STEPS,
            last_step: STEPS,
            resume,
            attempt: 1 + random.below(5) as u32,
            timeouts: Timeouts::of(10.0),
        };
        let resume_step = settings.resume_step().0;
        let slot = |role, index| MemberRef { role, index };
        let workers = (0..topology.workers).map(|index| slot(Role::Worker, index));
        let slots = workers.chain((0..topology.shards).map(|index| slot(Role::Shard, index)));
        let agents = slots.map(|who| Agent {
            who,
            id: None,
            stage: Stage::Outside,
            hash: None,
            step: resume_step,
            unacknowledged: BTreeSet::new(),
            frozen: false,
            told_failure: false,
        });
        let now = Time(1_000_000);
        let mut world = World {
            seed,
            random,
            weather,
            now,
            queue: BinaryHeap::new(),
            deliveries: BTreeMap::new(),
            scheduled: 0,
            state: State::new(settings, now),
            agents: agents.collect(),
            crashed: None,
            stop_at: None,
            tickets: BTreeMap::new(),
            next_ticket: 0,
            checker: Checker::default(),
        };
        for agent in 0..world.agents.len() {
            let delay = world.random.below(3000);
            world.schedule(delay, Delivery::Timer(agent));
        }
        world.schedule(250, Delivery::Tick);
        if let Some((agent, at)) = weather.crash {
            world.schedule(at, Delivery::Crash(agent));
        }
        if let Some((agent, at)) = weather.freeze {
            world.schedule(at, Delivery::Freeze(agent));
        }
        if let Some((at, mode)) = weather.stop {
            let ticket = world.ticket(usize::MAX, 0);
            let stop = Event::Stop { ticket, mode, reason: "operator".into() };
            world.schedule(at, Delivery::ToCore(stop));
        }
        world
    }

    fn schedule(&mut self, delay: u64, delivery: Delivery) {
        self.scheduled += 1;
        self.deliveries.insert(self.scheduled, delivery);
        self.queue.push(Reverse((self.now.0 + delay, self.scheduled)));
    }

    fn ticket(&mut self, agent: usize, step: u64) -> Ticket {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, (agent, step));
        Ticket(self.next_ticket)
    }

    /// Sends an event through the weather.
    fn send(&mut self, event: Event) {
        let Weather { lost, doubled, late, .. } = self.weather;
        if self.random.once_in(lost) {
            return;
        }
        let slow = if self.random.once_in(late) { 4000 } else { 0 };
        let delay = 1 + self.random.below(40) + slow;
        if self.random.once_in(doubled)
            && let Some(again) = self.again(&event)
        {
            let delay = 1 + self.random.below(3000);
            self.schedule(delay, Delivery::ToCore(again));
        }
        self.schedule(delay, Delivery::ToCore(event));
    }

    /// The same event once more; a call that is repeated is another call.
    fn again(&mut self, event: &Event) -> Option<Event> {
        let mut again = event.clone();
        match &mut again {
            Event::Join { ticket, .. } | Event::Upload { ticket, .. } | Event::Attend { ticket, .. } => {
                let (agent, step) = self.tickets[&ticket.0];
                *ticket = self.ticket(agent, step);
            }
            Event::Report(_) | Event::StreamEnded { .. } => {}
            _ => return None,
        }
        Some(again)
    }

    fn report(&mut self, agent: usize, report: MemberReport) {
        let Some(member) = self.agents[agent].id else { return };
        let generation = self.state.generation();
        self.send(Event::Report(Envelope { member, generation, report }));
    }

    /// Runs to the end of the coordinator; past the horizon the operator gives up, which must always end it.
    fn run(mut self) -> (RunState, World) {
        let start = self.now;
        while self.checker.ended.is_none() {
            let Some(Reverse((at, number))) = self.queue.pop() else { panic!("the world stood still") };
            self.now = Time(at);
            assert!(self.now.since(start) < 2 * HORIZON, "the run never ends");
            let Some(delivery) = self.deliveries.remove(&number) else { continue };
            self.deliver(delivery);
        }
        (self.state.run_state(), self)
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::ToCore(event) => self.feed(event),
            Delivery::Tick => {
                self.feed(Event::Tick);
                if self.now.0 > 1_000_000 + HORIZON {
                    self.feed(Event::Interrupt { reason: "SIGINT".into() });
                }
                self.schedule(250, Delivery::Tick);
            }
            Delivery::ToAgent(agent, directive) => self.directed(agent, directive),
            Delivery::Admitted(agent, id) => {
                let it = &mut self.agents[agent];
                if it.stage == Stage::Outside {
                    (it.id, it.stage) = (Some(id), Stage::Joined);
                }
            }
            Delivery::PartNoted(agent, step) => {
                self.agents[agent].unacknowledged.remove(&step);
            }
            Delivery::Timer(agent) => self.act(agent),
            Delivery::Crash(agent) => self.crash(agent),
            Delivery::Freeze(agent) => self.agents[agent].frozen = true,
            Delivery::PeerLost(agent) => {
                let suspect = self.crashed.map(|crashed| self.agents[crashed].who);
                self.fail(agent, suspect);
            }
        }
    }

    fn feed(&mut self, event: Event) {
        if self.checker.ended.is_some() {
            return;
        }
        self.checker.before(&event);
        let attending = match &event {
            Event::Attend { member, .. } => Some(*member),
            _ => None,
        };
        let actions = apply(&mut self.state, event, self.now);
        // Directives may precede the answer to the call that opened the stream; the stream counts as open.
        for action in &actions {
            self.checker.after(action, attending, &self.state);
        }
        self.checker.settled(&self.state, self.now);
        for action in actions {
            self.obey(action);
        }
    }

    fn obey(&mut self, action: Action) {
        match action {
            Action::Reply { ticket, answer } => {
                let (agent, step) = self.tickets[&ticket.0];
                let delay = 1 + self.random.below(20);
                match answer {
                    Ok(Reply::Admitted { member, .. }) => {
                        self.schedule(delay, Delivery::Admitted(agent, member));
                    }
                    Ok(Reply::PartNoted) => self.schedule(delay, Delivery::PartNoted(agent, step)),
                    _ => {}
                }
            }
            Action::Direct { member, directive } => {
                let agent = self.agents.iter().position(|a| a.id == Some(member));
                if let Some(agent) = agent {
                    let delay = 1 + self.random.below(30);
                    self.schedule(delay, Delivery::ToAgent(agent, directive));
                }
            }
            Action::Commit { step } => {
                let bad = self.random.once_in(self.weather.bad_commit);
                let result = if bad { Err("disk full".into()) } else { Ok(()) };
                let delay = 1 + self.random.below(2000);
                self.schedule(delay, Delivery::ToCore(Event::CommitDone { step, result }));
            }
            _ => {}
        }
    }

    fn directed(&mut self, agent: usize, directive: Directive) {
        let it = &mut self.agents[agent];
        if it.stage == Stage::Gone || it.frozen {
            return;
        }
        match directive {
            Directive::Assign(assignment) => {
                (it.hash, it.stage) = (Some(assignment.hash()), Stage::Restoring);
            }
            Directive::Start => it.stage = Stage::Running,
            Directive::Stop { .. } => {
                let furthest = self.workers().map(|a| a.step).max().unwrap_or(0);
                self.stop_at.get_or_insert((furthest + 1).min(STEPS));
            }
            Directive::Committed { .. } => {}
            Directive::Abort(_) | Directive::Exit => self.leave(agent, "left"),
        }
    }

    fn workers(&self) -> impl Iterator<Item = &Agent> {
        self.agents.iter().filter(|a| a.who.role == Role::Worker)
    }

    fn leave(&mut self, agent: usize, message: &str) {
        let attended = !matches!(self.agents[agent].stage, Stage::Outside | Stage::Joined);
        self.agents[agent].stage = Stage::Gone;
        if let (true, Some(member)) = (attended, self.agents[agent].id) {
            // The end of a connection is never lost in good weather, and at worst late.
            self.send(Event::StreamEnded { member, message: message.into() });
        }
    }

    fn crash(&mut self, agent: usize) {
        if matches!(self.agents[agent].stage, Stage::Gone) {
            return;
        }
        let running = self.agents[agent].stage == Stage::Running;
        self.leave(agent, "connection reset");
        self.crashed = Some(agent);
        for peer in 0..self.agents.len() {
            if running && peer != agent && self.agents[peer].stage == Stage::Running {
                let delay = self.random.below(200);
                self.schedule(delay, Delivery::PeerLost(peer));
            }
        }
    }

    fn fail(&mut self, agent: usize, suspect: Option<MemberRef>) {
        let it = &mut self.agents[agent];
        if it.stage == Stage::Gone || it.frozen || it.told_failure {
            return;
        }
        it.told_failure = true;
        let step = Step(it.step);
        let failure = Failure { message: "peer gone".into(), step, phase: Phase::Reducing, suspect };
        self.report(agent, MemberReport::Failed(failure));
    }

    /// A member's own clock: say that it lives, and go on.
    fn act(&mut self, agent: usize) {
        let stage = self.agents[agent].stage;
        if stage == Stage::Gone || self.agents[agent].frozen {
            return;
        }
        match stage {
            Stage::Outside => {
                let ticket = self.ticket(agent, 0);
                let request = JoinRequest {
                    schema_version: SCHEMA_VERSION,
                    member: self.agents[agent].who,
                    incarnation: Incarnation(agent as u64 + 1),
                    pid: 100 + agent as u32,
                    host: "sim".into(),
                    data_address: ([127, 0, 0, 1], 1000 + agent as u16).into(),
                };
                self.send(Event::Join { ticket, request });
            }
            Stage::Joined => {
                if let Some(member) = self.agents[agent].id {
                    let ticket = self.ticket(agent, 0);
                    self.agents[agent].stage = Stage::Attending;
                    self.send(Event::Attend { ticket, member });
                }
            }
            Stage::Attending => self.heartbeat(agent, Phase::Starting),
            Stage::Restoring => {
                self.heartbeat(agent, Phase::Restoring);
                if let Some(assignment) = self.agents[agent].hash
                    && self.random.once_in(3)
                {
                    self.report(agent, MemberReport::Ready { assignment });
                }
            }
            Stage::Running => self.train(agent),
            Stage::Finished => self.heartbeat(agent, Phase::Finished),
            Stage::Gone => {}
        }
        let pause = 100 + self.random.below(700);
        self.schedule(pause, Delivery::Timer(agent));
    }

    fn heartbeat(&mut self, agent: usize, phase: Phase) {
        let step = Step(self.agents[agent].step);
        self.report(agent, MemberReport::Heartbeat(Heartbeat { step, phase }));
    }

    fn train(&mut self, agent: usize) {
        self.heartbeat(agent, Phase::Computing);
        for step in self.agents[agent].unacknowledged.clone() {
            self.upload(agent, step);
        }
        let limit = self.stop_at.unwrap_or(STEPS);
        let slowest = self.workers().map(|a| a.step).min().unwrap_or(0);
        let it = &mut self.agents[agent];
        if it.who.role == Role::Shard {
            // A shard is asked for a snapshot when all workers have come to a boundary.
            while it.step < slowest {
                it.step += 1;
                if it.step.is_multiple_of(EVERY) || it.step == limit {
                    it.unacknowledged.insert(it.step);
                }
            }
            return;
        }
        if it.step < limit && it.step == slowest {
            it.step += 1;
            let step = it.step;
            if step.is_multiple_of(EVERY) || step == limit {
                it.unacknowledged.insert(step);
            }
            if agent == 0 {
                let metrics = StepMetrics {
                    step: Step(step - 1),
                    loss: f64::NAN,
                    grad_norm: 1.0,
                    lr: 0.1,
                    tokens: 8,
                    seconds: 0.1,
                    data_wait_seconds: 0.0,
                    embedding_wait_seconds: 0.0,
                    resident_bytes: 1,
                };
                self.report(agent, MemberReport::Metrics(metrics));
            }
        } else if it.step == limit && it.unacknowledged.is_empty() {
            it.stage = Stage::Finished;
            let step = Step(it.step);
            self.report(agent, MemberReport::Finished { step });
        }
    }

    fn upload(&mut self, agent: usize, step: u64) {
        let Some(member) = self.agents[agent].id else { return };
        let ticket = self.ticket(agent, step);
        let generation = self.state.generation();
        self.send(Event::Upload { ticket, member, generation, step: Step(step) });
    }
}

fn topology(random: &mut Random) -> Topology {
    Topology { workers: 1 << random.below(3), expert_parallel: 1, shards: 1 + random.below(3) as u32 }
}

/// Runs `schedules` seeds through `weather` and `check`, naming the seed of a failure.
fn campaign(
    name: &str,
    schedules: u64,
    weather: impl Fn(&mut Random, usize) -> Weather,
    check: impl Fn(RunState, &World),
) {
    for seed in 0..schedules {
        let mut random = Random(seed ^ 0xa5a5);
        let topology = topology(&mut random);
        let members = (topology.workers + topology.shards) as usize;
        let weather = weather(&mut random, members);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (state, world) = World::new(seed, topology, weather).run();
            check(state, &world);
        }));
        if let Err(panic) = outcome {
            eprintln!("{name}: seed {seed}, {topology:?}, {weather:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn calm_runs_complete() {
    campaign(
        "calm",
        2000,
        |_, _| Weather::default(),
        |state, world| {
            assert_eq!(state, RunState::Completed, "seed {}: {}", world.seed, world.state.message());
            assert_eq!(world.state.last_commit(), Some(Step(STEPS)));
            assert_eq!(world.checker.started.len(), world.agents.len());
        },
    );
}

#[test]
fn a_dead_process_is_the_culprit_whoever_noticed_first() {
    let weather = |random: &mut Random, members: usize| Weather {
        crash: Some((random.below(members as u64) as usize, random.below(12_000))),
        ..Weather::default()
    };
    campaign("crash", 4000, weather, |state, world| {
        let Some(crashed) = world.crashed else {
            return assert_eq!(state, RunState::Completed);
        };
        let status = world.state.status(world.now);
        match (state, status.culprit) {
            // It died after its last word.
            (RunState::Completed, None) => {}
            (RunState::Failed, Some(culprit)) => assert_eq!(culprit.member, world.agents[crashed].who),
            // It died before it had joined: nobody knows it, and the operator gave up.
            (RunState::Stopped, None) => assert_eq!(world.agents[crashed].id, None),
            (state, culprit) => panic!("{state} with culprit {culprit:?}"),
        }
    });
}

#[test]
fn a_frozen_process_is_found_silent() {
    let weather = |random: &mut Random, members: usize| Weather {
        freeze: Some((random.below(members as u64) as usize, random.below(9_000))),
        ..Weather::default()
    };
    campaign("freeze", 2000, weather, |state, world| {
        let frozen = world.agents.iter().find(|a| a.frozen).map(|a| a.who);
        let culprit = world.state.status(world.now).culprit.map(|c| c.member);
        match state {
            RunState::Completed => assert_eq!(culprit, None),
            RunState::Failed => assert_eq!(culprit, frozen),
            state => assert_eq!((state, culprit), (RunState::Stopped, None)),
        }
    });
}

#[test]
fn a_stop_ends_every_run_committed_or_untouched() {
    let weather = |random: &mut Random, _| {
        let mode = if random.once_in(4) { StopMode::Abort } else { StopMode::Commit };
        Weather { stop: Some((random.below(12_000), mode)), ..Weather::default() }
    };
    campaign("stop", 3000, weather, |state, world| {
        let finished = world.workers().map(|a| a.step).max().unwrap_or(0);
        let resumed = world.state.settings().resume_step().0;
        match state {
            RunState::Completed => assert_eq!(world.state.last_commit(), Some(Step(STEPS))),
            RunState::Stopped if finished > resumed => {
                assert_eq!(world.state.last_commit(), Some(Step(finished)));
            }
            RunState::Stopped => {}
            RunState::Failed => assert!(world.state.message().contains("aborted")),
            state => panic!("{state} is not an end"),
        }
    });
}

#[test]
fn hostile_schedules_keep_every_invariant() {
    let weather = |random: &mut Random, members: usize| {
        let mut some = |bound: u64| if random.once_in(2) { 2 + random.below(bound) } else { 0 };
        let (lost, doubled, late, bad_commit) = (some(30), some(10), some(15), some(6));
        let mut victim = |chance| {
            random.once_in(chance).then(|| (random.below(members as u64) as usize, random.below(15_000)))
        };
        let (crash, freeze) = (victim(3), victim(4));
        let stop = random.once_in(3).then(|| (random.below(15_000), StopMode::Commit));
        Weather { lost, doubled, late, bad_commit, crash, freeze, stop }
    };
    campaign("hostile", 6000, weather, |state, world| {
        assert!(state.is_over(), "seed {} ended while {state}", world.seed);
    });
}
