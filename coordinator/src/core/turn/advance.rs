//! From pending to over: what the run waits for, and when it goes on.

use polygram_domain::control::{Assignment, Directive, MemberRef, Reason, Role, RunState};
use polygram_domain::{Step, words};

use super::Turn;
use crate::core::event::Level;
use crate::core::membership::Stream;
use crate::core::state::State;

impl Turn<'_> {
    /// Time passes.
    pub(in crate::core) fn tick(&mut self) {
        let limit = self.state.settings.timeouts.detection_ms / 2;
        if let Some(pause) = self.state.membership.compensate_local_stall(self.now, limit) {
            self.log(Level::Warn, format!("this process stood still for {:.1} s", pause as f64 / 1000.0));
        }
        if !self.state.is_over() && !self.judge_suspicion() && !self.end_overdue_stop() {
            self.lose_silent();
        }
    }

    /// Goes as far as the state allows; called after every event.
    pub(in crate::core) fn advance(&mut self) {
        while !self.state.is_over() && self.advance_once() {}
        self.settle_end();
    }

    /// One transition; false when the run has to wait.
    fn advance_once(&mut self) -> bool {
        match self.state.run_state() {
            RunState::Pending | RunState::Admitting => self.advance_admission(),
            RunState::Rendezvous => self.advance_rendezvous(),
            RunState::Restoring => self.advance_restoring(),
            RunState::Running => {
                self.advance_running();
                false
            }
            RunState::Recovering => self.advance_rollback(),
            RunState::Completed | RunState::Failed | RunState::Stopped => false,
        }
    }

    fn advance_admission(&mut self) -> bool {
        let joined = self.state.membership.len();
        if joined == self.state.settings.member_count() {
            let message = self.waiting_for_attendance();
            self.enter(RunState::Rendezvous, Reason::WaitingForAttendance, message);
            return true;
        }
        let run = if joined == 0 { RunState::Pending } else { RunState::Admitting };
        let message = self.state.waiting_to_join();
        self.enter(run, Reason::WaitingForMembers, message);
        false
    }

    pub(super) fn waiting_for_attendance(&self) -> String {
        let members = &self.state.membership;
        self.state
            .waiting_for("to attend", |slot| members.get(*slot).is_some_and(|m| m.stream == Stream::Open))
    }

    fn advance_rendezvous(&mut self) -> bool {
        if self.state.membership.iter().any(|m| m.stream != Stream::Open) {
            let message = self.waiting_for_attendance();
            self.enter(RunState::Rendezvous, Reason::WaitingForAttendance, message);
            return false;
        }
        self.resume_from_newest();
        let assignment = self.state.assignment();
        self.state.membership.assign(assignment.hash(), self.now);
        self.direct_all(&Directive::Assign(assignment));
        let message = self.waiting_for_ready();
        self.enter(RunState::Restoring, Reason::WaitingForReady, message);
        true
    }

    fn waiting_for_ready(&self) -> String {
        let members = &self.state.membership;
        let is_ready = |slot: &MemberRef| members.get(*slot).is_some_and(|m| m.ready);
        let waiting = self.state.waiting_for("to be ready", is_ready);
        match members.shown_restored() {
            0 => waiting,
            bytes => format!("{waiting}; {} of the checkpoint are read", words::bytes(bytes)),
        }
    }

    fn advance_restoring(&mut self) -> bool {
        if self.state.membership.iter().any(|m| !m.ready) {
            self.state.membership.show_restored(self.now);
            let message = self.waiting_for_ready();
            self.enter(RunState::Restoring, Reason::WaitingForReady, message);
            return false;
        }
        self.direct_all(&Directive::Start);
        self.state.reported.begin_steps(self.now);
        self.generation_started();
        let message = self.state.training();
        self.enter(RunState::Running, Reason::Training, message);
        true
    }

    fn advance_running(&mut self) {
        if let Some(step) = self.state.all_finished() {
            if self.state.checkpoints.is_settled(step) {
                self.finish_at(step);
            } else if let Some(gone) = self.state.gone_without_part(step) {
                let message = format!("left without reporting its part of step {step}");
                self.member_fails(gone, Reason::ProtocolBroken, message);
            } else {
                let message =
                    format!("committing the last step, {step}; {}", self.state.waiting_for_parts(step));
                self.enter(RunState::Running, Reason::FinalCommit, message);
            }
            return;
        }
        let (reason, message) = if let Some(why) = self.state.lifecycle.stop_reason() {
            (Reason::Stopping, format!("stopping at the next step boundary: {why}"))
        } else if let Some(step) = self.state.checkpoints.committing() {
            (Reason::Committing, format!("training; committing step {step}"))
        } else if let Some(step) = self.state.checkpoints.incomplete_commit() {
            (Reason::Committing, format!("training; {}", self.state.waiting_for_parts(step)))
        } else {
            (Reason::Training, self.state.training())
        };
        self.enter(RunState::Running, reason, message);
    }
}

impl State {
    fn training(&self) -> String {
        format!("training from step {} to step {}", self.resume_step(), self.settings.last_step)
    }

    fn assignment(&self) -> Assignment {
        let of = |role: Role| self.membership.iter().filter(move |m| m.who.role == role).map(|m| m.address);
        let (resume, policy) = (self.checkpoints.resume(), self.rollback.policy());
        Assignment {
            generation: self.generation(),
            workers: of(Role::Worker).collect(),
            shards: of(Role::Shard).collect(),
            resume_step: self.resume_step(),
            resume_manifest: resume.map(|resume| resume.manifest.clone()),
            resume_kind: resume.map(|resume| resume.kind).unwrap_or_default(),
            left_out: policy.left_out.clone(),
            ways_back: policy.ways_back.clone(),
        }
    }

    /// The step at which every worker has finished.
    fn all_finished(&self) -> Option<Step> {
        let first = self.membership.workers().next()?.finished?;
        self.membership.workers().all(|m| m.finished == Some(first)).then_some(first)
    }

    /// A member that is gone and whose part of `step` will never come.
    fn gone_without_part(&self, step: Step) -> Option<MemberRef> {
        if self.checkpoints.committing().is_some() || self.checkpoints.has_all_parts(step) {
            return None;
        }
        let mut gone = self.membership.iter().filter(|m| m.stream == Stream::Ended).map(|m| m.who);
        gone.find(|who| !self.checkpoints.has_part(step, *who))
    }

    fn waiting_for_parts(&self, step: Step) -> String {
        if self.checkpoints.has_all_parts(step) {
            return "all parts are here".into();
        }
        let verb = format!("to report their part of step {step}");
        self.waiting_for(&verb, |slot| self.checkpoints.has_part(step, *slot))
    }
}
