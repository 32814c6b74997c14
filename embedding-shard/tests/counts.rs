//! What shards count while workers train on them is the same in every topology, and agrees with their rows.
#![allow(clippy::unwrap_used, reason = "what a test cannot do without ends it")]

mod common;

use std::collections::BTreeMap;

use common::cluster::{Cluster, DEADLINE, new_shard, train_all};
use common::{Workload, overrides, spec};
use polygram_domain::control::common_marks;
use polygram_domain::{RowId, RowRef, Step, TableIndex};
use polygram_embedding_shard::observe::{Fingerprint, ShardStats, ShardView};
use polygram_proto::rows::HotRow;

const STEPS: u64 = 6;

/// What is the same however rows are divided.
#[derive(Debug, PartialEq)]
struct Counts {
    touched_rows: Vec<u64>,
    updates: Vec<u64>,
    fingerprints: Vec<Fingerprint>,
    newest_mark: (Step, u64),
    declared_rows: u64,
    step_rows: u64,
    norms: u64,
    hottest: u32,
}

/// The shard once its lanes have closed every step.
async fn settled(view: &ShardView) -> ShardStats {
    let all_closed = async {
        loop {
            let stats = view.stats();
            if stats.version == Step(STEPS) && stats.tables.iter().all(|table| table.fingerprint.is_some()) {
                return stats;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, all_closed).await.expect("all steps are closed")
}

async fn counts_of(shards: u32, lanes: u32, workers: u32) -> Counts {
    let settings = [
        format!("topology.shards={shards}"),
        format!("embedding.lanes={lanes}"),
        format!("topology.workers={workers}"),
    ];
    let spec = spec(&settings);
    let served: Vec<_> = (0..shards).map(|index| new_shard(&spec, index)).collect();
    let views: Vec<_> = served.iter().map(|shard| shard.view()).collect();
    let readers: Vec<_> = served.iter().map(|shard| shard.reader()).collect();
    let cluster = Cluster::serve(&spec, served).await;
    let workload = Workload { seed: 11, poisoned: Some(3) };
    train_all(&cluster, workload, (0..STEPS, Vec::new()), u64::from(lanes)).await;

    let mut stats = Vec::new();
    for view in &views {
        stats.push(settled(view).await);
    }
    let tables = spec.tables().len();
    let by_table = |of: fn(&ShardStats, usize) -> u64| -> Vec<u64> {
        (0..tables).map(|table| stats.iter().map(|shard| of(shard, table)).sum()).collect()
    };
    let fingerprint = |table: usize| {
        let parts = stats.iter().filter_map(|shard| shard.tables[table].fingerprint);
        parts.reduce(Fingerprint::and).unwrap()
    };
    let newest = common_marks(stats.iter().map(|shard| &shard.marks[..]))[0];
    let hot: Vec<HotRow> = stats.iter().flat_map(|shard| shard.hot.iter().copied()).collect();
    let counts = Counts {
        touched_rows: by_table(|shard, table| shard.tables[table].touched_rows),
        updates: by_table(|shard, table| shard.tables[table].updates),
        fingerprints: (0..tables).map(fingerprint).collect(),
        newest_mark: (newest.version, newest.fingerprint.0),
        declared_rows: stats.iter().map(|shard| shard.declared_rows).sum(),
        step_rows: stats.iter().map(|shard| shard.step_rows).sum(),
        norms: stats.iter().map(|shard| shard.norms.count()).sum(),
        hottest: hot.iter().map(|row| row.updates).max().unwrap(),
    };

    // Rows that are looked at from outside are the rows that the shards end with.
    let first_and_last = |view: &ShardView, table: u32| {
        let config = view.config();
        let spec = config.tables.get(TableIndex(table)).unwrap();
        let owned = polygram_embedding_shard::config::rows_of_buckets(spec, &config.buckets());
        vec![owned.end - 1, owned.start]
    };
    let mut looked = Vec::new();
    for (reader, view) in readers.iter().zip(&views) {
        for table in 0..tables as u32 {
            let peeked = reader.peek(TableIndex(table), &first_and_last(view, table)).await.unwrap();
            assert_eq!(peeked.version, Step(STEPS));
            looked.push(peeked.values_rw);
        }
    }
    let ended: Vec<_> = cluster.stop().await.into_iter().map(|shard| shard.unwrap()).collect();
    let mut looked = looked.into_iter();
    for (shard, view) in ended.iter().zip(&views) {
        for table in 0..tables as u32 {
            let rows = first_and_last(view, table).into_iter();
            let expected: Vec<f32> = rows
                .flat_map(|row| shard.weights(RowRef { table: TableIndex(table), row: RowId(row) }).unwrap())
                .collect();
            assert_eq!(looked.next().unwrap(), expected);
        }
    }

    // Counts agree with the rows themselves.
    let mut exact: BTreeMap<u32, (u64, u64, u32)> = BTreeMap::new();
    for record in ended.iter().flat_map(|shard| shard.records()) {
        let (touched, updates, hottest) = exact.entry(record.table.0).or_default();
        *touched += 1;
        *updates += u64::from(record.updates);
        *hottest = record.updates.max(*hottest);
    }
    for (table, (touched, updates, _)) in &exact {
        let at = *table as usize;
        assert_eq!((counts.touched_rows[at], counts.updates[at]), (*touched, *updates), "table {table}");
    }
    assert_eq!(Some(counts.hottest), exact.values().map(|(.., hottest)| *hottest).max());
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_do_not_depend_on_the_topology() {
    let one = counts_of(1, 1, 1).await;
    assert_eq!(one.newest_mark.0, Step(STEPS));
    let total = one.fingerprints.iter().fold(0u64, |sum, table| sum.wrapping_add(table.chain));
    assert_eq!(one.newest_mark.1, total);
    assert!(one.declared_rows > one.step_rows && one.step_rows > one.touched_rows.iter().sum(), "{one:?}");
    assert!(one.norms > 0 && one.hottest == STEPS as u32 - 1, "one step was skipped: {one:?}");
    for (shards, lanes, workers) in [(1, 4, 2), (2, 3, 1), (3, 1, 4)] {
        assert_eq!(counts_of(shards, lanes, workers).await, one, "{shards} shards of {lanes} lanes");
    }
    let spec = spec(&overrides(&[]));
    assert_eq!(one.touched_rows.len(), spec.tables().len());
}
