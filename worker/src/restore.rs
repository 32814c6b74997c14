//! Brings the dense state of a checkpoint to the engine.

use futures::TryStreamExt;
use polygram_checkpoint::{Manifest, NamedTensor, RunStore};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{RankLayout, Step};
use tokio::sync::mpsc;

use crate::error::WorkerError;

/// The manifest of state version `step`, checked against this run: same cover, same place in the data.
pub async fn manifest_at(store: &RunStore, spec: &RunSpec, step: Step) -> Result<Manifest, WorkerError> {
    let manifest = store.read_manifest(step).await?;
    manifest.check_cover(spec).map_err(|error| WorkerError::Resume(error.to_string()))?;
    let expected = step.0 * spec.samples_per_step();
    if manifest.cursor.samples != expected {
        return Err(WorkerError::Resume(format!(
            "the checkpoint of step {step} has consumed {} samples; with training.cells = {} and \
             training.micro_batch_size = {} it would be {expected}",
            manifest.cursor.samples, spec.training.cells, spec.training.micro_batch_size
        )));
    }
    Ok(manifest)
}

/// Sends the engine what the rank of `layout` needs of the dense tensors of `manifest`: the weights that it holds and the moments of
/// those that it updates. Of other ranks' experts and moments nothing is read but what lies in the same MiB.
pub async fn dense_state(
    store: &RunStore,
    manifest: &Manifest,
    layout: &RankLayout,
    engine: mpsc::Sender<NamedTensor>,
) -> Result<(), WorkerError> {
    let mut parts = store.tensors(&manifest.objects, |tensor| layout.needed(&tensor.name));
    while let Some(tensor) = parts.try_next().await? {
        if engine.send(tensor).await.is_err() {
            return Err(WorkerError::OtherSide("compute"));
        }
    }
    Ok(())
}
