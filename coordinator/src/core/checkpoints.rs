//! Parts in, commits out. A step is committed when every worker and every shard has reported its part, and rank 0 the
//! metrics of every step before it.

use polygram_domain::{Generation, Step};
use polygram_proto::control::{Directive, MemberId, Reason, RunState};

use super::event::{Action, Level, Record, Reply};
use super::state::Turn;

/// Steps whose parts may be incomplete at the same time.
const OPEN_STEPS: usize = 8;

impl Turn<'_> {
    /// Notes a part. Idempotent; the refusal is one sentence.
    pub(super) fn upload(
        &mut self,
        member: MemberId,
        generation: Generation,
        step: Step,
    ) -> Result<Reply, String> {
        let state = &mut *self.state;
        if generation != state.generation {
            // Its sender has been told, or is about to be, that the run goes on without this part.
            let from = state.recovery.former(generation, member);
            let from = from.map_or("the part".into(), |who| format!("the part of {who}"));
            return Ok(Reply::Later(format!(
                "{from} is of generation {generation}, the active one is {}",
                state.generation
            )));
        }
        let Some(who) = state.who(member) else {
            return Err(format!("admission {} is not of this generation", member.0));
        };
        if state.run != RunState::Running {
            return Err(format!("{who} reported a part of step {step} while the run is {}", state.run));
        }
        if step.0 > state.settings.total_steps || step < state.resume_step() {
            return Err(format!(
                "{who} reported a part of step {step}, which is not between the resumed step {} and the last, {}",
                state.resume_step(),
                state.settings.total_steps
            ));
        }
        if let Some(m) = state.members.get_mut(&who) {
            m.heard = self.now;
        }
        let checkpoints = &mut state.checkpoints;
        let settled =
            checkpoints.committed.max(checkpoints.committing).max(checkpoints.complete.last().copied());
        if settled.is_some_and(|settled| step <= settled) {
            // Said again, or overtaken by a later step.
            return Ok(Reply::PartNoted);
        }
        if checkpoints.parts.len() >= OPEN_STEPS && !checkpoints.parts.contains_key(&step) {
            return Err(format!(
                "{OPEN_STEPS} steps are incomplete already; {who} is too far ahead at {step}"
            ));
        }
        let reported = checkpoints.parts.entry(step).or_default();
        reported.insert(who);
        if reported.len() == state.settings.member_count() {
            checkpoints.complete.insert(step);
            let later = checkpoints.parts.split_off(&step.next());
            let overtaken = std::mem::replace(&mut checkpoints.parts, later);
            for (old, _) in overtaken.range(..step) {
                self.log(
                    Level::Warn,
                    format!("step {old} stays uncommitted: step {step} was complete first"),
                );
            }
            self.next_commit();
        }
        Ok(Reply::PartNoted)
    }

    /// Begins the next commit, if there is one and its steps are told: parts come by another way than metrics, and a run
    /// that goes on from a commit does not do the steps before it again.
    pub(super) fn next_commit(&mut self) {
        let told = self.state.reached();
        let checkpoints = &mut self.state.checkpoints;
        let next = checkpoints.complete.first().copied().filter(|step| *step <= told);
        if let (None, Some(step)) = (checkpoints.committing, next) {
            checkpoints.complete.remove(&step);
            checkpoints.committing = Some(step);
            self.actions.push(Action::Commit { step });
        }
    }

    pub(super) fn commit_done(&mut self, step: Step, result: Result<(), String>) {
        let checkpoints = &mut self.state.checkpoints;
        if checkpoints.committing != Some(step) {
            return self.log(Level::Warn, format!("a commit of step {step} ended that was not under way"));
        }
        checkpoints.committing = None;
        match result {
            Ok(()) => {
                checkpoints.committed = Some(step);
                self.actions.push(Action::DropParts { before: step.next() });
                self.actions.push(Action::Record(Record::Committed(step)));
                self.log(Level::Info, format!("committed step {step}"));
                if self.state.run == RunState::Running {
                    self.direct_all(&Directive::Committed { step });
                    self.next_commit();
                } else {
                    self.actions.push(Action::StatusChanged);
                }
            }
            Err(message) => {
                self.fail(Reason::CommitFailed, format!("step {step} could not be committed: {message}"));
            }
        }
    }
}
