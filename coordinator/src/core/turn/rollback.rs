//! One rollback, whatever its cause: the generation ends, the store decides where it has to, the next one begins.
//!
//! Its members are forgotten and directed to join again, what they had reported for checkpoints that had not begun is
//! dropped, and a new generation is admitted at once. It is assigned once the checkpoint under way has ended and the store
//! has decided, so that what it resumes from is known. Every checkpoint that is quarantined leaves one less, and where none
//! would be left the run fails: it never begins afresh.

use polygram_checkpoint::{FailureLine, RollbackCause};
use polygram_domain::control::{
    Abort, AbortKind, CheckpointPlace, DamagedCheckpoint, Directive, Failure, MemberRef, Reason, Role,
    RunState,
};
use polygram_domain::{FailureKind, Step, words};

use super::Turn;
use crate::core::event::{
    Action, Level, Record, RollbackId, RollbackRequest, RollbackResolution, RollbackTarget, Time,
};
use crate::core::rollback::Cause;
use crate::core::root_cause::Loss;
use crate::core::settings::Resume;

impl Turn<'_> {
    /// A worker asks for a rollback from a spike. All of them do; the first report counts.
    pub(super) fn rollback_requested(&mut self, who: MemberRef, failure: &Failure) {
        let run = self.state.run_state();
        if who.role != Role::Worker || run != RunState::Running {
            let message = format!("asked for a rollback from a spike while {run}");
            return self.member_fails(who, Reason::ProtocolBroken, message);
        }
        if let Some(request) = self.state.lifecycle.stop_reason() {
            let message = format!("{}; the run was to stop ({request})", failure.message);
            return self.fail(Reason::MemberFailed, message);
        }
        let Failure { step, message, .. } = failure;
        self.log(Level::Warn, message.clone());
        self.record(FailureLine::RollbackRequested {
            at_unix_ms: self.now.0,
            generation: self.state.generation(),
            step: *step,
            member: who.to_string(),
            cause: message.clone(),
        });
        let cause = Cause::Spike { at: *step, cause: message.clone() };
        self.begin_rollback(cause, message.clone(), None);
    }

    /// Whether members are restoring this very commit.
    pub(super) fn is_restoring(&self, place: CheckpointPlace) -> bool {
        let is_restoring = self.state.run_state() == RunState::Restoring;
        is_restoring && self.state.checkpoints.resume() == Some(&Resume::at(place.step))
    }

    /// A member cannot restore the commit of this generation, and what it read of it is not what was written.
    pub(super) fn checkpoint_reported_damaged(
        &mut self,
        who: MemberRef,
        failure: Failure,
        damaged: DamagedCheckpoint,
    ) {
        self.state.membership.set_failed(who, Some((failure.step, failure.phase)));
        let (culprit, host) = self.culprit(who, failure.message.clone());
        let (reason, kind) = (Reason::MemberFailed, Some(failure.kind));
        let loss = Loss { reason, culprit, host, kind, suspect: None };
        let reports = self.state.root_cause.take_reports();
        // Nobody is to blame yet.
        self.state.root_cause.set_culprit(None);
        self.log_damage_report(who, &damaged);
        let cause = Cause::DamagedCheckpoint { reporter: who, damaged, loss };
        self.begin_rollback(cause, failure.message, None);
        self.secondary_failures(reports);
    }

    /// A member of the former generation could not restore its commit either.
    pub(super) fn late_damage_report(&mut self, who: MemberRef, damaged: DamagedCheckpoint) {
        if self.state.last_commit() != Some(damaged.place.step) {
            return;
        }
        if self.state.rollback.report_damage(who, damaged.clone()) {
            self.log_damage_report(who, &damaged);
            self.ask_store();
        }
    }

    fn log_damage_report(&mut self, who: MemberRef, damaged: &DamagedCheckpoint) {
        let DamagedCheckpoint { place, reason, .. } = damaged;
        self.log(Level::Warn, format!("{who} cannot restore {place}: {reason}; verifying it"));
    }

    /// A member that fails over a recovery point while it restores it makes the run resume from its last commit. One whose
    /// environment fails says nothing of the point; but a store that does not answer for long is gone without.
    pub(super) fn discard_unrestorable_point(&mut self, loss: &Loss) {
        let Some(step) = self.state.restored_point() else { return };
        let is_store_gone = loss.kind == Some(FailureKind::Store) && self.state.budget.is_long_outage();
        if !loss.is_own_failure() && !is_store_gone {
            return;
        }
        let why = format!("it could not be restored: {}", loss.culprit);
        self.log(Level::Error, format!("recovery point {step} is not resumed from again: {why}"));
        self.state.checkpoints.discard_point();
        self.state.rollback.quarantine_point(step, why);
        self.ask_store();
    }

    /// Ends the generation: everybody is directed to join the next one, which is not assigned before its time.
    pub(super) fn begin_rollback(&mut self, cause: Cause, sentence: String, not_before: Option<Time>) {
        let abort = Abort {
            reason: sentence,
            culprit: self.state.culprit().cloned(),
            kind: AbortKind::Rejoin { generation: self.state.generation().next() },
        };
        self.direct_all(&Directive::Abort(abort));
        self.state.rollback.begin(cause, self.now, not_before);
        self.state.membership.begin_next_generation();
        self.state.root_cause.end_generation();
        self.state.reported.end_generation();
        self.state.checkpoints.end_generation();
        // The parts of a commit under way have gone with their order.
        self.actions.push(Action::DropParts { before: Step(u64::MAX) });
        self.ask_store();
        let message = self.waiting_for_members();
        self.enter(RunState::Recovering, Reason::WaitingForMembers, message);
    }

    fn ask_store(&mut self) {
        if let Some((id, request)) = self.state.rollback.next_request() {
            self.actions.push(Action::ResolveRollback { id, request });
        }
    }

    /// The store has answered.
    pub(in crate::core) fn rollback_resolved(
        &mut self,
        id: RollbackId,
        result: Result<RollbackResolution, String>,
    ) {
        let Some((request, reporter)) = self.state.rollback.resolve(id) else {
            return self.log(Level::Warn, "the store answered a rollback that was not under way".into());
        };
        let failed = match &request {
            RollbackRequest::Spike { at, .. } => {
                format!("the run cannot be rolled back from the spike at step {at}")
            }
            RollbackRequest::DamagedCheckpoint(damaged) => {
                format!("the run cannot resume from {}", damaged.place)
            }
            RollbackRequest::UnrestorablePoint { step, .. } => {
                format!("recovery point {step} is not quarantined")
            }
        };
        match result {
            Ok(RollbackResolution::PointQuarantined) => {}
            Ok(RollbackResolution::Sound) => self.found_sound(&request, reporter),
            Ok(RollbackResolution::Target(target)) => self.found_target(&request, target),
            // The run does not need the point any more.
            Err(message) if matches!(request, RollbackRequest::UnrestorablePoint { .. }) => {
                self.log(Level::Warn, format!("{failed}: {message}"));
            }
            Err(message) => self.fail(Reason::StoreFailed, format!("{failed}: {message}")),
        }
        self.ask_store();
    }

    fn found_sound(&mut self, request: &RollbackRequest, reporter: Option<MemberRef>) {
        if let (RollbackRequest::DamagedCheckpoint(damaged), Some(who)) = (request, reporter) {
            let DamagedCheckpoint { place, key, .. } = damaged;
            self.log(Level::Warn, format!("{who} cannot verify {key} of {place}, which is sound here"));
        }
        let loss = self.state.rollback.found_sound();
        if let Some(mut loss) = loss.filter(|_| !self.state.is_over()) {
            loss.culprit
                .message
                .push_str("; read here, it is sound: the way from the store to its host is not");
            self.lose(loss);
        }
    }

    fn found_target(&mut self, request: &RollbackRequest, target: RollbackTarget) {
        let (to, damaged) = (target.to, target.quarantined.clone());
        let is_over = self.state.is_over();
        let sentences = self.state.rollback.set_target(request, target);
        for (sentence, (step, reason)) in sentences.into_iter().zip(damaged) {
            self.log(Level::Error, sentence);
            let (at_unix_ms, to) = (self.now.0, to.unwrap_or_default());
            self.record(FailureLine::CheckpointQuarantined { at_unix_ms, step, reason, to });
        }
        self.actions.push(Action::StatusChanged);
        if !is_over {
            self.state.checkpoints.roll_back(to);
        }
    }

    /// One transition out of the wait between two generations.
    pub(super) fn advance_rollback(&mut self) -> bool {
        let (reason, message) = match self.rollback_waits_for() {
            Some(waits) => waits,
            None => {
                if let Some(step) =
                    self.state.last_commit().filter(|step| step.0 >= self.state.settings.last_step)
                {
                    // The loss came after the last commit had begun: nothing is left to do again.
                    self.finish_at(step);
                    return true;
                }
                if self.state.membership.len() == self.state.settings.member_count() {
                    let message = self.waiting_for_attendance();
                    self.enter(RunState::Rendezvous, Reason::WaitingForAttendance, message);
                    return true;
                }
                (Reason::WaitingForMembers, self.waiting_for_members())
            }
        };
        self.enter(RunState::Recovering, reason, message);
        false
    }

    /// What the next generation waits for, but for its members.
    fn rollback_waits_for(&self) -> Option<(Reason, String)> {
        let because = |what: String| format!("{}; {what}", self.rolling_back());
        match self.state.rollback.awaited() {
            Some((RollbackRequest::Spike { at, .. }, _)) => {
                let message =
                    format!("rolling back from the spike at step {at}: waiting for the store to decide");
                return Some((Reason::WaitingForCommit, message));
            }
            Some((RollbackRequest::DamagedCheckpoint(DamagedCheckpoint { place, reason, .. }), who)) => {
                let who = who.map_or("a member".into(), |who| who.to_string());
                let message = format!("verifying {place}, which {who} cannot restore: {reason}");
                return Some((Reason::Examining, message));
            }
            Some((RollbackRequest::UnrestorablePoint { step, .. }, _)) => {
                let what = format!("waiting for recovery point {step} to be quarantined");
                return Some((Reason::WaitingForCommit, because(what)));
            }
            None => {}
        }
        if let Some(step) = self.state.checkpoints.keeping() {
            let what = format!("waiting for the recovery point of step {step}");
            return Some((Reason::WaitingForCommit, because(what)));
        }
        if let Some(step) = self.state.checkpoints.committing() {
            let what = format!("waiting for the commit of step {step}");
            return Some((Reason::WaitingForCommit, because(what)));
        }
        let is_last = self.state.last_commit().is_some_and(|step| step.0 >= self.state.settings.last_step);
        let until = self.state.rollback.pause_until(self.now).filter(|_| !is_last)?;
        let lost_at = self.state.rollback.lost_at().unwrap_or(self.now);
        let count = words::counted(self.state.budget.losses_without_progress().into(), "restart");
        let pause = until.since(lost_at) as f64 / 1000.0;
        Some((Reason::BackingOff, because(format!("{count} came no further, pausing {pause:.1} s"))))
    }

    fn rolling_back(&self) -> String {
        let (rollback, budget) = (&self.state.rollback, &self.state.budget);
        if let Some(sentence) = rollback.sentence() {
            return sentence.to_owned();
        }
        let newest = self.state.checkpoints.newest();
        let to = newest.map_or("the beginning".into(), |newest| format!("step {}", newest.step));
        let why = rollback.last().map_or("a member was lost".into(), |last| last.culprit.to_string());
        let (restart, most) = (budget.restarts(), budget.max_restarts());
        format!("rolling back to {to}, restart {restart} of {most}: {why}")
    }

    fn waiting_for_members(&self) -> String {
        format!("{}; {}", self.rolling_back(), self.state.waiting_to_join())
    }

    /// Fixes what the generation begins from, just before it is assigned.
    pub(super) fn resume_from_newest(&mut self) {
        if self.state.rollback.lost_at().is_none() {
            return;
        }
        self.state.checkpoints.resume_from_newest();
        let to = self.state.resume_step();
        self.state.reported.resume_from(to);
        self.actions.push(Action::Record(Record::ResumedAt(to)));
        let (at_unix_ms, generation) = (self.now.0, self.state.generation());
        let cause: RollbackCause = self.state.rollback.cause().clone();
        self.record(FailureLine::RolledBack { at_unix_ms, generation, cause, to });
    }

    /// A generation starts; whoever ended the one before is history.
    pub(super) fn generation_started(&mut self) {
        let Some(lost_at) = self.state.rollback.lost_at() else { return };
        self.state.root_cause.clear_culprit();
        let (at_unix_ms, generation) = (self.now.0, self.state.generation());
        self.record(FailureLine::Started { at_unix_ms, generation });
        let (step, seconds) = (self.state.resume_step(), self.now.since(lost_at) as f64 / 1000.0);
        let line = format!("generation {generation} resumes from step {step}, {seconds:.2} s after the loss");
        self.log(Level::Info, line);
    }

    /// Notes that the run has reached `step`.
    pub(super) fn record_progress(&mut self, step: Step) {
        if self.state.budget.reach(step) && self.state.rollback.catch_up() {
            let (at_unix_ms, generation) = (self.now.0, self.state.generation());
            self.record(FailureLine::CaughtUp { at_unix_ms, generation, step });
        }
    }
}
