//! The ledger: each step once whatever was written again, and any damage found and named.

use std::collections::BTreeMap;

use polygram_checkpoint::{ChainHash, CheckpointError, ConfigHash, Entry, Heading, ManifestHeader, RunStore};
use polygram_domain::{Step, StepOutcome};
use proptest::prelude::*;

use crate::support::{Backend, ONE, State, block_on, header, spec};

fn entry(step: u64, loss: f64, prev: ChainHash) -> Entry {
    Entry {
        step,
        samples: [16 * (step - 1), 16],
        tokens: 512,
        lr: Entry::bits(1e-3),
        loss: Entry::bits(loss),
        norm: Entry::bits(1.0),
        outcome: StepOutcome::Applied,
        rows: step.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        dense: step ^ 0xabcd,
        prev,
    }
}

/// Lines of `steps` behind `head`.
fn lines(steps: std::ops::Range<u64>, loss: f64, mut head: ChainHash) -> Vec<Entry> {
    steps
        .map(|step| {
            let entry = entry(step, loss, head);
            head = entry.hash();
            entry
        })
        .collect()
}

fn heading(after: u64, head: ChainHash) -> Heading {
    Heading { after: Step(after), head, config: ConfigHash::of("a = 1\n"), imported: false }
}

/// Two objects of one attempt and one of the next, which continues from step 4 of 6.
async fn three_objects(store: &RunStore) -> Vec<Entry> {
    let first = lines(1..5, 1.0, ChainHash::genesis());
    let head = first[3].hash();
    store.append_ledger(1, 0, &heading(0, ChainHash::genesis()), &first).await.unwrap();
    store.append_ledger(1, 1, &heading(4, head), &lines(5..7, 1.0, head)).await.unwrap();
    let second = lines(5..9, 2.0, head);
    store.append_ledger(2, 0, &heading(4, head), &second).await.unwrap();
    [first, second].concat()
}

#[tokio::test]
async fn lines_that_were_rolled_back_count_no_more() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        assert!(store.has_no_ledger().await.unwrap());
        let wanted = three_objects(&store).await;
        assert!(!store.has_no_ledger().await.unwrap());
        let (chain, faults) = store.read_ledger().await.unwrap();
        assert!(faults.0.is_empty(), "{}: {faults:?}", backend.name);
        assert_eq!(chain.entries().copied().collect::<Vec<_>>(), wanted);
        // Written again it is the same object; another in its place is refused, and so are lines out of order.
        three_objects(&store).await;
        let other = store.append_ledger(2, 0, &heading(0, ChainHash::genesis()), &[]).await;
        assert!(matches!(other, Err(CheckpointError::AlreadyExists { .. })), "{other:?}");
        let gap = store.append_ledger(3, 0, &heading(4, wanted[3].hash()), &wanted[5..]).await;
        assert!(matches!(gap, Err(CheckpointError::Input { .. })), "{gap:?}");
    }
}

/// Any byte of any object, and any object that is gone.
#[tokio::test]
async fn damage_is_found_and_named() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    three_objects(&store).await;
    let keys: Vec<String> = store.list("ledger").await.unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(keys.len(), 3);
    for key in &keys {
        let sound = backend.raw(&spec, key).await;
        for at in 0..sound.len() {
            let mut bytes = sound.to_vec();
            bytes[at] ^= 1 << (at % 8);
            backend.overwrite(&spec, key, bytes).await;
            let (_, faults) = store.read_ledger().await.unwrap();
            assert!(faults.0.iter().any(|fault| fault.key == *key), "{key}, byte {at}: {faults:?}");
        }
        for at in [0, 1, sound.len() / 2, sound.len() - 1] {
            backend.overwrite(&spec, key, sound.slice(..at)).await;
            let (_, faults) = store.read_ledger().await.unwrap();
            assert!(faults.0.iter().any(|fault| fault.key == *key), "{key} cut at {at}: {faults:?}");
        }
        backend.overwrite(&spec, key, sound.clone()).await;
    }
    assert!(store.read_ledger().await.unwrap().1.0.is_empty());
    // Objects that are gone: the first of an attempt that goes on, and a whole attempt that another one continues.
    backend.remove(&spec, &keys[0]).await;
    let (_, faults) = store.read_ledger().await.unwrap();
    let reasons: Vec<String> =
        faults.0.iter().map(|fault| format!("{} {}", fault.key, fault.reason)).collect();
    assert!(reasons[0].contains(&keys[0]) && reasons[0].contains("missing"), "{reasons:?}");
    backend.remove(&spec, &keys[1]).await;
    let (_, faults) = store.read_ledger().await.unwrap();
    assert!(faults.0[0].key == keys[2] && faults.0[0].reason.contains("steps 1 to 4"), "{faults:?}");
}

