//! How a measurement fails.

use std::io;
use std::path::PathBuf;

use polygram_domain::ConfigError;
use polygram_row_exchange::RowError;
use thiserror::Error;

use crate::error::ShardError;

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// Flags that make no sense together.
    #[error("{0}")]
    Usage(String),
    /// The run file behind the sizes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A store or a shard.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The exchange with a shard.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// A file of ids.
    #[error("{path}: {rule}")]
    Ids {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        rule: String,
    },
    /// A process that was started for the measurement.
    #[error("the process of shard {index} {what}")]
    Process {
        /// Its shard.
        index: u32,
        /// What it did.
        what: String,
    },
    /// The machine's part.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A report that cannot be written as JSON.
    #[error("the report cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A thread of the measurement panicked.
    #[error("a thread of the measurement ended abnormally")]
    Thread,
}

impl BenchError {
    /// For `map_err`: what was tried when the system refused.
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> BenchError {
        move |source| BenchError::Io { what, source }
    }
}
