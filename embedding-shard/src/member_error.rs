//! Why a shard leaves a run.

use polygram_checkpoint::{CheckpointError, StoreProblem};
use polygram_domain::FailureKind;
use polygram_member::stores::kind_of;
use polygram_member::{MemberError, MemberFailure, RestoreError, RoleError};
use polygram_process::Panicked;
use polygram_proto::control::ControlError;
use thiserror::Error;
use tokio::task::JoinError;

use crate::error::ShardError;

/// The reason, with everything that a person needs to act on it.
#[derive(Debug, Error)]
pub enum ShardMemberError {
    /// As for every role.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The run's store.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The checkpoint that the run resumes from.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The rows of that checkpoint.
    #[error("rows were not restored: {0}")]
    Rows(ShardError),
    /// The assignment does not fit this shard.
    #[error("{0}")]
    Assignment(String),
    /// Serving.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The report of a snapshot could not be written.
    #[error("the report of a snapshot cannot be written as JSON: {0}")]
    Part(#[from] serde_json::Error),
}

impl RoleError for ShardMemberError {
    fn failure(&self) -> MemberFailure {
        let kind = match self {
            ShardMemberError::Member(error) => return error.failure(),
            ShardMemberError::Restore(error) => return error.failure(),
            ShardMemberError::Store(error) => kind_of(error),
            ShardMemberError::Shard(ShardError::Snapshot { problem, .. }) => {
                problem.map_or(FailureKind::Program, StoreProblem::failure_kind)
            }
            ShardMemberError::Rows(_)
            | ShardMemberError::Assignment(_)
            | ShardMemberError::Shard(_)
            | ShardMemberError::Part(_) => FailureKind::Program,
        };
        MemberFailure::own(kind, self.to_string())
    }
}

impl From<ControlError> for ShardMemberError {
    fn from(error: ControlError) -> ShardMemberError {
        MemberError::from(error).into()
    }
}

impl From<JoinError> for ShardMemberError {
    fn from(error: JoinError) -> ShardMemberError {
        MemberError::from(Panicked::of_task("a task of this shard", error)).into()
    }
}
