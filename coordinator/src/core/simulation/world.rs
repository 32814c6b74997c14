//! Members, network and clock of one schedule.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use polygram_domain::control::{
    DamagedCheckpoint, Directive, Envelope, Incarnation, MemberId, MemberRef, MemberReport, Role, RunState,
};
use polygram_domain::spikes::PolicyState;
use polygram_domain::{Generation, Step, Topology};

use super::checker::Checker;
use super::member::{Agent, Frozen, Stage};
use super::{EVERY, HORIZON, STEPS, Weather};
use crate::core::{
    Action, Event, Reply, Resume, RollbackId, RollbackRequest, RollbackResolution, RollbackTarget, Settings,
    State, Ticket, Time, Timeouts, apply,
};
use crate::random::Random;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Delivery {
    ToCore(Event),
    ToAgent(usize, MemberId, Directive),
    Admitted(usize, Incarnation, MemberId, Generation),
    /// Its call was not granted for now.
    Later(usize, Incarnation),
    PartNoted(usize, MemberId, u64),
    Timer(usize, u32),
    Tick,
    Crash(usize),
    Freeze(usize),
    Thaw(usize),
    /// The supervisor starts a dead member again.
    Respawn(usize),
    /// A member notices that the coordinator is gone or out of reach.
    Deserted(usize, MemberId),
    /// A peer of this membership is lost.
    PeerLost(usize, MemberId, Generation),
    /// The store decides what a rollback depends on.
    Resolve(RollbackId, RollbackRequest),
    /// The coordinator dies and is started again.
    Successor,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) random: Random,
    pub(super) weather: Weather,
    pub(super) now: Time,
    pub(super) queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub(super) deliveries: BTreeMap<u64, Delivery>,
    pub(super) scheduled: u64,
    pub(super) state: State,
    pub(super) agents: Vec<Agent>,
    pub(super) crashed: Option<usize>,
    pub(super) stop_at: Option<u64>,
    /// Which agent asked, as whom, about which step.
    pub(super) tickets: BTreeMap<u64, Asker>,
    pub(super) next_ticket: u64,
    pub(super) checker: Checker,
    /// State version that the first coordinator began from.
    pub(super) first_step: u64,
    pub(super) incarnations: u64,
    /// When the newest report of a membership arrives.
    streams: BTreeMap<(Generation, MemberId), u64>,
    /// Checkpoints in the store.
    pub(super) commits: BTreeSet<Step>,
    /// Those of them that are damaged, and who reads the object that is.
    pub(super) damaged: BTreeMap<Step, usize>,
    /// Whether a member has been wrong about a sound one.
    pub(super) has_doubted: bool,
    /// At which boundaries the ranks of a generation begin a recovery point.
    pub(super) points: BTreeMap<(Generation, u64), bool>,
    /// Rollbacks that the store has decided on.
    pub(super) policy: PolicyState,
    /// Who is cut off from when until when.
    pub(super) partitions: Vec<(usize, u64, u64)>,
}

/// Who waits for the answer to a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Asker {
    pub(super) agent: usize,
    pub(super) incarnation: Incarnation,
    pub(super) step: u64,
}

