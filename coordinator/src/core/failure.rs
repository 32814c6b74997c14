//! Who is to blame, and what follows.
//!
//! The first failure is the culprit. A dead process is often noticed first by its peers: a member that fails because
//! of a peer names it, and the verdict then waits a moment for the peer's own end, which is the better witness.

use polygram_domain::{FailureKind, Step, words};
use polygram_proto::control::{
    Abort, AbortKind, Culprit, Directive, Failure, MemberRef, Phase, Reason, RunState, StopMode,
};

use super::event::{Action, Level, Outcome};
use super::settings::Resume;
use super::state::{Attendance, Ending, Member, State, Suspicion, Turn};

/// Consequences kept word by word.
const CONSEQUENCES: usize = 64;

impl Turn<'_> {
    /// A member reported its failure.
    pub(super) fn member_failed(&mut self, who: MemberRef, failure: Failure) {
        let is_over = self.state.is_over();
        let disbelieved = failure.damaged.clone().filter(|damaged| self.state.restores(damaged.place));
        let Some(member) = self.state.members.get_mut(&who) else { return };
        if member.failed {
            return;
        }
        if failure.roll_back && !is_over {
            return self.wishes_back(who, &failure);
        }
        if let Some(damaged) = disbelieved {
            return self.disbelieves(who, failure, damaged);
        }
        member.failed = true;
        (member.step, member.phase) = (member.step.max(failure.step), failure.phase);
        let known = |suspect: &MemberRef| *suspect != who && self.state.members.contains_key(suspect);
        let suspect = failure.suspect.filter(known);
        if self.state.is_over() {
            return self.consequence(who, &failure.message);
        }
        match (suspect, self.state.suspicion.take()) {
            (None, None) => self.verdict(who, self.state.reason_of(&failure), failure.message),
            (Some(suspect), None) => {
                self.log(Level::Warn, format!("{who} failed and blames {suspect}: {}", failure.message));
                let until = self.now.after(self.state.settings.timeouts.verdict_ms);
                self.state.suspicion = Some(Suspicion { reporter: who, failure, suspect, until });
            }
            // A second witness. One that blames somebody else in turn hands the suspicion on.
            (Some(next), Some(mut suspicion)) => {
                self.consequence(who, &failure.message);
                if suspicion.suspect == who {
                    suspicion.suspect = next;
                }
                self.state.suspicion = Some(suspicion);
            }
            (None, Some(suspicion)) => {
                self.consequence(suspicion.reporter, &suspicion.failure.message);
                self.verdict(who, self.state.reason_of(&failure), failure.message);
            }
        }
    }

    /// A member is found dead, silent or lying; nobody else is to blame.
    pub(super) fn member_fails(&mut self, who: MemberRef, reason: Reason, message: String) {
        if let Some(member) = self.state.members.get_mut(&who) {
            member.failed = true;
        }
        if self.state.is_over() {
            return self.consequence(who, &message);
        }
        if let Some(suspicion) = self.state.suspicion.take() {
            self.consequence(suspicion.reporter, &suspicion.failure.message);
        }
        self.verdict(who, reason, message);
    }

    fn verdict(&mut self, who: MemberRef, reason: Reason, message: String) {
        let member = self.state.members.get(&who);
        let host = member.map(|m| m.host.clone());
        let culprit = Culprit {
            member: who,
            pid: member.map_or(0, |m| m.pid),
            phase: member.map_or(Phase::Starting, |m| m.phase),
            step: member.map_or(Step(0), |m| self.state.step_of(m)),
            message,
        };
        self.lose(reason, culprit, host);
    }

    /// Ends the run by a fault: everybody aborts.
    pub(super) fn fail(&mut self, reason: Reason, message: String) {
        if self.state.is_over() {
            return;
        }
        let culprit = self.state.culprit.clone();
        let abort = Abort { reason: message.clone(), culprit, kind: AbortKind::End };
        self.direct_all(&Directive::Abort(abort));
        self.end(RunState::Failed, reason, message);
    }

    /// Ends the run in good order: everybody leaves.
    pub(super) fn finish(&mut self, run: RunState, reason: Reason, message: String) {
        self.state.culprit = None;
        self.state.consequences.clear();
        self.direct_all(&Directive::Exit);
        self.end(run, reason, message);
    }

    fn end(&mut self, run: RunState, reason: Reason, message: String) {
        let until = self.now.after(self.state.settings.timeouts.leave_ms);
        self.state.ending = Some(Ending { until, done: false, is_recorded: true });
        self.state.suspicion = None;
        self.tell_end(run, &message);
        self.enter(run, reason, message);
    }

    pub(super) fn consequence(&mut self, who: MemberRef, message: &str) {
        if self.state.consequences.len() < CONSEQUENCES {
            self.state.consequences.push(format!("{who}: {message}"));
            self.tell_consequence(who, message);
            self.log(Level::Warn, format!("in consequence, {who}: {message}"));
            self.actions.push(Action::StatusChanged);
        }
    }

    pub(super) fn store_failed(&mut self, message: String) {
        self.fail(Reason::StoreFailed, message);
    }

    /// The operator ends the run; the answer says what happens.
    pub(super) fn stop(&mut self, mode: StopMode, reason: String) -> String {
        if self.state.is_over() {
            return format!("the run is over already: {}", self.state.message);
        }
        match mode {
            StopMode::Abort => {
                let kept = self.state.last_commit().map_or("nothing is committed".into(), |step| {
                    format!("the newest committed step is {step}")
                });
                self.fail(Reason::Aborted, format!("aborted: {reason}; {kept}"));
                "aborted".into()
            }
            StopMode::Commit if self.state.run != RunState::Running => {
                let when = if self.state.recovery.restarts == 0 {
                    "before the first step"
                } else {
                    "while recovering"
                };
                let kept = self.state.last_commit().filter(|_| self.state.recovery.restarts > 0);
                let kept =
                    kept.map_or(String::new(), |step| format!("; the newest committed step is {step}"));
                self.finish(
                    RunState::Stopped,
                    Reason::StopRequested,
                    format!("stopped {when}: {reason}{kept}"),
                );
                format!("stopped {when}")
            }
            StopMode::Commit => {
                if self.state.stop.is_some() {
                    return "the run is stopping already".into();
                }
                self.direct_all(&Directive::Stop { reason: reason.clone() });
                self.state.stop = Some(reason);
                self.state.stop_until = self.state.settings.stop_grace_ms.map(|grace| self.now.after(grace));
                "the members commit at their next step boundary and stop".into()
            }
        }
    }

    /// Ends a run that was told to stop without the commit that it was to end with.
    pub(super) fn stop_uncommitted(&mut self, wish: &str, why: &str) {
        let state = &*self.state;
        let reached = state.reached();
        let kept = state.newest().map_or(Step(0), |newest| newest.step);
        let lost = reached.0.saturating_sub(kept.0);
        let message = format!(
            "stopped without a commit: {why}; the same command goes on from step {kept}, which leaves {} to be done again ({wish})",
            words::counted(lost, "step")
        );
        let abort =
            Abort { reason: message.clone(), culprit: self.state.culprit.clone(), kind: AbortKind::End };
        self.direct_all(&Directive::Abort(abort));
        self.end(RunState::Stopped, Reason::StopRequested, message);
    }

    /// A signal: the first stops, the second aborts, and one after the end does not wait for anybody.
    pub(super) fn interrupt(&mut self, reason: String) {
        if let Some(ending) = &mut self.state.ending {
            ending.until = self.now;
        } else if self.state.stop.is_some() {
            self.stop(StopMode::Abort, format!("{reason} for the second time"));
        } else {
            self.stop(StopMode::Commit, reason);
        }
    }

    pub(super) fn tick(&mut self) {
        self.forgive_own_pause();
        if self.state.is_over() {
            return;
        }
        if let Some(Suspicion { reporter, failure, .. }) =
            self.state.suspicion.take_if(|suspicion| suspicion.until <= self.now)
        {
            let blamed = failure.suspect.map(|suspect| format!(" (it blames {suspect})"));
            let reason = self.state.reason_of(&failure);
            let message = failure.message + &blamed.unwrap_or_default();
            return self.verdict(reporter, reason, message);
        }
        if let (Some(wish), Some(until)) = (self.state.stop.clone(), self.state.stop_until)
            && until <= self.now
        {
            let grace = self.state.settings.stop_grace_ms.unwrap_or(0) as f64 / 1000.0;
            let why =
                format!("its parts were not all in the store after {grace:.1} s (run.stop_grace_seconds)");
            return self.stop_uncommitted(&wish, &why);
        }
        let detection = self.state.settings.timeouts.detection_ms;
        let silent = self.state.members.values().filter(|m| {
            let gone = m.attendance == Attendance::Ended;
            !gone && self.now.since(m.heard) > detection
        });
        // The one heard longest ago fell silent first.
        let mut silent: Vec<_> = silent.map(|m| (m.heard, m.who, m.attendance)).collect();
        silent.sort_unstable_by_key(|(heard, who, _)| (*heard, *who));
        let generation = self.state.generation;
        for (heard, who, attendance) in silent {
            let seconds = self.now.since(heard) as f64 / 1000.0;
            let message = match attendance {
                Attendance::Expected => format!("joined {seconds:.1} s ago and never attended"),
                Attendance::Open | Attendance::Ended => format!("no sign of life for {seconds:.1} s"),
            };
            if self.state.generation == generation {
                self.member_fails(who, Reason::MemberSilent, message);
            } else {
                // The first one has ended their generation.
                self.consequence(who, &message);
            }
        }
    }

    /// A coordinator that was itself stopped for a while (suspended, swapped out) has heard nobody meanwhile; that is
    /// not the members' silence.
    fn forgive_own_pause(&mut self) {
        let pause = self.now.since(self.state.last_tick);
        self.state.last_tick = self.now;
        if pause > self.state.settings.timeouts.detection_ms / 2 {
            for member in self.state.members.values_mut() {
                member.heard = member.heard.after(pause).min(self.now);
            }
            self.log(Level::Warn, format!("this process stood still for {:.1} s", pause as f64 / 1000.0));
        }
    }

    /// The end of the process: everybody has left and no commit is under way, or patience is over.
    pub(super) fn settle(&mut self) {
        let Some(ending) = &mut self.state.ending else { return };
        if ending.done {
            return;
        }
        if !std::mem::replace(&mut ending.is_recorded, true) {
            // It was over before it began.
            let (run, message) = (self.state.run, self.state.message.clone());
            self.tell_end(run, &message);
        }
        let Some(ending) = &mut self.state.ending else { return };
        let stay = self.state.members.values().filter(|m| m.attendance == Attendance::Open).count();
        let waits = stay > 0 || self.state.checkpoints.committing.is_some();
        if waits && self.now < ending.until {
            return;
        }
        ending.done = true;
        if stay > 0 {
            self.log(Level::Warn, format!("{stay} members did not leave in time"));
        }
        let outcome = if self.state.run == RunState::Failed { Outcome::Bad } else { Outcome::Good };
        self.actions.push(Action::End(outcome));
    }
}

impl State {
    /// What kind of loss a member's own failure is.
    fn reason_of(&self, failure: &Failure) -> Reason {
        match failure.kind {
            // Recovery points may lie in a root of their own, and the run does not need them.
            FailureKind::StoreUnusable if self.restores_point() => Reason::MemberFailed,
            FailureKind::StoreUnusable => Reason::StoreFailed,
            kind if kind.is_environment() => Reason::EnvironmentFailed,
            _ => Reason::MemberFailed,
        }
    }

    /// Whether members restore the newest recovery point.
    pub(super) fn restores_point(&self) -> bool {
        let point = self.checkpoints.point.map(Resume::at_point);
        self.run == RunState::Restoring && point.is_some() && self.resume == point
    }

    /// Updates that a member has applied: its heartbeat may be older than what rank 0 has reported, and a step is applied
    /// by every member or by none.
    fn step_of(&self, member: &Member) -> Step {
        if self.run == RunState::Running { member.step.max(self.reached()) } else { member.step }
    }
}
