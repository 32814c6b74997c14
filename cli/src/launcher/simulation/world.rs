//! Processes, network, store and clock of one schedule, and the driver's part of the launch.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use polygram_domain::Step;
use polygram_domain::control::{Directive, Incarnation, MemberId, MemberRef, WatchEvent};
use polygram_proto::control::{Announcement, ControlError};

use super::checker::Checker;
use super::coordinator::{self, Answer, Coordinator, Effect, Frame, Input};
use super::member::{Member, Stage};
use super::process::{End, Part, Process};
use super::random::Random;
use super::troubles::lost;
use super::{STEPS, Trouble, Weather};
use crate::launcher::claim::Claim;
use crate::launcher::decider::{Decider, Setup};
use crate::launcher::messages::{Event, Exit};

/// A run that is not over by then is told to stop, and once more half a minute later.
pub(super) const HORIZON: u64 = 180_000;
/// The driver's tick.
const TICK: u64 = 500;
/// The coordinator's tick.
const BEAT: u64 = 150;

#[derive(Debug)]
pub(super) enum Delivery {
    ToCoordinator(u32, Input),
    ToMember(u32, MemberId, Directive),
    Answered(u64, Answer),
    MemberTimer(u32),
    /// A member notices that its coordinator is gone.
    Deserted(u32, MemberId),
    PeerLost(u32, MemberId, MemberRef),
    CoordinatorTimer(u32),
    /// A coordinator listens.
    Announce(u32),
    Announced(u32, Announcement),
    /// A commit is in the store, or is not.
    Committed(u32, Step),
    End(u32, End),
    Exited(Exit),
    /// The watch number so much is opened.
    Connect(u64),
    Connected(u64),
    Watch(u64, WatchEvent),
    WatchBreaks(u64, Option<ControlError>),
    StopAnswered(u64, bool),
    /// The coordinator of this watch is asked what the run waits for.
    Ask(u64),
    Trouble(Trouble),
    Signal,
    Wake,
    Tick,
}

pub(super) struct World {
    pub(super) random: Random,
    pub(super) weather: Weather,
    pub(super) frame: Frame,
    pub(super) base: Instant,
    pub(super) now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub(super) deliveries: BTreeMap<u64, Delivery>,
    scheduled: u64,
    pub(super) decider: Decider,
    pub(super) processes: BTreeMap<u32, Process>,
    pub(super) next_pid: u32,
    number: u64,
    /// Who asked, as whom, about which step.
    pub(super) calls: BTreeMap<u64, (u32, Incarnation, u64)>,
    pub(super) stop_at: Option<u64>,
    /// When the newest word of a stream arrives.
    streams: BTreeMap<(u32, u64), u64>,
    /// Number of the launcher's watch, whether it is open, and its newest word's arrival.
    pub(super) watch: u64,
    pub(super) is_watching: bool,
    pub(super) watch_last: u64,
    pub(super) stop_calls: BTreeSet<u64>,
    /// Coordinators that were started.
    pub(super) opened: usize,
    pub(super) commits: BTreeSet<u64>,
    pub(super) checker: Checker,
}

impl World {
    pub(super) fn new(seed: u64, frame: Frame, weather: Weather) -> World {
        let base = Instant::now();
        let shards = (0..frame.topology.shards).map(|index| format!("shard {index}"));
        let members: Vec<String> =
            shards.chain((0..frame.topology.workers).map(|rank| format!("worker {rank}"))).collect();
        let setup = Setup {
            run: "sim".into(),
            members,
            detection: Duration::from_secs_f64(frame.detection_seconds),
            last_step: STEPS,
            kept_steps: 0,
            claim: Claim::IfVacant,
            recovery: frame.recovery.clone(),
        };
        let mut world = World {
            random: Random(seed),
            checker: Checker::new(&frame.recovery),
            frame,
            base,
            now: 0,
            queue: BinaryHeap::new(),
            deliveries: BTreeMap::new(),
            scheduled: 0,
            decider: Decider::new(setup, base),
            processes: BTreeMap::new(),
            next_pid: 100,
            number: 0,
            calls: BTreeMap::new(),
            stop_at: None,
            streams: BTreeMap::new(),
            watch: 0,
            is_watching: false,
            watch_last: 0,
            stop_calls: BTreeSet::new(),
            opened: 0,
            commits: weather.resumed.into_iter().collect(),
            weather,
        };
        for (at, trouble) in world.weather.troubles.clone() {
            world.schedule(at, Delivery::Trouble(trouble));
        }
        for at in world.weather.signals.clone() {
            world.schedule(at, Delivery::Signal);
        }
        world.schedule(HORIZON, Delivery::Signal);
        world.schedule(HORIZON + 30_000, Delivery::Signal);
        world.schedule(TICK, Delivery::Tick);
        world
    }

