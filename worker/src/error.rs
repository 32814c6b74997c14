//! Why a worker leaves a run.

use polygram_checkpoint::CheckpointError;
use polygram_collective::{CollectiveError, JoinError};
use polygram_data::DataError;
use polygram_domain::control::MemberRef;
use polygram_domain::spikes::Spike;
use polygram_domain::{CheckpointRef, FailureKind, MicroBatchRef, Rank, Step};
use polygram_member::stores::kind_of;
use polygram_member::{FailureCause, FailureOrigin, MemberError, MemberFailure, RestoreError, RoleError};
use polygram_ngram::NgramError;
use polygram_process::Panicked;
use polygram_proto::control::ControlError;
use polygram_row_exchange::RowError;

use crate::compute::ComputeError;
use crate::gradients::GradientError;

/// The reason, with everything that a person needs to act on it.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// As for every role.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The compute thread did not end, so that this process cannot join again.
    #[error(
        "compute did not end within {seconds:.0} s after the end of this membership ({cause}); start this worker again"
    )]
    Stuck {
        /// Why the membership ended.
        cause: String,
        /// Time given.
        seconds: f64,
    },
    /// Tokens cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The files under the run's path do not hold the run's data.
    #[error(
        "rank {rank}: data.train = {path:?} is {found} here, but the run was started with {wanted}; give this host the \
         same files, or start the run again with data.allow_change=true"
    )]
    OtherData {
        /// This rank.
        rank: Rank,
        /// The path without extension.
        path: String,
        /// What the files are.
        found: String,
        /// What they should be.
        wanted: String,
    },
    /// The tables cannot be hashed into.
    #[error(transparent)]
    Tables(NgramError),
    /// Tokens cannot be hashed.
    #[error("{at}: {source}")]
    Ngram {
        /// The micro-batch.
        at: MicroBatchRef,
        /// Cause.
        source: NgramError,
    },
    /// A shard failed or refused.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// Another rank failed or left.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The other ranks could not be met.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The engine failed while starting, restoring or evaluating.
    #[error(transparent)]
    Engine(#[from] ComputeError),
    /// The engine failed on a cell.
    #[error("{at}: {source}")]
    Compute {
        /// The micro-batch.
        at: MicroBatchRef,
        /// Cause.
        source: ComputeError,
    },
    /// The checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// There is no store for a kind of checkpoint.
    #[error("this rank has no place for the {0}: see recovery_points.root of the run file")]
    NoPlace(CheckpointRef),
    /// The checkpoint that the run resumes from was not restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The checkpoint to go on from is not one.
    #[error("cannot resume: {0}")]
    Resume(String),
    /// Loss or gradient is not finite and the run stops on that.
    #[error(
        "step {step}: not finite (loss {loss}, gradient norm {grad_norm}, row gradients {}); nothing of this step was \
         applied. Lower training.lr, or set training.on_nonfinite to \"skip\" or \"roll_back\"",
        if *rows_finite { "finite" } else { "not finite" }
    )]
    NotFinite {
        /// Step.
        step: Step,
        /// Mean loss.
        loss: f64,
        /// Global norm.
        grad_norm: f64,
        /// Whether the shards found every row gradient finite.
        rows_finite: bool,
    },
    /// A spike, and the run stops on that.
    #[error("step {step}: {spike}; nothing of this step was applied (spikes.action = \"stop\")")]
    Spike {
        /// Step.
        step: Step,
        /// What it was.
        spike: Spike,
    },
    /// The run is to go back from a spike. Nothing is broken.
    #[error("step {step}: {cause}; nothing of this step was applied")]
    GoBack {
        /// Step.
        step: Step,
        /// What happened.
        cause: String,
    },
    /// Too much was skipped or gone back from.
    #[error(
        "step {step}: {cause}; {count} steps were skipped or gone back from within spikes.window_steps, and \
         spikes.max_actions allows no more. Look at the data and at training.lr before raising it"
    )]
    TooManyActions {
        /// Step.
        step: Step,
        /// What happened.
        cause: String,
        /// Actions so far.
        count: u32,
    },
    /// Ranks computed different steps.
    #[error("step {step}: rank {rank} disagrees: {what}")]
    Disagreement {
        /// The rank that differs.
        rank: Rank,
        /// Step.
        step: Step,
        /// Both values, and what became of the step.
        what: String,
    },
    /// The other half of this process is gone; its own error is the cause.
    #[error("the {0} side of this worker has ended")]
    OtherSide(&'static str),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Cause.
        source: std::io::Error,
    },
}

impl From<GradientError> for WorkerError {
    fn from(error: GradientError) -> WorkerError {
        match error {
            GradientError::Collective(error) => error.into(),
            GradientError::Panicked(error) => error.into(),
            GradientError::Ended => WorkerError::OtherSide("gradient"),
            GradientError::Thread(source) => {
                WorkerError::Io { what: "cannot start the gradients' thread".into(), source }
            }
        }
    }
}

impl From<ControlError> for WorkerError {
    fn from(error: ControlError) -> WorkerError {
        MemberError::from(error).into()
    }
}

impl From<Panicked> for WorkerError {
    fn from(error: Panicked) -> WorkerError {
        MemberError::from(error).into()
    }
}

impl RoleError for WorkerError {
    fn failure(&self) -> MemberFailure {
        let message = self.to_string();
        let rank = |rank: Option<&Rank>| rank.map(|rank| MemberRef::worker(*rank));
        match self {
            WorkerError::Member(error) => error.failure(),
            WorkerError::Restore(error) => error.failure(),
            WorkerError::Checkpoint(error) => MemberFailure::own(kind_of(error), message),
            WorkerError::Rows(error) => {
                let shard = error.shard.map(|(shard, _)| MemberRef::shard(shard));
                MemberFailure::of_peer(shard, error.cause.kind(), message)
            }
            WorkerError::Collective(error) => {
                MemberFailure::of_peer(rank(error.suspects().first()), error.kind(), message)
            }
            WorkerError::Join(error) => {
                MemberFailure::of_peer(rank(error.suspects().first()), error.kind(), message)
            }
            WorkerError::Disagreement { rank, .. } => MemberFailure {
                origin: FailureOrigin::Disputed(MemberRef::worker(*rank)),
                ..MemberFailure::own(FailureKind::Program, message)
            },
            WorkerError::Engine(source) | WorkerError::Compute { source, .. } => match source.suspect() {
                // The exchange between experts: a peer that failed for a reason of its own reports it itself.
                Some(rank) => {
                    MemberFailure::of_peer(Some(MemberRef::worker(rank)), FailureKind::Reset, message)
                }
                None => MemberFailure::own(FailureKind::Program, message),
            },
            WorkerError::GoBack { .. } => {
                let (origin, cause) = (FailureOrigin::Own, FailureCause::RollbackRequest);
                MemberFailure { origin, cause, message }
            }
            _ => MemberFailure::own(FailureKind::Program, message),
        }
    }
}
