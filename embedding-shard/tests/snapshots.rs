//! Snapshot, restore, train on: the same bits as training through, in memory and in a real store, in any topology.
#![allow(clippy::unwrap_used, reason = "what a test cannot do without ends it")]

mod common;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use common::cluster::{Cluster, new_shard, train_all};
use common::reference::bits;
use common::{RULES, Workload, overrides, spec};
use polygram_checkpoint::{Part, RowRecord, RunStore};
use polygram_domain::{CheckpointKind, RowRef, RunSpec, Step, TableIndex};
use polygram_embedding_shard::archive::{ArchiveError, RowArchive, Shipment, StoreArchive};
use polygram_embedding_shard::rows::DecayLog;
use polygram_embedding_shard::{Record, Shard, ShardError, SnapshotRows};
use polygram_row_exchange::SnapshotOrder;
use tokio::sync::mpsc;

const WORKLOAD: Workload = Workload { seed: 9, poisoned: None };
const STEPS: u64 = 8;
const SNAPSHOT_AT: u64 = 3;

/// Snapshots in memory, by version.
#[derive(Clone, Default)]
struct MemoryArchive {
    tables: u32,
    snapshots: Arc<Mutex<BTreeMap<Step, Vec<Record>>>>,
}

impl RowArchive for MemoryArchive {
    fn archive<'a>(
        &'a self,
        mut rows: SnapshotRows,
    ) -> Pin<Box<dyn Future<Output = Result<(), ArchiveError>> + Send + 'a>> {
        Box::pin(async move {
            let mut all = Vec::new();
            for table in 0..self.tables {
                while let Some(records) = rows.next(TableIndex(table)).await? {
                    all.extend(records);
                    tokio::task::yield_now().await;
                }
            }
            self.snapshots.lock().unwrap().entry(rows.version()).or_default().extend(all);
            Ok(())
        })
    }
}

fn restore_all(shard: &mut Shard, records: &[Record], version: Step) {
    for Record { table, row, updates, values } in records {
        let mine = shard.weights(RowRef { table: *table, row: *row }).is_some();
        let restored = shard.restore_row(*table, RowRecord { row: *row, updates: *updates, values });
        assert_eq!(restored.is_ok(), mine, "a shard takes its own rows and no others");
    }
    shard.set_version(version);
}

