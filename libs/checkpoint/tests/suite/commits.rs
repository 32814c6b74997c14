//! The commit point, the latest checkpoint, retention: on every store.

use std::collections::BTreeSet;

use polygram_checkpoint::{CheckpointError, Committed, Latest, Manifest, QuarantineReason};
use polygram_domain::Step;

use crate::support::{Backend, ONE, Split, State, commit, spec};

#[tokio::test]
async fn a_commit_is_read_back_and_may_be_retried() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        assert_eq!(
            store.latest_manifest().await.unwrap(),
            Latest { manifest: None, damaged: Vec::new() },
            "{}",
            backend.name
        );
        let manifest = commit(&store, &spec, 20).await;
        assert_eq!(store.commit(&manifest).await.unwrap(), Committed::Before);
        assert_eq!(store.read_manifest(Step(20)).await.unwrap(), manifest);
        assert_eq!(store.latest_manifest().await.unwrap().manifest, Some(manifest.clone()));
        assert_eq!(store.committed_steps().await.unwrap(), [Step(20)]);
        manifest.check_cover(&spec).unwrap();
        assert!(matches!(store.read_manifest(Step(21)).await, Err(CheckpointError::Missing { .. })));
        let mut foreign = manifest;
        foreign.run = "another".into();
        assert!(matches!(store.commit(&foreign).await, Err(CheckpointError::Input { .. })));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_racing_writers_exactly_one_commits() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let manifest = State::new(&spec, 1, 20).manifest(&store, &spec, ONE).await;
        for round in 0..8 {
            let step = Step(20 + round);
            let mut writers = tokio::task::JoinSet::new();
            for writer in 0..8 {
                let store = store.clone();
                let manifest = Manifest { step, created_unix_ms: writer, ..manifest.clone() };
                writers.spawn(async move { (store.commit(&manifest).await, manifest) });
            }
            let results = writers.join_all().await;
            let won: Vec<&Manifest> =
                results.iter().filter(|(r, _)| matches!(r, Ok(Committed::Now))).map(|(_, m)| m).collect();
            let lost = results.iter().filter(
                |(r, _)| matches!(r, Err(CheckpointError::AlreadyCommitted { step: s, .. }) if *s == step),
            );
            assert_eq!((won.len(), lost.count()), (1, 7), "{}", backend.name);
            assert_eq!(&store.read_manifest(step).await.unwrap(), won[0]);
        }
    }
}

#[tokio::test]
async fn nothing_is_committed_before_its_objects_are_there() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let manifest = State::new(&spec, 1, 20).manifest(&store, &spec, ONE).await;
        let object = manifest.objects.last().unwrap();
        let bytes = backend.raw(&spec, &object.key).await;
        backend.overwrite(&spec, &object.key, bytes.slice(..bytes.len() - 1)).await;
        assert!(matches!(store.commit(&manifest).await, Err(CheckpointError::Damaged { .. })));
        backend.remove(&spec, &object.key).await;
        let error = store.commit(&manifest).await.unwrap_err();
        assert!(matches!(error, CheckpointError::Missing { ref key } if *key == object.key), "{error}");
        assert_eq!(store.committed_steps().await.unwrap(), []);
    }
}

#[tokio::test]
async fn damaged_checkpoints_are_passed_over_reported_and_set_aside() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let good = commit(&store, &spec, 10).await;
        let lost_object = commit(&store, &spec, 20).await;
        backend.remove(&spec, &lost_object.objects[0].key).await;
        let cut_object = commit(&store, &spec, 30).await;
        backend.overwrite(&spec, &cut_object.objects[3].key, "short").await;
        let flipped = commit(&store, &spec, 40).await;
        let key = "ckpt/commit/000000000040.json";
        let mut bytes = backend.raw(&spec, key).await.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        backend.overwrite(&spec, key, bytes).await;
        // A manifest under another's name, and one that is no manifest.
        let stolen = backend.raw(&spec, "ckpt/commit/000000000010.json").await;
        backend.overwrite(&spec, "ckpt/commit/000000000050.json", stolen).await;
        backend.overwrite(&spec, "ckpt/commit/000000000060.json", "{}").await;

        let latest = store.latest_manifest().await.unwrap();
        assert_eq!(latest.manifest, Some(good), "{}", backend.name);
        let steps: Vec<u64> = latest.damaged.iter().map(|d| d.step.0).collect();
        assert_eq!(steps, [60, 50, 40, 30, 20]);
        assert!(latest.damaged[4].reason.contains(&lost_object.objects[0].key));
        assert!(latest.damaged[3].reason.contains(&cut_object.objects[3].key));

        assert!(matches!(store.commit(&flipped).await, Err(CheckpointError::AlreadyCommitted { .. })));
        for damaged in &latest.damaged {
            assert!(store.quarantine(damaged.step, &QuarantineReason::Damaged).await.unwrap());
            assert!(!store.quarantine(damaged.step, &QuarantineReason::Damaged).await.unwrap());
        }
        assert_eq!(store.committed_steps().await.unwrap(), [Step(10)]);
        assert_eq!(store.list("ckpt/damaged").await.unwrap().len(), 5);
        assert_eq!(store.commit(&flipped).await.unwrap(), Committed::Now);
        assert_eq!(store.latest_manifest().await.unwrap().manifest, Some(flipped));

        let error = store.quarantine(Step(10), &QuarantineReason::Damaged).await.unwrap_err();
        assert!(error.to_string().contains("it verifies"), "{error}");
    }
}

