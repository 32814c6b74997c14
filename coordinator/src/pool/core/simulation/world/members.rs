//! Members of a schedule: they hear, sit, leave, die, freeze and come back.

use polygram_proto::pool::{Offering, PoolMemberId, Seat};

use super::{Happening, Word, World};
use crate::pool::core::Event;

impl World {
    pub(super) fn tell(&mut self, member: PoolMemberId, word: Word) {
        if let Some(index) = self.index_of(member)
            && self.agents[index].stream == Some(self.coordinator)
        {
            let after = 1 + self.random.below(30);
            // Words of one stream keep their order: all take the same time.
            let after = after.min(1);
            self.after(after, Happening::ToMember(index, self.coordinator, word));
        }
    }

    pub(super) fn hear(&mut self, index: usize, coordinator: u64, word: Word) {
        let agent = &mut self.agents[index];
        if agent.life == 0 || agent.stream != Some(coordinator) {
            return;
        }
        let life = agent.life;
        if agent.frozen || agent.hangs {
            return self.after(500, Happening::ToMember(index, coordinator, word));
        }
        match word {
            Word::Place(placement) => {
                agent.wanted = Some(placement.seat);
                if let Some(seat) = agent.seat.filter(|seat| *seat != placement.seat) {
                    // Recalled from where it is first.
                    return self.after(50, Happening::Leaves(index, life, seat));
                }
                agent.seat = Some(placement.seat);
            }
            Word::Withdraw(seat) => {
                agent.wanted = None;
                match agent.seat {
                    Some(held) if held == seat => self.after(50, Happening::Leaves(index, life, seat)),
                    _ => self.say_released(index, seat),
                }
            }
        }
    }

    /// A member's time in a seat is over, whatever the reason.
    pub(super) fn leave(&mut self, index: usize, life: u64, seat: Seat) {
        let agent = &mut self.agents[index];
        if agent.life != life || agent.seat != Some(seat) {
            return;
        }
        if agent.frozen || agent.hangs {
            return self.after(500, Happening::Leaves(index, life, seat));
        }
        if agent.wanted == Some(seat) {
            agent.wanted = None;
        }
        agent.seat = agent.wanted;
        self.say_released(index, seat);
    }

    pub(super) fn say_released(&mut self, index: usize, seat: Seat) {
        let agent = &self.agents[index];
        if agent.stream == Some(self.coordinator) {
            let member = World::id(index, agent.life);
            let released = Event::Released { member, seat, failure: None };
            self.after(1, Happening::ToCore(self.coordinator, released));
        }
    }

    pub(super) fn offer(&mut self, index: usize, life: u64) {
        let agent = &mut self.agents[index];
        let is_connected = agent.stream == Some(self.coordinator) && self.is_up;
        if life == 0 || agent.life != life || agent.frozen || is_connected {
            return;
        }
        agent.stream = None;
        if !self.is_up {
            return self.after(500, Happening::Offer(index, life));
        }
        agent.stream = Some(self.coordinator);
        if agent.seat.is_none() {
            agent.wanted = None;
        }
        let offering = Offering {
            member: World::id(index, life),
            role: agent.role,
            pid: index as u32,
            host: "here".into(),
            seat: agent.seat,
        };
        self.apply(Event::Offered(offering));
        self.after(1000, Happening::Beat(index, life));
    }

    pub(super) fn beat(&mut self, index: usize, life: u64) {
        let agent = &self.agents[index];
        if agent.life != life || agent.frozen {
            return;
        }
        if agent.stream != Some(self.coordinator) || !self.is_up {
            // It notices that its coordinator is gone.
            let after = 100 + self.random.below(1000);
            return self.after(after, Happening::Offer(index, life));
        }
        let alive = Event::Alive { member: World::id(index, life) };
        self.apply(alive);
        self.after(1000, Happening::Beat(index, life));
    }

    pub(super) fn die(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        let (life, stream) = (agent.life, agent.stream);
        (agent.life, agent.stream, agent.wanted, agent.seat) = (0, None, None, None);
        (agent.frozen, agent.hangs) = (false, false);
        if stream == Some(self.coordinator) {
            let member = World::id(index, life);
            let gone = Event::Gone { member, message: "it died".into() };
            self.after(1, Happening::ToCore(self.coordinator, gone));
        }
    }

    pub(super) fn thaw(&mut self, index: usize, life: u64) {
        let agent = &mut self.agents[index];
        if agent.life == life && std::mem::replace(&mut agent.frozen, false) {
            self.after(1, Happening::Beat(index, life));
        }
    }

    /// Both ends live, and notice it at different times.
    pub(super) fn break_stream(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        let (life, frozen) = (agent.life, agent.frozen);
        if agent.stream.take() != Some(self.coordinator) || life == 0 {
            return;
        }
        let member = World::id(index, life);
        // One that comes back before its end was noticed is not gone: the driver knows streams apart.
        if self.is_up && self.state.members.contains_key(&member) {
            self.apply(Event::Gone { member, message: "its connection broke".into() });
        }
        if !frozen {
            let after = 100 + self.random.below(3000);
            self.after(after, Happening::Offer(index, life));
        }
    }
}
