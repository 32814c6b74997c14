//! Parts in, commits and recovery points out.

use polygram_domain::control::{Directive, MemberId, Reason, RunState};
use polygram_domain::{CheckpointKind, CheckpointRef, Generation, Step};

use super::Turn;
use crate::core::checkpoints::Completed;
use crate::core::event::{Action, Level, Record, Reply, Uploaded};

impl Turn<'_> {
    /// Notes a part. Idempotent; the refusal is one sentence.
    pub(in crate::core) fn upload(
        &mut self,
        (member, generation): (MemberId, Generation),
        step: Step,
        uploaded: Uploaded,
    ) -> Result<Reply, String> {
        let state = &mut *self.state;
        let active = state.generation();
        if generation != active {
            // Its sender has been directed, or is about to be, to join a generation that does without this part.
            let from = state.membership.former(generation, member);
            let from = from.map_or("the part".into(), |who| format!("the part of {who}"));
            let refusal = format!("{from} is of generation {generation}, the active one is {active}");
            return Ok(Reply::Later(refusal));
        }
        let Some(who) = state.who(member) else {
            return Err(format!("admission {} is not of this generation", member.0));
        };
        let (run, resumed, total) = (state.run_state(), state.resume_step(), state.settings.total_steps);
        if run != RunState::Running {
            return Err(format!("{who} reported a part of step {step} while the run is {run}"));
        }
        if step.0 > total || step < resumed {
            return Err(format!(
                "{who} reported a part of step {step}, which is not between the resumed step {resumed} and the last, \
                 {total}"
            ));
        }
        state.membership.heard(who, self.now);
        let members = state.settings.member_count();
        if let Some(completed) = state.checkpoints.take_part((who, step), uploaded, members)? {
            self.completed(step, completed);
        }
        Ok(Reply::PartNoted)
    }

    /// All parts of a step are here.
    fn completed(&mut self, step: Step, Completed { overtaken, not_written }: Completed) {
        for old in overtaken {
            self.log(Level::Warn, format!("step {old} stays uncommitted: step {step} was complete first"));
        }
        match not_written {
            Some(why) => self.point_given_up(step, &why),
            None => self.begin_next_checkpoint(),
        }
    }

    /// Begins the next commit or recovery point, if there is one and its steps are reported.
    pub(super) fn begin_next_checkpoint(&mut self) {
        let reached = self.state.reached();
        match self.state.checkpoints.begin_next(reached) {
            Some(CheckpointRef { step, kind: CheckpointKind::Commit }) => {
                self.actions.push(Action::Commit { step });
            }
            Some(CheckpointRef { step, kind: CheckpointKind::Point }) => {
                self.actions.push(Action::KeepPoint { step });
            }
            None => {}
        }
    }

    pub(in crate::core) fn commit_done(&mut self, step: Step, result: Result<(), String>) {
        if !self.state.checkpoints.end_commit(step, result.is_ok()) {
            return self.log(Level::Warn, format!("a commit of step {step} ended that was not under way"));
        }
        match result {
            Ok(()) => {
                self.actions.push(Action::DropParts { before: step.next() });
                self.actions.push(Action::Record(Record::Committed(step)));
                self.log(Level::Info, format!("committed step {step}"));
                if self.state.run_state() == RunState::Running {
                    self.direct_all(&Directive::Committed { step });
                    self.begin_next_checkpoint();
                } else {
                    self.actions.push(Action::StatusChanged);
                }
            }
            Err(message) => {
                self.fail(Reason::CommitFailed, format!("step {step} could not be committed: {message}"));
            }
        }
    }

    /// A recovery point is kept, or could not be, which costs nothing but what it would have saved.
    pub(in crate::core) fn point_done(&mut self, step: Step, result: Result<(), String>) {
        if !self.state.checkpoints.end_point(step, result.is_ok()) {
            return self.log(Level::Warn, format!("recovery point {step} ended that was not under way"));
        }
        self.actions.push(Action::DropParts { before: step.next() });
        match result {
            Ok(()) => {
                self.log(Level::Debug, format!("the recovery point of step {step} is kept"));
                self.point_settled(step, true);
            }
            Err(why) => self.point_given_up(step, &why),
        }
    }

    fn point_given_up(&mut self, step: Step, why: &str) {
        self.log(Level::Warn, format!("no recovery point of step {step}, the run goes on without it: {why}"));
        self.point_settled(step, false);
    }

    fn point_settled(&mut self, step: Step, kept: bool) {
        if self.state.run_state() == RunState::Running {
            self.direct_all(&Directive::PointSettled { step, kept });
            self.begin_next_checkpoint();
        }
        self.actions.push(Action::StatusChanged);
    }
}
