//! Why a worker leaves a run.

use polygram_checkpoint::{CheckpointError, StoreProblem};
use polygram_collective::{CollectiveError, JoinError};
use polygram_data::DataError;
use polygram_domain::spikes::Spike;
use polygram_domain::{CheckpointRef, ConfigError, FailureKind, MicroBatchRef, Rank, Step};
use polygram_ngram::NgramError;
use polygram_process::Panicked;
use polygram_process::address::AddressError;
use polygram_proto::bulk::RowError;
use polygram_proto::control::{
    Abort, AbortKind, CheckpointPlace, ControlError, DamagedCheckpoint, MemberRef,
};

use crate::compute::ComputeError;
use crate::gradients::GradientError;

/// The reason, with everything that a person needs to act on it.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The coordinator refused this worker or is gone.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No address can be given to the other ranks.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The coordinator ended the run.
    #[error("{0}")]
    Aborted(String),
    /// The run goes back to its last commit, with another generation of members.
    #[error("the run goes back to its last commit: {0}")]
    RolledBack(String),
    /// A signal came when there was nothing to commit, or came again.
    #[error("ended by a signal; what this worker had not committed is computed again when the run goes on")]
    Signalled,
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
    /// The configuration that the coordinator sent does not resolve here.
    #[error("configuration from the coordinator: {0}")]
    Config(#[from] ConfigError),
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
    /// The checkpoint to go on from cannot be read.
    #[error("the checkpoint of step {step} was not restored: {source}")]
    Unrestored {
        /// Its step.
        step: Step,
        /// Cause.
        source: CheckpointError,
    },
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
    /// A thread or task of this process panicked: a bug.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// The other half of this process is gone; its own error is the cause.
    #[error("the {0} side of this worker has ended")]
    OtherSide(&'static str),
    /// Signals cannot be listened for.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
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

impl From<Abort> for WorkerError {
    fn from(abort: Abort) -> WorkerError {
        match abort.kind {
            AbortKind::End => WorkerError::Aborted(abort.reason),
            AbortKind::Rejoin { .. } => WorkerError::RolledBack(abort.reason),
        }
    }
}

impl WorkerError {
    /// Whether the cause lies outside this process, so that it may join again as it is. After a failure of its own a new
    /// process is the better start.
    pub fn is_of_others(&self) -> bool {
        match self {
            WorkerError::RolledBack(_) | WorkerError::Rows(_) | WorkerError::Collective(_) => true,
            WorkerError::Join(_) | WorkerError::GoBack { .. } => true,
            WorkerError::Control(error) => error.may_rejoin(),
            WorkerError::Unrestored { .. } => self.damaged().is_some(),
            WorkerError::Engine(_) | WorkerError::Compute { .. } => self.suspect().is_some(),
            _ => false,
        }
    }

    /// The checkpoint that could not be restored because what was read of it is not what was written.
    pub fn damaged(&self) -> Option<DamagedCheckpoint> {
        let WorkerError::Unrestored { step, source } = self else { return None };
        let (place, reason) = (CheckpointPlace::commit(*step), source.to_string());
        source.object_at_fault().map(|key| DamagedCheckpoint { place, key, reason })
    }

    /// Whether the program or its environment failed.
    pub fn kind(&self) -> FailureKind {
        match self {
            WorkerError::Checkpoint(error) | WorkerError::Unrestored { source: error, .. } => {
                error.store_problem().map_or(FailureKind::Program, StoreProblem::failure_kind)
            }
            WorkerError::Rows(error) => error.cause.kind(),
            WorkerError::Collective(error) => error.kind(),
            WorkerError::Join(error) => error.kind(),
            WorkerError::Signalled => FailureKind::Signal,
            // The exchange between experts: a peer that failed for a reason of its own reports it itself.
            WorkerError::Engine(source) | WorkerError::Compute { source, .. }
                if source.suspect().is_some() =>
            {
                FailureKind::Reset
            }
            _ => FailureKind::Program,
        }
    }

    /// The peer that this failure points at, if it is a consequence of another member's.
    pub fn suspect(&self) -> Option<MemberRef> {
        match self {
            WorkerError::Rows(error) => error.shard.map(|(shard, _)| MemberRef::shard(shard)),
            WorkerError::Collective(error) => error.suspects().first().map(|rank| MemberRef::worker(*rank)),
            WorkerError::Join(error) => error.suspects().first().map(|rank| MemberRef::worker(*rank)),
            WorkerError::Disagreement { rank, .. } => Some(MemberRef::worker(*rank)),
            WorkerError::Engine(source) | WorkerError::Compute { source, .. } => {
                source.suspect().map(MemberRef::worker)
            }
            _ => None,
        }
    }
}
