//! A checkpoint that a member could not believe. The coordinator looks at it itself before it does.

use std::fmt;

use crate::Step;

/// Where a checkpoint lies among those of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointPlace {
    /// Updates applied in it.
    pub step: Step,
}

impl CheckpointPlace {
    /// The commit of `step`.
    pub fn commit(step: Step) -> CheckpointPlace {
        CheckpointPlace { step }
    }
}

impl fmt::Display for CheckpointPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the checkpoint of step {}", self.step)
    }
}

/// What a member found wrong with the checkpoint that it was to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedCheckpoint {
    /// The checkpoint.
    pub place: CheckpointPlace,
    /// The object that is missing, cut or altered, as its name in the run.
    pub key: String,
    /// What is wrong with it, one sentence that names it.
    pub reason: String,
}
