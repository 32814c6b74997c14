//! Going back from a spike: what workers found alike costs the steps since an older commit, and the samples around it.
//!
//! The wish ends the generation; the store then decides, by an object that is made once ([`Action::RollBack`]). A
//! coordinator that dies before has decided nothing: its successor goes on from the newest commit, and the same steps
//! bring the same wish. One that dies behind it leaves the decision to its successor, who reads it.

use polygram_checkpoint::{FailureLine, RollbackCause};
use polygram_domain::Step;
use polygram_domain::spikes::PolicyState;
use polygram_proto::control::{Failure, MemberRef, Reason, Role, RunState, StepMetrics};

use super::event::{Action, Level, Record};
use super::settings::Resume;
use super::state::{State, Turn};

/// A decision that the store has made.
#[derive(Clone, Debug, PartialEq)]
pub struct RolledBack {
    /// The commit to go on from; `None`: the beginning.
    pub to: Option<Step>,
    /// What the run remembers and leaves out from there.
    pub policy: PolicyState,
}

impl State {
    /// The way back that the store has not decided on yet.
    pub(super) fn undecided(&self) -> Option<Step> {
        self.policy.undecided
    }
}

/// What the run knows of ways back.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    /// As of the newest decision.
    pub(super) state: PolicyState,
    /// Updates applied before the spike whose way back is being decided.
    pub(super) undecided: Option<Step>,
}

impl Turn<'_> {
    /// A worker asks to go back from a spike. All of them do; the first word counts.
    pub(super) fn wishes_back(&mut self, who: MemberRef, failure: &Failure) {
        if who.role != Role::Worker || self.state.run != RunState::Running {
            let message = format!("asked to go back from a spike while {}", self.state.run);
            return self.member_fails(who, Reason::ProtocolBroken, message);
        }
        if let Some(wish) = self.state.stop.clone() {
            let message = format!("{}; the run was to stop ({wish})", failure.message);
            return self.fail(Reason::MemberFailed, message);
        }
        let (at_unix_ms, generation) = (self.now.0, self.state.generation);
        let line = FailureLine::RollbackRequested {
            at_unix_ms,
            generation,
            step: failure.step,
            member: who.to_string(),
            cause: failure.message.clone(),
        };
        self.actions.push(Action::Record(Record::Recovery(line)));
        self.log(Level::Warn, failure.message.clone());
        self.state.policy.undecided = Some(failure.step);
        let cause = failure.message.clone();
        self.state.recovery.cause = Some(format!("going back from a spike: {cause}"));
        self.end_generation(failure.message.clone(), None);
        self.actions.push(Action::RollBack { at: failure.step, cause });
    }

    /// The store has decided, or could not.
    pub(super) fn rolled_back(&mut self, at: Step, result: Result<RolledBack, String>) {
        if self.state.policy.undecided != Some(at) {
            return self
                .log(Level::Warn, format!("a way back from step {at} was decided that was not under way"));
        }
        self.state.policy.undecided = None;
        match result {
            Ok(RolledBack { to, policy }) => {
                let left_out = policy.left_out.ranges().to_vec();
                self.state.recovery.rollback_cause = RollbackCause::Spike { left_out };
                self.state.policy.state = policy;
                (self.state.checkpoints.committed, self.state.checkpoints.point) = (to, None);
                self.state.resume = to.map(Resume::at);
                self.actions.push(Action::StatusChanged);
            }
            Err(message) => self.fail(
                Reason::StoreFailed,
                format!("the run cannot go back from the spike at step {at}: {message}"),
            ),
        }
    }

    /// Records that a step was skipped, where it was.
    pub(super) fn tell_skip(&mut self, metrics: &StepMetrics) {
        let outcome = metrics.proof.outcome;
        if let Some(why) = outcome.reason() {
            let StepMetrics { step, loss, grad_norm, .. } = *metrics;
            let sentence = format!("step {step} was skipped: {why} (loss {loss}, gradient norm {grad_norm})");
            self.log(Level::Warn, sentence);
            let (at_unix_ms, generation) = (self.now.0, self.state.generation);
            let line = FailureLine::StepSkipped { at_unix_ms, generation, step, outcome, loss, grad_norm };
            self.actions.push(Action::Record(Record::Recovery(line)));
        }
    }
}
