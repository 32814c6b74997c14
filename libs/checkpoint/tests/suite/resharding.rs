//! The same state in another division: same digest, and members that find their own in objects of their own.

use polygram_checkpoint::{CheckpointError, Committed, Content, Manifest, ManifestHeader, RunStore};
use polygram_domain::tables::buckets_of;
use polygram_domain::{Rank, RankLayout, RunName, ShardIndex, Step};

use crate::support::{Backend, Split, State, header, spec};

const FROM: Split = Split { workers: 3, shards: 2, object_bytes: 1 << 15 };

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
        let resharded = store.reshard(&manifest, &target, (&to, header(Step(20)))).await.unwrap();
        assert_eq!(resharded.digest, store.digest(&manifest).await.unwrap(), "{}", backend.name);
        assert_eq!(resharded.committed, Committed::Now);
        assert_eq!(target.latest_manifest().await.unwrap().manifest, Some(resharded.manifest.clone()));
        resharded.manifest.check_cover(&to).unwrap();
        // Again: the same objects, the same manifest.
        let again = store.reshard(&manifest, &target, (&to, header(Step(20)))).await.unwrap();
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
        let error = store.reshard(&manifest, &target, (&to, header(Step(20)))).await.unwrap_err();
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
    let error = store.reshard(&lying, &target, (&to, header)).await.unwrap_err();
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
    other.tensors[tensor].data[0] += 1.0;
    other.tables[1].1[0].updates += 1;
    other.tables[2].1.pop();
    let second = other.manifest(&store, &spec, FROM).await;
    let (first, second) =
        (store.state_digest(&first).await.unwrap(), store.state_digest(&second).await.unwrap());
    assert_eq!(first.differences(&first), []);
    let found: Vec<String> =
        first.differences(&second).into_iter().map(|difference| difference.name).collect();
    let expected = [other.tensors[tensor].name.clone(), "table 1".into(), "table 2".into()];
    assert_eq!(found, expected);
}
