//! A member of a simulated launch as a small machine: joins, attends, restores, trains in lockstep, uploads, finishes, leaves.

use std::collections::BTreeSet;

use polygram_domain::control::{
    Abort, AbortKind, AssignmentHash, Directive, Failure, Heartbeat, Incarnation, MemberId, MemberRef,
    MemberReport, Phase, Role, StepMetrics,
};
use polygram_domain::{FailureKind, Generation, Step};

use super::coordinator;
use super::process::End;
use super::world::{Delivery, World};
use super::{EVERY, STEPS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Outside,
    Joined,
    Attending,
    Restoring,
    Running,
    Finished,
}

/// The process of a member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) who: MemberRef,
    /// Number of its slot among all members.
    pub(super) slot: usize,
    pub(super) stage: Stage,
    pub(super) incarnation: Incarnation,
    pub(super) id: Option<MemberId>,
    pub(super) generation: Generation,
    /// The coordinator's process that it is a member of.
    pub(super) coordinator: u32,
    hash: Option<AssignmentHash>,
    pub(super) step: u64,
    unacknowledged: BTreeSet<u64>,
    has_failed: bool,
}

impl Member {
    pub(super) fn new(who: MemberRef, slot: usize, incarnation: u64) -> Member {
        Member {
            who,
            slot,
            stage: Stage::Outside,
            incarnation: Incarnation(incarnation),
            id: None,
            generation: Generation(0),
            coordinator: 0,
            hash: None,
            step: 0,
            unacknowledged: BTreeSet::new(),
            has_failed: false,
        }
    }

    /// Whether its stream to the coordinator is open.
    pub(super) fn attends(&self) -> bool {
        !matches!(self.stage, Stage::Outside | Stage::Joined)
    }

    pub(super) fn admitted(&mut self, id: MemberId, generation: Generation) {
        (self.id, self.generation, self.stage) = (Some(id), generation, Stage::Joined);
    }

    pub(super) fn part_noted(&mut self, step: u64) {
        self.unacknowledged.remove(&step);
    }
}

impl World {
    /// The membership is over, and the same process joins again.
    pub(super) fn rejoin(&mut self, pid: u32) {
        self.leave(pid);
        let incarnation = self.next_number();
        if let Some(member) = self.member(pid) {
            *member = Member::new(member.who, member.slot, incarnation);
        }
    }

    /// Closes the stream of a member to its coordinator.
    pub(super) fn leave(&mut self, pid: u32) {
        let Some(member) = self.member(pid) else { return };
        if let (true, Some(id)) = (member.attends(), member.id) {
            let to = member.coordinator;
            self.send_stream(to, id, coordinator::stream_ended(id));
        }
    }

    pub(super) fn directed(&mut self, pid: u32, directive: Directive) {
        let newest = self.members().map(|member| member.step).max().unwrap_or(0);
        let Some(member) = self.member(pid) else { return };
        match directive {
            Directive::Assign(assignment) => {
                (member.hash, member.stage) = (Some(assignment.hash()), Stage::Restoring);
                member.step = assignment.resume_step.0;
                member.unacknowledged.clear();
            }
            Directive::Start => member.stage = Stage::Running,
            Directive::Stop { .. } => {
                self.stop_at.get_or_insert((newest + 1).min(STEPS));
            }
            Directive::Committed { .. } | Directive::PointSettled { .. } => {}
            Directive::Abort(Abort { kind: AbortKind::Rejoin { .. }, .. }) => self.rejoin(pid),
            Directive::Abort(_) => self.end_soon(pid, End::Code(1)),
            Directive::Exit => self.end_soon(pid, End::Code(0)),
        }
    }

    /// A peer of its generation is lost.
    pub(super) fn peer_lost(&mut self, pid: u32, id: MemberId, suspect: MemberRef) {
        let Some(member) = self.member(pid) else { return };
        if member.id != Some(id) || std::mem::replace(&mut member.has_failed, true) {
            return;
        }
        let failure = Failure {
            message: "peer gone".into(),
            step: Step(member.step),
            phase: Phase::Reducing,
            suspect: Some(suspect),
            roll_back: false,
            damaged: None,
            kind: FailureKind::Program,
        };
        self.report(pid, MemberReport::Failed(failure));
    }