#[tokio::test]
async fn retention_keeps_the_newest_and_what_is_on_its_way() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let mut manifests = Vec::new();
        for step in [10, 20, 30, 40] {
            manifests.push(commit(&store, &spec, step).await);
        }
        // Objects of an attempt at step 30 that was never committed, and of one at step 50 that is under way.
        State::new(&spec, 2, 30).write(&store, ONE).await;
        let coming = State::new(&spec, 1, 50).write(&store, ONE).await;
        let before = store.list("ckpt/data").await.unwrap().len();

        let retained = store.retain(2).await.unwrap();
        assert_eq!(retained.kept, [Step(40), Step(30)], "{}", backend.name);
        assert_eq!(retained.removed, [Step(20), Step(10)]);
        assert_eq!(store.committed_steps().await.unwrap(), [Step(30), Step(40)]);
        let left: BTreeSet<String> =
            store.list("ckpt/data").await.unwrap().into_iter().map(|o| o.key).collect();
        let mut wanted: BTreeSet<String> =
            manifests[2..].iter().flat_map(|m| m.objects.iter().map(|o| o.key.clone())).collect();
        wanted.extend(coming.iter().flat_map(|p| p.objects.iter().map(|o| o.key.clone())));
        assert_eq!(left, wanted);
        assert_eq!(retained.removed_objects, before - left.len());
        for manifest in &manifests[2..] {
            store.digest(manifest).await.unwrap();
        }
        // What was under way can still be committed.
        let next = Manifest::assemble(&spec, crate::support::header(Step(50)), &coming).unwrap();
        assert_eq!(store.commit(&next).await.unwrap(), Committed::Now);
    }
}

#[tokio::test]
async fn retention_never_takes_the_last_checkpoint_that_verifies() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let good = commit(&store, &spec, 10).await;
        for step in [20, 30, 40] {
            let damaged = commit(&store, &spec, step).await;
            backend.remove(&spec, &damaged.objects[0].key).await;
        }
        for keep in [0, 1, 2] {
            let retained = store.retain(keep).await.unwrap();
            assert_eq!(retained.kept, [Step(10)], "{} keep {keep}", backend.name);
            assert_eq!(store.latest_manifest().await.unwrap().manifest.as_ref(), Some(&good));
            store.digest(&good).await.unwrap();
        }
        let split = Split { workers: 2, shards: 2, object_bytes: 1 << 16 };
        let next = State::new(&spec, 1, 50).manifest(&store, &spec, split).await;
        store.commit(&next).await.unwrap();
        let retained = store.retain(1).await.unwrap();
        assert_eq!(retained.kept, [Step(50)]);
        assert_eq!(retained.removed, [Step(40), Step(30), Step(20), Step(10)]);
        assert_eq!(store.list("ckpt/data").await.unwrap().len(), next.objects.len());
    }
}

/// A folder that was copied to another name holds a sound run of another name: that is said, and nothing of it is moved.
#[tokio::test]
async fn a_copied_run_is_no_damaged_one() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        for step in [10, 20] {
            commit(&store, &spec, step).await;
        }
        let copied = polygram_checkpoint::RunStore::at(
            backend.root.clone(),
            &polygram_domain::RunName::new("copied").unwrap(),
        );
        for object in store.list("").await.unwrap() {
            let bytes = backend.raw(&spec, &object.key).await;
            let to = object_store::path::Path::parse(format!("runs/copied/{}", object.key)).unwrap();
            object_store::ObjectStoreExt::put(backend.root.store(), &to, bytes.into()).await.unwrap();
        }
        let before = copied.list("").await.unwrap();
        for error in [
            copied.latest_manifest().await.unwrap_err(),
            copied.latest_before(Step(20)).await.unwrap_err(),
            copied.retain(1).await.unwrap_err(),
            copied.garbage().await.unwrap_err(),
            copied.quarantine(Step(20), &QuarantineReason::Damaged).await.unwrap_err(),
            copied.quarantine(Step(20), &QuarantineReason::Superseded).await.unwrap_err(),
            copied.remove_checkpoint(Step(20)).await.unwrap_err(),
        ] {
            assert!(error.is_of_another_run() && !error.is_damage(), "{error}");
            let text = error.to_string();
            for words in ["belongs to run tiny", "is a copy", "--to-run copied", "rename the folder to tiny"]
            {
                assert!(text.contains(words), "{words:?}: {text}");
            }
        }
        assert_eq!(copied.list("").await.unwrap(), before, "{}", backend.name);
    }
}
