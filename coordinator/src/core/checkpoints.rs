//! What is reported of checkpoints, what is being committed or kept, and what the run resumes from. Written here alone.
//!
//! A step is committed when every worker and every shard has reported its part, and rank 0 the metrics of every step before
//! it. The same for recovery points.

use std::collections::{BTreeMap, BTreeSet};

use polygram_domain::control::MemberRef;
use polygram_domain::{CheckpointKind, CheckpointRef, Step};

use super::event::Uploaded;
use super::settings::Resume;

/// Steps whose parts may be incomplete at the same time.
const OPEN_STEPS: usize = 8;

/// The checkpoints of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Checkpoints {
    /// What this generation began from.
    resume: Option<Resume>,
    /// What is reported of a step that is not complete.
    parts: BTreeMap<Step, Parts>,
    /// Complete, not yet begun.
    complete: BTreeMap<Step, CheckpointKind>,
    /// The commit that has begun.
    committing: Option<Step>,
    /// The recovery point that is being kept; never beside a commit.
    keeping: Option<Step>,
    /// Newest committed.
    committed: Option<Step>,
    /// Newest recovery point that is kept, if it is newer than that.
    point: Option<Step>,
    /// Newest recovery point that was given up by this generation.
    given_up: Option<Step>,
}

/// Parts of one checkpoint.
#[derive(Clone, Debug)]
struct Parts {
    kind: CheckpointKind,
    /// Who is done with its part.
    reported: BTreeSet<MemberRef>,
    /// Who could not write its part of a recovery point, and why.
    not_written: Option<String>,
}

/// All parts of a step are reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Completed {
    /// Older steps whose parts will not be complete any more.
    pub(super) overtaken: Vec<Step>,
    /// Why there is no checkpoint of the step, where it is a recovery point that somebody could not write.
    pub(super) not_written: Option<String>,
}

impl Checkpoints {
    /// Those of a run that begins from `resume`, and whose newest commit is `committed` where that is a recovery point.
    pub(super) fn new(resume: Option<Resume>, committed: Option<Step>) -> Checkpoints {
        let of = |kind| resume.as_ref().filter(|resume| resume.kind == kind).map(|resume| resume.step);
        Checkpoints {
            point: of(CheckpointKind::Point),
            committed: committed.max(of(CheckpointKind::Commit)),
            resume,
            ..Checkpoints::default()
        }
    }

    pub(super) fn committed(&self) -> Option<Step> {
        self.committed
    }

    pub(super) fn point(&self) -> Option<Step> {
        self.point
    }

    pub(super) fn committing(&self) -> Option<Step> {
        self.committing
    }

    pub(super) fn keeping(&self) -> Option<Step> {
        self.keeping
    }

    /// What this generation began from.
    pub(super) fn resume(&self) -> Option<&Resume> {
        self.resume.as_ref()
    }

    /// Updates applied before this generation.
    pub(super) fn resume_step(&self) -> Step {
        self.resume.as_ref().map_or(Step(0), |resume| resume.step)
    }

    /// The recovery point that this generation began from, while it is the newest.
    pub(super) fn resumed_point(&self) -> Option<Step> {
        self.point.filter(|point| self.resume == Some(Resume::at_point(*point)))
    }

    /// What a generation resumes from that begins now.
    pub(super) fn newest(&self) -> Option<Resume> {
        let point = self.point.filter(|point| Some(*point) > self.committed);
        point.map(Resume::at_point).or(self.committed.map(Resume::at))
    }

    /// A generation begins, from the newest checkpoint.
    pub(super) fn resume_from_newest(&mut self) {
        self.resume = self.newest();
    }

    /// The generation ends: what its members reported is of no use any more. What has begun goes on.
    pub(super) fn end_generation(&mut self) {
        self.parts.clear();
        self.complete.clear();
        self.given_up = None;
    }

    /// The store has made the commit `to` the newest checkpoint; `None`: there is none.
    pub(super) fn roll_back(&mut self, to: Option<Step>) {
        (self.committed, self.point) = (to, None);
        self.resume = to.map(Resume::at);
    }

    /// No generation resumes from the recovery point any more.
    pub(super) fn discard_point(&mut self) {
        self.point = None;
    }