    /// A member's own clock: say that it lives, and go on.
    pub(super) fn act(&mut self, pid: u32) {
        let leader = self.listening();
        let ticket = self.next_number();
        let Some(member) = self.member(pid) else { return };
        let (who, stage) = (member.who, member.stage);
        match (stage, member.id) {
            (Stage::Outside, _) => {
                if let Some(to) = leader {
                    member.coordinator = to;
                    let incarnation = member.incarnation;
                    self.calls.insert(ticket, (pid, incarnation, 0));
                    self.send(to, coordinator::join(ticket, who, incarnation, pid));
                }
            }
            (Stage::Joined, Some(id)) => {
                member.stage = Stage::Attending;
                let (to, generation, incarnation) =
                    (member.coordinator, member.generation, member.incarnation);
                self.calls.insert(ticket, (pid, incarnation, 0));
                self.send_stream(to, id, coordinator::attend(ticket, id, generation));
            }
            (Stage::Attending, _) => self.heartbeat(pid, Phase::Starting),
            (Stage::Restoring, _) => {
                let hash = member.hash;
                self.heartbeat(pid, Phase::Restoring);
                if let (Some(assignment), true) = (hash, self.random.once_in(3)) {
                    self.report(pid, MemberReport::Ready { assignment });
                }
            }
            (Stage::Running, _) => self.train(pid),
            (Stage::Finished, _) => self.heartbeat(pid, Phase::Finished),
            (Stage::Joined, None) => {}
        }
    }

    fn heartbeat(&mut self, pid: u32, phase: Phase) {
        let step = Step(self.member(pid).map_or(0, |member| member.step));
        let heartbeat = Heartbeat { step, phase, restored_bytes: 0, store_wait: None };
        self.report(pid, MemberReport::Heartbeat(heartbeat));
    }

    fn report(&mut self, pid: u32, report: MemberReport) {
        let Some(member) = self.member(pid) else { return };
        if let Some(id) = member.id {
            let (to, generation) = (member.coordinator, member.generation);
            self.send_stream(to, id, coordinator::report(id, generation, report));
        }
    }

    fn train(&mut self, pid: u32) {
        self.heartbeat(pid, Phase::Computing);
        let limit = self.stop_at.unwrap_or(STEPS);
        let Some(member) = self.member(pid) else { return };
        let (who, step, generation) = (member.who, member.step, member.generation);
        for step in member.unacknowledged.clone() {
            self.upload(pid, step);
        }
        // Peers of another generation are not waited for: nobody goes on without all of this one.
        let peers = || self.members().filter(|peer| peer.generation == generation && peer.attends());
        let workers = || peers().filter(|peer| peer.who.role == Role::Worker);
        let is_whole = peers().count() == self.slots() && !self.is_any_frozen();
        let slowest = workers().map(|peer| peer.step).min().unwrap_or(0);
        if who.role == Role::Shard {
            // A shard is asked for its part when all workers have come to a boundary.
            for step in step..slowest {
                self.step_to(pid, step + 1, limit);
            }
        } else if step < limit && step == slowest && is_whole {
            self.step_to(pid, step + 1, limit);
            if who.index == 0 {
                let metrics =
                    StepMetrics { step: Step(step), tokens: 8, seconds: 0.1, ..StepMetrics::default() };
                self.report(pid, MemberReport::Metrics(metrics));
            }
        } else if step >= limit && self.member(pid).is_some_and(|member| member.unacknowledged.is_empty()) {
            if let Some(member) = self.member(pid) {
                member.stage = Stage::Finished;
            }
            self.report(pid, MemberReport::Finished { step: Step(step) });
        }
    }

    fn step_to(&mut self, pid: u32, step: u64, limit: u64) {
        let Some(member) = self.member(pid) else { return };
        member.step = step;
        if step.is_multiple_of(EVERY) || step == limit {
            member.unacknowledged.insert(step);
        }
    }

    fn upload(&mut self, pid: u32, step: u64) {
        let ticket = self.next_number();
        let Some(member) = self.member(pid) else { return };
        let (to, generation, incarnation) = (member.coordinator, member.generation, member.incarnation);
        if let Some(id) = member.id {
            self.calls.insert(ticket, (pid, incarnation, step));
            self.send(to, coordinator::upload(ticket, id, generation, step));
        }
    }

    /// Peers that were running with a member that has died notice it, some before the coordinator does.
    pub(super) fn peers_notice(&mut self, dead: &Member) {
        if dead.stage != Stage::Running {
            return;
        }
        let (generation, who) = (dead.generation, dead.who);
        let peers: Vec<(u32, MemberId)> = self
            .processes
            .iter()
            .filter_map(|(pid, process)| {
                let member = process.member()?;
                let is_peer = member.generation == generation && member.stage == Stage::Running;
                Some((*pid, member.id?)).filter(|_| is_peer)
            })
            .collect();
        for (pid, id) in peers {
            if self.random.once_in(2) {
                let delay = self.random.below(200);
                self.schedule(delay, Delivery::PeerLost(pid, id, who));
            }
        }
    }
}
