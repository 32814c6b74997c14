//! Flipped, cut and hostile bytes of every kind of object: found, named, and never a panic.

use std::sync::OnceLock;

use bytes::Bytes;
use polygram_checkpoint::{
    AttemptRecord, CheckpointError, Content, CoordinatorAddress, Manifest, MetricsLine, ObjectEntry,
    RowObject, TensorObject,
};
use polygram_domain::tables::BUCKETS;
use polygram_domain::{RunSpec, SCHEMA_VERSION, Step, TableIndex};
use proptest::prelude::*;

use crate::support::{Backend, ONE, Split, State, block_on, spec};

/// Every bit of bytes near the ends, one bit of every `stride`-th byte between.
fn flips(length: usize, stride: usize) -> impl Iterator<Item = (usize, u8)> {
    let near = move |at: &usize| *at < 16 || length - at <= 16;
    let every_bit = (0..length).filter(near).flat_map(|at| (0..8).map(move |bit| (at, 1 << bit)));
    every_bit.chain((0..length).step_by(stride).map(|at| (at, 1 << (at % 8))))
}

fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (0..length).step_by(1 + length / 50).chain([length - 1])
}

#[tokio::test]
async fn flips_and_cuts_of_stored_objects_are_found() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    let split = Split { workers: 1, shards: 2, object_bytes: 1 << 16 };
    let manifest = State::new(&spec, 1, 4).manifest(&store, &spec, split).await;
    store.commit(&manifest).await.unwrap();
    store.put_config("a = 1\n").await.unwrap();
    let address = CoordinatorAddress { address: "127.0.0.1:1".into(), pid: 1, started_unix_ms: 1 };
    store.claim_term(&address).await.unwrap();
    let attempt = MetricsLine::Attempt(AttemptRecord { attempt: 1, resumed_from: 0 });
    store.append_metrics(1, 0, &[attempt]).await.unwrap();

    let rows = manifest.objects.iter().find(|o| o.key.ends_with(".rows")).unwrap();
    let tensors = manifest.objects.iter().find(|o| o.key.ends_with(".safetensors")).unwrap();
    let mut keys = vec![rows.key.clone(), tensors.key.clone()];
    for folder in ["ckpt/commit", "config", "coord", "events"] {
        keys.push(store.list(folder).await.unwrap()[0].key.clone());
    }
    for key in &keys {
        let sound = backend.raw(&spec, key).await;
        assert!(read(&store, &manifest, key).await.is_ok(), "{key}");
        let flipped = flips(sound.len(), 1 + sound.len() / 150).map(|(at, mask)| {
            let mut bytes = sound.to_vec();
            bytes[at] ^= mask;
            (format!("byte {at} ^ {mask}"), bytes)
        });
        let cut = cuts(sound.len()).map(|at| (format!("cut at {at}"), sound[..at].to_vec()));
        let longer = [("one more".to_owned(), [&sound[..], &[0]].concat())];
        for (change, bytes) in flipped.chain(cut).chain(longer) {
            backend.overwrite(&spec, key, bytes).await;
            let error = read(&store, &manifest, key).await.expect_err(&format!("{key}: {change}"));
            assert!(error.is_damage() && error.to_string().contains(key.as_str()), "{change}: {error}");
        }
        backend.remove(&spec, key).await;
        let gone = read(&store, &manifest, key).await;
        assert!(gone.is_err() || key.starts_with("coord") || key.starts_with("events"), "{key}");
        backend.overwrite(&spec, key, sound).await;
    }
}

/// Reads the object of `key` by the call that a program would use.
async fn read(
    store: &polygram_checkpoint::RunStore,
    manifest: &Manifest,
    key: &str,
) -> Result<(), CheckpointError> {
    if let Some(entry) = manifest.objects.iter().find(|o| o.key == key) {
        return match &entry.content {
            Content::Rows { table, buckets, .. } => {
                store.read_rows(manifest, TableIndex(*table), buckets.clone(), |_| Ok(())).await
            }
            Content::Tensors { tensors } => store.read_tensors(manifest, &[&tensors[0].name]).await.map(drop),
        };
    }
    match key.split_once('/').map(|(folder, _)| folder) {
        Some("config") => store.read_config(&polygram_checkpoint::ConfigHash::of("a = 1\n")).await.map(drop),
        Some("coord") => store.latest_coordinator().await.map(drop),
        Some("events") => store.read_metrics().await.map(drop),
        _ => store.read_manifest(manifest.step).await.map(drop),
    }
}

struct Sample {
    spec: RunSpec,
    backend: Backend,
    manifest: Manifest,
    rows: (ObjectEntry, Bytes),
    tensors: (ObjectEntry, Bytes),
}

/// One written state for all property tests.
fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let (spec, backend) = (spec(&[]), Backend::memory());
        block_on(async {
            let manifest = State::new(&spec, 1, 4).manifest(&backend.run(&spec), &spec, ONE).await;
            let find = |end: &str| manifest.objects.iter().find(|o| o.key.ends_with(end)).unwrap().clone();
            let (rows, tensors) = (find(".rows"), find(".safetensors"));
            let rows_bytes = backend.raw(&spec, &rows.key).await;
            let tensors_bytes = backend.raw(&spec, &tensors.key).await;
            Sample { rows: (rows, rows_bytes), tensors: (tensors, tensors_bytes), spec, backend, manifest }
        })
    })
}

