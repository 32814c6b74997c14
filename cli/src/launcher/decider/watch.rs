//! What the coordinator shows of the run.

use std::time::Instant;

use polygram_domain::control::Stall;
use polygram_domain::control::{Reason, RunState, RunStatus, StepMetrics, WatchEvent};

use super::{Decider, IDLE_PATIENCE, Loss, Phase};
use crate::evaluations;
use crate::launcher::messages::Action;

impl Decider {
    pub(super) fn watched(&mut self, event: WatchEvent, now: Instant) {
        let Phase::Following = self.phase else { return };
        match event {
            WatchEvent::Status(status) => self.new_status(status, now),
            WatchEvent::Metrics(metrics) => self.step_done(metrics, now),
            WatchEvent::Evaluation(evaluation) => {
                let (step, label) = (evaluation.step, evaluations::label(&evaluation.set));
                self.say(format!("step {step}  {label} {:.4} nats per token", evaluation.loss));
            }
            WatchEvent::Committed { step } => {
                self.line.committed(step.0);
                self.say(format!("step {step}  committed"));
            }
        }
    }

    fn new_status(&mut self, status: Box<RunStatus>, now: Instant) {
        if let Some(step) = status.last_commit {
            self.line.committed(step.0);
        }
        self.joined.extend(status.members.iter().map(|member| member.pid));
        self.is_over = status.state.is_over();
        if self.is_over {
            self.supervisor.retire();
            self.end_unstarted(&status, now);
        }
        for sentence in &status.set_aside {
            if !self.quarantined.contains(sentence) {
                self.quarantined.push(sentence.clone());
                self.actions.push(Action::Warn(sentence.clone()));
            }
        }
        self.actions.extend(self.store_trouble.see(&status, now));
        self.see_losses(&status, now);
        match status.state {
            RunState::Running => self.stall.begin(now),
            _ => self.stall.stop(),
        }
        self.status = Some(status);
    }

    fn step_done(&mut self, metrics: StepMetrics, now: Instant) {
        let done = metrics.step.0.saturating_add(1);
        self.line.step(metrics, self.seconds(now));
        self.stall.stepped(now);
        if let Some(loss) = self.loss.take() {
            let seconds = now.saturating_duration_since(loss.noticed).as_secs_f64();
            self.say(format!("step {done}  going on, {seconds:.2} s after the loss"));
        }
        if self.furthest.is_none_or(|furthest| furthest < done) {
            self.furthest = Some(done);
            self.supervisor.forgive();
        }
    }

    pub(super) fn stall_answered(&mut self, stall: Option<Stall>, now: Instant) {
        if let Some(text) = self.stall.answered(stall, now) {
            self.say(text);
        }
    }

    /// The run is over: members that have not started it, or not again after a loss, have nothing to finish, and must not
    /// wait for what does not come any more.
    fn end_unstarted(&mut self, status: &RunStatus, now: Instant) {
        if self.unstarted_until.is_some() {
            return;
        }
        self.unstarted_until = Some(now + IDLE_PATIENCE);
        if self.furthest.is_some() && self.loss.is_none() {
            self.started_pids.extend(status.members.iter().map(|member| member.pid));
        }
        let unstarted = self.unstarted();
        if !unstarted.is_empty() {
            self.actions.push(Action::Terminate(unstarted));
        }
    }

    fn see_losses(&mut self, status: &RunStatus, now: Instant) {
        // A new coordinator counts from 0.
        let before = std::mem::replace(&mut self.restarts, status.restarts);
        if status.restarts <= before {
            return;
        }
        self.actions.push(Action::SayState(format!("{}: {}", status.state, status.message)));
        let noticed = self.loss.map_or(now, |loss| loss.noticed);
        self.loss = Some(Loss { noticed, missed_since: None });
        // A process that hangs does not come back by itself.
        let silent = status.last_rollback.as_ref().filter(|last| last.reason == Reason::MemberSilent);
        let pid = silent.map(|last| last.culprit.pid);
        if let Some((pid, name)) = pid.and_then(|pid| Some((pid, self.living.get(&pid)?.clone()))) {
            self.actions.push(Action::Kill(vec![pid]));
            self.say(format!("killed {name} (pid {pid}), which hangs"));
        }
    }
}
