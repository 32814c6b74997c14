//! Opening the store of a run that is read, never made: reading creates nothing.

use polygram_checkpoint::{CheckpointError, CoordinatorRecord, Manifest, RunStore};
use polygram_domain::Step;

use crate::exit::{Failure, Outcome};
use crate::printer::Printer;
use crate::settings::{Root, RunPlace};

/// A run's store, and the coordinator that ruled it last.
pub(crate) struct StoredRun {
    pub(crate) store: RunStore,
    pub(crate) coordinator: Option<CoordinatorRecord>,
}

/// Opens a run that exists: one that a coordinator has ruled, or that has a checkpoint.
pub(crate) async fn open(place: &RunPlace) -> Outcome<StoredRun> {
    let RunPlace { name, root } = place;
    find(place).await?.ok_or_else(|| {
        Failure::usage(format!("there is no run {name} in {root}"))
            .hint(format!("`polygram runs{}` lists what is there", root.as_option()))
    })
}

/// The same; `None` where there is no such run.
pub(crate) async fn find(place: &RunPlace) -> Outcome<Option<StoredRun>> {
    let RunPlace { name, root } = place;
    let store = RunStore::open(&root.address(), name).map_err(|error| refused(root, error))?;
    let failed = |error| refused(root, error);
    let coordinator = match store.latest_coordinator().await {
        // Who led it last is not known then; its checkpoints are sound all the same.
        Err(CheckpointError::Damaged { .. })
            if !store.committed_steps().await.map_err(failed)?.is_empty() =>
        {
            None
        }
        coordinator => coordinator.map_err(failed)?,
    };
    if coordinator.is_none() && store.committed_steps().await.map_err(failed)?.is_empty() {
        return Ok(None);
    }
    Ok(Some(StoredRun { store, coordinator }))
}

/// The checkpoint of `step`, or the newest that verifies.
pub(crate) async fn checkpoint(
    store: &RunStore,
    place: &RunPlace,
    step: Option<u64>,
    printer: &mut Printer,
) -> Outcome<Manifest> {
    match step {
        Some(step) => at_step(store, place, Step(step)).await,
        None => newest(store, place, printer).await,
    }
}

async fn at_step(store: &RunStore, place: &RunPlace, step: Step) -> Outcome<Manifest> {
    let failed = |error| refused(&place.root, error);
    match store.read_manifest(step).await {
        Ok(manifest) => Ok(manifest),
        Err(CheckpointError::Missing { .. }) => {
            let steps = store.committed_steps().await.map_err(failed)?;
            let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
            let there = if steps.is_empty() { "none yet".to_owned() } else { steps.join(", ") };
            Err(Failure::usage(format!("run {} has no checkpoint of step {step}", place.name))
                .hint(format!("committed steps: {there}")))
        }
        Err(error) => Err(failed(error)),
    }
}

async fn newest(store: &RunStore, place: &RunPlace, printer: &mut Printer) -> Outcome<Manifest> {
    let latest = store.latest_manifest().await.map_err(|error| refused(&place.root, error))?;
    for damaged in &latest.damaged {
        printer.warn(format!("the checkpoint of step {} is passed over: {}", damaged.step, damaged.reason));
    }
    latest.manifest.ok_or_else(|| Failure::failed(format!("run {} has no checkpoint yet", place.name)))
}

/// A store's refusal: a root that cannot be opened is the user's matter, the rest is a failure.
pub(crate) fn refused(root: &Root, error: CheckpointError) -> Failure {
    match error {
        // Each names what is wrong itself.
        CheckpointError::BadRoot { reason, .. } if reason.contains(&root.address()) => Failure::usage(reason),
        CheckpointError::BadRoot { .. }
        | CheckpointError::UnknownScheme { .. }
        | CheckpointError::OtherRun { .. }
        | CheckpointError::AlreadyCommitted { .. } => Failure::usage(error.to_string()),
        CheckpointError::Refused { .. } => Failure::usage(format!("cannot open {root}")).because(error),
        other => Failure::failed(format!("cannot read what is stored in {root}")).because(other),
    }
}
