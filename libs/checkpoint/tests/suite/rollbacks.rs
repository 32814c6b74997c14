//! Ways back: decided once, and what they end is set aside, once, by whoever comes first.

use polygram_checkpoint::rollback::policy_of;
use polygram_checkpoint::{Manifest, ManifestHeader, RollbackRecord, RunStore};
use polygram_domain::spikes::{LeftOut, PolicyState};
use polygram_domain::{RunSpec, Step};

use crate::support::{Backend, ONE, State, header, spec};

fn left_out(range: std::ops::Range<u64>) -> LeftOut {
    let mut left_out = LeftOut::default();
    left_out.add(range);
    left_out
}

/// A checkpoint of a run that knows of these ways back.
async fn commit(store: &RunStore, spec: &RunSpec, (step, ways_back): (u64, &[u64])) -> Manifest {
    let parts = State::new(spec, 1, step).write(store, ONE).await;
    let policy = PolicyState { ways_back: ways_back.to_vec(), ..PolicyState::default() };
    let manifest = Manifest::assemble(spec, ManifestHeader { policy, ..header(Step(step)) }, &parts).unwrap();
    store.commit(&manifest).await.unwrap();
    manifest
}

#[tokio::test]
async fn what_a_way_back_has_ended_is_set_aside_once() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        for step in [5, 10, 15] {
            commit(&store, &spec, (step, &[])).await;
        }
        assert!(store.quarantine_superseded(&store.rollbacks().await.unwrap()).await.unwrap().is_empty());
        assert_eq!(store.sound_at_or_before(Step(14)).await.unwrap().unwrap().step, Step(10));
        assert_eq!(store.sound_at_or_before(Step(4)).await.unwrap(), None);
        let nothing = PolicyState::default();
        let record = RollbackRecord::new(&nothing, (Step(12), Step(5)), "a spike".into(), &left_out(96..104));
        assert_eq!(store.decide_rollback(record).await.unwrap(), 1);
        let known = store.rollbacks().await.unwrap();
        assert_eq!(
            store.quarantine_superseded(&known).await.unwrap(),
            [Step(15), Step(10)],
            "{}",
            backend.name
        );
        assert!(store.quarantine_superseded(&known).await.unwrap().is_empty());
        assert_eq!(store.committed_steps().await.unwrap(), [Step(5)]);
        // The same steps again, by a run that knows: they stay.
        let again = commit(&store, &spec, (10, &[12])).await;
        assert!(store.quarantine_superseded(&known).await.unwrap().is_empty());
        let policy = policy_of(Some(&again), &known);
        assert_eq!((policy.left_out.ranges(), &policy.ways_back[..]), (&[[96, 104]][..], &[12][..]));
        // A second one, further back, ends what knew the first alone.
        let second = RollbackRecord::new(&policy, (Step(11), Step(5)), "another".into(), &left_out(88..96));
        assert_eq!(store.decide_rollback(second).await.unwrap(), 2);
        let known = store.rollbacks().await.unwrap();
        assert_eq!(store.quarantine_superseded(&known).await.unwrap(), [Step(10)]);
        let policy = policy_of(None, &known);
        assert_eq!((policy.left_out.ranges(), &policy.ways_back[..]), (&[[88, 104]][..], &[12, 11][..]));
    }
}

#[tokio::test]
async fn damaged_and_missing_decisions_are_named() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    for at in [10, 20, 30] {
        let before = policy_of(None, &store.rollbacks().await.unwrap());
        let more = left_out(at..at + 8);
        let record = RollbackRecord::new(&before, (Step(at), Step(0)), "a spike".into(), &more);
        store.decide_rollback(record).await.unwrap();
    }
    let key = "roll_back/00000001.json";
    let sound = backend.raw(&spec, key).await;
    for at in 0..sound.len() {
        let mut bytes = sound.to_vec();
        bytes[at] ^= 1 << (at % 8);
        backend.overwrite(&spec, key, bytes).await;
        let error = store.rollbacks().await.unwrap_err();
        assert!(error.is_damage() && error.to_string().contains(key), "byte {at}: {error}");
    }
    backend.overwrite(&spec, key, sound).await;
    // The oldest may go: the later ones say all that it said. A gap between others is damage.
    let whole = policy_of(None, &store.rollbacks().await.unwrap());
    backend.remove(&spec, key).await;
    let rest = store.rollbacks().await.unwrap();
    assert_eq!(rest.iter().map(|record| record.number).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(policy_of(None, &rest), whole);
    let next = RollbackRecord::new(&whole, (Step(40), Step(0)), "a spike".into(), &left_out(40..48));
    assert_eq!(store.decide_rollback(next).await.unwrap(), 4);
    backend.remove(&spec, "roll_back/00000003.json").await;
    let error = store.rollbacks().await.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("roll_back/00000003.json"), "{error}");
}

/// A checkpoint of a run that leaves samples out is another state than one of a run that does not.
#[tokio::test]
async fn what_is_left_out_is_part_of_the_digest() {
    let spec = spec(&[]);
    let store = Backend::memory().run(&spec);
    let plain = commit(&store, &spec, (4, &[])).await;
    let policy = PolicyState { left_out: left_out(8..16), ..PolicyState::default() };
    let other = Manifest { policy, ..plain.clone() };
    let (plain, other) = (store.digest(&plain).await.unwrap(), store.digest(&other).await.unwrap());
    let differing: Vec<_> = plain.parts.iter().filter(|(part, hash)| other.parts[*part] != **hash).collect();
    assert_eq!(differing.iter().map(|(part, _)| part.as_str()).collect::<Vec<_>>(), ["data"]);
    assert_ne!(plain.digest, other.digest);
}
