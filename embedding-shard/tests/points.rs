//! Recovery points: changed rows on all rows, restored in any topology and gone on from, to the same bits as training through.
#![allow(clippy::unwrap_used, reason = "what a test cannot do without ends it")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::cluster::{Cluster, new_shard, train_all};
use common::reference::bits;
use common::{RULES, Workload, overrides, spec};
use polygram_checkpoint::{ConfigHash, Content, Cursor, Manifest, Part, RowScope, RunStore};
use polygram_domain::{CheckpointKind, RunSpec, SCHEMA_VERSION, Step};
use polygram_embedding_shard::Shard;
use polygram_embedding_shard::archive::{Chain, PointArchive, Shipment, StoreArchive};
use polygram_embedding_shard::restore::{chain_of, restore};
use polygram_row_exchange::SnapshotOrder;
use tokio::sync::mpsc;

const WORKLOAD: Workload = Workload { seed: 9, poisoned: None };
const STEPS: u64 = 9;

/// The stores of one test.
struct Places {
    folder: tempfile::TempDir,
    spec: RunSpec,
}

impl Places {
    fn store(&self, name: &str) -> RunStore {
        let root = self.folder.path().join(name);
        RunStore::create(root.to_str().unwrap(), &self.spec.name).unwrap().with_object_bytes(4096)
    }

    /// A shard that archives here, as a part of another run's topology.
    fn archiving(
        &self,
        shard: Shard,
        (below, chain): (f64, Option<Chain>),
        shipments: &mpsc::Sender<Shipment>,
    ) -> Shard {
        let config = (**shard.config()).clone();
        let archive = StoreArchive::new(self.store("run"), config, shipments.clone());
        let points = PointArchive::new(self.store("points"), below, chain);
        shard.with_archive(Arc::new(archive.with_points(points)))
    }
}

fn spec_of(rule: &[&str], shards: u32) -> RunSpec {
    let shards = format!("topology.shards={shards}");
    spec(&overrides(&[rule, &[&shards, "embedding.lanes=3", "recovery_points.every_steps=2"]].concat()))
}

fn manifest(spec: &RunSpec, parts: &[Part]) -> Manifest {
    let step = parts[0].step;
    assert!(parts.iter().all(|part| part.step == step && part.table_decay == parts[0].table_decay));
    Manifest {
        schema: SCHEMA_VERSION,
        run: spec.name.to_string(),
        step,
        kind: CheckpointKind::Point,
        seed: spec.seed,
        config: ConfigHash::of("config"),
        cursor: Cursor { samples: 0, tokens: 0 },
        table_decay: parts[0].table_decay,
        ledger: None,
        policy: Default::default(),
        created_unix_ms: 0,
        objects: parts.iter().flat_map(|part| part.objects.clone()).collect(),
    }
}

/// What shards ship, which do not wait for each other.
struct Harbour {
    sender: mpsc::Sender<Shipment>,
    shipments: mpsc::Receiver<Shipment>,
    waiting: BTreeMap<Step, Vec<Part>>,
}

impl Harbour {
    fn new() -> Harbour {
        let (sender, shipments) = mpsc::channel(64);
        Harbour { sender, shipments, waiting: BTreeMap::new() }
    }

