//! Objects of changed rows on objects of all rows: read as one state, refused where one of them is missing or stale.

use std::collections::BTreeMap;

use polygram_checkpoint::cover::expected_tables;
use polygram_checkpoint::{
    CheckpointError, Content, CoverError, Manifest, OwnedRow, Part, PartRef, Placement, ReshardTarget,
    RowRecord, RowScope, RowSet, RowWriter, RunStore,
};
use polygram_domain::philox::{Purpose, Stream};
use polygram_domain::tables::{BUCKETS, buckets_of};
use polygram_domain::{RunSpec, ShardIndex, Step};

use crate::support::{Backend, ONE, Split, State, block_on, header, spec};

const BEFORE: u64 = 4;
const AFTER: u64 = 7;

/// A state and a later one, some of whose rows are others, and which rows those are.
fn two_states(spec: &RunSpec) -> (State, State, BTreeMap<(u32, u32), OwnedRow>) {
    let (before, mut after) = (State::new(spec, 1, BEFORE), State::new(spec, 1, AFTER));
    let random = Stream::new(5, Purpose::RowInit);
    let mut changed = BTreeMap::new();
    for ((shape, rows), (_, earlier)) in after.tables.iter_mut().zip(&before.tables) {
        let mut all: BTreeMap<u32, OwnedRow> = earlier.iter().map(|row| (row.row.0, row.clone())).collect();
        for row in 0..shape.rows {
            let [word, value, ..] = random.words(u64::from(shape.table.0), u64::from(row));
            // Written ones change, and virtual ones are written.
            if word.is_multiple_of(7) {
                let updates = all.get(&row).map_or(0, |row| row.updates) + 3;
                let values = vec![f32::from_bits(value >> 4); shape.values()];
                let new = OwnedRow { row: polygram_domain::RowId(row), updates, values };
                changed.insert((shape.table.0, row), new.clone());
                all.insert(row, new);
            }
        }
        *rows = all.into_values().collect();
    }
    (before, after, changed)
}

async fn write_changes(
    store: &RunStore,
    spec: &RunSpec,
    (index, shards): (u32, u32),
    changed: &BTreeMap<(u32, u32), OwnedRow>,
) -> Vec<polygram_checkpoint::ObjectEntry> {
    let store = store.clone().with_object_bytes(1 << 14);
    let buckets = buckets_of(ShardIndex(index), shards);
    let mut objects = Vec::new();
    for shape in expected_tables(spec) {
        let member = format!("shard-{index}");
        let part = PartRef { step: Step(AFTER), member: &member };
        let rows = RowSet { shape, scope: RowScope::Changed };
        let mut writer = RowWriter::new(&store, part, rows, buckets.clone()).unwrap();
        for ((table, row), OwnedRow { row: id, updates, values }) in changed {
            let bucket = u64::from(*row) * u64::from(BUCKETS) / u64::from(shape.rows);
            if *table == shape.table.0 && buckets.contains(&(bucket as u32)) {
                writer.push(RowRecord { row: *id, updates: *updates, values }).await.unwrap();
            }
        }
        objects.extend(writer.finish().await.unwrap());
    }
    objects
}

/// The later state's parts; the shards of `shards` wrote changes alone on what they had written before.
async fn layered(store: &RunStore, spec: &RunSpec, split: Split) -> (Vec<Part>, State) {
    let (before, after, changed) = two_states(spec);
    let earlier = before.write(store, split).await;
    let mut parts = after.write(store, split).await;
    for part in &mut parts {
        let Some(index) = part.member.strip_prefix("shard-") else { continue };
        let index = index.parse().unwrap();
        part.objects = write_changes(store, spec, (index, split.shards), &changed).await;
        let base = earlier.iter().find(|earlier| earlier.member == part.member).unwrap();
        part.objects.extend(base.objects.iter().cloned());
    }
    (parts, after)
}

async fn rows(
    store: &RunStore,
    manifest: &Manifest,
    buckets: std::ops::Range<u32>,
) -> Vec<(u32, u32, Vec<u32>)> {
    let mut found = Vec::new();
    let tables: std::collections::BTreeSet<u32> = manifest
        .objects
        .iter()
        .filter_map(|object| match object.content {
            Content::Rows { table, .. } => Some(table),
            Content::Tensors { .. } => None,
        })
        .collect();
    for table in tables {
        store
            .read_rows::<CheckpointError>(
                manifest,
                polygram_domain::TableIndex(table),
                buckets.clone(),
                |row| {
                    let values = row.values.iter().map(|value| value.to_bits());
                    found.push((table, row.row.0, [row.updates].into_iter().chain(values).collect()));
                    Ok(())
                },
            )
            .await
            .unwrap();
    }
    found
}

