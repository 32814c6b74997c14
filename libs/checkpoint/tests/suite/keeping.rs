//! What stays and what goes: pins, and objects that nobody names.

use polygram_checkpoint::{CheckpointError, Committed, Manifest, RollbackRecord};
use polygram_domain::Step;
use polygram_domain::spikes::{LeftOut, PolicyState};

use crate::support::{Backend, ONE, State, commit, header, spec};

#[tokio::test]
async fn a_pinned_checkpoint_outlives_retention() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let pinned = commit(&store, &spec, 10).await;
        store.pin(Step(10)).await.unwrap();
        store.pin(Step(10)).await.unwrap();
        let absent = store.pin(Step(11)).await.unwrap_err();
        assert!(matches!(absent, CheckpointError::Missing { .. }), "{absent}");
        for step in [20, 30, 40] {
            commit(&store, &spec, step).await;
        }
        let retained = store.retain(2).await.unwrap();
        assert_eq!(retained.kept, [Step(40), Step(30), Step(10)], "{}", backend.name);
        assert_eq!(retained.removed, [Step(20)]);
        assert!(store.verify(&pinned).await.unwrap().faults.iter().all(|f| f.key.starts_with("config/")));
        assert_eq!(store.garbage().await.unwrap(), []);
        store.unpin(Step(10)).await.unwrap();
        store.unpin(Step(10)).await.unwrap();
        assert!(store.pinned_steps().await.unwrap().is_empty());
        assert_eq!(store.retain(2).await.unwrap().removed, [Step(10)]);
        assert_eq!(store.committed_steps().await.unwrap(), [Step(30), Step(40)]);
    }
}

#[tokio::test]
async fn garbage_is_what_no_checkpoint_needs_and_no_commit_may() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        // Without a checkpoint anything may be on its way.
        State::new(&spec, 5, 30).write(&store, ONE).await;
        assert_eq!(store.garbage().await.unwrap(), [], "{}", backend.name);
        let kept = commit(&store, &spec, 20).await;
        let unreadable = commit(&store, &spec, 30).await;
        let newest = commit(&store, &spec, 40).await;
        backend.overwrite(&spec, "ckpt/commit/000000000030.json", "{}").await;
        let aborted = State::new(&spec, 2, 40).write(&store, ONE).await;
        let coming = State::new(&spec, 2, 50).write(&store, ONE).await;
        let garbage = store.garbage().await.unwrap();
        let mut found: Vec<&str> = garbage.iter().map(|object| object.key.as_str()).collect();
        found.sort_unstable();
        let mut expected: Vec<&str> =
            aborted.iter().flat_map(|part| part.objects.iter().map(|object| object.key.as_str())).collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "{}", backend.name);
        store.remove_garbage(&garbage).await.unwrap();
        assert_eq!(store.garbage().await.unwrap(), []);
        for manifest in [&kept, &unreadable, &newest] {
            store.digest(manifest).await.unwrap();
        }
        let next = Manifest::assemble(&spec, header(Step(50)), &coming).unwrap();
        assert_eq!(store.commit(&next).await.unwrap(), Committed::Now);
    }
}

/// An operator repairs a quarantined checkpoint by putting its manifest back: its objects must be there as long as it
/// would have been kept.
#[tokio::test]
async fn what_is_quarantined_is_kept_as_long_as_it_would_have_been() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        for step in [10, 20] {
            commit(&store, &spec, step).await;
        }
        let quarantined = State::new(&spec, 3, 30).manifest(&store, &spec, ONE).await;
        store.commit(&quarantined).await.unwrap();
        store
            .quarantine(Step(30), &polygram_checkpoint::QuarantineReason::Unusable("for the test".into()))
            .await
            .unwrap();
        let is_whole = async || {
            let faults = store.verify(&quarantined).await.unwrap().faults;
            faults.iter().all(|fault| fault.key.starts_with("config/"))
        };
        // The run has gone on from 20: another state of step 30, and 40.
        commit(&store, &spec, 30).await;
        commit(&store, &spec, 40).await;
        store.retain(3).await.unwrap();
        store.remove_garbage(&store.garbage().await.unwrap()).await.unwrap();
        assert!(is_whole().await, "{}", backend.name);
        // With two newer ones it would be gone, were it not pinned.
        store.pin(Step(30)).await.unwrap();
        for step in [50, 60] {
            commit(&store, &spec, step).await;
        }
        store.retain(2).await.unwrap();
        assert!(is_whole().await, "{}", backend.name);
        store.unpin(Step(30)).await.unwrap();
        store.retain(2).await.unwrap();
        assert!(!is_whole().await, "{}", backend.name);
    }
}