impl World {
    pub(super) fn new(seed: u64, topology: Topology, weather: Weather) -> World {
        let mut random = Random(seed);
        let resume = random.once_in(2).then(|| Resume::at(Step(random.below(STEPS))));
        let settings = Settings {
            run: "sim".into(),
            topology,
            total_steps: STEPS,
            last_step: STEPS,
            committed: resume.as_ref().map(|resume| resume.step),
            resume,
            attempt: 1 + random.below(5) as u32,
            tables: Vec::new(),
            held_out_sets: Vec::new(),
            earlier: Default::default(),
            timeouts: Timeouts::of(10.0),
            stop_grace_ms: weather.grace,
            recovery: weather.recovery(),
            policy: Default::default(),
        };
        let resume_step = settings.resume.as_ref().map_or(0, |resume| resume.step.0);
        let slot = |role, index| MemberRef { role, index };
        let workers = (0..topology.workers).map(|index| slot(Role::Worker, index));
        let slots = workers.chain((0..topology.shards).map(|index| slot(Role::Shard, index)));
        let agents = slots.map(|who| Agent {
            who,
            id: None,
            stage: Stage::Outside,
            incarnation: Incarnation(0),
            generation: Generation(0),
            hash: None,
            step: resume_step,
            from: None,
            unacknowledged: BTreeSet::new(),
            frozen: Frozen::No,
            unread: Vec::new(),
            told_failure: false,
            knows_rollback: false,
            clock: 0,
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
            first_step: resume_step,
            incarnations: 0,
            partitions: Vec::new(),
            commits: BTreeSet::new(),
            points: BTreeMap::new(),
            damaged: BTreeMap::new(),
            has_doubted: false,
            policy: PolicyState::default(),
            streams: BTreeMap::new(),
        };
        world.checker.committed = world.state.last_commit();
        world.checker.may_begin = world.checker.committed.is_none();
        if let Some(newest) = world.checker.committed {
            if world.weather.damage > 0 {
                let older = (EVERY..newest.0).step_by(EVERY as usize).map(Step);
                world.commits.extend(older);
            }
            world.kept(newest);
        }
        if (world.weather.lost, world.weather.late) == (0, 0) {
            world.checker.keep_ledger(Step(resume_step));
        }
        for agent in 0..world.agents.len() {
            world.reborn(agent);
            let delay = world.random.below(3000);
            world.schedule(delay, Delivery::Timer(agent, 0));
        }
        world.schedule(250, Delivery::Tick);
        for (agent, at) in world.weather.crashes.clone() {
            world.schedule(at, Delivery::Crash(agent));
        }
        if let Some((agent, at)) = world.weather.freeze {
            world.schedule(at, Delivery::Freeze(agent));
        }
        if let Some((agent, at, lasting)) = world.weather.nap {
            world.schedule(at, Delivery::Freeze(agent));
            world.schedule(at + lasting, Delivery::Thaw(agent));
        }
        if let Some((agent, at, lasting)) = world.weather.partition {
            world.partitions.push((agent, at + world.now.0, at + lasting + world.now.0));
        }
        for at in world.weather.successors.clone() {
            world.schedule(at, Delivery::Successor);
        }
        if let Some((at, mode)) = world.weather.stop {
            let ticket = world.ticket_of(Asker { agent: usize::MAX, incarnation: Incarnation(0), step: 0 });
            let stop = Event::Stop { ticket, mode, reason: "operator".into() };
            world.schedule(at, Delivery::ToCore(stop));
        }
        world
    }

    pub(super) fn schedule(&mut self, delay: u64, delivery: Delivery) {
        self.scheduled += 1;
        self.deliveries.insert(self.scheduled, delivery);
        self.queue.push(Reverse((self.now.0 + delay, self.scheduled)));
    }

    pub(super) fn ticket(&mut self, agent: usize, step: u64) -> Ticket {
        let incarnation = self.agents[agent].incarnation;
        self.ticket_of(Asker { agent, incarnation, step })
    }

    fn ticket_of(&mut self, asker: Asker) -> Ticket {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, asker);
        Ticket(self.next_ticket)
    }

    /// An agent begins anew: as a process of its own, or as another membership of the same.
    pub(super) fn reborn(&mut self, agent: usize) {
        self.incarnations += 1;
        let it = &mut self.agents[agent];
        it.incarnation = Incarnation(self.incarnations);
        (it.id, it.hash, it.stage, it.told_failure) = (None, None, Stage::Outside, false);
        it.unacknowledged.clear();
    }

    /// From when until when nothing passes between an agent and the coordinator, if that is now.
    pub(super) fn cut_off(&self, agent: usize) -> Option<(u64, u64)> {
        let now = self.now.0;
        let mut cuts = self.partitions.iter().filter(|(cut, ..)| *cut == agent);
        cuts.find(|(_, from, until)| (*from..*until).contains(&now)).map(|(_, from, until)| (*from, *until))
    }

    /// What a message of or to an agent has to wait until it passes at all.
    fn cut_off_delay(&self, agent: usize) -> u64 {
        self.cut_off(agent).map_or(0, |(_, until)| until - self.now.0)
    }

    /// Sends an agent's event through the weather; one that is cut off is heard afterwards.
    pub(super) fn send_of(&mut self, agent: usize, event: Event) {
        let wait = self.cut_off_delay(agent);
        self.send(event, wait);
    }