/// Some bytes overwritten (most often in the header), some cut off or added.
fn mutate(sound: &Bytes, writes: &[(prop::sample::Index, bool, u8)], length: i8) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for (at, in_header, byte) in writes {
        let end = if *in_header { bytes.len().min(64) } else { bytes.len() };
        bytes[at.index(end)] = *byte;
    }
    let length = bytes.len().saturating_add_signed(isize::from(length));
    bytes.resize(length, 0);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Past the checksums, the parsers stand on their own.
    #[test]
    fn parsers_do_not_panic_on_changed_bytes(
        writes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<u8>()), 0..4),
        length in prop_oneof![Just(0i8), any::<i8>()],
    ) {
        let sample = sample();
        let (entry, bytes) = &sample.rows;
        if let Ok(object) = RowObject::parse("k", mutate(bytes, &writes, length).into()) {
            let mut seen = 0;
            object.records::<()>(0..u32::MAX, |record| {
                assert_eq!(record.values.len(), object.shape().values());
                seen += 1;
                Ok(())
            }).unwrap();
            prop_assert_eq!(seen, object.count(0..BUCKETS));
        }
        let _ = RowObject::decode(entry, mutate(bytes, &writes, length).into());
        let (entry, bytes) = &sample.tensors;
        if let Ok(object) = TensorObject::decode(entry, mutate(bytes, &writes, length).into()) {
            object.slices(|_| true, |slice| {
                assert_eq!(slice.data.len() as u64, slice.elements.end - slice.elements.start);
            }).unwrap();
        }
    }

    #[test]
    fn parsers_do_not_panic_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let sample = sample();
        prop_assert!(RowObject::parse("k", bytes.clone().into()).is_err());
        let mut headed = sample.rows.1[..48].to_vec();
        headed.extend(&bytes);
        prop_assert!(RowObject::parse("k", headed.into()).is_err());
        prop_assert!(TensorObject::decode(&sample.tensors.0, bytes.into()).is_err());
    }

    /// A manifest that lies about its objects is found out before anything is used.
    #[test]
    fn lying_entries_are_found(
        choice in any::<prop::sample::Index>(),
        field in 0usize..9,
        value in prop_oneof![Just(0u64), Just(1), Just(u64::MAX), Just(u64::MAX / 4), 0u64..5000, any::<u64>()],
    ) {
        let sample = sample();
        let mut manifest = sample.manifest.clone();
        let at = choice.index(manifest.objects.len());
        let entry = &mut manifest.objects[at];
        let before = entry.clone();
        match (field, &mut entry.content) {
            (0, _) => entry.bytes = value,
            (1, _) => entry.crc32c = value as u32,
            (2, _) => entry.blake3 = format!("{value:064x}"),
            (3, _) => entry.key = format!("ckpt/data/../../{value}"),
            (4, Content::Tensors { tensors }) => tensors[0].elements.start = value,
            (5, Content::Tensors { tensors }) => tensors[0].elements.end = value,
            (6, Content::Tensors { tensors }) => tensors[0].shape[0] = value,
            (7, Content::Tensors { tensors }) => tensors[0].name = format!("{value}"),
            (_, Content::Tensors { tensors }) => tensors[0].shape = vec![value, value],
            (4, Content::Rows { buckets, .. }) => buckets.start = value as u32,
            (5, Content::Rows { buckets, .. }) => buckets.end = value as u32,
            (6, Content::Rows { rows, .. }) => *rows = value,
            (7, Content::Rows { width, .. }) => *width = value as u32,
            (_, Content::Rows { table_rows, .. }) => *table_rows = value as u32,
        }
        prop_assume!(*entry != before);
        let store = sample.backend.run(&sample.spec);
        let names: Vec<String> = sample.manifest.tensor_names();
        let (digest, tensors) = block_on(async {
            for table in 0..4 {
                let _ = store.read_rows::<CheckpointError>(&manifest, TableIndex(table), 0..BUCKETS, |_| Ok(())).await;
            }
            (store.digest(&manifest).await, store.read_tensors(&manifest, &names).await)
        });
        prop_assert!(digest.is_err());
        // Sums of the whole object are checked where the whole object is read; parts have sums of their own.
        let is_sum_of_whole = field == 1 || field == 2;
        if matches!(sample.manifest.objects[at].content, Content::Tensors { .. }) && !is_sum_of_whole {
            prop_assert!(tensors.is_err());
        }
        let _ = manifest.check_cover(&sample.spec);
    }
}

#[test]
fn another_schema_is_refused_by_name() {
    let sample = sample();
    let (entry, bytes) = &sample.rows;
    let mut bytes = bytes.to_vec();
    bytes[8] = 9;
    let error = RowObject::decode(entry, bytes.into()).unwrap_err();
    assert!(matches!(error, CheckpointError::Schema { found: 9, expected: SCHEMA_VERSION, .. }), "{error}");
    let store = sample.backend.run(&sample.spec);
    let newer = Manifest { schema: SCHEMA_VERSION + 1, step: Step(77), ..sample.manifest.clone() };
    let errors = block_on(async {
        store.commit(&newer).await.unwrap();
        let aside = store
            .quarantine(Step(77), &polygram_checkpoint::QuarantineReason::Unusable("for the test".into()))
            .await
            .unwrap_err();
        assert_eq!(store.committed_steps().await.unwrap(), [Step(77)], "it is not quarantined");
        [
            store.read_manifest(Step(77)).await.unwrap_err(),
            store.latest_manifest().await.unwrap_err(),
            store.find_fault(Step(77), "ckpt/data/x").await.unwrap_err(),
            aside,
        ]
    });
    for error in errors {
        let found = SCHEMA_VERSION + 1;
        assert!(matches!(error, CheckpointError::Schema { found: other, .. } if other == found), "{error}");
        assert!(error.is_of_another_build() && !error.is_damage() && error.object_at_fault().is_none());
        let text = error.to_string();
        assert!(text.contains("000000000077.json") && text.contains("a newer build wrote it"), "{text}");
    }
}
