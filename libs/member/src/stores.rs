//! Where a member's checkpoints are, and the one that the run resumes from.

use polygram_checkpoint::{CheckpointError, Manifest, RunStore, StoreProblem, Waits};
use polygram_domain::control::{Assignment, CheckpointPlace, DamagedCheckpoint};
use polygram_domain::{CheckpointKind, CheckpointRef, FailureKind};
use thiserror::Error;

use crate::failure::{FailureCause, FailureOrigin, MemberFailure};
use crate::runtime::Membership;

/// The run's commits, and its recovery points where it makes any and their place can be used.
#[derive(Clone, Debug)]
pub struct Stores {
    /// What is committed.
    pub commits: RunStore,
    /// What is kept in between.
    pub points: Option<RunStore>,
}

/// Why a checkpoint was not restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// There is no store for this kind of checkpoint.
    #[error("this member has no place for the {0}: see recovery_points.root of the run file")]
    NoPlace(CheckpointRef),
    /// It cannot be read.
    #[error("the {checkpoint} was not restored: {source}")]
    Unreadable {
        /// The checkpoint.
        checkpoint: CheckpointRef,
        /// Cause.
        source: CheckpointError,
    },
    /// It is not of this run's shape.
    #[error("the {checkpoint} cannot be resumed from: {reason}")]
    Unfit {
        /// The checkpoint.
        checkpoint: CheckpointRef,
        /// What does not hold.
        reason: String,
    },
}

impl RestoreError {
    /// Where the error comes from, and what it is: the one place that decides whether damage is reported.
    pub fn failure(&self) -> MemberFailure {
        let message = self.to_string();
        let RestoreError::Unreadable { checkpoint, source } = self else {
            return MemberFailure::own(FailureKind::Program, message);
        };
        // A recovery point that fails is not resumed from again, whatever is wrong with it: nobody has to examine it.
        let damaged = source.object_at_fault().filter(|_| checkpoint.kind == CheckpointKind::Commit);
        match damaged {
            Some(key) => {
                let place = CheckpointPlace::commit(checkpoint.step);
                let damaged = DamagedCheckpoint { place, key, reason: source.to_string() };
                let cause = FailureCause::DamagedCheckpoint(damaged);
                MemberFailure { origin: FailureOrigin::Own, cause, message }
            }
            None => MemberFailure::own(kind_of(source), message),
        }
    }
}

/// Whether a store or a program failed.
pub fn kind_of(error: &CheckpointError) -> FailureKind {
    error.store_problem().map_or(FailureKind::Program, StoreProblem::failure_kind)
}

/// A checkpoint that is restored.
pub struct Resumption {
    /// Which.
    pub checkpoint: CheckpointRef,
    /// Where it is. What is read of it is counted in the member's heartbeats.
    pub store: RunStore,
    /// Its manifest, which covers the run's model.
    pub manifest: Manifest,
}

impl Resumption {
    /// The error of a read of this checkpoint.
    pub fn unreadable(&self, source: CheckpointError) -> RestoreError {
        RestoreError::Unreadable { checkpoint: self.checkpoint, source }
    }

    /// The error of a checkpoint that does not fit the run.
    pub fn unfit(&self, reason: String) -> RestoreError {
        RestoreError::Unfit { checkpoint: self.checkpoint, reason }
    }
}

impl Stores {
    /// Opens them. Waits for the commits' store are reported in heartbeats. A place of recovery points that cannot be used
    /// is logged and left.
    ///
    /// # Errors
    /// Where the run's root cannot be opened.
    pub fn open(membership: &Membership) -> Result<Stores, CheckpointError> {
        let Membership { joined, spec, reporter, .. } = membership;
        let waits = Waits::told_to(reporter.progress().store_wait().clone());
        let commits = RunStore::open(&joined.root, &spec.name)?.with_waits(waits);
        let points = RunStore::of_points(&joined.root, spec).unwrap_or_else(|error| {
            tracing::warn!(%error, "this member writes no recovery points");
            None
        });
        Ok(Stores { commits, points })
    }

    /// The same, for one of several processes of a machine that read the same.
    pub fn shared(self) -> Stores {
        Stores { commits: self.commits.shared(), points: self.points.map(RunStore::shared) }
    }

    /// Where checkpoints of a kind are.
    pub fn of(&self, kind: CheckpointKind) -> Option<&RunStore> {
        match kind {
            CheckpointKind::Commit => Some(&self.commits),
            CheckpointKind::Point => self.points.as_ref(),
        }
    }

    /// The checkpoint that `assignment` resumes from, with its manifest read and checked; `None` for a fresh run.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn resumption(
        &self,
        assignment: &Assignment,
        membership: &Membership,
    ) -> Result<Option<Resumption>, RestoreError> {
        if assignment.resume_manifest.is_none() {
            return Ok(None);
        }
        let Assignment { resume_step: step, resume_kind: kind, .. } = *assignment;
        let checkpoint = CheckpointRef { step, kind };
        let store = self.of(kind).ok_or(RestoreError::NoPlace(checkpoint))?.clone();
        let store = store.counting_into(membership.reporter.progress().restored_bytes());
        let unreadable = |source| RestoreError::Unreadable { checkpoint, source };
        let manifest = store.read_manifest(step).await.map_err(unreadable)?;
        manifest.check_cover(&membership.spec).map_err(|error| {
            let reason = error.to_string();
            RestoreError::Unfit { checkpoint, reason }
        })?;
        Ok(Some(Resumption { checkpoint, store, manifest }))
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::Step;

    use super::*;
    use crate::failure::{Disposition, FailureReply};

    fn unreadable(kind: CheckpointKind, source: CheckpointError) -> RestoreError {
        RestoreError::Unreadable { checkpoint: CheckpointRef { step: Step(7), kind }, source }
    }

    #[test]
    fn damage_is_reported_of_commits_and_of_objects_only() {
        let missing = || CheckpointError::Missing { key: "ckpt/data/a.rows".into() };
        let failure = unreadable(CheckpointKind::Commit, missing()).failure();
        let FailureCause::DamagedCheckpoint(damaged) = &failure.cause else { panic!("{failure:?}") };
        assert_eq!((damaged.place.step, damaged.key.as_str()), (Step(7), "ckpt/data/a.rows"));
        assert_eq!(failure.disposition(FailureReply::Unknown), Disposition::Rejoin);
        // The object of a recovery point, and an error that names no object.
        let point = unreadable(CheckpointKind::Point, missing()).failure();
        assert_eq!(point.cause, FailureCause::Fault(FailureKind::Program));
        assert!(point.message.contains("recovery point of step 7"), "{}", point.message);
        let root = CheckpointError::UnknownScheme { root: "x://y".into(), scheme: "x".into() };
        let other = unreadable(CheckpointKind::Commit, root).failure();
        assert_eq!(other.cause, FailureCause::Fault(FailureKind::Program));
        assert_eq!(other.disposition(FailureReply::RunContinues), Disposition::ExitProcess);
    }
}
