//! What can go wrong between a run and its store. One variant for each thing a caller can do differently.

use std::time::Duration;

use polygram_domain::{Step, words};

use crate::cover_error::CoverError;
use crate::keys;
use crate::problem::StoreProblem;

/// Why the store refused, failed or could not be believed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The root names a store that this build has no backend for.
    #[error(
        "root {root:?}: no backend for {scheme}://; use a folder, file:///path, s3://bucket/prefix, \
         gs://bucket/prefix or az://container/prefix"
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
    /// The store failed until patience ended; the request may be made again later.
    #[error("cannot {}: {}{}", .0.request(), .0.source, .0.persistence())]
    Store(Box<FailedRequest>),
    /// The store as a whole cannot be used: its address, its credentials or its bucket are wrong.
    #[error("cannot {} in {root}: {advice}{}", failed.request(), failed.persistence())]
    Refused {
        /// The root.
        root: String,
        /// What is wrong and what to do.
        advice: String,
        /// What was asked, and the store's words.
        failed: Box<FailedRequest>,
    },
    /// The store writes over an object that it was told to create only.
    #[error(
        "{root} cannot hold checkpoints: {reason}. Commits need writes that fail if the name exists (S3: If-None-Match); \
         use a store that has them, and leave AWS_CONDITIONAL_PUT unset"
    )]
    NoConditionalCreate {
        /// The root.
        root: String,
        /// What happened.
        reason: String,
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
    /// A manifest of another run. The folder is a copy; nothing in it is damaged.
    #[error(
        "{key} belongs to run {found}: the folder of run {run} is a copy of that run, and nothing of it is damaged. Remove the \
         copy, and make a run of its own with `polygram ckpt reshard {found} --workers W --shards S --to-run {run}`; or, where \
         run {found} itself is gone, rename the folder to {found}"
    )]
    OtherRun {
        /// Object.
        key: String,
        /// The run that it lies under.
        run: String,
        /// The run that wrote it.
        found: String,
    },
    /// An object of another schema version. It is sound, and another build's to read: it is neither quarantined nor removed.
    #[error(
        "{key} has schema {found}; this build reads schema {expected}: a{} build wrote it; use that build for this run, or \
         train under another run name", if .found > .expected { " newer" } else { "n older" }
    )]
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
    #[error(
        "the run was taken over by {by}: this coordinator (term {held}) stops, that one (term {current}) leads the run"
    )]
    Fenced {
        /// The caller's term.
        held: u64,
        /// The newest term.
        current: u64,
        /// Who claimed it, in words.
        by: String,
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

    /// The object that cannot be believed, if that is the error; where the manifest lacks something, the manifest. It is
    /// what to look at again before anybody believes that the store is at fault and not the way from it.
    pub fn object_at_fault(&self) -> Option<String> {
        match self {
            CheckpointError::Missing { key } | CheckpointError::Damaged { key, .. } => Some(key.clone()),
            CheckpointError::NoTensor { step, .. } | CheckpointError::NoBuckets { step, .. } => {
                Some(keys::manifest(*step))
            }
            _ => None,
        }
    }

    /// Whether the store did not do what was asked for a reason of its own (no room, no answer, no permission): nothing is
    /// wrong with what was asked.
    pub fn is_of_store(&self) -> bool {
        matches!(self, CheckpointError::Store(_) | CheckpointError::Refused { .. })
    }

    /// Whether the root itself cannot be opened as it was given.
    pub fn is_of_root(&self) -> bool {
        matches!(self, CheckpointError::BadRoot { .. } | CheckpointError::UnknownScheme { .. })
    }

    /// What keeps the store from doing what was asked, where that is the error.
    pub fn store_problem(&self) -> Option<StoreProblem> {
        match self {
            CheckpointError::Store(failed) | CheckpointError::Refused { failed, .. } => {
                Some(StoreProblem::of(&failed.source))
            }
            _ => None,
        }
    }

    /// Whether the store has no room left.
    pub fn is_full(&self) -> bool {
        self.store_problem() == Some(StoreProblem::NoRoom)
    }

    /// Whether the stored bytes are at fault (missing, damaged), so that trying again cannot help but an older checkpoint
    /// can. What another build wrote is not damaged.
    pub fn is_damage(&self) -> bool {
        matches!(self, CheckpointError::Missing { .. } | CheckpointError::Damaged { .. })
    }

    /// Whether the object is sound, and another build's to read.
    pub fn is_of_another_build(&self) -> bool {
        matches!(self, CheckpointError::Schema { .. })
    }

    /// Whether the object is sound, and another run's.
    pub fn is_of_another_run(&self) -> bool {
        matches!(self, CheckpointError::OtherRun { .. })
    }
}

/// A request that a store did not grant.
#[derive(Debug)]
pub struct FailedRequest {
    /// What was attempted: "read", "write", "list", "delete".
    pub action: &'static str,
    /// Object or prefix.
    pub key: String,
    /// How often.
    pub tries: u32,
    /// For how long.
    pub waited: Duration,
    /// The last reason.
    pub source: object_store::Error,
}

impl FailedRequest {
    fn request(&self) -> String {
        format!("{} {}", self.action, self.key)
    }

    /// How often and how long it was attempted, for the end of a message; nothing if it was once.
    fn persistence(&self) -> String {
        if self.tries < 2 {
            return String::new();
        }
        format!(
            " (gave up after {} in {:.1} s)",
            words::counted(self.tries.into(), "try"),
            self.waited.as_secs_f64()
        )
    }
}
