//! Any number of shards, lanes and steps of prefetch, and any order of arrival, give the reference's bits.
#![allow(clippy::unwrap_used, reason = "what a test cannot do without ends it")]

mod common;

use common::cluster::{Cluster, train_all};
use common::reference::{Reference, bits};
use common::{RULES, Workload, overrides, spec};
use polygram_domain::Step;

const STEPS: u64 = 7;

async fn compare(overrides: &[String], shuffle: u64) {
    let spec = spec(overrides);
    let workload = Workload { seed: 77, poisoned: Some(3) };
    let cluster = Cluster::start(&spec).await;
    let seen = train_all(&cluster, workload, (0..STEPS, Vec::new()), shuffle).await;
    let records = cluster.into_records().await;
    let mut reference = Reference::new(&spec);
    for step in (0..STEPS).map(Step) {
        let expected = reference.step(&workload, step);
        assert_eq!(expected.prepared.finite, step.0 != 3);
        for seen in &seen {
            let prepared = &seen.prepared[&step];
            assert_eq!(prepared.finite, expected.prepared.finite);
            let bits = |sums: &[(_, _, f64)]| -> Vec<_> {
                sums.iter()
                    .map(|&(t, b, sum)| (t, b, (sum.is_nan(), sum.to_bits() << u64::from(sum.is_nan()))))
                    .collect()
            };
            let (ours, theirs) = (bits(&prepared.sums), bits(&expected.prepared.sums));
            assert_eq!(ours.len(), theirs.len());
            for (a, b) in ours.iter().zip(&theirs) {
                assert!(a == b || a.2.0 && b.2.0, "step {step}: {a:?} against {b:?}");
            }
            for (&(at, cell), rows) in seen.rows.iter().filter(|((at, _), _)| *at == step) {
                let expected = &expected.rows[cell.index()];
                assert!(
                    rows.len() == expected.len()
                        && rows.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{overrides:?}: rows of step {at}, cell {cell} differ"
                );
            }
        }
    }
    assert!(!records.is_empty());
    assert_eq!(bits(&records), bits(&reference.records()), "{overrides:?}");
}

fn settings(shards: u32, lanes: u32, prefetch: u32, workers: u32) -> Vec<String> {
    vec![
        format!("topology.shards={shards}"),
        format!("embedding.lanes={lanes}"),
        format!("embedding.prefetch_steps={prefetch}"),
        format!("topology.workers={workers}"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_topology_gives_the_same_bits() {
    let mut shuffle = 0;
    for shards in [1, 2, 3, 7] {
        for lanes in [1, 4] {
            for prefetch in 0..=4 {
                shuffle += 1;
                compare(&settings(shards, lanes, prefetch, [1, 2, 4][shuffle as usize % 3]), shuffle).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_sites_share_row_ids() {
    for (shards, lanes) in [(1, 1), (3, 4)] {
        let mut overrides = settings(shards, lanes, 2, 2);
        overrides.push("model.placement=\"per_layer_ngram\"".into());
        compare(&overrides, 5).await;
    }
}

/// Whatever a row is stored as, updated by and sent over, the topology shows nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_gives_the_same_bits_in_every_topology() {
    let train = async |rule: &[&str], settings: Vec<String>, shuffle: u64| {
        let spec = spec(&[overrides(rule), settings].concat());
        let cluster = Cluster::start(&spec).await;
        let workload = Workload { seed: 78, poisoned: Some(3) };
        train_all(&cluster, workload, (0..STEPS, Vec::new()), shuffle).await;
        bits(&cluster.into_records().await)
    };
    for rule in RULES {
        let expected = train(rule, settings(1, 1, 0, 1), 1).await;
        assert!(!expected.is_empty());
        for (i, (shards, lanes, prefetch, workers)) in
            [(2, 1, 1, 2), (3, 4, 2, 4), (7, 1, 4, 1), (1, 4, 3, 2)].into_iter().enumerate()
        {
            let seen = train(rule, settings(shards, lanes, prefetch, workers), 2 + i as u64).await;
            assert!(seen == expected, "{rule:?} on {shards} shards, {lanes} lanes, {prefetch} ahead");
        }
    }
}
