//! Who is in the active generation, and who was in the one before. Written here alone: others read a [`Member`].

use std::collections::BTreeMap;
use std::net::SocketAddr;

use polygram_domain::control::{AssignmentHash, Heartbeat, Incarnation, MemberId, MemberRef, Phase, Role};
use polygram_domain::{Generation, Step};
use polygram_proto::control::JoinRequest;

use super::event::Time;

/// How often a status shows what members have read of the checkpoint that they restore.
const RESTORED_INTERVAL_MS: u64 = 5_000;

/// The members of a generation.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    generation: Generation,
    members: BTreeMap<MemberRef, Member>,
    admissions: u64,
    assignment: Option<AssignmentHash>,
    /// What members had read together when it was last shown, and when that was.
    shown_restored: (u64, Time),
    /// The members of the generation before this one.
    former: Option<(Generation, BTreeMap<MemberId, MemberRef>)>,
    last_tick: Time,
}

/// One admitted process.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: MemberId,
    pub(super) who: MemberRef,
    pub(super) incarnation: Incarnation,
    pub(super) pid: u32,
    pub(super) host: String,
    pub(super) address: SocketAddr,
    pub(super) stream: Stream,
    pub(super) ready: bool,
    pub(super) heard: Time,
    pub(super) step: Step,
    pub(super) phase: Phase,
    /// Read of the checkpoint that it restores.
    pub(super) restored_bytes: u64,
    /// Why it waits for the store, while it does.
    pub(super) store_wait: Option<String>,
    pub(super) finished: Option<Step>,
    pub(super) failed: bool,
}

/// A member's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Not opened yet: the member has joined only.
    Expected,
    Open,
    Ended,
}

impl Membership {
    pub(super) fn new(generation: Generation, now: Time) -> Membership {
        Membership {
            generation,
            members: BTreeMap::new(),
            admissions: 0,
            assignment: None,
            shown_restored: (0, now),
            former: None,
            last_tick: now,
        }
    }

    /// The active generation.
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|m| m.who.role == Role::Worker)
    }

    pub(super) fn open(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|m| m.stream == Stream::Open)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn get(&self, who: MemberRef) -> Option<&Member> {
        self.members.get(&who)
    }

    pub(super) fn by_id(&self, id: MemberId) -> Option<&Member> {
        self.iter().find(|m| m.id == id)
    }

    fn by_id_mut(&mut self, id: MemberId) -> Option<&mut Member> {
        self.members.values_mut().find(|m| m.id == id)
    }

    /// The slot of a member of the generation before the active one.
    pub(super) fn former(&self, generation: Generation, member: MemberId) -> Option<MemberRef> {
        let (former, members) = self.former.as_ref()?;
        members.get(&member).copied().filter(|_| *former == generation)
    }

    /// Gives a free slot to the process of `request`.
    pub(super) fn admit(&mut self, request: JoinRequest, now: Time) -> MemberId {
        let JoinRequest { member: who, incarnation, pid, host, data_address, schema_version: _ } = request;
        self.admissions += 1;
        let id = MemberId(self.admissions);
        let member = Member {
            id,
            who,
            incarnation,
            pid,
            host,
            address: data_address,
            stream: Stream::Expected,
            ready: false,
            heard: now,
            step: Step(0),
            phase: Phase::Starting,
            restored_bytes: 0,
            store_wait: None,
            finished: None,
            failed: false,
        };
        self.members.insert(who, member);
        id
    }

    pub(super) fn heard(&mut self, who: MemberRef, now: Time) {
        if let Some(member) = self.members.get_mut(&who) {
            member.heard = now;
        }
    }

    pub(super) fn heartbeat(&mut self, who: MemberRef, heartbeat: Heartbeat) {
        let Some(member) = self.members.get_mut(&who) else { return };
        let Heartbeat { step, phase, restored_bytes, store_wait } = heartbeat;
        member.step = member.step.max(step);
        (member.phase, member.restored_bytes, member.store_wait) = (phase, restored_bytes, store_wait);
    }

    /// The stream of `id` is open from now on.
    pub(super) fn open_stream(&mut self, id: MemberId, now: Time) {
        if let Some(member) = self.by_id_mut(id) {
            (member.stream, member.heard) = (Stream::Open, now);
        }
    }

    /// The stream of `id` is over; the member, where it was open.
    pub(super) fn end_stream(&mut self, id: MemberId) -> Option<&Member> {
        let member = self.by_id_mut(id).filter(|m| m.stream == Stream::Open)?;
        member.stream = Stream::Ended;
        Some(member)
    }

    pub(super) fn set_ready(&mut self, who: MemberRef) {
        if let Some(member) = self.members.get_mut(&who) {
            member.ready = true;
        }
    }

    pub(super) fn set_finished(&mut self, who: MemberRef, step: Step) {
        if let Some(member) = self.members.get_mut(&who) {
            member.finished = Some(step);
            (member.step, member.phase) = (member.step.max(step), Phase::Finished);
        }
    }

    /// Takes the member's failure, in which it said where it was, where it did.
    pub(super) fn set_failed(&mut self, who: MemberRef, at: Option<(Step, Phase)>) {
        let Some(member) = self.members.get_mut(&who) else { return };
        member.failed = true;
        if let Some((step, phase)) = at {
            (member.step, member.phase) = (member.step.max(step), phase);
        }
    }

    /// The table that this generation was assigned.
    pub(super) fn assignment(&self) -> Option<AssignmentHash> {
        self.assignment
    }

    pub(super) fn assign(&mut self, assignment: AssignmentHash, now: Time) {
        self.assignment = Some(assignment);
        self.shown_restored = (0, now);
    }

    /// Bytes that members have read of the checkpoint together, as last shown.
    pub(super) fn shown_restored(&self) -> u64 {
        self.shown_restored.0
    }

    /// Takes a new figure of what members have read, now and then: each change is a status for everybody who watches.
    pub(super) fn show_restored(&mut self, now: Time) {
        let read = self.iter().map(|m| m.restored_bytes).fold(0, u64::saturating_add);
        let (shown, at) = self.shown_restored;
        if read != shown && now.since(at) >= RESTORED_INTERVAL_MS {
            self.shown_restored = (read, now);
        }
    }

    /// Ends the generation: its members become the former ones, and the next generation has none.
    pub(super) fn begin_next_generation(&mut self) {
        let members = std::mem::take(&mut self.members);
        let former = members.into_values().map(|m| (m.id, m.who)).collect();
        self.former = Some((self.generation, former));
        self.generation = self.generation.next();
        self.assignment = None;
    }

    /// Members that were not heard for more than `detection_ms`, the longest silent first.
    pub(super) fn silent(&self, now: Time, detection_ms: u64) -> Vec<&Member> {
        let is_silent = |m: &&Member| m.stream != Stream::Ended && now.since(m.heard) > detection_ms;
        let mut silent: Vec<&Member> = self.iter().filter(is_silent).collect();
        silent.sort_unstable_by_key(|m| (m.heard, m.who));
        silent
    }

    /// A coordinator that was itself stopped for a while (suspended, swapped out) has heard nobody meanwhile; that is not
    /// the members' silence. Answers how long it stood still, where that is more than `limit_ms`.
    pub(super) fn compensate_local_stall(&mut self, now: Time, limit_ms: u64) -> Option<u64> {
        let pause = now.since(std::mem::replace(&mut self.last_tick, now));
        if pause <= limit_ms {
            return None;
        }
        for member in self.members.values_mut() {
            member.heard = member.heard.after(pause).min(now);
        }
        Some(pause)
    }
}
