//! When a state is kept, and for what.

use serde::{Deserialize, Serialize};

use crate::ids::Step;

/// What a checkpoint is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    /// Kept in the run's root, whole, for good.
    #[default]
    Commit,
    /// A recovery point: kept near by until the next one, so that a loss costs few steps. It may build on an earlier one,
    /// and a run is never worse off without it.
    Point,
}

impl CheckpointKind {
    /// Whether it is a commit.
    pub fn is_commit(&self) -> bool {
        *self == CheckpointKind::Commit
    }

    /// Its name in a sentence.
    pub fn noun(self) -> &'static str {
        match self {
            CheckpointKind::Commit => "checkpoint",
            CheckpointKind::Point => "recovery point",
        }
    }
}

/// When checkpoints are committed and which are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointSpec {
    /// Commit every so many updates; `None`: only at the end and when stopped.
    pub every_steps: Option<u64>,
    /// Newest checkpoints kept; at least 2.
    pub keep: u32,
}

/// When recovery points are made, where, and what is in them.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveryPointSpec {
    /// One every so many updates.
    pub every_steps: u64,
    /// Where they are kept; `None`: beside the run.
    pub root: Option<String>,
    /// A shard writes only the rows that changed since it wrote all of them, while these are less than this part of its
    /// written rows. 0: always all.
    pub changes_below: f64,
}

impl RecoveryPointSpec {
    /// The root of the recovery points of a run under `root`.
    pub fn root(&self, root: &str) -> String {
        let beside = || format!("{}/recovery-points", root.trim_end_matches('/'));
        self.root.clone().unwrap_or_else(beside)
    }
}

/// Which checkpoint the boundary at state version `reached` asks for. A run that ends there commits.
pub fn checkpoint_due(
    (commits, points): (&CheckpointSpec, Option<&RecoveryPointSpec>),
    reached: Step,
    ends: bool,
) -> Option<CheckpointKind> {
    if ends || commits.every_steps.is_some_and(|every| reached.0.is_multiple_of(every)) {
        Some(CheckpointKind::Commit)
    } else if points.is_some_and(|points| reached.0.is_multiple_of(points.every_steps)) {
        Some(CheckpointKind::Point)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_asks_for_one_checkpoint_and_for_the_commit_first() {
        let commits = CheckpointSpec { every_steps: Some(6), keep: 2 };
        let points = RecoveryPointSpec { every_steps: 2, root: None, changes_below: 0.5 };
        let due = |step, ends| checkpoint_due((&commits, Some(&points)), Step(step), ends);
        assert_eq!([1, 3, 5].map(|step| due(step, false)), [None; 3]);
        assert_eq!([2, 4, 8].map(|step| due(step, false)), [Some(CheckpointKind::Point); 3]);
        assert_eq!([6, 12].map(|step| due(step, false)), [Some(CheckpointKind::Commit); 2]);
        assert_eq!([1, 2, 6].map(|step| due(step, true)), [Some(CheckpointKind::Commit); 3]);
        assert_eq!(checkpoint_due((&commits, None), Step(2), false), None);
    }

    #[test]
    fn recovery_points_lie_beside_the_run_unless_told_otherwise() {
        let beside = RecoveryPointSpec { every_steps: 2, root: None, changes_below: 0.5 };
        assert_eq!(beside.root("s3://bucket/prefix/"), "s3://bucket/prefix/recovery-points");
        let told = RecoveryPointSpec { root: Some("/nvme".into()), ..beside };
        assert_eq!(told.root("s3://bucket"), "/nvme");
    }
}