    /// Runs to the end of the launch.
    pub(super) fn run(mut self) -> World {
        self.tell(Event::Tick);
        while !self.checker.has_returned {
            let Some(Reverse((at, number))) = self.queue.pop() else { panic!("the world stood still") };
            self.now = at;
            self.checker.time_passed(self.now, HORIZON);
            if let Some(delivery) = self.deliveries.remove(&number) {
                self.deliver(delivery);
            }
        }
        let left: Vec<&str> = self.processes.values().map(|process| process.name.as_str()).collect();
        assert!(left.is_empty(), "{left:?} outlived the launcher");
        self
    }

    pub(super) fn schedule(&mut self, delay: u64, delivery: Delivery) {
        self.scheduled += 1;
        self.deliveries.insert(self.scheduled, delivery);
        self.queue.push(Reverse((self.now + delay, self.scheduled)));
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub(super) fn member(&mut self, pid: u32) -> Option<&mut Member> {
        match &mut self.processes.get_mut(&pid)?.part {
            Part::Member(member) => Some(member),
            _ => None,
        }
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.processes.values().filter_map(Process::member)
    }

    /// Number of members of the run.
    pub(super) fn slots(&self) -> usize {
        (self.frame.topology.workers + self.frame.topology.shards) as usize
    }

    pub(super) fn is_any_frozen(&self) -> bool {
        self.processes.values().any(|process| process.member().is_some() && process.is_frozen)
    }

    /// The coordinator that listens.
    pub(super) fn listening(&self) -> Option<u32> {
        let is_there = |process: &Process| matches!(process.part, Part::Coordinator(_)) && !process.is_frozen;
        self.processes.iter().find(|(_, process)| is_there(process)).map(|(pid, _)| *pid)
    }

    pub(super) fn coordinator_pid(&self) -> Option<u32> {
        self.processes.iter().find(|(_, process)| process.is_coordinator()).map(|(pid, _)| *pid)
    }

    /// Sends a call to a coordinator.
    pub(super) fn send(&mut self, to: u32, input: Input) {
        let delay = 1 + self.random.below(40);
        self.schedule(delay, Delivery::ToCoordinator(to, input));
    }

    /// Sends a word on a member's stream, which keeps its order.
    pub(super) fn send_stream(&mut self, to: u32, id: MemberId, input: Input) {
        let delay = 1 + self.random.below(40);
        let last = self.streams.entry((to, id.0)).or_default();
        *last = (*last + 1).max(self.now + delay);
        let delay = *last - self.now;
        self.schedule(delay, Delivery::ToCoordinator(to, input));
    }

    pub(super) fn end_soon(&mut self, pid: u32, end: End) {
        let delay = 1 + self.random.below(300);
        self.schedule(delay, Delivery::End(pid, end));
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::ToCoordinator(pid, input) => self.feed(pid, input),
            Delivery::ToMember(pid, id, directive) => {
                if self.is_awake(pid) && self.member(pid).is_some_and(|member| member.id == Some(id)) {
                    self.directed(pid, directive);
                }
            }
            Delivery::Answered(ticket, answer) => self.answered(ticket, answer),
            Delivery::MemberTimer(pid) => {
                if self.is_awake(pid) {
                    self.act(pid);
                    let pause = 50 + self.random.below(200);
                    self.schedule(pause, Delivery::MemberTimer(pid));
                }
            }
            Delivery::Deserted(pid, id) => {
                if self.is_awake(pid) && self.member(pid).is_some_and(|member| member.id == Some(id)) {
                    self.rejoin(pid);
                }
            }
            Delivery::PeerLost(pid, id, suspect) => {
                if self.is_awake(pid) {
                    self.peer_lost(pid, id, suspect);
                }
            }
            Delivery::CoordinatorTimer(pid) => {
                if self.is_awake(pid) {
                    self.feed(pid, coordinator::tick());
                    self.schedule(BEAT, Delivery::CoordinatorTimer(pid));
                }
            }
            Delivery::Announce(pid) => self.announce(pid),
            Delivery::Announced(pid, announcement) => {
                if self.processes.contains_key(&pid) {
                    self.tell(Event::Announced(announcement));
                }
            }
            Delivery::Committed(pid, step) => self.committed(pid, step),
            Delivery::End(pid, end) => self.end(pid, end),
            Delivery::Exited(exit) => self.tell(Event::Exited(exit)),
            Delivery::Connect(watch) if watch == self.watch => match self.listening() {
                Some(_) => {
                    let delay = 1 + self.random.below(50);
                    self.schedule(delay, Delivery::Connected(watch));
                }
                None => self.schedule(1, Delivery::WatchBreaks(watch, Some(lost()))),
            },
            Delivery::Connected(watch) if watch == self.watch => match self.listening() {
                Some(pid) => {
                    self.is_watching = true;
                    self.tell(Event::Connected);
                    self.show_status(pid);
                }
                None => self.schedule(1, Delivery::WatchBreaks(watch, Some(lost()))),
            },
            Delivery::Watch(watch, event) if watch == self.watch && self.is_watching => {
                self.tell(Event::Watched(event));
            }
            Delivery::WatchBreaks(watch, error) if watch == self.watch => {
                self.watch += 1;
                let event = match (std::mem::take(&mut self.is_watching), error) {
                    (true, error) => Event::WatchEnded(error),
                    (false, error) => Event::NotConnected(error.unwrap_or_else(lost)),
                };
                self.tell(event);
            }
            Delivery::StopAnswered(ticket, is_done) if self.stop_calls.remove(&ticket) => {
                self.tell(Event::StopAnswered(if is_done { Ok(()) } else { Err(lost()) }));
            }
            Delivery::Ask(watch) if watch == self.watch => {
                let status = self.listening().and_then(|pid| self.status_of(pid));
                self.tell(Event::StallAnswered(status.and_then(|status| status.stall)));
            }
            Delivery::Ask(_)
            | Delivery::Connect(_)
            | Delivery::Connected(_)
            | Delivery::Watch(..)
            | Delivery::WatchBreaks(..)
            | Delivery::StopAnswered(..) => {}
            Delivery::Trouble(trouble) => self.strike(trouble),
            Delivery::Signal => {
                self.checker.signalled(self.now);
                self.tell(Event::Signal);
            }
            Delivery::Wake => self.tell(Event::Tick),
            Delivery::Tick => {
                self.tell(Event::Tick);
                self.schedule(TICK, Delivery::Tick);
            }
        }
    }

