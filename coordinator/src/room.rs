//! A full store at the start of a run: what its run file does not keep any more makes room.

use std::time::Duration;

use polygram_checkpoint::{CheckpointError, RunStore};
use polygram_domain::{RunFile, RunSpec};

use crate::fit::check_fit;
use crate::opening_error::OpeningError;

/// A store that is full when a run starts is not waited for longer: nothing is lost yet.
const FULL_RETRY_LIMIT: Duration = Duration::from_secs(2);

/// Whether the store can hold checkpoints; `false`: it has no room to find out.
///
/// Errors: those of [`polygram_checkpoint::Root::probe_conditional_create`].
pub(crate) async fn has_room(store: &RunStore) -> Result<bool, CheckpointError> {
    match store.clone().with_retry_limit(FULL_RETRY_LIMIT).root().probe_conditional_create().await {
        Ok(()) => Ok(true),
        Err(error) if error.is_full() => Ok(false),
        Err(error) if error.is_of_store() => store.root().probe_conditional_create().await.map(|()| true),
        Err(error) => Err(error),
    }
}

/// Removes checkpoints that `spec` does not keep, from a run that nobody leads and that it can resume.
pub(crate) async fn make_room(store: &RunStore, file: &RunFile, spec: &RunSpec) -> Result<(), OpeningError> {
    if let Some(manifest) = store.latest_manifest().await?.manifest {
        check_fit(store, &manifest, file, spec).await?;
        let retained = store.retain(spec.checkpoint.keep as usize).await?;
        let steps: Vec<u64> = retained.removed.iter().map(|step| step.0).collect();
        tracing::warn!(
            ?steps,
            bytes = retained.removed_bytes,
            "the store is full: checkpoints that checkpoint.keep does not keep are removed"
        );
    }
    Ok(store.clone().with_retry_limit(FULL_RETRY_LIMIT).root().probe_conditional_create().await?)
}
