//! The driver's part of a simulated launch: it does what the decider orders.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use polygram_domain::control::{MemberRef, Role, RunStatus, WatchEvent};
use polygram_proto::control::ControlError;

use super::Opening;
use super::coordinator;
use super::member::Member;
use super::process::{End, Part, Process};
use super::world::{Delivery, World};
use crate::exit::Failure;
use crate::launcher::ended::COORDINATOR;
use crate::launcher::messages::{Action, Event};

impl World {
    /// Tells the decider, and does what it orders.
    pub(super) fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.base + Duration::from_millis(self.now);
            self.checker.before(&event);
            let actions = self.decider.apply(event, now);
            for action in actions {
                self.checker.ordered(&action, self.now);
                events.extend(self.act_out(action));
            }
            let wake = self.decider.wake_at();
            if let Some(wake) = wake {
                assert!(wake > now, "what is due is done");
                let delay = (wake - now).as_nanos().div_ceil(1_000_000) as u64;
                self.schedule(delay, Delivery::Wake);
            }
        }
    }

    /// What the driver does.
    fn act_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Open { .. } => {
                assert_eq!(self.coordinator_pid(), None, "one coordinator at a time");
                self.opened += 1;
                let opening = self.weather.openings.get(self.opened - 1).copied().unwrap_or_default();
                if opening == Opening::NotStarted {
                    return Some(not_started(COORDINATOR));
                }
                let pid = self.spawn(COORDINATOR.to_owned(), Part::Opening);
                let delay = 50 + self.random.below(500);
                match opening {
                    Opening::Listens => self.schedule(delay, Delivery::Announce(pid)),
                    Opening::Ends(end) => self.schedule(delay, Delivery::End(pid, end)),
                    Opening::Hangs | Opening::NotStarted => {}
                }
                Some(Event::Started { name: COORDINATOR.to_owned(), pid })
            }
            Action::Start(name) => {
                let is_there = self.processes.values().any(|process| process.name == name);
                assert!(!is_there, "{name} is started beside itself");
                if self.random.once_in(self.weather.not_started) {
                    return Some(not_started(&name));
                }
                let (role, index) = name.split_once(' ').unwrap();
                let role = if role == "worker" { Role::Worker } else { Role::Shard };
                let who = MemberRef { role, index: index.parse().unwrap() };
                let workers = self.frame.topology.workers;
                let slot = who.index + if role == Role::Worker { 0 } else { workers };
                let incarnation = self.next_number();
                let member = Box::new(Member::new(who, slot as usize, incarnation));
                let pid = self.spawn(name.clone(), Part::Member(member));
                match self.weather.broken {
                    Some((broken, end)) if broken == slot as usize => {
                        let delay = 50 + self.random.below(100);
                        self.schedule(delay, Delivery::End(pid, end));
                    }
                    _ => {
                        let delay = 20 + self.random.below(500);
                        self.schedule(delay, Delivery::MemberTimer(pid));
                    }
                }
                Some(Event::Started { name, pid })
            }
            Action::Connect(_) => {
                self.watch += 1;
                self.is_watching = false;
                self.stop_calls.clear();
                let delay = 1 + self.random.below(50);
                self.schedule(delay, Delivery::Connect(self.watch));
                None
            }
            Action::RequestStop { mode, reason } => {
                let ticket = self.next_number();
                self.stop_calls = BTreeSet::from([ticket]);
                match self.listening().filter(|_| !self.random.once_in(self.weather.lost_stops)) {
                    Some(to) => self.send(to, coordinator::stop(ticket, mode, reason)),
                    None => self.schedule(5_000, Delivery::StopAnswered(ticket, false)),
                }
                None
            }
            Action::AskWhatIsWaitedFor => {
                let delay = 1 + self.random.below(50);
                self.schedule(delay, Delivery::Ask(self.watch));
                None
            }
            Action::Terminate(pids) => {
                for pid in pids {
                    self.terminate(pid);
                }
                None
            }
            Action::Kill(pids) => {
                for pid in pids {
                    let delay = 1 + self.random.below(5);
                    self.schedule(delay, Delivery::End(pid, End::Signal(9)));
                }
                None
            }
            Action::ReadNewestCommit => Some(Event::NewestCommit(self.commits.last().copied())),
            Action::Record { .. } => Some(Event::Recorded(!self.random.once_in(4))),
            Action::Conclude(_) => {
                self.watch += 1;
                self.is_watching = false;
                self.stop_calls.clear();
                None
            }
            Action::Say(_) | Action::SayState(_) | Action::Warn(_) | Action::Return => None,
        }
    }

    fn spawn(&mut self, name: String, part: Part) -> u32 {
        self.next_pid += 1;
        let process = Process { name, started: self.now, is_frozen: false, part };
        self.processes.insert(self.next_pid, process);
        self.next_pid
    }

    fn terminate(&mut self, pid: u32) {
        let Some(process) = self.processes.get(&pid).filter(|process| !process.is_frozen) else { return };
        if process.is_coordinator() {
            return self.send(pid, coordinator::interrupt());
        }
        // Some are deaf.
        if !self.random.once_in(4) {
            self.end_soon(pid, End::Signal(15));
        }
    }

    /// What a coordinator says of the run.
    pub(super) fn status_of(&self, pid: u32) -> Option<RunStatus> {
        match &self.processes.get(&pid)?.part {
            Part::Coordinator(coordinator) => Some(coordinator.status(1_000_000 + self.now)),
            _ => None,
        }
    }

    pub(super) fn show_status(&mut self, pid: u32) {
        if let Some(status) = self.status_of(pid) {
            self.show(WatchEvent::Status(Box::new(status)));
        }
    }

    pub(super) fn show(&mut self, event: WatchEvent) {
        if self.is_watching {
            let wait = self.random.below(20);
            let delay = self.watch_delay(1 + wait);
            self.schedule(delay, Delivery::Watch(self.watch, event));
        }
    }

    pub(super) fn break_watch(&mut self, after: u64, error: Option<ControlError>) {
        let delay = self.watch_delay(after + 1);
        self.schedule(delay, Delivery::WatchBreaks(self.watch, error));
    }

    /// What is shown keeps its order.
    pub(super) fn watch_delay(&mut self, delay: u64) -> u64 {
        self.watch_last = (self.watch_last + 1).max(self.now + delay);
        self.watch_last - self.now
    }
}

fn not_started(name: &str) -> Event {
    let failure = Failure::failed(format!("cannot start {name}"));
    Event::NotStarted { name: name.to_owned(), failure }
}
