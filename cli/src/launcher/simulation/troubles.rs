//! What goes wrong in a simulated launch, and what follows from a death.

use std::time::Duration;

use polygram_domain::control::MemberId;
use polygram_proto::control::{Announcement, ControlError};

use super::process::{End, Part, Process};
use super::world::{Delivery, World};
use super::{Trouble, coordinator};
use crate::launcher::ended::Ended;
use crate::launcher::messages::Exit;

/// A watch of a coordinator that does not answer breaks after so long.
const KEEP_ALIVE: u64 = 15_000;

impl World {
    /// A process ends.
    pub(super) fn end(&mut self, pid: u32, end: End) {
        let Some(process) = self.processes.get(&pid) else { return };
        if process.is_frozen && end != End::Signal(9) {
            return;
        }
        self.leave(pid);
        let Some(Process { name, started, part, .. }) = self.processes.remove(&pid) else { return };
        let mut announcement = None;
        match &part {
            Part::Opening => {}
            Part::Coordinator(_) => {
                announcement = self.announcement_of(pid);
                self.coordinator_died(pid);
            }
            Part::Member(member) => self.peers_notice(member),
        }
        let lived = Duration::from_millis(self.now - started);
        let ended = Ended { name, pid, status: end.status(), lived };
        let last_line = format!("error: it ended like this: {end:?}");
        let delay = 1 + self.random.below(30);
        self.schedule(delay, Delivery::Exited(Exit { ended, last_line, announcement }));
    }

    /// What a coordinator has announced, unless the launcher has read it.
    fn announcement_of(&self, pid: u32) -> Option<Announcement> {
        self.deliveries.values().find_map(|delivery| match delivery {
            Delivery::Announced(of, announcement) if *of == pid => Some(announcement.clone()),
            _ => None,
        })
    }

    fn coordinator_died(&mut self, pid: u32) {
        self.break_watch(0, Some(lost()));
        // The commit under way was a single create: it happened, or it did not.
        let under_way = self.deliveries.values().find_map(|delivery| match delivery {
            Delivery::Committed(by, step) if *by == pid => Some(step.0),
            _ => None,
        });
        if let Some(step) = under_way.filter(|_| self.random.once_in(2)) {
            self.commits.insert(step);
        }
        self.desert(pid, 400);
    }

    /// The members of a coordinator notice within so long that it is gone.
    fn desert(&mut self, pid: u32, within: u64) {
        let deserted: Vec<(u32, MemberId)> = self
            .processes
            .iter()
            .filter_map(|(of, process)| {
                let member = process.member().filter(|member| member.coordinator == pid)?;
                Some((*of, member.id?))
            })
            .collect();
        for (of, id) in deserted {
            let delay = 1 + self.random.below(within);
            self.schedule(delay, Delivery::Deserted(of, id));
        }
    }

    pub(super) fn strike(&mut self, trouble: Trouble) {
        let of_slot = |world: &World, slot: usize| {
            let is_it = |process: &Process| process.member().is_some_and(|member| member.slot == slot);
            world.processes.iter().find(|(_, process)| is_it(process)).map(|(pid, _)| *pid)
        };
        match trouble {
            Trouble::Crash(slot, end) => {
                if let Some(pid) = of_slot(self, slot) {
                    self.end(pid, end);
                }
            }
            Trouble::Freeze(slot) => {
                // One that hangs before the run has begun may as well take long to start: nobody ends it.
                let has_begun = self.checker.furthest > 0;
                let process = of_slot(self, slot).and_then(|pid| self.processes.get_mut(&pid));
                let process = process.filter(|process| {
                    has_begun || process.member().is_some_and(|member| member.id.is_some())
                });
                if let Some(process) = process {
                    process.is_frozen = true;
                }
            }
            Trouble::CrashCoordinator => {
                if let Some(pid) = self.coordinator_pid() {
                    self.end(pid, End::Signal(9));
                }
            }
            Trouble::FreezeCoordinator => {
                if let Some(pid) = self.listening() {
                    if let Some(process) = self.processes.get_mut(&pid) {
                        process.is_frozen = true;
                    }
                    self.break_watch(KEEP_ALIVE, Some(lost()));
                    self.desert(pid, KEEP_ALIVE);
                }
            }
            Trouble::BreakWatch => self.break_watch(0, Some(lost())),
            Trouble::StoreWaits(is_waiting) => {
                if let Some(pid) = self.listening() {
                    self.feed(pid, coordinator::store_wait(is_waiting.then_some("the store has no room")));
                }
            }
        }
    }
}

/// The error of a connection that broke.
pub(super) fn lost() -> ControlError {
    ControlError::Lost { address: "127.0.0.1:4000".into(), message: "connection reset".into() }
}