    /// The next recovery point of all shards of `spec`.
    async fn point(&mut self, spec: &RunSpec) -> Manifest {
        loop {
            let complete = |parts: &Vec<Part>| parts.len() == spec.topology.shards as usize;
            if let Some(first) = self.waiting.first_entry().filter(|first| complete(first.get())) {
                return manifest(spec, &first.remove());
            }
            match self.shipments.recv().await.unwrap() {
                Shipment::Part { kind: CheckpointKind::Point, part } => {
                    self.waiting.entry(part.step).or_default().push(part);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn of_scope(manifest: &Manifest, wanted: RowScope) -> Vec<&str> {
    let is_wanted = |content: &Content| matches!(content, Content::Rows { scope, .. } if *scope == wanted);
    let of_scope = manifest.objects.iter().filter(|o| is_wanted(&o.content));
    let mut keys: Vec<&str> = of_scope.map(|o| o.key.as_str()).collect();
    keys.sort_unstable();
    keys
}

/// Where in a whole run each snapshot comes, and what it is for.
fn orders(from: u64) -> Vec<(u64, SnapshotOrder)> {
    let point = |after: u64| SnapshotOrder::Point { after: Some(Step(after)) };
    let all = [(1, SnapshotOrder::Point { after: None }), (3, point(2)), (5, point(4)), (7, point(6))];
    all.into_iter().filter(|(at, _)| *at >= from).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn training_on_from_a_point_of_changes_equals_training_through() {
    for rule in RULES {
        let places = Places { folder: tempfile::tempdir().unwrap(), spec: spec_of(rule, 2) };
        let spec = &places.spec;
        let cluster = Cluster::start(spec).await;
        train_all(&cluster, WORKLOAD, (0..STEPS, Vec::new()), 1).await;
        let expected = bits(&cluster.into_records().await);

        let mut harbour = Harbour::new();
        // Changes are written however many they are.
        let shards =
            (0..2).map(|index| places.archiving(new_shard(spec, index), (1.1, None), &harbour.sender));
        let cluster = Cluster::serve(spec, shards.collect()).await;
        train_all(&cluster, WORKLOAD, (0..6, orders(0)), 2).await;
        let mut made = Vec::new();
        for _ in 0..3 {
            made.push(harbour.point(spec).await);
        }
        cluster.stop().await;
        assert_eq!(made.iter().map(|m| m.step.0).collect::<Vec<_>>(), [2, 4, 6]);
        assert!(of_scope(&made[0], RowScope::Changed).is_empty());
        for later in &made[1..] {
            assert_eq!(of_scope(later, RowScope::All), of_scope(&made[0], RowScope::All));
            assert!(!of_scope(later, RowScope::Changed).is_empty());
        }
        for (from, shards) in [(0, 2), (1, 2), (2, 2), (2, 3), (2, 1)] {
            let (before, after) = (&made[from], spec_of(rule, shards));
            let mut restored = Vec::new();
            for index in 0..shards {
                let mut shard = new_shard(&after, index);
                restore(&mut shard, &places.store("points"), before).await.unwrap();
                let chain = chain_of(&shard, before);
                // Objects of another topology hold rows of other shards, those of a finer one do not.
                assert_eq!(chain.is_some(), shards < 3, "{from} on {shards} shards");
                restored.push(places.archiving(shard, (1.1, chain), &harbour.sender));
            }
            let cluster = Cluster::serve(&after, restored).await;
            let step = before.step.0;
            train_all(&cluster, WORKLOAD, (step..STEPS, orders(step)), 3).await;
            for _ in orders(step) {
                let next = harbour.point(&after).await;
                let builds_on = of_scope(&next, RowScope::All) == of_scope(&made[0], RowScope::All);
                let whole = of_scope(&next, RowScope::Changed).is_empty();
                // The first one of another topology is whole, and the next builds on it.
                assert!(shards == 3 || builds_on, "{from} on {shards} shards, step {}", next.step);
                assert!(shards < 3 || whole == (next.step.0 == step + 2));
                let mut again = new_shard(&spec_of(rule, 1), 0);
                restore(&mut again, &places.store("points"), &next).await.unwrap();
            }
            assert_eq!(bits(&cluster.into_records().await), expected, "{rule:?}: {from} on {shards} shards");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_are_written_as_all_rows() {
    let places = Places { folder: tempfile::tempdir().unwrap(), spec: spec_of(&[], 1) };
    let mut harbour = Harbour::new();
    let shard = places.archiving(new_shard(&places.spec, 0), (1e-6, None), &harbour.sender);
    let cluster = Cluster::serve(&places.spec, vec![shard]).await;
    train_all(&cluster, WORKLOAD, (0..4, orders(0)), 2).await;
    for _ in 0..2 {
        let made = harbour.point(&places.spec).await;
        assert!(of_scope(&made, RowScope::Changed).is_empty());
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_that_cannot_be_written_is_told_and_the_next_is_whole() {
    let places = Places { folder: tempfile::tempdir().unwrap(), spec: spec_of(&[], 1) };
    let mut harbour = Harbour::new();
    let shard = places.archiving(new_shard(&places.spec, 0), (1.1, None), &harbour.sender);
    let cluster = Cluster::serve(&places.spec, vec![shard]).await;
    train_all(&cluster, WORKLOAD, (0..2, orders(0)), 2).await;
    let first = harbour.point(&places.spec).await;
    // A file where the folder of its objects should be.
    let data = places.folder.path().join(format!("points/runs/{}/ckpt/data", places.spec.name));
    std::fs::rename(&data, data.with_extension("away")).unwrap();
    std::fs::write(&data, "").unwrap();
    train_all(&cluster, WORKLOAD, (2..4, vec![(3, SnapshotOrder::Point { after: Some(first.step) })]), 2)
        .await;
    match harbour.shipments.recv().await.unwrap() {
        Shipment::NotWritten { step: Step(4), reason } => {
            assert!(reason.contains("for checkpoint 4"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    std::fs::remove_file(&data).unwrap();
    train_all(&cluster, WORKLOAD, (4..6, vec![(5, SnapshotOrder::Point { after: Some(first.step) })]), 2)
        .await;
    let next = harbour.point(&places.spec).await;
    assert!(of_scope(&next, RowScope::Changed).is_empty());
    cluster.stop().await;
}