/// What was forged with hashes of its own: the chain and the checkpoints still tell.
#[tokio::test]
async fn forged_lines_break_the_chain() {
    let spec = spec(&[]);
    let reasons = |faults: polygram_checkpoint::ledger::Faults| -> String {
        faults.0.into_iter().map(|fault| format!("{}: {}\n", fault.key, fault.reason)).collect()
    };
    let forged = |change: fn(&mut Vec<Entry>)| {
        let mut lines = lines(1..5, 1.0, ChainHash::genesis());
        change(&mut lines);
        lines
    };
    for (change, word) in [
        ((|lines| lines[2].loss ^= 1) as fn(&mut Vec<Entry>), "chain is broken at step 4"),
        (|lines| lines.retain(|entry| entry.step != 2), "step 2 is missing before step 3"),
        (|lines| lines.insert(2, entry(2, 7.0, ChainHash::genesis())), "step 2 is there twice"),
        (|lines| lines[0].prev = lines[3].hash(), "chain is broken at step 1"),
    ] {
        let backend = Backend::memory();
        let store = backend.run(&spec);
        let mut text = serde_json::to_string(&heading(0, ChainHash::genesis())).unwrap() + "\n";
        for entry in forged(change) {
            text += &(entry.line() + "\n");
        }
        let hash = blake3::hash(text.as_bytes()).to_hex();
        backend
            .overwrite(&spec, "ledger/000001/00000000.jsonl", format!("{text}{{\"blake3\":\"{hash}\"}}\n"))
            .await;
        let found = reasons(store.read_ledger().await.unwrap().1);
        assert!(found.contains(word) && found.contains("ledger/000001/00000000.jsonl"), "{word}: {found}");
    }
    // A last line that was forged has no line behind it: the checkpoint of its step knows better.
    let backend = Backend::memory();
    let store = backend.run(&spec);
    let lines = lines(1..5, 1.0, ChainHash::genesis());
    store.append_ledger(1, 0, &heading(0, ChainHash::genesis()), &lines).await.unwrap();
    let parts = State::new(&spec, 1, 4).write(&store, ONE).await;
    let named = |ledger| ManifestHeader { ledger: Some(ledger), ..header(Step(4)) };
    let manifest = |head| polygram_checkpoint::Manifest::assemble(&spec, named(head), &parts).unwrap();
    store.commit(&manifest(lines[3].hash())).await.unwrap();
    let (chain, faults) = store.verify_ledger().await.unwrap();
    assert!(faults.0.is_empty() && chain.last() == Step(4), "{faults:?}");
    backend.remove(&spec, "ckpt/commit/000000000004.json").await;
    store.commit(&manifest(lines[2].hash())).await.unwrap();
    let found = reasons(store.verify_ledger().await.unwrap().1);
    assert!(found.contains("ckpt/commit/000000000004.json"), "{found}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Attempts that go on from any step that was reached, in objects of any length: a reader finds what the last one
    /// that came so far has written, and each step once.
    #[test]
    fn a_reader_finds_the_newest_line_of_each_step(
        writes in prop::collection::vec((0u64..12, 0u64..6, any::<bool>()), 1..12)
    ) {
        block_on(async {
            let spec = spec(&[]);
            let store = Backend::memory().run(&spec);
            let mut expected: BTreeMap<u64, Entry> = BTreeMap::new();
            let (mut attempt, mut seq) = (1, 0);
            for (number, (back, count, again)) in writes.into_iter().enumerate() {
                let reached = expected.len() as u64;
                let after = reached.saturating_sub(back);
                if again {
                    (attempt, seq) = (attempt + 1, 0);
                }
                let head = expected.get(&after).map_or(ChainHash::genesis(), Entry::hash);
                let new = lines(after + 1..after + 1 + count, number as f64, head);
                store.append_ledger(attempt, seq, &heading(after, head), &new).await.unwrap();
                seq += 1;
                expected.split_off(&(after + 1));
                expected.extend(new.into_iter().map(|entry| (entry.step, entry)));
            }
            let (chain, faults) = store.read_ledger().await.unwrap();
            assert!(faults.0.is_empty(), "{faults:?}");
            assert_eq!(chain.entries().collect::<Vec<_>>(), expected.values().collect::<Vec<_>>());
            assert_eq!(chain.last().0, expected.len() as u64);
        });
    }
}

/// Checkpoints that another run has trained are no faults of the ledger, before the run is trained and afterwards. A ledger
/// that is gone is one.
#[tokio::test]
async fn the_steps_of_another_run_are_not_missed() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    let made = lines(1..9, 1.0, ChainHash::genesis());
    for step in [8u64, 4] {
        let head = made[step as usize - 1].hash();
        let parts = State::new(&spec, 1, step).write(&store, ONE).await;
        let named = ManifestHeader { ledger: Some(head), ..header(Step(step)) };
        let manifest = polygram_checkpoint::Manifest::assemble(&spec, named, &parts).unwrap();
        for _ in 0..2 {
            store.import_ledger(Step(step), head, manifest.config.clone()).await.unwrap();
        }
        store.commit(&manifest).await.unwrap();
        let (chain, faults) = store.verify_ledger().await.unwrap();
        assert!(faults.0.is_empty() && chain.entries().next().is_none(), "{faults:?}");
        assert_eq!(chain.hash_at(Step(step)), Some(head));
    }
    // It is trained on from the newest.
    let head = made[7].hash();
    store.append_ledger(1, 0, &heading(8, head), &lines(9..12, 1.0, head)).await.unwrap();
    let (chain, faults) = store.verify_ledger().await.unwrap();
    assert!(faults.0.is_empty() && chain.last() == Step(11), "{faults:?}");
    assert_eq!(chain.entries().count(), 3);
    for object in store.list("ledger").await.unwrap() {
        backend.remove(&spec, &object.key).await;
    }
    let (_, faults) = store.verify_ledger().await.unwrap();
    assert_eq!(faults.0.len(), 2, "{faults:?}");
}
