//! Brings the dense state of a checkpoint to the engine.

use futures::TryStreamExt;
use polygram_checkpoint::NamedTensor;
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{Rank, RankLayout};
use polygram_member::stores::Resumption;
use tokio::sync::mpsc;

use crate::error::WorkerError;

/// Sends the engine what `rank` needs of the dense tensors of a checkpoint: the weights that it holds and the moments of
/// those that it updates. Of other ranks' experts and moments nothing is read but what lies in the same MiB. The checkpoint
/// must be at its step's place in the data.
pub async fn dense_state(
    from: &Resumption,
    spec: &RunSpec,
    rank: Rank,
    engine: mpsc::Sender<NamedTensor>,
) -> Result<(), WorkerError> {
    let Resumption { checkpoint, store, manifest } = from;
    let expected = checkpoint.step.0 * spec.samples_per_step();
    if manifest.cursor.samples != expected {
        return Err(from.unfit(format!(
            "it has consumed {} samples; with training.cells = {} and training.micro_batch_size = {} it would be \
             {expected}",
            manifest.cursor.samples, spec.training.cells, spec.training.micro_batch_size
        )).into());
    }
    let layout = RankLayout::of(&spec.model, &spec.topology, rank).map_err(WorkerError::Resume)?;
    let mut parts = store.tensors(&manifest.objects, |tensor| layout.needed(&tensor.name));
    while let Some(tensor) = parts.try_next().await.map_err(|source| from.unreadable(source))? {
        if engine.send(tensor).await.is_err() {
            return Err(WorkerError::OtherSide("compute"));
        }
    }
    Ok(())
}
