//! A member that fails, dies or is silent: who is to blame, and whether the run is rolled back for it or ends.

use polygram_checkpoint::{CulpritRecord, FailureLine, LossRecord};
use polygram_domain::control::{Culprit, Failure, MemberRef, Phase, Reason};
use polygram_domain::{FailureKind, Step, words};

use super::Turn;
use crate::core::event::{Action, Level};
use crate::core::membership::Stream;
use crate::core::rollback::Cause;
use crate::core::root_cause::{Loss, PeerReport, reason_of};

impl Turn<'_> {
    /// A member reported its failure.
    pub(super) fn member_failed(&mut self, who: MemberRef, failure: Failure) {
        let is_over = self.state.is_over();
        if self.state.membership.get(who).is_none_or(|m| m.failed) {
            return;
        }
        if failure.roll_back && !is_over {
            return self.rollback_requested(who, &failure);
        }
        let damaged = failure.damaged.clone().filter(|damaged| self.is_restoring(damaged.place));
        if let Some(damaged) = damaged {
            return self.checkpoint_reported_damaged(who, failure, damaged);
        }
        self.state.membership.set_failed(who, Some((failure.step, failure.phase)));
        if is_over {
            return self.secondary_failure(who, &failure.message);
        }
        let is_peer = |suspect: &MemberRef| *suspect != who && self.state.membership.get(*suspect).is_some();
        match failure.suspect.filter(is_peer) {
            Some(suspect) => self.suspect(PeerReport { reporter: who, suspect, failure }),
            None => {
                let reports = self.state.root_cause.take_reports();
                self.lose_reported(who, (failure.kind, None), failure.message);
                self.secondary_failures(reports);
            }
        }
    }

    /// A member failed because of a peer: the peer's own end, or a report that is closer to the cause, is waited for.
    fn suspect(&mut self, report: PeerReport) {
        let PeerReport { reporter, suspect, failure } = &report;
        self.log(Level::Warn, format!("{reporter} failed and blames {suspect}: {}", failure.message));
        let timeouts = &self.state.settings.timeouts;
        let until = self.now.after(timeouts.suspicion_timeout_ms);
        let latest = self.now.after(timeouts.explanation_timeout_ms);
        self.state.root_cause.collect(report, (until, latest));
    }

    /// Judges what was collected, once it is time.
    pub(super) fn judge_suspicion(&mut self) -> bool {
        let Some((root, others)) = self.state.root_cause.take_due(self.now) else { return false };
        let PeerReport { reporter, suspect, failure } = root;
        let message = format!("{} (it blames {suspect})", failure.message);
        self.lose_reported(reporter, (failure.kind, Some(suspect)), message);
        self.secondary_failures(others);
        true
    }

    /// A member is found dead, silent or breaking the protocol; nobody else is to blame.
    pub(super) fn member_fails(&mut self, who: MemberRef, reason: Reason, message: String) {
        self.state.membership.set_failed(who, None);
        if self.state.is_over() {
            return self.secondary_failure(who, &message);
        }
        let reports = self.state.root_cause.take_reports();
        let (culprit, host) = self.culprit(who, message);
        self.lose(Loss { reason, culprit, host, kind: None, suspect: None });
        self.secondary_failures(reports);
    }

    /// Members that were not heard for too long are lost; the one heard longest ago fell silent first.
    pub(super) fn lose_silent(&mut self) {
        let (generation, now) = (self.state.generation(), self.now);
        let silent = self.state.membership.silent(now, self.state.settings.timeouts.detection_ms);
        let silent: Vec<(MemberRef, String)> = silent
            .into_iter()
            .map(|m| {
                let seconds = now.since(m.heard) as f64 / 1000.0;
                let message = match m.stream {
                    Stream::Expected => format!("joined {seconds:.1} s ago and never attended"),
                    Stream::Open | Stream::Ended => format!("no sign of life for {seconds:.1} s"),
                };
                (m.who, message)
            })
            .collect();
        for (who, message) in silent {
            if self.state.generation() == generation {
                self.member_fails(who, Reason::MemberSilent, message);
            } else {
                // The first one has ended their generation.
                self.secondary_failure(who, &message);
            }
        }
    }

    /// A failure that another one has caused.
    pub(super) fn secondary_failure(&mut self, who: MemberRef, message: &str) {
        if !self.state.root_cause.note_secondary(who, message) {
            return;
        }
        let sentence = format!("{who}: {message}");
        self.log(Level::Warn, format!("secondary failure, {sentence}"));
        self.record(FailureLine::Consequence { at_unix_ms: self.now.0, sentence });
        self.actions.push(Action::StatusChanged);
    }

    /// What was reported of peers while the root cause was looked for.
    pub(super) fn secondary_failures(&mut self, reports: Vec<PeerReport>) {
        for PeerReport { reporter, failure, .. } in reports {
            self.secondary_failure(reporter, &failure.message);
        }
    }

    fn lose_reported(
        &mut self,
        who: MemberRef,
        (kind, suspect): (FailureKind, Option<MemberRef>),
        message: String,
    ) {
        let reason = reason_of(kind, self.state.restored_point().is_some());
        let (culprit, host) = self.culprit(who, message);
        self.lose(Loss { reason, culprit, host, kind: Some(kind), suspect });
    }

    /// `who` as the culprit, and its host.
    pub(super) fn culprit(&self, who: MemberRef, message: String) -> (Culprit, Option<String>) {
        let member = self.state.membership.get(who);
        let culprit = Culprit {
            member: who,
            pid: member.map_or(0, |m| m.pid),
            phase: member.map_or(Phase::Starting, |m| m.phase),
            step: member.map_or(Step(0), |m| self.state.step_of(m)),
            message,
        };
        (culprit, member.map(|m| m.host.clone()))
    }

    /// A member is lost: the run is rolled back, or ends.
    pub(super) fn lose(&mut self, loss: Loss) {
        let (reason, sentence) = (loss.reason, loss.culprit.to_string());
        let restarts = self.state.budget.restarts();
        let why = self.state.budget.lose((reason, &loss.culprit), loss.host.as_deref(), self.now);
        self.record(self.loss_line(&loss, why.clone()));
        self.discard_unrestorable_point(&loss);
        self.state.root_cause.set_culprit(Some(loss.culprit.clone()));
        if !self.state.budget.allows_restarts() {
            return self.fail(reason, sentence);
        }
        if let Some(request) = self.state.lifecycle.stop_reason().map(str::to_owned) {
            return self.stop_uncommitted(&request, &format!("lost meanwhile: {sentence}"));
        }
        if let Some(why) = why {
            let restarts = words::counted(restarts.into(), "restart");
            return self.fail(reason, format!("{sentence}; {why} ({restarts} so far)"));
        }
        let not_before = self.state.budget.restart(self.now);
        self.begin_rollback(Cause::MemberLost(loss), sentence, not_before);
    }

    fn loss_line(&self, loss: &Loss, gives_up: Option<String>) -> FailureLine {
        let Loss { reason, culprit, host, .. } = loss;
        FailureLine::Lost(LossRecord {
            at_unix_ms: self.now.0,
            generation: self.state.generation(),
            reason: reason.as_str().into(),
            state: self.state.run_state().as_str().into(),
            culprit: CulpritRecord {
                member: culprit.member.to_string(),
                pid: culprit.pid,
                host: host.clone().unwrap_or_default(),
                phase: culprit.phase.as_str().into(),
                step: culprit.step,
                message: culprit.message.clone(),
            },
            reached: self.state.reached(),
            gives_up,
        })
    }
}