async fn uninterrupted(spec: &RunSpec) -> Vec<Record> {
    let cluster = Cluster::start(spec).await;
    train_all(&cluster, WORKLOAD, (0..STEPS, Vec::new()), 1).await;
    cluster.into_records().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn training_on_from_memory_equals_training_through() {
    let settings = |shards: u32, lanes: u32| {
        let shards = format!("topology.shards={shards}");
        let lanes = format!("embedding.lanes={lanes}");
        spec(&overrides(&[&shards, &lanes, "topology.workers=2", "embedding.prefetch_steps=3"]))
    };
    let expected = bits(&uninterrupted(&settings(1, 1)).await);
    let before = settings(2, 4);
    let archive = MemoryArchive { tables: before.tables().len() as u32, ..MemoryArchive::default() };
    let shards =
        (0..2).map(|index| new_shard(&before, index).with_archive(Arc::new(archive.clone()))).collect();
    let cluster = Cluster::serve(&before, shards).await;
    // The run goes on while the snapshot is taken, so rows change under it.
    train_all(
        &cluster,
        WORKLOAD,
        (0..STEPS, [SNAPSHOT_AT, SNAPSHOT_AT + 1].map(|at| (at, SnapshotOrder::Commit)).into()),
        2,
    )
    .await;
    assert_eq!(bits(&cluster.into_records().await), expected, "a snapshot changes nothing");
    let snapshots = archive.snapshots.lock().unwrap().clone();
    for version in [SNAPSHOT_AT + 1, SNAPSHOT_AT + 2] {
        let mut records = snapshots[&Step(version)].clone();
        records.sort_by_key(|record| (record.table, record.row));
        for (shards, lanes) in [(3, 1), (1, 4)] {
            let after = settings(shards, lanes);
            let restored = (0..shards)
                .map(|index| {
                    let mut shard = new_shard(&after, index);
                    restore_all(&mut shard, &records, Step(version));
                    shard
                })
                .collect();
            let cluster = Cluster::serve(&after, restored).await;
            train_all(&cluster, WORKLOAD, (version..STEPS, Vec::new()), 3).await;
            assert_eq!(bits(&cluster.into_records().await), expected, "from {version} on {shards} shards");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn training_on_from_a_store_equals_training_through() {
    for rule in RULES {
        through_a_store(rule).await;
    }
}

async fn through_a_store(rule: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(&overrides(&[rule, &["topology.shards=2", "embedding.lanes=2"]].concat()));
    let expected = bits(&uninterrupted(&spec).await);
    let store =
        || RunStore::create(folder.path().to_str().unwrap(), &spec.name).unwrap().with_object_bytes(4096);
    let (parts, mut written) = mpsc::channel(8);
    let shards = (0..2)
        .map(|index| {
            let shard = new_shard(&spec, index);
            let archive = StoreArchive::new(store(), (**shard.config()).clone(), parts.clone());
            shard.with_archive(Arc::new(archive))
        })
        .collect();
    let cluster = Cluster::serve(&spec, shards).await;
    train_all(&cluster, WORKLOAD, (0..SNAPSHOT_AT + 1, vec![(SNAPSHOT_AT, SnapshotOrder::Commit)]), 2).await;
    let mut part = async || match written.recv().await.unwrap() {
        Shipment::Part { kind: CheckpointKind::Commit, part } => part,
        other => panic!("{other:?}"),
    };
    let parts: Vec<Part> = [part().await, part().await].into();
    cluster.stop().await;

    let version = Step(SNAPSHOT_AT + 1);
    let mut restored = Vec::new();
    for index in 0..2 {
        let mut shard = new_shard(&spec, index);
        let buckets = shard.config().buckets();
        for part in &parts {
            assert_eq!(part.step, version);
            for entry in &part.objects {
                let object = store().read_row_object(entry).await.unwrap();
                let table = object.shape().table;
                let rows = object.records(buckets.clone(), |row| shard.restore_row(table, row));
                rows.unwrap();
            }
        }
        shard.set_version(version);
        assert_eq!(parts[0].table_decay, parts[1].table_decay);
        assert_eq!(parts[0].table_decay.is_some(), spec.embedding.all_rows_decay());
        shard.set_decayed(DecayLog::from_units(parts[0].table_decay.unwrap_or(0)));
        restored.push(shard);
    }
    let cluster = Cluster::serve(&spec, restored).await;
    train_all(&cluster, WORKLOAD, (version.0..STEPS, Vec::new()), 4).await;
    assert_eq!(bits(&cluster.into_records().await), expected, "{rule:?}");
}

#[test]
fn rows_of_another_shape_are_not_restored() {
    let spec = spec(&overrides(&["topology.shards=2"]));
    let mut shard = new_shard(&spec, 0);
    let values = vec![1.0f32; 36];
    let row = |row: u32, values| RowRecord { row: polygram_domain::RowId(row), updates: 1, values };
    shard.restore_row(TableIndex(0), row(3, &values)).unwrap();
    let cases = [
        (TableIndex(0), row(3, &values), "already"),
        (TableIndex(0), row(4, &values[..35]), "35 values"),
        (TableIndex(0), row(u32::MAX, &values), "not of shard 0"),
        (TableIndex(99), row(4, &values), "not of shard 0"),
    ];
    for (table, row, word) in cases {
        let error = shard.restore_row(table, row).unwrap_err();
        assert!(matches!(error, ShardError::Restore { .. }) && error.to_string().contains(word), "{error}");
    }
}
