//! A member as a small machine: joins, attends, restores, trains in lockstep, uploads, finishes, leaves.

use std::collections::BTreeSet;

use polygram_domain::{SCHEMA_VERSION, Step};
use polygram_proto::control::{
    AssignmentHash, Directive, Failure, Heartbeat, Incarnation, JoinRequest, MemberId, MemberRef,
    MemberReport, Phase, Role, StepMetrics,
};

use super::world::{Delivery, World};
use super::{EVERY, STEPS};
use crate::core::Event;

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

pub(super) struct Agent {
    pub(super) who: MemberRef,
    pub(super) id: Option<MemberId>,
    pub(super) stage: Stage,
    pub(super) hash: Option<AssignmentHash>,
    pub(super) step: u64,
    pub(super) unacknowledged: BTreeSet<u64>,
    pub(super) frozen: bool,
    pub(super) told_failure: bool,
}

impl World {
    pub(super) fn directed(&mut self, agent: usize, directive: Directive) {
        let it = &mut self.agents[agent];
        if it.stage == Stage::Gone || it.frozen {
            return;
        }
        match directive {
            Directive::Assign(assignment) => {
                (it.hash, it.stage) = (Some(assignment.hash()), Stage::Restoring);
            }
            Directive::Start => it.stage = Stage::Running,
            Directive::Stop { .. } => {
                let furthest = self.workers().map(|a| a.step).max().unwrap_or(0);
                self.stop_at.get_or_insert((furthest + 1).min(STEPS));
            }
            Directive::Committed { .. } => {}
            Directive::Abort(_) | Directive::Exit => self.leave(agent, "left"),
        }
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = &Agent> {
        self.agents.iter().filter(|a| a.who.role == Role::Worker)
    }

    pub(super) fn leave(&mut self, agent: usize, message: &str) {
        let attended = !matches!(self.agents[agent].stage, Stage::Outside | Stage::Joined);
        self.agents[agent].stage = Stage::Gone;
        if let (true, Some(member)) = (attended, self.agents[agent].id) {
            // The end of a connection is never lost in good weather, and at worst late.
            self.send(Event::StreamEnded { member, message: message.into() });
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
            if running && peer != agent && self.agents[peer].stage == Stage::Running {
                let delay = self.random.below(200);
                self.schedule(delay, Delivery::PeerLost(peer));
            }
        }
    }

    pub(super) fn fail(&mut self, agent: usize, suspect: Option<MemberRef>) {
        let it = &mut self.agents[agent];
        if it.stage == Stage::Gone || it.frozen || it.told_failure {
            return;
        }
        it.told_failure = true;
        let step = Step(it.step);
        let failure = Failure { message: "peer gone".into(), step, phase: Phase::Reducing, suspect };
        self.report(agent, MemberReport::Failed(failure));
    }

    /// A member's own clock: say that it lives, and go on.
    pub(super) fn act(&mut self, agent: usize) {
        let stage = self.agents[agent].stage;
        if stage == Stage::Gone || self.agents[agent].frozen {
            return;
        }
        match stage {
            Stage::Outside => {
                let ticket = self.ticket(agent, 0);
                let request = JoinRequest {
                    schema_version: SCHEMA_VERSION,
                    member: self.agents[agent].who,
                    incarnation: Incarnation(agent as u64 + 1),
                    pid: 100 + agent as u32,
                    host: "sim".into(),
                    data_address: ([127, 0, 0, 1], 1000 + agent as u16).into(),
                };
                self.send(Event::Join { ticket, request });
            }
            Stage::Joined => {
                if let Some(member) = self.agents[agent].id {
                    let ticket = self.ticket(agent, 0);
                    self.agents[agent].stage = Stage::Attending;
                    self.send(Event::Attend { ticket, member });
                }
            }
            Stage::Attending => self.heartbeat(agent, Phase::Starting),
            Stage::Restoring => {
                self.heartbeat(agent, Phase::Restoring);
                if let Some(assignment) = self.agents[agent].hash
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
        self.schedule(pause, Delivery::Timer(agent));
    }

    fn heartbeat(&mut self, agent: usize, phase: Phase) {
        let step = Step(self.agents[agent].step);
        self.report(agent, MemberReport::Heartbeat(Heartbeat { step, phase }));
    }

    fn train(&mut self, agent: usize) {
        self.heartbeat(agent, Phase::Computing);
        for step in self.agents[agent].unacknowledged.clone() {
            self.upload(agent, step);
        }
        let limit = self.stop_at.unwrap_or(STEPS);
        let slowest = self.workers().map(|a| a.step).min().unwrap_or(0);
        let it = &mut self.agents[agent];
        if it.who.role == Role::Shard {
            // A shard is asked for a snapshot when all workers have come to a boundary.
            while it.step < slowest {
                it.step += 1;
                if it.step.is_multiple_of(EVERY) || it.step == limit {
                    it.unacknowledged.insert(it.step);
                }
            }
            return;
        }
        if it.step < limit && it.step == slowest {
            it.step += 1;
            let step = it.step;
            if step.is_multiple_of(EVERY) || step == limit {
                it.unacknowledged.insert(step);
            }
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

    fn upload(&mut self, agent: usize, step: u64) {
        let Some(member) = self.agents[agent].id else { return };
        let ticket = self.ticket(agent, step);
        let generation = self.state.generation();
        self.send(Event::Upload { ticket, member, generation, step: Step(step) });
    }
}
