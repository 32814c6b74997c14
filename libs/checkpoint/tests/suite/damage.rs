//! Every object of a checkpoint dropped, cut and flipped in turn: `verify` names it, and nobody loads it.

use polygram_checkpoint::{CheckpointError, Content, Manifest, RunStore};
use polygram_domain::{Step, TableIndex};

use crate::support::{Backend, Split, State, header, spec};

/// What a program that restores the state does with the object.
async fn load(store: &RunStore, manifest: &Manifest, key: &str) -> Result<(), CheckpointError> {
    use futures::TryStreamExt;
    let entry = manifest.objects.iter().find(|entry| entry.key == key).unwrap();
    match &entry.content {
        Content::Rows { table, buckets, .. } => {
            store.read_rows(manifest, TableIndex(*table), buckets.clone(), |_| Ok(())).await
        }
        Content::Tensors { .. } => {
            let all = |tensor: &polygram_checkpoint::TensorEntry| Some(tensor.elements.clone());
            store.tensor_parts(entry, all).try_for_each(|_| std::future::ready(Ok(()))).await
        }
    }
}

#[tokio::test]
async fn damage_of_any_object_is_named_and_never_loaded() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let config = store.put_config("a = 1\n").await.unwrap();
        let split = Split { workers: 2, shards: 2, object_bytes: 1 << 17 };
        for step in [10, 20] {
            let parts = State::new(&spec, 1, step).write(&store, split).await;
            let header = polygram_checkpoint::ManifestHeader { config: config.clone(), ..header(Step(step)) };
            let manifest = Manifest::assemble(&spec, header, &parts).unwrap();
            store.commit(&manifest).await.unwrap();
        }
        let manifest = store.read_manifest(Step(20)).await.unwrap();
        let sound = store.verify(&manifest).await.unwrap();
        assert_eq!((sound.objects, sound.faults.len()), (manifest.objects.len(), 0), "{}", backend.name);
        assert!(manifest.objects.len() > 8);

        let config = format!("config/{config}.toml");
        let manifest_key = "ckpt/commit/000000000020.json".to_owned();
        let data = manifest.objects.iter().map(|entry| entry.key.clone());
        for (number, key) in data.chain([config.clone(), manifest_key.clone()]).enumerate() {
            let bytes = backend.raw(&spec, &key).await;
            let at = (number * 7919) % bytes.len();
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1 << (number % 8);
            let changes =
                [("dropped", None), ("cut", Some(bytes.slice(..at))), ("flipped", Some(flipped.into()))];
            for (change, with) in changes {
                match with {
                    None => backend.remove(&spec, &key).await,
                    Some(with) => backend.overwrite(&spec, &key, with).await,
                }
                let what = format!("{} {key} {change} at {at}", backend.name);
                let latest = store.latest_manifest().await.unwrap();
                if key == manifest_key {
                    let error = store.read_manifest(Step(20)).await.unwrap_err();
                    assert!(error.is_damage() && error.to_string().contains(&key), "{what}: {error}");
                    assert_eq!(latest.manifest.map(|m| m.step), Some(Step(10)), "{what}");
                    continue;
                }
                let found = store.verify(&manifest).await.unwrap();
                let named: Vec<&str> = found.faults.iter().map(|fault| fault.key.as_str()).collect();
                assert_eq!(named, [key.as_str()], "{what}: {found:?}");
                assert!(found.faults[0].reason.contains(&key), "{what}: {found:?}");
                let fault = store.find_fault(Step(20), &key).await.unwrap().expect(&what);
                assert!(fault.key == key || fault.reason.contains(&key), "{what}: {fault:?}");
                if key != config {
                    let error = load(&store, &manifest, &key).await.expect_err(&what);
                    assert!(error.is_damage() && error.to_string().contains(&key), "{what}: {error}");
                    // A length tells at once; what only checksums tell is found by whoever reads the object.
                    let step = if change == "flipped" { Step(20) } else { Step(10) };
                    assert_eq!(latest.manifest.map(|m| m.step), Some(step), "{what}");
                }
            }
            backend.overwrite(&spec, &key, bytes).await;
        }
        assert_eq!(store.verify(&manifest).await.unwrap(), sound);
        for key in manifest.objects.iter().map(|entry| &entry.key).chain([&config, &manifest_key]) {
            assert_eq!(store.find_fault(Step(20), key).await.unwrap(), None, "{key}");
        }
        assert_eq!(store.latest_manifest().await.unwrap().manifest, Some(manifest));
    }
}