    fn send(&mut self, event: Event, wait: u64) {
        let Weather { lost, doubled, late, .. } = self.weather;
        if self.random.once_in(lost) {
            return;
        }
        let slow = if self.random.once_in(late) { 4000 } else { 0 };
        let mut delay = 1 + self.random.below(40) + slow + wait;
        // One stream keeps its order, unless the weather is bad enough to break that too.
        if let Event::Report(Envelope { member, generation, .. }) = &event
            && late == 0
        {
            let last = self.streams.entry((*generation, *member)).or_default();
            *last = (*last + 1).max(self.now.0 + delay);
            delay = *last - self.now.0;
        }
        if self.random.once_in(doubled)
            && let Some(again) = self.again(&event)
        {
            let delay = delay + 1 + self.random.below(3000);
            self.schedule(delay, Delivery::ToCore(again));
        }
        self.schedule(delay, Delivery::ToCore(event));
    }

    /// The same event once more; a call that is repeated is another call.
    fn again(&mut self, event: &Event) -> Option<Event> {
        let mut again = event.clone();
        match &mut again {
            Event::Join { ticket, .. } | Event::Upload { ticket, .. } | Event::Attend { ticket, .. } => {
                *ticket = self.ticket_of(self.tickets[&ticket.0]);
            }
            Event::Report(_) | Event::StreamEnded { .. } => {}
            _ => return None,
        }
        Some(again)
    }

    pub(super) fn report(&mut self, agent: usize, report: MemberReport) {
        let Some(member) = self.agents[agent].id else { return };
        let generation = self.agents[agent].generation;
        self.send_of(agent, Event::Report(Envelope { member, generation, report }));
    }

