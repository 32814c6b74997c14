//! What can go wrong between a run and its store. One variant for each thing a caller can do differently.

use polygram_domain::Step;

use crate::cover::CoverError;

/// Why the store refused, failed or could not be believed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The root names a store that this build has no backend for.
    #[error(
        "root {root:?}: no backend for {scheme}:// in this build; use file:///path, a plain path, or memory:// in tests"
    )]
    UnknownScheme {
        /// The root as given.
        root: String,
        /// Its scheme.
        scheme: String,
    },
    /// The root is not a URL or path that can be opened.
    #[error("root {root:?}: {reason}")]
    BadRoot {
        /// The root as given.
        root: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The backend failed; the request may be tried again.
    #[error("cannot {action} {key}: {source}")]
    Store {
        /// What was attempted: "read", "write", "list", "delete".
        action: &'static str,
        /// Object or prefix.
        key: String,
        /// The backend's reason.
        source: object_store::Error,
    },
    /// An object that something refers to is not there.
    #[error("{key} does not exist")]
    Missing {
        /// Object.
        key: String,
    },
    /// An object's bytes are not what was written, or never were legal. Do not use it; do not retry.
    #[error("{key} is damaged: {reason}")]
    Damaged {
        /// Object.
        key: String,
        /// How it was noticed.
        reason: String,
    },
    /// An object of another schema version.
    #[error("{key} has schema {found}; this build reads schema {expected}")]
    Schema {
        /// Object.
        key: String,
        /// Its version.
        found: u32,
        /// [`polygram_domain::SCHEMA_VERSION`].
        expected: u32,
    },
    /// Another manifest is committed for the step. The caller has lost a race, or trains twice.
    #[error("step {step} of run {run} is already committed with another content ({key})")]
    AlreadyCommitted {
        /// Run.
        run: String,
        /// Step.
        step: Step,
        /// The committed manifest.
        key: String,
    },
    /// A numbered object exists with another content.
    #[error("{key} already exists with another content; numbered objects are never rewritten")]
    AlreadyExists {
        /// Object.
        key: String,
    },
    /// The parts do not make a whole checkpoint.
    #[error(transparent)]
    Cover(#[from] CoverError),
    /// The manifest lacks a tensor that the caller wants.
    #[error("the checkpoint of step {step} has no complete tensor {name:?}")]
    NoTensor {
        /// Step of the manifest.
        step: Step,
        /// Tensor.
        name: String,
    },
    /// The manifest lacks buckets that the caller wants.
    #[error("the checkpoint of step {step} has no rows for buckets {start}..{end} of table {table}")]
    NoBuckets {
        /// Step of the manifest.
        step: Step,
        /// Table.
        table: u32,
        /// First absent bucket.
        start: u32,
        /// One past the last wanted bucket.
        end: u32,
    },
    /// The caller handed over something that must not be written.
    #[error("refused to write {what}: {reason}")]
    Input {
        /// Object, tensor or table.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer coordinator has claimed the run.
    #[error("term {held} is fenced: term {current} has been claimed; this coordinator must stop")]
    Fenced {
        /// The caller's term.
        held: u64,
        /// The newest term.
        current: u64,
    },
    /// The runtime is shutting down; the operation did not finish.
    #[error("the runtime shut down before the operation finished")]
    ShuttingDown,
}

impl CheckpointError {
    pub(crate) fn damaged(key: &str, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::Damaged { key: key.to_owned(), reason: reason.into() }
    }

    pub(crate) fn input(what: impl Into<String>, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::Input { what: what.into(), reason: reason.into() }
    }

    /// Whether the stored bytes are at fault (missing, damaged, of another schema), so that trying again cannot
    /// help but an older checkpoint can.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            CheckpointError::Missing { .. }
                | CheckpointError::Damaged { .. }
                | CheckpointError::Schema { .. }
        )
    }
}
