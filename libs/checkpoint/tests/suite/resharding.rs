//! The same state in another division: same digest, and members that find their own in objects of their own.

use futures::TryStreamExt;
use polygram_checkpoint::digest::{StateDigest, TensorDigest};
use polygram_checkpoint::{
    CheckpointError, Committed, Content, Manifest, ManifestHeader, NamedTensor, OwnedRow, PartRef, Placement,
    ReshardTarget, Root, RowRecord, RunStore, TableShape,
};
use polygram_domain::tables::{BUCKETS, buckets_of};
use polygram_domain::{Rank, RankLayout, RowId, RunName, RunSpec, ShardIndex, Step, TableIndex, Topology};

use crate::faulty::{Faults, Faulty};
use crate::support::{Backend, Split, State, header, spec};

const FROM: Split = Split { workers: 3, shards: 2, object_bytes: 1 << 15 };

/// Another run's store as the place for a checkpoint of step 20.
fn beside<'a>(store: &'a RunStore, spec: &'a RunSpec) -> ReshardTarget<'a> {
    ReshardTarget { store, placement: Placement::Beside, spec, header: header(Step(20)) }
}

#[tokio::test]
async fn another_division_has_the_same_digest_and_objects_of_its_own() {
    let from = spec(&[]);
    let sets =
        ["topology.workers=4", "topology.expert_parallel=2", "topology.shards=3", "run.name=\"other\""];
    let to = spec(&sets);
    for backend in Backend::all() {
        let store = backend.run(&from);
        let manifest = State::new(&from, 1, 20).manifest(&store, &from, FROM).await;
        store.commit(&manifest).await.unwrap();
        let target = RunStore::at(backend.root.clone(), &RunName::new("other").unwrap());
        let resharded = store.reshard(&manifest, beside(&target, &to)).await.unwrap();
        assert_eq!(resharded.digest, store.digest(&manifest).await.unwrap(), "{}", backend.name);
        assert_eq!(resharded.committed, Committed::Now);
        assert_eq!(target.latest_manifest().await.unwrap().manifest, Some(resharded.manifest.clone()));
        resharded.manifest.check_cover(&to).unwrap();
        // Again: the same objects, the same manifest.
        let again = store.reshard(&manifest, beside(&target, &to)).await.unwrap();
        assert_eq!((again.committed, &again.manifest), (Committed::Before, &resharded.manifest));

        for object in &resharded.manifest.objects {
            let member = object.key.split('-').nth(1).unwrap();
            let number: u32 = object.key.split('-').nth(2).unwrap().parse().unwrap();
            match &object.content {
                Content::Rows { buckets, .. } => {
                    assert_eq!(member, "shard");
                    let own = buckets_of(ShardIndex(number), 3);
                    assert!(own.start <= buckets.start && buckets.end <= own.end, "{}", object.key);
                }
                Content::Tensors { tensors } => {
                    assert_eq!(member, "worker");
                    let layout = RankLayout::of(&to.model, &to.topology, Rank(number)).unwrap();
                    for tensor in tensors {
                        let needed = layout.needed(&tensor.name).unwrap();
                        assert!(needed.start <= tensor.elements.start && tensor.elements.end <= needed.end);
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn in_place_only_the_manifest_is_replaced() {
    let spec = spec(&["topology.workers=2", "topology.shards=2"]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let manifest = State::new(&spec, 1, 20).manifest(&store, &spec, FROM).await;
        store.commit(&manifest).await.unwrap();
        let refused = store.reshard(&manifest, beside(&store, &spec)).await;
        assert!(matches!(refused, Err(CheckpointError::AlreadyCommitted { .. })), "{refused:?}");
        let target = ReshardTarget { placement: Placement::InPlace, ..beside(&store, &spec) };
        let resharded = store.reshard(&manifest, target).await.unwrap();
        assert_eq!(
            store.latest_manifest().await.unwrap().manifest,
            Some(resharded.manifest),
            "{}",
            backend.name
        );
        let garbage = store.garbage().await.unwrap();
        assert!(garbage.len() >= manifest.objects.len() / 2, "the old objects are nobody's now");
        store.remove_garbage(&garbage).await.unwrap();
        let left = store.latest_manifest().await.unwrap().manifest.unwrap();
        assert_eq!(store.digest(&left).await.unwrap(), resharded.digest);
    }
}

#[tokio::test]
async fn a_damaged_original_is_not_written_anew() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    let manifest = State::new(&spec, 1, 20).manifest(&store, &spec, FROM).await;
    for end in [".rows", ".safetensors"] {
        let key = &manifest.objects.iter().rfind(|object| object.key.ends_with(end)).unwrap().key;
        let sound = backend.raw(&spec, key).await;
        let mut bytes = sound.to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 64;
        backend.overwrite(&spec, key, bytes).await;
        let target = RunStore::at(backend.root.clone(), &RunName::new("tiny-2").unwrap());
        let to = polygram_domain::RunSpec { name: RunName::new("tiny-2").unwrap(), ..spec.clone() };
        let error = store.reshard(&manifest, beside(&target, &to)).await.unwrap_err();
        assert!(error.is_damage() && error.to_string().contains(key), "{error}");
        assert_eq!(target.committed_steps().await.unwrap(), []);
        backend.overwrite(&spec, key, sound).await;
    }
}

/// Whoever made the manifest, a state that came out differently is refused before the commit.
#[tokio::test]
async fn another_position_in_the_data_is_another_state() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    let manifest = State::new(&spec, 1, 20).manifest(&store, &spec, FROM).await;
    let lying = Manifest { seed: manifest.seed + 1, ..manifest };
    let target = RunStore::at(backend.root.clone(), &RunName::new("tiny-3").unwrap());
    let to = polygram_domain::RunSpec { name: RunName::new("tiny-3").unwrap(), ..spec };
    let header = ManifestHeader { created_unix_ms: 1, ..header(Step(20)) };
    let error = store.reshard(&lying, ReshardTarget { header, ..beside(&target, &to) }).await.unwrap_err();
    assert!(matches!(error, CheckpointError::Input { .. }), "{error}");
    assert_eq!(target.committed_steps().await.unwrap(), []);
}

#[tokio::test]
async fn differences_are_named() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    let state = State::new(&spec, 1, 20);
    let first = state.manifest(&store, &spec, FROM).await;
    let mut other = state.clone();
    let tensor = other.tensors.len() / 2;
    other.alter(tensor, 0, |value| *value += 1.0);
    other.tables[1].1[0].updates += 1;
    let last = other.tables[2].1.pop().unwrap();
    other.tables[3].1[4].values[0] += 0.5;
    *other.tables[3].1[4].values.last_mut().unwrap() -= 0.25;
    // Written by other members, in objects of other sizes.
    let split = Split { workers: 2, shards: 3, object_bytes: 1 << 13 };
    let second = other.manifest(&store, &spec, split).await;
    let (a, b) = (store.state_digest(&first).await.unwrap(), store.state_digest(&second).await.unwrap());
    assert_eq!(a.differences(&a), []);
    assert_eq!((a.compared(&a), a.compared(&b)), (a.len(), a.len()));
    let mut found = a.differences(&b);
    let names: Vec<&str> = found.iter().map(|difference| difference.name.as_str()).collect();
    assert_eq!(names, [other.tensors[tensor].name.as_str(), "table 1", "table 2", "table 3"]);

    polygram_checkpoint::compare::measure((&store, &first), (&store, &second), &mut found).await.unwrap();
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let close = |found: f64, wanted: f64| (found - wanted).abs() < 1e-6 * wanted;
    let of_tensor = found[0].distance.unwrap();
    let altered = f64::from(other.tensors[tensor].data[0]) - f64::from(state.tensors[tensor].data[0]);
    assert_eq!(of_tensor.max_abs, altered);
    let whole = norm(&mut state.tensors[tensor].data.iter().copied());
    assert!(close(of_tensor.relative_l2, altered / whole), "{of_tensor:?}");
    assert_eq!(found[1].distance.unwrap().max_abs, 0.0, "only a count of updates differs");
    let rows = found[2].rows.unwrap();
    let written = state.tables[2].1.len() as u64;
    assert_eq!((rows.rows, rows.only_first, rows.only_second), (written - 1, 1, 0), "row {:?}", last.row);
    let width = state.tables[3].0.width as usize;
    let weights = norm(&mut state.tables[3].1.iter().flat_map(|row| row.values[..width].iter().copied()));
    let optimizer = norm(&mut state.tables[3].1.iter().flat_map(|row| row.values[width..].iter().copied()));
    let (of_weights, of_rows) = (found[3].distance.unwrap(), found[3].rows.unwrap());
    assert!(close(of_weights.max_abs, 0.5) && close(of_weights.relative_l2, 0.5 / weights), "{of_weights:?}");
    let of_optimizer = of_rows.optimizer;
    assert!(
        close(of_optimizer.max_abs, 0.25) && close(of_optimizer.relative_l2, 0.25 / optimizer),
        "{of_rows:?}"
    );

    // A tensor that one state lacks is counted once, and has no distance.
    let mut lacking = StateDigest::default();
    lacking.tensor("only.here", &[1], TensorDigest::default());
    let mut found = lacking.differences(&a);
    assert_eq!((lacking.compared(&a), found.len()), (a.len() + 1, a.len() + 1));
    polygram_checkpoint::compare::measure((&store, &first), (&store, &first), &mut found).await.unwrap();
    assert!(found.iter().all(|difference| difference.distance.is_none()));
}

/// The sizes that make a rank's share differ from the whole: experts of 6 MiB, and moments of all of it.
const LARGE: [&str; 4] = [
    "model.hidden_size=512",
    "model.expert_ffn_hidden_size=1024",
    "model.ffn_hidden_size=1024",
    "topology.workers=4",
];

#[tokio::test]
#[allow(clippy::print_stderr)] // the figures are what one runs it for
async fn a_rank_and_a_shard_read_their_own_and_little_more() {
    let spec = spec(&LARGE);
    let backend = Backend::memory();
    let state = State::new(&spec, 1, 20);
    let split = Split { workers: 1, shards: 1, object_bytes: 64 << 20 };
    let manifest = state.manifest(&backend.run(&spec), &spec, split).await;
    let faulty = Faulty::new(backend.root.store().clone(), 0, Faults::default());
    let store = RunStore::at(Root::of(faulty.clone()), &spec.name);
    let objects = || manifest.objects.iter().filter(|o| matches!(o.content, Content::Tensors { .. }));
    let total: u64 = objects().map(|object| object.bytes).sum();
    for expert_parallel in [1, 4] {
        let topology = Topology { expert_parallel, ..spec.topology };
        let layout = RankLayout::of(&spec.model, &topology, Rank(3)).unwrap();
        let (before, mut needed) = (faulty.read_bytes(), 0);
        for entry in objects() {
            let parts: Vec<NamedTensor> =
                store.tensor_parts(entry, |tensor| layout.needed(&tensor.name)).try_collect().await.unwrap();
            for part in &parts {
                let whole = state.tensors.iter().find(|tensor| tensor.name == part.name).unwrap();
                let elements = part.elements.start as usize..part.elements.end as usize;
                assert_eq!(&part.data[..], &whole.data[elements], "{}", part.name);
            }
            needed += parts.iter().map(|part| 4 * part.data.len() as u64).sum::<u64>();
        }
        let read = faulty.read_bytes() - before;
        eprintln!("E = {expert_parallel}: {needed} bytes needed, {read} read of {total}");
        assert!(read >= needed && read < needed + needed / 4 + (8 << 20), "{read} of {needed}");
        // Weights of a quarter of the experts, and a quarter of all moments: far from everything.
        assert!(expert_parallel == 1 || read < total / 2, "{read} of {total}");
    }

    let table = TableShape { table: TableIndex(0), rows: 1 << 16, width: 64, state_values: 128 };
    let rows = (0..table.rows).map(|row| OwnedRow { row: RowId(row), updates: 1, values: vec![1.0; 192] });
    let one_object = store.clone().with_object_bytes(1 << 30);
    let written = one_object
        .write_rows(PartRef { step: Step(1), member: "shard-0" }, table, 0..BUCKETS, rows)
        .await
        .unwrap();
    let manifest = Manifest { objects: written, ..manifest };
    let total = manifest.bytes();
    let (before, mut seen) = (faulty.read_bytes(), 0);
    let own = buckets_of(ShardIndex(2), 8);
    let count = |_: RowRecord<'_>| -> Result<(), CheckpointError> {
        seen += 1;
        Ok(())
    };
    store.read_rows(&manifest, table.table, own, count).await.unwrap();
    let read = faulty.read_bytes() - before;
    eprintln!("1 shard of 8: {read} bytes read of {total}");
    assert_eq!((seen, manifest.objects.len()), (table.rows / 8, 1));
    assert!(read < total / 8 + (4 << 20), "{read} of {total}");
}
