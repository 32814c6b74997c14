//! Members that live and do not do what they are told: their stream says that all is well, and the rest of them hangs.
//!
//! A seat whose member has not joined its run in time goes to a spare. The time is the silence that the pool allows and
//! the run's own failure detection together: a member whose run goes back may have to wait for a thread that long before
//! it joins again. Whoever does not leave a seat in the same time is no longer counted on.

use std::collections::BTreeSet;

use polygram_domain::control::MemberRef;
use polygram_proto::pool::{JobId, PoolMemberId, Seat};

use super::job::{Job, Stage};
use super::state::{Place, State, Turn};
use crate::core::{Level, Time};

impl State {
    /// How long a member of `job` may take to join its run or to leave it.
    pub(super) fn patience_ms(&self, job: &Job) -> u64 {
        self.rules.silence_ms + job.needs.detection_ms
    }

    /// Since when a member is awaited where it is to be, if it is told and not there.
    pub(super) fn awaited_since(&self, id: PoolMemberId) -> Option<(Time, Seat, &Job)> {
        let member = self.members.get(&id)?;
        let told = member.told?;
        let (Place::Placed(seat) | Place::Leaving(seat)) = member.place else { return None };
        let job = self.jobs.get(&seat.job)?;
        let since = match member.place {
            Place::Placed(_) => {
                let active = job.active.as_ref().filter(|active| matches!(active.stage, Stage::Open(_)))?;
                told.max(*active.awaited.get(&seat.slot)?)
            }
            _ => told,
        };
        Some((since, seat, job))
    }
}

impl Turn<'_> {
    pub(super) fn awaited(&mut self, id: JobId, session: u32, slots: BTreeSet<MemberRef>) {
        let now = self.now;
        let Some(active) = self.session(id, session) else { return };
        let before = std::mem::take(&mut active.awaited);
        active.awaited =
            slots.into_iter().map(|slot| (slot, before.get(&slot).copied().unwrap_or(now))).collect();
    }

    /// Takes seats back from members that do not join their runs.
    pub(super) fn find_late(&mut self) {
        let now = self.now;
        let is_late = |id: &PoolMemberId| {
            let (since, seat, job) = self.state.awaited_since(*id)?;
            let waited = now.since(since);
            (waited > self.state.patience_ms(job)).then_some((*id, seat, waited as f64 / 1000.0))
        };
        let counted_on = self.state.members.iter().filter(|(_, member)| !member.hangs);
        let late: Vec<_> = counted_on.filter_map(|(id, _)| is_late(id)).collect();
        for (id, seat, waited) in late {
            let Some(member) = self.state.members.get_mut(&id) else { continue };
            member.hangs = true;
            let who = format!("a {} (pid {} on {})", member.role, member.pid, member.host);
            let what = if member.place == Place::Placed(seat) {
                self.state.tallies.seats_taken_back += 1;
                self.vacate(id, seat);
                self.withdraw(id);
                format!("{who} has not joined as {seat} within {waited:.1} s: a spare may have its seat")
            } else {
                format!("{who} has not left as {seat} within {waited:.1} s: it is not counted on")
            };
            self.log(Level::Warn, format!("{what}; if it does not go on, end that process"));
        }
    }

    /// A pause of this process is nobody's lateness.
    pub(super) fn excuse_late(&mut self, pause_ms: u64) {
        let now = self.now;
        let later = |at: &mut Time| *at = at.after(pause_ms).min(now);
        for active in self.state.jobs.values_mut().filter_map(|job| job.active.as_mut()) {
            active.awaited.values_mut().for_each(later);
        }
        self.state.members.values_mut().filter_map(|member| member.told.as_mut()).for_each(later);
    }
}
