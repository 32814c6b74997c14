//! Past damaged checkpoints: what is found at fault, what there is before it, and that nothing set aside is forgotten.

use polygram_checkpoint::{Manifest, ManifestHeader, QuarantineReason, RollbackRecord};
use polygram_domain::Step;
use polygram_domain::spikes::{LeftOut, PolicyState};

use crate::support::{Backend, ONE, State, commit, header, spec};

#[tokio::test]
async fn a_faulty_checkpoint_is_set_aside_and_its_step_may_be_committed_again() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        store.put_config("config").await.unwrap();
        let mut manifests = Vec::new();
        for step in [5, 10, 15] {
            manifests.push(commit(&store, &spec, step).await);
        }
        let key = manifests[2].objects[0].key.clone();
        let sound = backend.raw(&spec, &key).await;
        let mut flipped = sound.to_vec();
        flipped[0] ^= 1;
        backend.overwrite(&spec, &key, flipped).await;
        backend.remove(&spec, &manifests[1].objects[0].key).await;

        let fault = store.find_fault(Step(15), &key).await.unwrap().unwrap();
        assert!(fault.reason.contains(&key), "{}: {fault:?}", backend.name);
        let other = &manifests[2].objects[1].key;
        assert_eq!(store.find_fault(Step(15), other).await.unwrap(), None, "it is sound itself");
        assert_eq!(store.find_fault(Step(15), "no object of it").await.unwrap(), None);
        let before = store.latest_before(Step(15)).await.unwrap();
        assert_eq!(before.manifest.as_ref(), Some(&manifests[0]));
        assert_eq!(before.damaged.iter().map(|damaged| damaged.step).collect::<Vec<_>>(), [Step(10)]);
        assert_eq!(store.latest_before(Step(5)).await.unwrap().manifest, None);

        let reason = QuarantineReason::Faulty(fault.clone());
        assert!(store.quarantine(Step(15), &reason).await.unwrap());
        assert!(store.quarantine(Step(10), &QuarantineReason::Damaged).await.unwrap());
        assert_eq!(store.committed_steps().await.unwrap(), [Step(5)]);
        assert!(!store.quarantine(Step(15), &reason).await.unwrap(), "it is not there any more");
        let gone = store.find_fault(Step(15), &key).await.unwrap().unwrap();
        assert!(gone.reason.contains("does not exist"), "{gone:?}");
        let aside = store.quarantined_as_damaged(&[]).await.unwrap();
        assert_eq!(aside.iter().map(|damaged| damaged.step).collect::<Vec<_>>(), [Step(15), Step(10)]);

        // The same state again: its objects are written over the damaged ones.
        assert_eq!(commit(&store, &spec, 15).await, manifests[2]);
        assert_eq!(backend.raw(&spec, &key).await, sound);
        assert!(store.verify(&manifests[2]).await.unwrap().faults.is_empty());
    }
}

/// What a way back has ended was no damage: a run that went back to its beginning has nothing to miss.
#[tokio::test]
async fn what_a_way_back_has_ended_is_not_missed() {
    let spec = spec(&[]);
    let store = Backend::memory().run(&spec);
    commit(&store, &spec, 5).await;
    let record = RollbackRecord::new(
        &PolicyState::default(),
        (Step(3), Step(0)),
        "a spike".into(),
        &LeftOut::default(),
    );
    store.decide_rollback(record).await.unwrap();
    let known = store.rollbacks().await.unwrap();
    assert_eq!(store.quarantine_superseded(&known).await.unwrap(), [Step(5)]);
    assert!(store.quarantined_as_damaged(&known).await.unwrap().is_empty());
    // One that knew of it, and was damaged, is.
    let parts = State::new(&spec, 1, 5).write(&store, ONE).await;
    let policy = PolicyState { ways_back: vec![3], ..PolicyState::default() };
    let manifest = Manifest::assemble(&spec, ManifestHeader { policy, ..header(Step(5)) }, &parts).unwrap();
    store.commit(&manifest).await.unwrap();
    store.quarantine(Step(5), &QuarantineReason::Unusable("for the test".into())).await.unwrap();
    assert_eq!(store.quarantined_as_damaged(&known).await.unwrap().len(), 1);
}
