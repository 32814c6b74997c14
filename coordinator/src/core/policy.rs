//! Going back from a spike: what workers found alike costs the steps since an older commit, and the samples around it.
//!
//! The wish ends the generation; the store then decides, by an object that is made once ([`Action::RollBack`]). A
//! coordinator that dies before has decided nothing: its successor goes on from the newest commit, and the same steps
//! bring the same wish. One that dies behind it leaves the decision to its successor, who reads it.

use polygram_checkpoint::RecoveryLine;
use polygram_domain::spikes::PolicyState;
use polygram_domain::{Step, StepOutcome};
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
        self.tell_policy(failure.step, format!("{who}: {}; going back", failure.message));
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
                let from = to.map_or("the beginning".into(), |step| format!("step {step}"));
                let newest = policy.left_out.ranges();
                let ranges: Vec<String> =
                    newest.iter().map(|[start, end]| format!("{start}..{end}")).collect();
                self.tell_policy(at, format!("back to {from}; samples {} are left out", ranges.join(", ")));
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

    /// Tells of a step that was skipped.
    pub(super) fn tell_skip(&mut self, metrics: &StepMetrics) {
        let outcome = metrics.proof.outcome;
        if outcome != StepOutcome::Applied {
            let StepMetrics { step, loss, grad_norm, .. } = *metrics;
            let what = match outcome {
                StepOutcome::SkippedLossSpike => "its loss was a spike",
                StepOutcome::SkippedNormSpike => "its gradient norm was a spike",
                StepOutcome::SkippedNonfinite | StepOutcome::Applied => "it was not finite",
            };
            let sentence =
                format!("step {step} was skipped: {what} (loss {loss}, gradient norm {grad_norm})");
            self.log(Level::Warn, sentence.clone());
            self.tell_policy(step, sentence);
        }
    }

    fn tell_policy(&mut self, step: Step, sentence: String) {
        let (at_unix_ms, generation) = (self.now.0, self.state.generation);
        let line = RecoveryLine::Policy { at_unix_ms, generation, step, sentence };
        self.actions.push(Action::Record(Record::Recovery(line)));
    }
}
