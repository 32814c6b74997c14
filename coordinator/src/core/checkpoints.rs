//! Parts in, commits and recovery points out. A step is committed when every worker and every shard has reported its part, and
//! rank 0 the metrics of every step before it.

use std::collections::BTreeSet;

use polygram_domain::{CheckpointKind, Generation, Step};
use polygram_proto::control::{Directive, MemberId, Reason, RunState};

use super::event::{Action, Level, Record, Reply, Uploaded};
use super::state::{Checkpoints, Parts, Turn};

/// Steps whose parts may be incomplete at the same time.
const OPEN_STEPS: usize = 8;

impl Turn<'_> {
    /// Notes a part. Idempotent; the refusal is one sentence.
    pub(super) fn upload(
        &mut self,
        (member, generation): (MemberId, Generation),
        step: Step,
        uploaded: Uploaded,
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
        if checkpoints.settled().is_some_and(|settled| step <= settled) {
            // Said again, or overtaken by a later step.
            return Ok(Reply::PartNoted);
        }
        if checkpoints.parts.len() >= OPEN_STEPS && !checkpoints.parts.contains_key(&step) {
            return Err(format!(
                "{OPEN_STEPS} steps are incomplete already; {who} is too far ahead at {step}"
            ));
        }
        let (kind, not_written) = match uploaded {
            Uploaded::Part(kind) => (kind, None),
            Uploaded::NotWritten(reason) => (CheckpointKind::Point, Some(format!("{who}: {reason}"))),
        };
        let anew = || Parts { kind, reported: BTreeSet::new(), not_written: None };
        let parts = checkpoints.parts.entry(step).or_insert_with(anew);
        if parts.kind != kind {
            return Err(format!(
                "{who} reported its part of step {step} as one of a {}, others as one of a {}",
                kind.noun(),
                parts.kind.noun()
            ));
        }
        parts.reported.insert(who);
        parts.not_written = parts.not_written.take().or(not_written);
        if parts.reported.len() == state.settings.member_count() {
            self.complete(step);
        }
        Ok(Reply::PartNoted)
    }

    /// All parts of a step are here.
    fn complete(&mut self, step: Step) {
        let checkpoints = &mut self.state.checkpoints;
        let later = checkpoints.parts.split_off(&step.next());
        let mut overtaken = std::mem::replace(&mut checkpoints.parts, later);
        let parts = overtaken.remove(&step);
        for old in overtaken.into_keys() {
            self.log(Level::Warn, format!("step {old} stays uncommitted: step {step} was complete first"));
        }
        match parts {
            Some(Parts { not_written: Some(why), .. }) => self.give_up(step, &why),
            Some(Parts { kind, .. }) => {
                self.state.checkpoints.complete.insert(step, kind);
                self.next_commit();
            }
            None => {}
        }
    }

    /// Begins the next commit, if there is one and its steps are told: parts come by another way than metrics, and a run
    /// that goes on from a commit does not do the steps before it again. The same for recovery points.
    pub(super) fn next_commit(&mut self) {
        let told = self.state.reached();
        let checkpoints = &mut self.state.checkpoints;
        if checkpoints.committing.is_some() || checkpoints.keeping.is_some() {
            return;
        }
        let Some(next) = checkpoints.complete.first_entry().filter(|next| *next.key() <= told) else {
            return;
        };
        let (step, kind) = next.remove_entry();
        match kind {
            CheckpointKind::Commit => {
                checkpoints.committing = Some(step);
                self.actions.push(Action::Commit { step });
            }
            CheckpointKind::Point => {
                checkpoints.keeping = Some(step);
                self.actions.push(Action::KeepPoint { step });
            }
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
                checkpoints.point = checkpoints.point.filter(|point| *point > step);
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

    /// A recovery point is kept, or could not be, which costs nothing but what it would have saved.
    pub(super) fn point_done(&mut self, step: Step, result: Result<(), String>) {
        let checkpoints = &mut self.state.checkpoints;
        if checkpoints.keeping != Some(step) {
            return self.log(Level::Warn, format!("recovery point {step} ended that was not under way"));
        }
        checkpoints.keeping = None;
        self.actions.push(Action::DropParts { before: step.next() });
        match result {
            Ok(()) => {
                checkpoints.point = Some(step);
                self.log(Level::Debug, format!("the recovery point of step {step} is kept"));
                self.point_settled(step, true);
            }
            Err(why) => self.give_up(step, &why),
        }
    }

    fn give_up(&mut self, step: Step, why: &str) {
        self.state.checkpoints.given_up = Some(step);
        self.log(Level::Warn, format!("no recovery point of step {step}, the run goes on without it: {why}"));
        self.point_settled(step, false);
    }

    fn point_settled(&mut self, step: Step, kept: bool) {
        if self.state.run == RunState::Running {
            self.direct_all(&Directive::PointSettled { step, kept });
            self.next_commit();
        }
        self.actions.push(Action::StatusChanged);
    }
}

impl Checkpoints {
    /// The newest step whose parts are not waited for any more.
    fn settled(&self) -> Option<Step> {
        let complete = self.complete.last_key_value().map(|(step, _)| *step);
        [self.committed, self.committing, self.keeping, self.point, self.given_up, complete]
            .into_iter()
            .flatten()
            .max()
    }
}
