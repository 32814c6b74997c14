//! Members come, work, leave and die.

use polygram_proto::pool::{Offering, PoolMemberId, Seat};

use super::event::Action;
use super::job::Stage;
use super::state::{Member, Place, Turn};
use crate::core::{Level, Time};

impl Turn<'_> {
    /// A member opened a stream: a new one, or one whose stream or coordinator was lost.
    pub(super) fn offered(&mut self, offering: Offering) {
        let Offering { member: id, role, pid, host, seat } = offering;
        let before = self.state.members.remove(&id);
        let was = before.as_ref().map(|member| member.place);
        if let Some(Place::Placed(held)) = was
            && seat != Some(held)
        {
            self.vacate(id, held);
        }
        if was.is_none() {
            self.log(Level::Info, format!("a {role} offers itself (pid {pid} on {host})"));
        }
        // Another stream changes nothing about what it does not do.
        let hangs = seat.is_some() && before.as_ref().is_some_and(|member| member.hangs);
        let place = match seat {
            None => Place::Idle { left: None },
            Some(seat) if hangs => Place::Leaving(seat),
            Some(seat) if was == Some(Place::Placed(seat)) => Place::Placed(seat),
            Some(seat) => self.adopt(id, seat, role == seat.slot.role),
        };
        let told = before.filter(|_| was == Some(place)).and_then(|member| member.told);
        let heard = self.now;
        self.state.members.insert(id, Member { role, pid, host, place, told, hangs, heard });
        match place {
            Place::Placed(_) => self.tell(id),
            Place::Leaving(_) => self.withdraw(id),
            Place::Idle { .. } => {}
        }
    }

    /// Gives a member the seat that it says it has, in whichever session that is now, if nobody else has it.
    fn adopt(&mut self, id: PoolMemberId, seat: Seat, is_its_role: bool) -> Place {
        let job = self.state.jobs.get_mut(&seat.job).filter(|_| is_its_role);
        let Some(job) = job else { return Place::Leaving(seat) };
        // A session that is due gets its number when it is opened, and its members with it.
        let current = job.seat(seat.slot);
        let Some(active) = job.active.as_mut().filter(|active| active.takes_members()) else {
            return Place::Leaving(seat);
        };
        match active.seats.get_mut(&seat.slot) {
            Some(vacant @ None) => {
                *vacant = Some(id);
                Place::Placed(current)
            }
            _ => Place::Leaving(seat),
        }
    }

    /// Tells a placed member where its run is, if it listens already.
    pub(super) fn tell(&mut self, id: PoolMemberId) {
        let Some(Place::Placed(seat)) = self.state.members.get(&id).map(|member| member.place) else {
            return;
        };
        let Some(job) = self.state.jobs.get(&seat.job) else { return };
        if let Some(Stage::Open(address)) = job.active.as_ref().map(|active| &active.stage) {
            let (run, address) = (job.record.run.clone(), address.to_string());
            let placement = polygram_proto::pool::Placement { seat, run, address };
            self.actions.push(Action::Place { member: id, placement });
            self.note_told(id);
        }
    }

    /// Tells a member to leave the seat that it has, or that it had.
    pub(super) fn withdraw(&mut self, id: PoolMemberId) {
        let Some(member) = self.state.members.get_mut(&id) else { return };
        match member.place {
            Place::Placed(seat) => {
                (member.place, member.told) = (Place::Leaving(seat), None);
                self.actions.push(Action::Withdraw { member: id, seat });
            }
            Place::Leaving(seat) => self.actions.push(Action::Withdraw { member: id, seat }),
            Place::Idle { .. } => return,
        }
        self.note_told(id);
    }

    /// Notes when a member was first told of its place.
    fn note_told(&mut self, id: PoolMemberId) {
        if let Some(member) = self.state.members.get_mut(&id) {
            member.told.get_or_insert(self.now);
        }
    }

    pub(super) fn alive(&mut self, id: PoolMemberId) {
        if let Some(member) = self.state.members.get_mut(&id) {
            member.heard = self.now;
        }
    }

    pub(super) fn released(&mut self, id: PoolMemberId, seat: Seat, failure: Option<String>) {
        self.alive(id);
        let now = self.now;
        let Some(member) = self.state.members.get_mut(&id) else { return };
        let (role, pid, was) = (member.role, member.pid, member.place);
        let left = Place::Idle { left: Some((seat, now)) };
        match was {
            // It was wanted elsewhere meanwhile, and is on its way.
            Place::Placed(wanted) if wanted != seat => return,
            Place::Placed(_) => {
                (member.place, member.told) = (left, None);
                self.vacate(id, seat);
            }
            Place::Leaving(_) => (member.place, member.told, member.hangs) = (left, None, false),
            Place::Idle { .. } => return,
        }
        match failure {
            Some(failure) => self.log(Level::Warn, format!("{role} (pid {pid}) left as {seat}: {failure}")),
            None => self.log(Level::Info, format!("{role} (pid {pid}) left as {seat}")),
        }
    }

    pub(super) fn gone(&mut self, id: PoolMemberId, message: &str) {
        let Some(member) = self.state.members.remove(&id) else { return };
        let (role, pid) = (member.role, member.pid);
        match member.place {
            Place::Placed(seat) => {
                self.state.tallies.members_lost += 1;
                self.vacate(id, seat);
                self.log(Level::Warn, format!("lost a {role} (pid {pid}), {seat}: {message}"));
            }
            _ => self.log(Level::Info, format!("a {role} (pid {pid}) offers itself no more: {message}")),
        }
    }

    pub(super) fn vacate(&mut self, id: PoolMemberId, seat: Seat) {
        let job = self.state.jobs.get_mut(&seat.job);
        let Some(active) = job.and_then(|job| job.active.as_mut()) else { return };
        if let Some(held) = active.seats.get_mut(&seat.slot)
            && *held == Some(id)
        {
            *held = None;
        }
    }

    pub(super) fn tick(&mut self) {
        let pause = self.now.since(self.state.last_tick);
        self.state.last_tick = self.now;
        let silence_ms = self.state.rules.silence_ms;
        if pause > silence_ms / 2 {
            // A coordinator that stood still has heard nobody meanwhile, which is not their silence.
            for member in self.state.members.values_mut() {
                member.heard = member.heard.after(pause).min(self.now);
            }
            self.excuse_late(pause);
            self.log(Level::Warn, format!("this process stood still for {:.1} s", pause as f64 / 1000.0));
        }
        let silent = |heard: Time| self.now.since(heard) > silence_ms;
        let silent: Vec<PoolMemberId> =
            self.state.members.iter().filter(|(_, member)| silent(member.heard)).map(|(id, _)| *id).collect();
        for id in silent {
            self.gone(id, &format!("no sign of life for {:.1} s", silence_ms as f64 / 1000.0));
            self.actions.push(Action::Drop { member: id });
        }
        self.find_late();
    }
}
