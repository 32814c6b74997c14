//! From pending to over: what the run waits for, and when it goes on.

use polygram_domain::{CheckpointKind, Step, words};
use polygram_proto::control::{Assignment, Directive, MemberRef, Reason, Role, RunState};

use super::event::Action;
use super::state::{Attendance, State, Turn};

/// How often a status says what members have read of the checkpoint that they restore.
const RESTORED_INTERVAL_MS: u64 = 5_000;

impl Turn<'_> {
    /// Goes as far as the state allows; called after every event.
    pub(super) fn advance(&mut self) {
        while !self.state.is_over() && self.advance_once() {}
        self.settle();
    }

    /// One transition; false when the run has to wait.
    fn advance_once(&mut self) -> bool {
        match self.state.run {
            RunState::Pending | RunState::Admitting => self.advance_admission(),
            RunState::Rendezvous => self.advance_rendezvous(),
            RunState::Restoring => self.advance_restoring(),
            RunState::Running => {
                self.advance_running();
                false
            }
            RunState::Recovering => self.advance_recovery(),
            RunState::Completed | RunState::Failed | RunState::Stopped => false,
        }
    }

    fn advance_admission(&mut self) -> bool {
        let joined = self.state.members.len();
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
        let state = &*self.state;
        state.waiting_for("to attend", |slot| {
            state.members.get(slot).is_some_and(|m| m.attendance == Attendance::Open)
        })
    }

    fn advance_rendezvous(&mut self) -> bool {
        if self.state.members.values().any(|m| m.attendance != Attendance::Open) {
            let message = self.waiting_for_attendance();
            self.enter(RunState::Rendezvous, Reason::WaitingForAttendance, message);
            return false;
        }
        self.resume_from_newest();
        let assignment = self.state.assign();
        self.state.assignment = Some(assignment.hash());
        self.state.shown_restored = (0, self.now);
        self.direct_all(&Directive::Assign(assignment));
        let message = self.waiting_for_ready();
        self.enter(RunState::Restoring, Reason::WaitingForReady, message);
        true
    }

    fn waiting_for_ready(&self) -> String {
        let state = &*self.state;
        let waiting =
            state.waiting_for("to be ready", |slot| state.members.get(slot).is_some_and(|m| m.ready));
        match state.shown_restored {
            (0, _) => waiting,
            (bytes, _) => format!("{waiting}; {} of the checkpoint are read", words::bytes(bytes)),
        }
    }

    /// Takes note, now and then, of what members have read: each change is a status for everybody who watches.
    fn note_restored(&mut self) {
        let read = self.state.members.values().map(|m| m.restored_bytes).fold(0, u64::saturating_add);
        let (shown, at) = self.state.shown_restored;
        if read != shown && self.now.since(at) >= RESTORED_INTERVAL_MS {
            self.state.shown_restored = (read, self.now);
        }
    }

    fn advance_restoring(&mut self) -> bool {
        if self.state.members.values().any(|m| !m.ready) {
            self.note_restored();
            let message = self.waiting_for_ready();
            self.enter(RunState::Restoring, Reason::WaitingForReady, message);
            return false;
        }
        self.direct_all(&Directive::Start);
        self.state.stepped.get_or_insert(self.now);
        self.recovered();
        let (from, to) = (self.state.resume_step(), self.state.settings.last_step);
        self.enter(RunState::Running, Reason::Training, format!("training from step {from} to step {to}"));
        true
    }

    fn advance_running(&mut self) {
        if let Some(step) = self.state.all_finished() {
            if self.state.is_settled(step) {
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
        let (from, to) = (self.state.resume_step(), self.state.settings.last_step);
        let (reason, message) = if let Some(why) = &self.state.stop {
            (Reason::Stopping, format!("stopping at the next step boundary: {why}"))
        } else if let Some(step) = self.state.checkpoints.committing {
            (Reason::Committing, format!("training; committing step {step}"))
        } else if let Some(step) = self.state.next_incomplete() {
            (Reason::Committing, format!("training; {}", self.state.waiting_for_parts(step)))
        } else {
            (Reason::Training, format!("training from step {from} to step {to}"))
        };
        self.enter(RunState::Running, reason, message);
    }

    pub(super) fn finish_at(&mut self, step: Step) {
        let total = self.state.settings.total_steps;
        let committed = if self.state.last_commit() == Some(step) { "committed" } else { "unchanged" };
        let (run, reason, message) = if step.0 == total {
            (
                RunState::Completed,
                Reason::AllStepsDone,
                format!("all {} done and {committed}", words::counted(total, "step")),
            )
        } else if let Some(why) = self.state.stop.clone() {
            let message = format!("stopped at step {step} of {total}, {committed}: {why}");
            (RunState::Stopped, Reason::StopRequested, message)
        } else if step.0 == self.state.settings.last_step {
            let message = format!("stopped at step {step} of {total}, {committed}: training.stop_at_step");
            (RunState::Stopped, Reason::StopAtStep, message)
        } else {
            let message = format!("the workers stopped by themselves at step {step} of {total}, {committed}");
            (RunState::Stopped, Reason::StopRequested, message)
        };
        self.finish(run, reason, message);
        self.actions.push(Action::StatusChanged);
    }
}

impl State {
    fn assign(&self) -> Assignment {
        let of = |role: Role| self.members.values().filter(move |m| m.who.role == role).map(|m| m.address);
        Assignment {
            generation: self.generation(),
            workers: of(Role::Worker).collect(),
            shards: of(Role::Shard).collect(),
            resume_step: self.resume_step(),
            resume_manifest: self.resume.as_ref().map(|resume| resume.manifest.clone()),
            resume_kind: self.resume.as_ref().map(|resume| resume.kind).unwrap_or_default(),
            left_out: self.policy.state.left_out.clone(),
            ways_back: self.policy.state.ways_back.clone(),
        }
    }

    /// The step at which every worker has finished.
    fn all_finished(&self) -> Option<Step> {
        let first = self.workers().next()?.finished?;
        self.workers().all(|m| m.finished == Some(first)).then_some(first)
    }

    /// Whether nothing about `step` is left to commit.
    fn is_settled(&self, step: Step) -> bool {
        let c = &self.checkpoints;
        let idle = c.committing.is_none() && c.complete.is_empty();
        let unchanged = step == self.resume_step() && !c.parts.contains_key(&step);
        idle && (c.committed == Some(step) || unchanged)
    }

    /// A member that is gone and whose part of `step` will never come.
    fn gone_without_part(&self, step: Step) -> Option<MemberRef> {
        let c = &self.checkpoints;
        if c.committing.is_some() || c.complete.contains_key(&step) {
            return None;
        }
        let reported = |who: &MemberRef| c.parts.get(&step).is_some_and(|parts| parts.reported.contains(who));
        let gone = self.members.values().filter(|m| m.attendance == Attendance::Ended);
        gone.map(|m| m.who).find(|who| !reported(who))
    }

    /// The first commit that some parts of are here. Recovery points come and go without a word.
    fn next_incomplete(&self) -> Option<Step> {
        let mut parts = self.checkpoints.parts.iter();
        parts.find(|(_, parts)| parts.kind == CheckpointKind::Commit).map(|(step, _)| *step)
    }

    fn waiting_for_parts(&self, step: Step) -> String {
        let c = &self.checkpoints;
        if c.committing == Some(step) || c.complete.contains_key(&step) {
            return "all parts are here".into();
        }
        self.waiting_for(&format!("to report their part of step {step}"), |slot| {
            c.parts.get(&step).is_some_and(|parts| parts.reported.contains(slot))
        })
    }
}
