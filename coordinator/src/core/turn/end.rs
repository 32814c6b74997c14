//! The end of a run: stops, faults, and who is waited for.

use polygram_checkpoint::FailureLine;
use polygram_domain::control::{Abort, AbortKind, Directive, Reason, RunState, StopMode};
use polygram_domain::{Step, words};

use super::Turn;
use crate::core::event::{Action, Level, Outcome};

impl Turn<'_> {
    /// Ends the run by a fault: everybody aborts.
    pub(in crate::core) fn fail(&mut self, reason: Reason, message: String) {
        if self.state.is_over() {
            return;
        }
        self.abort_all(message.clone());
        self.end(RunState::Failed, reason, message);
    }

    /// Ends the run in good order: everybody leaves.
    fn finish(&mut self, run: RunState, reason: Reason, message: String) {
        self.state.root_cause.clear_culprit();
        self.direct_all(&Directive::Exit);
        self.end(run, reason, message);
    }

    /// Ends a run that was asked to stop without the commit that it was to end with.
    pub(super) fn stop_uncommitted(&mut self, request: &str, why: &str) {
        let kept = self.state.checkpoints.newest().map_or(Step(0), |newest| newest.step);
        let lost = words::counted(self.state.reached().0.saturating_sub(kept.0), "step");
        let message = format!(
            "stopped without a commit: {why}; the same command goes on from step {kept}, which leaves {lost} to be done \
             again ({request})"
        );
        self.abort_all(message.clone());
        self.end(RunState::Stopped, Reason::StopRequested, message);
    }

    fn abort_all(&mut self, reason: String) {
        let culprit = self.state.culprit().cloned();
        self.direct_all(&Directive::Abort(Abort { reason, culprit, kind: AbortKind::End }));
    }

    fn end(&mut self, run: RunState, reason: Reason, message: String) {
        self.state.lifecycle.end(self.now.after(self.state.settings.timeouts.leave_ms));
        let reports = self.state.root_cause.take_reports();
        if run == RunState::Failed {
            self.secondary_failures(reports);
        }
        self.record_end(run, &message);
        self.enter(run, reason, message);
    }

    fn record_end(&mut self, run: RunState, message: &str) {
        let (state, message) = (run.as_str().into(), message.to_owned());
        self.record(FailureLine::Ended { at_unix_ms: self.now.0, state, message });
    }

    /// All steps of this session are done and committed.
    pub(super) fn finish_at(&mut self, step: Step) {
        let total = self.state.settings.total_steps;
        let committed = if self.state.last_commit() == Some(step) { "committed" } else { "unchanged" };
        let (run, reason, message) = if step.0 == total {
            let message = format!("all {} done and {committed}", words::counted(total, "step"));
            (RunState::Completed, Reason::AllStepsDone, message)
        } else if let Some(why) = self.state.lifecycle.stop_reason() {
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

    /// The operator ends the run; the answer says what happens.
    pub(in crate::core) fn stop(&mut self, mode: StopMode, reason: String) -> String {
        if self.state.is_over() {
            return format!("the run is over already: {}", self.state.message());
        }
        let kept = self.state.last_commit();
        let newest = |step: Step| format!("the newest committed step is {step}");
        match mode {
            StopMode::Abort => {
                let kept = kept.map_or("nothing is committed".into(), newest);
                self.fail(Reason::Aborted, format!("aborted: {reason}; {kept}"));
                "aborted".into()
            }
            StopMode::Commit if self.state.run_state() != RunState::Running => {
                let has_run = self.state.budget.restarts() > 0;
                let when = if has_run { "while recovering" } else { "before the first step" };
                let kept = kept.filter(|_| has_run).map(newest).map(|kept| format!("; {kept}"));
                let message = format!("stopped {when}: {reason}{}", kept.unwrap_or_default());
                self.finish(RunState::Stopped, Reason::StopRequested, message);
                format!("stopped {when}")
            }
            StopMode::Commit if self.state.lifecycle.stop_reason().is_some() => {
                "the run is stopping already".into()
            }
            StopMode::Commit => {
                self.direct_all(&Directive::Stop { reason: reason.clone() });
                let until = self.state.settings.stop_grace_ms.map(|grace| self.now.after(grace));
                self.state.lifecycle.request_stop(reason, until);
                "the members commit at their next step boundary and stop".into()
            }
        }
    }

    /// A signal: the first stops, the second aborts, and one after the end does not wait for anybody.
    pub(in crate::core) fn interrupt(&mut self, reason: String) {
        if self.state.lifecycle.hurry_end(self.now) {
            return;
        }
        if self.state.lifecycle.stop_reason().is_some() {
            self.stop(StopMode::Abort, format!("{reason} for the second time"));
        } else {
            self.stop(StopMode::Commit, reason);
        }
    }

    /// Ends the run without the commit of its stop, where that has taken too long.
    pub(super) fn end_overdue_stop(&mut self) -> bool {
        let Some(request) = self.state.lifecycle.overdue_stop(self.now).map(str::to_owned) else {
            return false;
        };
        let grace = self.state.settings.stop_grace_ms.unwrap_or(0) as f64 / 1000.0;
        let why = format!("its parts were not all in the store after {grace:.1} s (run.stop_grace_seconds)");
        self.stop_uncommitted(&request, &why);
        true
    }

    /// The end of the process: everybody has left and no commit is under way, or the time to leave is up.
    pub(super) fn settle_end(&mut self) {
        if self.state.lifecycle.take_unrecorded_end() {
            // It was over before it began.
            let (run, message) = (self.state.run_state(), self.state.message().to_owned());
            self.record_end(run, &message);
        }
        let staying = self.state.membership.open().count();
        let waits = staying > 0 || self.state.checkpoints.committing().is_some();
        if !self.state.lifecycle.take_end(self.now, waits) {
            return;
        }
        if staying > 0 {
            self.log(Level::Warn, format!("{staying} members did not leave in time"));
        }
        let is_bad = self.state.run_state() == RunState::Failed;
        self.actions.push(Action::End(if is_bad { Outcome::Bad } else { Outcome::Good }));
    }
}