    /// Runs to the end of the coordinator; past the horizon the operator gives up, which must always end it.
    pub(super) fn run(mut self) -> (RunState, World) {
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
            Delivery::ToAgent(agent, ..)
            | Delivery::Admitted(agent, ..)
            | Delivery::Later(agent, ..)
            | Delivery::PartNoted(agent, ..)
            | Delivery::Timer(agent, _)
            | Delivery::Deserted(agent, _)
            | Delivery::PeerLost(agent, ..)
                if self.agents[agent].frozen == Frozen::Until =>
            {
                // It waits in the sockets of a process that stands still.
                self.agents[agent].unread.push(delivery);
            }
            Delivery::ToAgent(agent, id, directive) => {
                if self.agents[agent].id == Some(id) {
                    self.directed(agent, directive);
                }
            }
            Delivery::Admitted(agent, incarnation, id, generation) => {
                let it = &mut self.agents[agent];
                if it.stage == Stage::Outside && it.incarnation == incarnation {
                    (it.id, it.generation, it.stage) = (Some(id), generation, Stage::Joined);
                }
            }
            Delivery::Later(agent, incarnation) => {
                let it = &self.agents[agent];
                if it.incarnation == incarnation && it.stage == Stage::Attending {
                    self.rejoin(agent);
                }
            }
            Delivery::PartNoted(agent, id, step) => {
                if self.agents[agent].id == Some(id) {
                    self.agents[agent].unacknowledged.remove(&step);
                }
            }
            Delivery::Timer(agent, clock) => {
                if self.agents[agent].clock == clock {
                    self.act(agent);
                }
            }
            Delivery::Crash(agent) => self.crash(agent),
            Delivery::Freeze(agent) => {
                let naps = self.weather.nap.is_some();
                self.agents[agent].frozen = if naps { Frozen::Until } else { Frozen::ForGood };
            }
            Delivery::Thaw(agent) => {
                self.agents[agent].frozen = Frozen::No;
                for delivery in std::mem::take(&mut self.agents[agent].unread) {
                    let delay = self.random.below(300);
                    self.schedule(delay, delivery);
                }
            }
            Delivery::Respawn(agent) => {
                if self.agents[agent].stage == Stage::Gone {
                    self.reborn(agent);
                    self.agents[agent].clock += 1;
                    let clock = self.agents[agent].clock;
                    self.schedule(1, Delivery::Timer(agent, clock));
                }
            }
            Delivery::Deserted(agent, id) => {
                let it = &self.agents[agent];
                if it.id == Some(id) && it.stage != Stage::Gone {
                    self.rejoin(agent);
                }
            }
            Delivery::PeerLost(agent, id, generation) => {
                let it = &self.agents[agent];
                if it.id == Some(id) && it.generation == generation {
                    let suspect = self.crashed.map(|crashed| self.agents[crashed].who);
                    self.fail(agent, suspect.filter(|suspect| *suspect != self.agents[agent].who));
                }
            }
            // The recorder does one thing after the other.
            Delivery::Resolve(id, request) if self.checker.committing.or(self.checker.keeping).is_some() => {
                self.schedule(50, Delivery::Resolve(id, request));
            }
            Delivery::Resolve(id, request) => {
                let result = self.resolve(&request);
                self.feed(Event::RollbackResolved { id, result });
            }
            Delivery::Successor => self.succeed(),
        }
    }

    fn resolve(&mut self, request: &RollbackRequest) -> Result<RollbackResolution, String> {
        match request {
            RollbackRequest::Spike { at, .. } => {
                let (to, policy) = (self.decide(*at), self.policy.clone());
                Ok(RollbackResolution::Target(RollbackTarget { to, policy, quarantined: Vec::new() }))
            }
            RollbackRequest::DamagedCheckpoint(claim) => self.verify(claim),
            RollbackRequest::UnrestorablePoint { .. } => {
                let bad = self.random.once_in(self.weather.bad_points);
                if bad { Err("disk full".into()) } else { Ok(RollbackResolution::PointQuarantined) }
            }
        }
    }

    /// The newest checkpoint before the spike becomes the newest there is.
    fn decide(&mut self, at: Step) -> Option<Step> {
        self.commits.split_off(&at);
        let to = self.commits.last().copied();
        self.damaged.retain(|step, _| self.commits.contains(step));
        self.checker.may_begin |= to.is_none();
        self.policy.ways_back.push(at.0);
        (self.checker.committed, self.checker.point) = (to, None);
        to
    }

    /// A checkpoint is in the store, and perhaps not what was written.
    fn kept(&mut self, step: Step) {
        self.commits.insert(step);
        self.checker.known_damaged.remove(&step);
        if self.weather.damages > 0 && self.random.once_in(self.weather.damage) {
            self.weather.damages -= 1;
            let reader = self.random.below(self.agents.len() as u64) as usize;
            self.damaged.insert(step, reader);
        }
    }

    /// Whether the newest checkpoint there is is sound; if not, the one before it becomes the newest.
    fn verify(&mut self, claim: &DamagedCheckpoint) -> Result<RollbackResolution, String> {
        let step = claim.place.step;
        if self.commits.contains(&step) && !self.damaged.contains_key(&step) {
            return Ok(RollbackResolution::Sound);
        }
        self.checker.known_damaged.insert(step);
        let Some(to) = self.commits.range(..step).next_back().copied() else {
            return Err("none of them verifies".into());
        };
        self.commits.remove(&step);
        self.damaged.remove(&step);
        self.checker.committed = Some(to);
        self.checker.quarantined += 1;
        let quarantined = vec![(step, "x".into())];
        let (to, policy) = (Some(to), self.policy.clone());
        Ok(RollbackResolution::Target(RollbackTarget { to, policy, quarantined }))
    }

    /// The coordinator dies, and another one leads from what is in the store.
    fn succeed(&mut self) {
        if self.checker.ended.is_some() || self.state.run_state().is_over() {
            return;
        }
        // The commit under way was a single create: it happened, or it did not.
        let mut is_idle = true;
        if let Some(step) = self.checker.committing.take() {
            is_idle = self.random.once_in(2);
            if is_idle {
                self.checker.committed = Some(step);
                self.checker.may_begin = false;
                self.kept(step);
            }
        }
        // So is what follows the verification of a checkpoint.
        let asked = self.deliveries.values().find_map(|delivery| match delivery {
            Delivery::Resolve(_, request) => Some(request.clone()),
            _ => None,
        });
        if let Some(RollbackRequest::DamagedCheckpoint(claim)) = asked.as_ref().filter(|_| is_idle)
            && self.random.once_in(2)
        {
            let found = self.verify(claim);
            if found.is_err() {
                // Nothing was touched, and who knew of it is gone.
                self.checker.known_damaged.remove(&claim.place.step);
            }
        }
        // A recovery point may be lost with the coordinator's disk.
        if let Some(step) = self.checker.keeping.take() {
            is_idle = self.random.once_in(2);
            self.checker.point = if is_idle { Some(step) } else { self.checker.point };
        }
        if self.random.once_in(4) {
            self.checker.point = None;
        }
        // So was the decision behind it.
        if let Some(RollbackRequest::Spike { at, .. }) = asked.filter(|_| is_idle)
            && self.random.once_in(2)
        {
            self.decide(at);
        }
        let settings = Settings {
            attempt: self.state.settings().attempt + 1,
            resume: match self.checker.point.filter(|point| Some(*point) > self.checker.committed) {
                Some(point) => Some(Resume::at_point(point)),
                None => self.checker.committed.map(Resume::at),
            },
            committed: self.checker.committed,
            policy: self.policy.clone(),
            ..self.state.settings().clone()
        };
        // Its calls die with it; reports of the past may still come, and must not matter.
        self.deliveries.retain(|_, delivery| match delivery {
            Delivery::ToCore(event) => matches!(event, Event::Report(_)),
            Delivery::ToAgent(..) | Delivery::Admitted(..) | Delivery::PartNoted(..) => false,
            Delivery::Resolve(..) => false,
            _ => true,
        });
        self.state = State::new(settings, self.now);
        self.checker.succeeded();
        for agent in 0..self.agents.len() {
            match (self.agents[agent].id, self.agents[agent].stage) {
                (_, Stage::Gone) | (None, _) => {}
                (Some(id), _) => {
                    let delay = self.random.below(400);
                    self.schedule(delay, Delivery::Deserted(agent, id));
                }
            }
        }
    }

    fn feed(&mut self, event: Event) {
        if self.checker.ended.is_some() {
            return;
        }
        if let Event::CommitDone { step, result: Ok(()) } = &event
            && self.checker.committing == Some(*step)
        {
            self.kept(*step);
        }
        self.checker.before(&event, &self.state);
        let attending = match &event {
            Event::Attend { member, generation, .. } if *generation == self.state.generation() => {
                Some(*member)
            }
            _ => None,
        };
        let actions = apply(&mut self.state, event, self.now);
        // Directives may precede the answer to the call that opened the stream; the stream counts as open.
        for action in &actions {
            self.checker.after(action, attending, &self.state);
        }
        self.checker.settled(&self.state, self.now);
        for action in actions {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Reply { ticket, answer } => {
                let Asker { agent, incarnation, step } = self.tickets[&ticket.0];
                let wait = self.agents.get(agent).map_or(0, |_| self.cut_off_delay(agent));
                let delay = 1 + self.random.below(20) + wait;
                let answer = match answer {
                    Ok(Reply::Admitted { member, generation }) => {
                        Delivery::Admitted(agent, incarnation, member, generation)
                    }
                    Ok(Reply::PartNoted) => match self.agents[agent].id {
                        Some(id) => Delivery::PartNoted(agent, id, step),
                        None => return,
                    },
                    Ok(Reply::Later(_)) => Delivery::Later(agent, incarnation),
                    _ => return,
                };
                self.schedule(delay, answer);
            }
            Action::Direct { member, directive } => {
                let agent = self.agents.iter().position(|a| a.id == Some(member) && a.stage != Stage::Gone);
                if let Some(agent) = agent {
                    let delay = 1 + self.random.below(30) + self.cut_off_delay(agent);
                    self.schedule(delay, Delivery::ToAgent(agent, member, directive));
                }
            }
            Action::ResolveRollback { id, request } => {
                let delay = 1 + self.random.below(2000);
                self.schedule(delay, Delivery::Resolve(id, request));
            }
            Action::KeepPoint { step } => {
                let bad = self.random.once_in(self.weather.bad_points);
                let result = if bad { Err("disk full".into()) } else { Ok(()) };
                let delay = 1 + self.random.below(1000);
                self.schedule(delay, Delivery::ToCore(Event::PointDone { step, result }));
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
}
