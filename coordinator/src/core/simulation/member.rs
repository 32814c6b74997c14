//! A member as a small machine: joins, attends, restores, trains in lockstep, uploads, finishes, leaves.

use std::collections::BTreeSet;

use polygram_domain::control::{
    Abort, AbortKind, AssignmentHash, CheckpointPlace, DamagedCheckpoint, Directive, Failure, Heartbeat,
    Incarnation, MemberId, MemberRef, MemberReport, Phase, Role, StepMetrics,
};
use polygram_domain::{CheckpointKind, FailureKind, Generation, SCHEMA_VERSION, Step};
use polygram_proto::control::JoinRequest;

use super::world::{Delivery, World};
use super::{EVERY, STEPS};
use crate::core::{Event, Uploaded};
use crate::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Outside,
    Joined,
    Attending,
    Restoring,
    Running,
    Finished,
    Gone,
}

/// Whether a process stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frozen {
    No,
    /// For a while; what comes meanwhile is read afterwards.
    Until,
    ForGood,
}

pub(super) struct Agent {
    pub(super) who: MemberRef,
    pub(super) incarnation: Incarnation,
    pub(super) id: Option<MemberId>,
    /// Of its membership.
    pub(super) generation: Generation,
    pub(super) stage: Stage,
    pub(super) hash: Option<AssignmentHash>,
    pub(super) step: u64,
    /// The checkpoint that it was told to restore.
    pub(super) from: Option<Step>,
    pub(super) unacknowledged: BTreeSet<u64>,
    pub(super) frozen: Frozen,
    /// What has come while it stood still.
    pub(super) unread: Vec<Delivery>,
    pub(super) told_failure: bool,
    /// Whether its assignment left the spike's samples out.
    pub(super) knows_rollback: bool,
    /// Number of its process; timers of an older one are over.
    pub(super) clock: u32,
}

