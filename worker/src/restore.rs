//! Brings the dense state of a checkpoint to the engine.

use polygram_checkpoint::object::Content;
use polygram_checkpoint::{Manifest, NamedTensor, RunStore};
use polygram_domain::Step;
use polygram_domain::run_spec::RunSpec;
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

/// Sends every dense tensor of `manifest` to the engine, object by object.
pub async fn dense_state(
    store: &RunStore,
    manifest: &Manifest,
    engine: mpsc::Sender<NamedTensor>,
) -> Result<(), WorkerError> {
    for entry in manifest.objects.iter().filter(|entry| matches!(entry.content, Content::Tensors { .. })) {
        let object = store.read_tensor_object(entry).await?;
        let mut tensors = Vec::new();
        object.slices(
            |_| true,
            |slice| {
                tensors.push(NamedTensor {
                    name: slice.name.to_owned(),
                    shape: slice.shape.to_vec(),
                    elements: slice.elements.clone(),
                    data: slice.data.to_vec(),
                });
            },
        )?;
        for tensor in tensors {
            if engine.send(tensor).await.is_err() {
                return Err(WorkerError::OtherSide("compute"));
            }
        }
    }
    Ok(())
}