    /// Notes a part; idempotent. Answers once all `members` have reported theirs. The refusal is one sentence.
    pub(super) fn take_part(
        &mut self,
        (who, step): (MemberRef, Step),
        uploaded: Uploaded,
        members: usize,
    ) -> Result<Option<Completed>, String> {
        if self.newest_settled().is_some_and(|settled| step <= settled) {
            // Reported again, or overtaken by a later step.
            return Ok(None);
        }
        if self.parts.len() >= OPEN_STEPS && !self.parts.contains_key(&step) {
            return Err(format!(
                "{OPEN_STEPS} steps are incomplete already; {who} is too far ahead at {step}"
            ));
        }
        let (kind, not_written) = match uploaded {
            Uploaded::Part(kind) => (kind, None),
            Uploaded::NotWritten(reason) => (CheckpointKind::Point, Some(format!("{who}: {reason}"))),
        };
        let none = || Parts { kind, reported: BTreeSet::new(), not_written: None };
        let parts = self.parts.entry(step).or_insert_with(none);
        if parts.kind != kind {
            return Err(format!(
                "{who} reported its part of step {step} as one of a {}, others as one of a {}",
                kind.noun(),
                parts.kind.noun()
            ));
        }
        parts.reported.insert(who);
        parts.not_written = parts.not_written.take().or(not_written);
        let is_complete = parts.reported.len() == members;
        Ok(if is_complete { self.complete(step) } else { None })
    }

    fn complete(&mut self, step: Step) -> Option<Completed> {
        let later = self.parts.split_off(&step.next());
        let mut overtaken = std::mem::replace(&mut self.parts, later);
        let Parts { kind, not_written, .. } = overtaken.remove(&step)?;
        if not_written.is_some() {
            self.given_up = Some(step);
        } else {
            self.complete.insert(step, kind);
        }
        Some(Completed { overtaken: overtaken.into_keys().collect(), not_written })
    }

    /// Begins the next checkpoint that is complete, if none has begun and its steps are reported: parts come by another way
    /// than metrics, and a run that resumes from a commit does not do the steps before it again.
    pub(super) fn begin_next(&mut self, reached: Step) -> Option<CheckpointRef> {
        if self.committing.is_some() || self.keeping.is_some() {
            return None;
        }
        let next = self.complete.first_entry().filter(|next| *next.key() <= reached)?;
        let (step, kind) = next.remove_entry();
        match kind {
            CheckpointKind::Commit => self.committing = Some(step),
            CheckpointKind::Point => self.keeping = Some(step),
        }
        Some(CheckpointRef { step, kind })
    }

    /// The commit of `step` has ended. False where it was not under way.
    pub(super) fn end_commit(&mut self, step: Step, is_committed: bool) -> bool {
        if self.committing != Some(step) {
            return false;
        }
        self.committing = None;
        if is_committed {
            self.committed = Some(step);
            self.point = self.point.filter(|point| *point > step);
        }
        true
    }

    /// The recovery point of `step` is kept, or could not be. False where it was not under way.
    pub(super) fn end_point(&mut self, step: Step, is_kept: bool) -> bool {
        if self.keeping != Some(step) {
            return false;
        }
        self.keeping = None;
        let settled = if is_kept { &mut self.point } else { &mut self.given_up };
        *settled = Some(step);
        true
    }

    /// Whether nothing about `step` is left to commit.
    pub(super) fn is_settled(&self, step: Step) -> bool {
        let is_idle = self.committing.is_none() && self.complete.is_empty();
        let is_unchanged = step == self.resume_step() && !self.parts.contains_key(&step);
        is_idle && (self.committed == Some(step) || is_unchanged)
    }

    /// Whether all parts of `step` are here.
    pub(super) fn has_all_parts(&self, step: Step) -> bool {
        self.committing == Some(step) || self.complete.contains_key(&step)
    }

    /// Whether `who` has reported its part of `step`, which is not complete.
    pub(super) fn has_part(&self, step: Step, who: MemberRef) -> bool {
        self.parts.get(&step).is_some_and(|parts| parts.reported.contains(&who))
    }

    /// The first commit that some parts of are here. Recovery points come and go without a message.
    pub(super) fn incomplete_commit(&self) -> Option<Step> {
        let mut parts = self.parts.iter();
        parts.find(|(_, parts)| parts.kind == CheckpointKind::Commit).map(|(step, _)| *step)
    }

    /// The newest step whose parts are not waited for any more.
    fn newest_settled(&self) -> Option<Step> {
        let complete = self.complete.last_key_value().map(|(step, _)| *step);
        [self.committed, self.committing, self.keeping, self.point, self.given_up, complete]
            .into_iter()
            .flatten()
            .max()
    }
}
