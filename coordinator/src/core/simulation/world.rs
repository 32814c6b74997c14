//! Members, network and clock of one schedule.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use polygram_domain::{Step, Topology};
use polygram_proto::control::{Directive, Envelope, MemberId, MemberRef, MemberReport, Role, RunState};

use super::checker::Checker;
use super::member::{Agent, Stage};
use super::{HORIZON, Random, STEPS, Weather};
use crate::core::{Action, Event, Reply, Resume, Settings, State, Ticket, Time, Timeouts, apply};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Delivery {
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
    pub(super) tickets: BTreeMap<u64, (usize, u64)>,
    pub(super) next_ticket: u64,
    pub(super) checker: Checker,
}

impl World {
    pub(super) fn new(seed: u64, topology: Topology, weather: Weather) -> World {
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
            tables: Vec::new(),
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

    pub(super) fn schedule(&mut self, delay: u64, delivery: Delivery) {
        self.scheduled += 1;
        self.deliveries.insert(self.scheduled, delivery);
        self.queue.push(Reverse((self.now.0 + delay, self.scheduled)));
    }

    pub(super) fn ticket(&mut self, agent: usize, step: u64) -> Ticket {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, (agent, step));
        Ticket(self.next_ticket)
    }

    /// Sends an event through the weather.
    pub(super) fn send(&mut self, event: Event) {
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

    pub(super) fn report(&mut self, agent: usize, report: MemberReport) {
        let Some(member) = self.agents[agent].id else { return };
        let generation = self.state.generation();
        self.send(Event::Report(Envelope { member, generation, report }));
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
}
