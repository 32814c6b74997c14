//! What can go wrong in the model, in words that say where and what to do.

use std::path::PathBuf;

use polygram_collective::CollectiveError;
use polygram_domain::Rank;
use polygram_process::Panicked;
use tch::TchError;

/// An error of this crate. Bad input ends in one of these, never in a panic.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A buffer or number handed in does not fit the model.
    #[error("{what}: found {found}, wanted {wanted}")]
    Input {
        /// Which argument.
        what: &'static str,
        /// What was there.
        found: String,
        /// What is legal.
        wanted: String,
    },
    /// Named state does not match the model's layout.
    #[error("state {name:?}: {problem}")]
    State {
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file was read, but it is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Tokens could not be exchanged with the ranks that hold the other experts.
    #[error(transparent)]
    Exchange(#[from] CollectiveError),
    /// What came from another rank cannot be right.
    #[error("expert exchange: rank {rank} sent {problem}; do all ranks run the same configuration?")]
    Message {
        /// The sender.
        rank: Rank,
        /// What does not fit.
        problem: String,
    },
    /// The thread that exchanges tokens panicked: a bug.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// libtorch refused: out of memory, or a device that is not there.
    #[error("libtorch: {0}")]
    Torch(String),
}

/// What functions of this crate return.
pub type Result<T> = std::result::Result<T, ModelError>;

impl From<TchError> for ModelError {
    fn from(error: TchError) -> ModelError {
        let text = error.to_string();
        // libtorch appends its C++ stack; the first line says what happened.
        ModelError::Torch(text.lines().next().unwrap_or("unknown error").trim_end_matches(" (").to_owned())
    }
}

impl ModelError {
    /// The rank of the run that this failure points at, if it is a consequence of another rank's.
    pub fn suspect(&self) -> Option<Rank> {
        match self {
            ModelError::Exchange(error) => error.suspects().first().copied(),
            ModelError::Message { rank, .. } => Some(*rank),
            _ => None,
        }
    }

    /// An argument that does not fit.
    pub(crate) fn input(what: &'static str, found: impl ToString, wanted: impl ToString) -> ModelError {
        ModelError::Input { what, found: found.to_string(), wanted: wanted.to_string() }
    }
}