#[tokio::test]
async fn what_a_rollback_has_ended_is_not_kept() {
    let spec = spec(&[]);
    let store = Backend::memory().run(&spec);
    commit(&store, &spec, 10).await;
    let ended = State::new(&spec, 3, 20).manifest(&store, &spec, ONE).await;
    store.commit(&ended).await.unwrap();
    let nothing = PolicyState::default();
    let record = RollbackRecord::new(&nothing, (Step(15), Step(10)), "a spike".into(), &LeftOut::default());
    store.decide_rollback(record).await.unwrap();
    let known = store.rollbacks().await.unwrap();
    assert_eq!(store.quarantine_superseded(&known).await.unwrap(), [Step(20)]);
    commit(&store, &spec, 30).await;
    store.retain(2).await.unwrap();
    assert!(!store.verify(&ended).await.unwrap().faults.is_empty());
}

#[tokio::test]
async fn what_another_build_wrote_is_never_removed() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let foreign = State::new(&spec, 3, 10).manifest(&store, &spec, ONE).await;
        let newer = Manifest { schema: foreign.schema + 1, ..foreign.clone() };
        store.commit(&newer).await.unwrap();
        for step in [20, 30, 40] {
            commit(&store, &spec, step).await;
        }
        assert_eq!(store.retain(1).await.unwrap().kept, [Step(40)], "{}", backend.name);
        store.remove_garbage(&store.garbage().await.unwrap()).await.unwrap();
        assert_eq!(store.committed_steps().await.unwrap(), [Step(10), Step(40)]);
        let faults = store.verify(&foreign).await.unwrap().faults;
        assert!(faults.iter().all(|fault| fault.key.starts_with("config/")), "{faults:?}");
    }
}

#[tokio::test]
async fn a_removed_checkpoint_takes_what_it_alone_needs() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let first = commit(&store, &spec, 10).await;
        let second = commit(&store, &spec, 20).await;
        // One that builds on the objects of the one before.
        store.commit(&Manifest { step: Step(30), ..second.clone() }).await.unwrap();
        store.pin(Step(10)).await.unwrap();
        let gone = store.remove_checkpoint(Step(10)).await.unwrap();
        assert_eq!((gone.objects, gone.bytes), (first.objects.len(), first.bytes()), "{}", backend.name);
        assert!(store.pinned_steps().await.unwrap().is_empty());
        assert_eq!(store.remove_checkpoint(Step(20)).await.unwrap().objects, 0);
        assert!(store.latest_manifest().await.unwrap().damaged.is_empty());
        let absent = store.remove_checkpoint(Step(20)).await.unwrap_err();
        assert!(matches!(absent, CheckpointError::Missing { .. }), "{absent}");
        // What a damaged one may name stays; a damaged one itself can go.
        let fourth = commit(&store, &spec, 40).await;
        backend.overwrite(&spec, "ckpt/commit/000000000040.json", "{}").await;
        assert_eq!(store.remove_checkpoint(Step(30)).await.unwrap().objects, 0);
        assert_eq!(store.remove_checkpoint(Step(40)).await.unwrap().objects, 0);
        let left = second.objects.len() + fourth.objects.len();
        assert_eq!(store.list("ckpt/data").await.unwrap().len(), left);
        assert_eq!(store.committed_steps().await.unwrap(), []);
    }
}