    fn is_awake(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_some_and(|process| !process.is_frozen)
    }

    /// A coordinator opens the run, and listens.
    fn announce(&mut self, pid: u32) {
        if !self.is_awake(pid) {
            return;
        }
        let commit = self.commits.last().copied();
        let coordinator = Coordinator::open(&self.frame, commit, self.opened as u32, 1_000_000 + self.now);
        self.stop_at = None;
        let announcement = Announcement {
            address: ([127, 0, 0, 1], 4000).into(),
            pid,
            run: "sim".into(),
            attempt: self.opened as u32,
            state: coordinator.run_state(),
            message: coordinator.message().to_owned(),
            resume_step: coordinator.resume_step(),
        };
        if let Some(process) = self.processes.get_mut(&pid) {
            process.part = Part::Coordinator(Box::new(coordinator));
        }
        let delay = self.random.below(20);
        self.schedule(delay, Delivery::Announced(pid, announcement));
        self.schedule(1, Delivery::CoordinatorTimer(pid));
    }

    pub(super) fn feed(&mut self, pid: u32, input: Input) {
        let Some(process) = self.processes.get_mut(&pid).filter(|process| !process.is_frozen) else { return };
        let Part::Coordinator(coordinator) = &mut process.part else { return };
        for effect in coordinator.apply(input, 1_000_000 + self.now) {
            self.take_effect(pid, effect);
        }
    }

    fn take_effect(&mut self, pid: u32, effect: Effect) {
        match effect {
            Effect::Answer(ticket, answer) => {
                let delay = 1 + self.random.below(20);
                self.schedule(delay, Delivery::Answered(ticket, answer));
            }
            Effect::Direct(id, directive) => {
                let to = self.processes.iter().find(|(_, process)| {
                    process.member().is_some_and(|member| member.id == Some(id) && member.coordinator == pid)
                });
                if let Some(to) = to.map(|(to, _)| *to) {
                    let delay = 1 + self.random.below(30);
                    self.schedule(delay, Delivery::ToMember(to, id, directive));
                }
            }
            Effect::Status => self.show_status(pid),
            Effect::Metrics(metrics) => self.show(WatchEvent::Metrics(metrics)),
            Effect::Committed(step) => self.show(WatchEvent::Committed { step }),
            Effect::Commit(step) => {
                let delay = 1 + self.random.below(500);
                self.schedule(delay, Delivery::Committed(pid, step));
            }
            Effect::End(is_good) => {
                self.show_status(pid);
                self.break_watch(0, None);
                let delay = 1 + self.random.below(20);
                self.schedule(delay, Delivery::End(pid, End::Code(i32::from(!is_good))));
            }
        }
    }

    fn answered(&mut self, ticket: u64, answer: Answer) {
        if self.stop_calls.contains(&ticket) {
            return self.schedule(1, Delivery::StopAnswered(ticket, answer == Answer::Done));
        }
        let Some((pid, incarnation, step)) = self.calls.remove(&ticket) else { return };
        if !self.is_awake(pid) {
            return;
        }
        let Some(member) = self.member(pid).filter(|member| member.incarnation == incarnation) else {
            return;
        };
        match (answer, member.stage) {
            (Answer::Admitted(id, generation), Stage::Outside) => member.admitted(id, generation),
            (Answer::Later | Answer::Refused, Stage::Attending) => self.rejoin(pid),
            (Answer::Done, _) => member.part_noted(step),
            _ => {}
        }
    }

    fn committed(&mut self, pid: u32, step: Step) {
        if !self.is_awake(pid) {
            return;
        }
        let is_bad = self.random.once_in(self.weather.bad_commit);
        if !is_bad {
            self.commits.insert(step.0);
        }
        let result = if is_bad { Err("no room".to_owned()) } else { Ok(()) };
        self.feed(pid, coordinator::commit_done(step, result));
    }
}
