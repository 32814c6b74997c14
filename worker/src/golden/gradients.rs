//! One step of the golden models: loss and every gradient, dense ones as the ranks' sums, tables' as what a plain SGD step
//! of the shards moves.

use std::ops::Range;

use polygram_domain::{RowId, RowRef, Step};
use polygram_row_exchange::{Commit, RowExchange, SnapshotOrder};
use safetensors::SafeTensors;

use super::{Golden, Member, floats, on_ranks, path, run_of};

/// Largest relative difference of a tensor, in the 2-norm: as for the model alone.
const TOLERANCE: f64 = 1e-4;

fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(wanted).map(|(a, b)| f64::from(a - b)));
    let size = norm(&mut wanted.iter().map(|&v| f64::from(v)));
    if size == 0.0 { difference } else { difference / size }
}

/// One step of one rank: checks the loss and its own parts of the dense gradient against golden `model`.
fn check(model: &str, mut member: Member) {
    let (result, prepared, summed) = member.differentiate(Step(0));
    assert!(prepared.finite);
    let forward = std::fs::read(path(&format!("{model}/forward.safetensors"))).unwrap();
    let forward = SafeTensors::deserialize(&forward).unwrap();
    let wanted = f64::from(floats(forward.tensor("loss").unwrap().data())[0]);
    let loss = member.mean_loss(&result);
    assert!((loss - wanted).abs() <= 1e-5, "{model}: loss {loss}, wanted {wanted}");

    let file = std::fs::read(path(&format!("{model}/grads.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let mut checked = 0;
    for bucket in member.layout.buckets() {
        for (entry, own) in member.layout.within(bucket.own.clone()) {
            if !entry.spec.is_trained() {
                continue;
            }
            let name = &*entry.spec.name;
            let wanted = floats(file.tensor(name).unwrap().data());
            let start = entry.range.start;
            let found = summed.values(start + own.start..start + own.end);
            let error = relative_error(found, &wanted[own.clone()]);
            assert!(error <= TOLERANCE, "{model}: elements {own:?} of {name} are off by {error:e}");
            checked += own.len();
        }
    }
    assert!(checked > 0, "{model}: this rank updates nothing");
    let commit = Commit { scale: 1.0, lr: 1.0, snapshot: SnapshotOrder::None };
    member.runtime.block_on(member.client.commit(Step(0), commit)).unwrap();
    member.runtime.block_on(member.client.close()).unwrap();
}

/// The published gradients, on ranks whose cells are these runs of the model's sequences.
async fn agree(model: &'static str, sequences: &[Range<usize>]) {
    let spec = run_of(model, sequences.len() as u32, &["embedding.optimizer=sgd"]);
    let tables = spec.tables();
    let work = move |member: Member, _: &Golden| check(model, member);
    let shards = on_ranks(model, spec, sequences, work).await;
    let file = |name: &str| std::fs::read(path(&format!("{model}/{name}.safetensors"))).unwrap();
    let (weights, gradients) = (file("model"), file("grads"));
    let (weights, gradients) =
        (SafeTensors::deserialize(&weights).unwrap(), SafeTensors::deserialize(&gradients).unwrap());
    for table in tables.iter() {
        let before = floats(weights.tensor(&table.name).unwrap().data());
        let mut found = Vec::with_capacity(before.len());
        for (row, before) in before.chunks_exact(table.width as usize).enumerate() {
            let row = RowId(row as u32);
            let after =
                shards.iter().find_map(|shard| shard.weights(RowRef { table: table.index, row })).unwrap();
            found.extend(before.iter().zip(after).map(|(before, after)| before - after));
        }
        let wanted = floats(gradients.tensor(&table.name).unwrap().data());
        let error = relative_error(&found, &wanted);
        assert!(error <= TOLERANCE, "{model}: {} is off by {error:e}", table.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_gradients_through_real_shards() {
    agree("A", std::slice::from_ref(&(0..2))).await;
    agree("B", std::slice::from_ref(&(0..3))).await;
}

/// Two ranks with half of the experts each; B's cells are of unequal size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_gradients_on_two_ranks_that_divide_the_experts() {
    agree("A", &[0..1, 1..2]).await;
    agree("B", &[0..2, 2..3]).await;
}