#[test]
fn changes_on_earlier_rows_are_the_later_state() {
    let spec = spec(&[]);
    block_on(async {
        for split in [ONE, Split { workers: 2, shards: 3, object_bytes: 1 << 15 }] {
            let backend = Backend::file();
            let store = backend.run(&spec);
            let (parts, after) = layered(&store, &spec, split).await;
            let manifest = Manifest::assemble(&spec, header(Step(AFTER)), &parts).unwrap();
            store.commit(&manifest).await.unwrap();
            assert!(manifest.check_cover(&spec).is_ok());
            let other = Backend::memory().run(&spec);
            let whole = after.manifest(&other, &spec, ONE).await;
            let expected = other.digest(&whole).await.unwrap();
            assert_eq!(store.digest(&manifest).await.unwrap(), expected, "{split:?}");
            // Any part of it, as a shard of another topology reads it.
            for buckets in [0..BUCKETS, 1..2, 700..2900, BUCKETS - 1..BUCKETS] {
                let found = rows(&store, &manifest, buckets.clone()).await;
                assert_eq!(found, rows(&other, &whole, buckets.clone()).await, "{buckets:?} of {split:?}");
            }
            // Written anew it is whole.
            let target = Backend::memory().run(&spec);
            let (placement, header) = (Placement::Beside, header(Step(AFTER)));
            let into = ReshardTarget { store: &target, placement, spec: &spec, header };
            let again = store.reshard(&manifest, into).await.unwrap();
            assert_eq!(again.digest, expected);
            assert!(
                again.manifest.row_objects_of(polygram_domain::TableIndex(0), RowScope::Changed).is_empty()
            );
            // What it builds on stays while it does.
            store.retain(1).await.unwrap();
            assert!(
                store.verify(&manifest).await.unwrap().faults.iter().all(|f| f.key.starts_with("config/"))
            );
        }
    });
}

#[test]
fn readers_are_told_which_rows_changed() {
    let spec = spec(&[]);
    block_on(async {
        let store = Backend::memory().run(&spec);
        let split = Split { workers: 1, shards: 2, object_bytes: 1 << 15 };
        let (parts, _) = layered(&store, &spec, split).await;
        let manifest = Manifest::assemble(&spec, header(Step(AFTER)), &parts).unwrap();
        let (_, _, changed) = two_states(&spec);
        let mut told = Vec::new();
        for shape in expected_tables(&spec) {
            store
                .read_scoped_rows::<CheckpointError>(&manifest, shape.table, 0..BUCKETS, |row, scope| {
                    if scope == RowScope::Changed {
                        told.push((shape.table.0, row.row.0));
                    }
                    Ok(())
                })
                .await
                .unwrap();
        }
        assert_eq!(told, changed.into_keys().collect::<Vec<_>>());
    });
}

#[test]
fn a_missing_or_stale_layer_is_no_checkpoint() {
    let spec = spec(&[]);
    let split = Split { workers: 1, shards: 2, object_bytes: 1 << 20 };
    let parts = block_on(async { layered(&Backend::memory().run(&spec), &spec, split).await.0 });
    let assemble = |step: u64, parts: &[Part]| Manifest::assemble(&spec, header(Step(step)), parts);
    assert!(assemble(AFTER, &parts).is_ok());
    let shard = parts.iter().position(|part| part.member == "shard-1").unwrap();
    for (o, object) in parts[shard].objects.iter().enumerate() {
        let Content::Rows { table, scope, .. } = object.content else { panic!("a tensor of a shard") };
        let mut without = parts.clone();
        without[shard].objects.remove(o);
        let error = assemble(AFTER, &without).unwrap_err();
        match scope {
            RowScope::All => {
                assert!(matches!(error, CoverError::MissingBuckets { table: t, .. } if t == table), "{error}")
            }
            RowScope::Changed => assert!(
                matches!(error, CoverError::MissingChanges { table: t, written: Step(BEFORE), .. } if t == table),
                "{error}"
            ),
        }
    }
    // Changes until another step.
    let mut later = parts.clone();
    later.iter_mut().for_each(|part| part.step = Step(AFTER + 1));
    let error = assemble(AFTER + 1, &later).unwrap_err();
    assert!(matches!(error, CoverError::StaleChanges { .. }), "{error}");
    // Both all rows and what changed of them.
    let all = block_on(async { two_states(&spec).1.write(&Backend::memory().run(&spec), split).await });
    let mut both = parts.clone();
    both[shard]
        .objects
        .retain(|object| matches!(object.content, Content::Rows { scope: RowScope::Changed, .. }));
    both[shard].objects.extend(all[shard].objects.iter().cloned());
    let error = assemble(AFTER, &both).unwrap_err();
    assert!(matches!(error, CoverError::BucketsTwice { .. }), "{error}");
}