impl World {
    pub(super) fn directed(&mut self, agent: usize, directive: Directive) {
        let it = &mut self.agents[agent];
        if it.stage == Stage::Gone || it.frozen != Frozen::No {
            return;
        }
        match directive {
            Directive::Assign(assignment) => {
                (it.hash, it.stage) = (Some(assignment.hash()), Stage::Restoring);
                it.step = assignment.resume_step.0;
                it.from = assignment.resume_manifest.as_ref().map(|_| assignment.resume_step);
                it.knows_rollback = !assignment.ways_back.is_empty();
            }
            Directive::Start => it.stage = Stage::Running,
            Directive::Stop { .. } => {
                let furthest = self.workers().map(|a| a.step).max().unwrap_or(0);
                self.stop_at.get_or_insert((furthest + 1).min(STEPS));
            }
            Directive::Committed { .. } | Directive::PointSettled { .. } => {}
            Directive::Abort(Abort { kind: AbortKind::Rejoin { .. }, .. }) => self.rejoin(agent),
            Directive::Abort(_) | Directive::Exit => self.leave(agent, "left"),
        }
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = &Agent> {
        self.agents.iter().filter(|a| a.who.role == Role::Worker)
    }

    /// Everything of the membership is taken down, and the same process joins again.
    pub(super) fn rejoin(&mut self, agent: usize) {
        self.leave(agent, "left");
        self.reborn(agent);
    }

    pub(super) fn leave(&mut self, agent: usize, message: &str) {
        let attended = !matches!(self.agents[agent].stage, Stage::Outside | Stage::Joined);
        self.agents[agent].stage = Stage::Gone;
        // A stream ends where it led to: a coordinator that has gone knows nothing of it.
        let same_coordinator = self.agents[agent].generation.0 >> 32 == self.state.generation().0 >> 32;
        if let (true, true, Some(member)) = (attended, same_coordinator, self.agents[agent].id) {
            // The end of a connection is never lost in good weather, and at worst late.
            self.send_of(agent, Event::StreamEnded { member, message: message.into() });
        }
    }

    pub(super) fn crash(&mut self, agent: usize) {
        if matches!(self.agents[agent].stage, Stage::Gone) {
            return;
        }
        let running = self.agents[agent].stage == Stage::Running;
        self.leave(agent, "connection reset");
        self.crashed = Some(agent);
        for peer in 0..self.agents.len() {
            if running
                && peer != agent
                && self.agents[peer].stage == Stage::Running
                && let Some(id) = self.agents[peer].id
            {
                let delay = self.random.below(200);
                let generation = self.agents[peer].generation;
                self.schedule(delay, Delivery::PeerLost(peer, id, generation));
            }
        }
        if self.weather.restarts {
            let delay = 50 + self.random.below(900);
            self.schedule(delay, Delivery::Respawn(agent));
        }
    }

    pub(super) fn fail(&mut self, agent: usize, suspect: Option<MemberRef>) {
        let it = &mut self.agents[agent];
        if it.stage == Stage::Gone || it.frozen != Frozen::No || it.told_failure {
            return;
        }
        it.told_failure = true;
        let step = Step(it.step);
        // A connection that breaks, a silence, a call that the peer does not make: what a loss looks like from outside.
        let kinds = [FailureKind::Program, FailureKind::Reset, FailureKind::Timeout, FailureKind::Connect];
        let kind = kinds[self.random.below(kinds.len() as u64) as usize];
        let failure = Failure {
            message: "peer gone".into(),
            step,
            phase: Phase::Reducing,
            suspect,
            roll_back: false,
            damaged: None,
            kind,
        };
        self.report(agent, MemberReport::Failed(failure));
    }

    /// A member's own clock: say that it lives, and go on.
    pub(super) fn act(&mut self, agent: usize) {
        let stage = self.agents[agent].stage;
        if stage == Stage::Gone || self.agents[agent].frozen != Frozen::No {
            return;
        }
        if self.cut_off(agent).is_some_and(|(from, _)| self.now.0 - from > 10_000)
            && let Some(id) = self.agents[agent].id
        {
            // Its pings were not answered for so long: it gives the membership up.
            self.schedule(1, Delivery::Deserted(agent, id));
        }
        match stage {
            Stage::Outside => {
                let ticket = self.ticket(agent, 0);
                let request = JoinRequest {
                    schema_version: SCHEMA_VERSION,
                    member: self.agents[agent].who,
                    incarnation: self.agents[agent].incarnation,
                    pid: 100 + agent as u32,
                    host: "sim".into(),
                    data_address: ([127, 0, 0, 1], 1000 + agent as u16).into(),
                };
                self.send_of(agent, Event::Join { ticket, request });
            }
            Stage::Joined => {
                if let Some(member) = self.agents[agent].id {
                    let ticket = self.ticket(agent, 0);
                    self.agents[agent].stage = Stage::Attending;
                    let generation = self.agents[agent].generation;
                    self.send_of(agent, Event::Attend { ticket, member, generation });
                }
            }
            Stage::Attending => self.heartbeat(agent, Phase::Starting),
            Stage::Restoring => {
                self.heartbeat(agent, Phase::Restoring);
                if self.cannot_restore(agent) {
                    self.report_damage(agent);
                } else if let Some(assignment) = self.agents[agent].hash
                    && self.random.once_in(3)
                {
                    self.report(agent, MemberReport::Ready { assignment });
                }
            }
            Stage::Running => self.train(agent),
            Stage::Finished => self.heartbeat(agent, Phase::Finished),
            Stage::Gone => {}
        }
        let pause = 100 + self.random.below(700);
        let clock = self.agents[agent].clock;
        self.schedule(pause, Delivery::Timer(agent, clock));
    }

    /// Whether what an agent reads of the checkpoint is not what was written, there or on its way.
    fn cannot_restore(&mut self, agent: usize) -> bool {
        let it = &self.agents[agent];
        if it.told_failure || it.from.is_none() {
            return it.told_failure;
        }
        let reader = it.from.and_then(|step| self.damaged.get(&step).copied());
        if let Some(reader) = reader {
            return reader == agent || self.random.once_in(3);
        }
        let doubts = !self.has_doubted && self.random.once_in(self.weather.doubt);
        self.has_doubted |= doubts;
        doubts
    }

    fn report_damage(&mut self, agent: usize) {
        let it = &mut self.agents[agent];
        let (Some(step), Some(id)) = (it.from, it.id) else { return };
        if std::mem::replace(&mut it.told_failure, true) {
            return;
        }
        let damaged = DamagedCheckpoint {
            place: CheckpointPlace::commit(step),
            key: format!("object of {agent}"),
            reason: "x".into(),
        };
        let failure = Failure {
            message: "it is damaged".into(),
            step,
            phase: Phase::Restoring,
            suspect: None,
            roll_back: false,
            damaged: Some(damaged),
            kind: FailureKind::Program,
        };
        self.report(agent, MemberReport::Failed(failure));
        // An answer is not waited for for ever.
        self.schedule(5000, Delivery::Deserted(agent, id));
    }

    fn heartbeat(&mut self, agent: usize, phase: Phase) {
        let step = Step(self.agents[agent].step);
        self.report(
            agent,
            MemberReport::Heartbeat(Heartbeat { step, phase, restored_bytes: 0, store_wait: None }),
        );
    }

    fn train(&mut self, agent: usize) {
        self.heartbeat(agent, Phase::Computing);
        for step in self.agents[agent].unacknowledged.clone() {
            self.upload(agent, step);
        }
        let limit = self.stop_at.unwrap_or(STEPS);
        // Who lives in another generation, or not at all, holds nobody back and is not waited for: its peers cannot go on.
        let generation = self.agents[agent].generation;
        let peers = || self.workers().filter(|a| a.generation == generation);
        let all_here = peers().count() == self.workers().count();
        let slowest = peers().map(|a| a.step).min().unwrap_or(0);
        let it = &mut self.agents[agent];
        if it.who.role == Role::Shard {
            // A shard is asked for a snapshot when all workers have come to a boundary.
            while self.agents[agent].step < slowest {
                self.agents[agent].step += 1;
                self.keep_if_due(agent);
            }
            return;
        }
        if Some(it.step) == self.weather.spike && !it.knows_rollback && it.step < limit {
            // The step is not applied by anybody: all of them find the spike and ask to go back.
            if it.step == slowest && all_here {
                self.request_rollback(agent);
            }
            return;
        }
        let it = &mut self.agents[agent];
        if it.step < limit && it.step == slowest && all_here {
            it.step += 1;
            let step = it.step;
            self.keep_if_due(agent);
            if agent == 0 {
                let metrics = StepMetrics {
                    step: Step(step - 1),
                    loss: f64::NAN,
                    grad_norm: 1.0,
                    lr: 0.1,
                    tokens: 8,
                    seconds: 0.1,
                    data_wait_seconds: 0.0,
                    embedding_wait_seconds: 0.0,
                    resident_bytes: 1,
                    ..StepMetrics::default()
                };
                self.report(agent, MemberReport::Metrics(metrics));
            }
        } else if it.step == limit && it.unacknowledged.is_empty() {
            it.stage = Stage::Finished;
            let step = Step(it.step);
            self.report(agent, MemberReport::Finished { step });
        }
    }

    fn request_rollback(&mut self, agent: usize) {
        let it = &mut self.agents[agent];
        if std::mem::replace(&mut it.told_failure, true) {
            return;
        }
        let step = Step(it.step);
        let message = "a spike".into();
        let failure = Failure {
            message,
            step,
            phase: Phase::Reducing,
            suspect: None,
            roll_back: true,
            damaged: None,
            kind: FailureKind::Program,
        };
        self.report(agent, MemberReport::Failed(failure));
    }

    /// A boundary: commits are due at some, and at others a recovery point, if the ranks agree on one.
    fn keep_if_due(&mut self, agent: usize) {
        let (step, generation) = (self.agents[agent].step, self.agents[agent].generation);
        let kind = self.kind_of(step);
        let (points, random) = (self.weather.points, &mut self.random);
        let agreed = match kind {
            CheckpointKind::Commit => true,
            CheckpointKind::Point => {
                *self.points.entry((generation, step)).or_insert_with(|| random.once_in(points))
            }
        };
        if agreed {
            self.agents[agent].unacknowledged.insert(step);
        }
    }

    fn kind_of(&self, step: u64) -> CheckpointKind {
        match step.is_multiple_of(EVERY) || step == self.stop_at.unwrap_or(STEPS) {
            true => CheckpointKind::Commit,
            false => CheckpointKind::Point,
        }
    }

    fn upload(&mut self, agent: usize, step: u64) {
        let Some(member) = self.agents[agent].id else { return };
        let ticket = self.ticket(agent, step);
        let generation = self.agents[agent].generation;
        let kind = self.kind_of(step);
        // A part that is said again is the same part.
        let mut fate = Random(self.seed ^ generation.0 ^ (step << 8) ^ (agent as u64) << 16);
        let is_lost = kind == CheckpointKind::Point && fate.once_in(self.weather.bad_points);
        let uploaded = match is_lost {
            true => Uploaded::NotWritten("disk full".into()),
            false => Uploaded::Part(kind),
        };
        self.send_of(agent, Event::Upload { ticket, member, generation, step: Step(step), uploaded });
    }
}
