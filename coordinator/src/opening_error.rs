//! Why a run cannot be opened.

use polygram_checkpoint::{CheckpointError, CoverError};
use polygram_domain::ConfigError;

use crate::compatibility::Incompatible;

/// Why a run cannot be led.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// The configuration is not legal.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The configuration does not fit the checkpoint.
    #[error("run {run} cannot be resumed: {source}")]
    Incompatible {
        /// The run.
        run: String,
        /// What changed.
        source: Incompatible,
    },
    /// The checkpoint does not hold the state of the configuration.
    #[error("run {run} cannot be resumed from step {step}: {source}")]
    Cover {
        /// The run.
        run: String,
        /// The checkpoint's step.
        step: u64,
        /// What is missing or too much.
        source: CoverError,
    },
    /// The configuration that the checkpoint was made with is not in the store.
    #[error(
        "run {run} cannot be resumed from step {step}: {key}, the configuration of that step, is not in the store any more \
         (has a rule of the store removed what is old?); start once with the very run file and overrides of that time, \
         which are recognised and written again, or copy the object back"
    )]
    ConfigGone {
        /// The run.
        run: String,
        /// The checkpoint's step.
        step: u64,
        /// The configuration's object.
        key: String,
    },
    /// Checkpoints exist, but none can be believed.
    #[error(
        "run {run} has {count} checkpoints and none of them verifies (newest: {key}: {reason}); repair the store or \
         train under another run name"
    )]
    AllDamaged {
        /// The run.
        run: String,
        /// How many.
        count: usize,
        /// The newest one's object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another coordinator leads the run right now.
    #[error(
        "run {run} is led by {leader}; stop it there first, or take the run over with --take-over: the other one ends then, \
         and what it has not committed is computed again"
    )]
    Led {
        /// The run.
        run: String,
        /// That coordinator, its host and when it was last heard.
        leader: String,
    },
}

impl OpeningError {
    /// Whether the user asked for something that cannot be: the configuration or the command is what has to be changed.
    /// Nothing of the run was written then.
    pub fn is_of_configuration(&self) -> bool {
        match self {
            OpeningError::Config(_) | OpeningError::Incompatible { .. } | OpeningError::Led { .. } => true,
            OpeningError::Store(error) => error.is_of_root() || error.is_of_another_run(),
            _ => false,
        }
    }
}
