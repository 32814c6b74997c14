//! Opening the store of a run that is read, never made: reading creates nothing.

use polygram_checkpoint::{CheckpointError, CoordinatorRecord, RunStore};

use crate::exit::{Failure, Outcome};
use crate::settings::{Root, RunPlace};

/// A run's store, and the coordinator that ruled it last.
pub(crate) struct StoredRun {
    pub(crate) store: RunStore,
    pub(crate) coordinator: Option<CoordinatorRecord>,
}

/// Opens a run that exists: one that a coordinator has ruled, or that has a checkpoint.
pub(crate) async fn open(place: &RunPlace) -> Outcome<StoredRun> {
    let RunPlace { name, root } = place;
    let store = RunStore::open(&root.address(), name).map_err(|error| refused(root, error))?;
    let failed = |error| refused(root, error);
    let coordinator = store.latest_coordinator().await.map_err(failed)?;
    if coordinator.is_none() && store.committed_steps().await.map_err(failed)?.is_empty() {
        return Err(Failure::usage(format!("there is no run {name} in {root}"))
            .hint(format!("`polygram runs{}` lists what is there", root.as_option())));
    }
    Ok(StoredRun { store, coordinator })
}

/// A store's refusal: a root that cannot be opened is the user's matter, the rest is a failure.
pub(crate) fn refused(root: &Root, error: CheckpointError) -> Failure {
    match error {
        CheckpointError::BadRoot { .. } | CheckpointError::UnknownScheme { .. } => {
            Failure::usage(format!("cannot open {root}")).because(error)
        }
        other => Failure::failed(format!("cannot read what is stored in {root}")).because(other),
    }
}
