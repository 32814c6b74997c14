//! The same run gives the same bits: again, in two sessions, and in any topology.

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use polygram_tests::{Cluster, Digest, Engine};

/// Long enough for warm-up, decay, a commit on the way and rows that are hit again; short enough to run often.
const RUN: [&str; 4] =
    ["training.steps=20", "checkpoint.every_steps=12", "evaluation.every_steps=6", "evaluation.cells=2"];

/// A finished run's state and history.
type Bits = (Digest, std::collections::BTreeMap<u64, [u64; 3]>);

fn run(engine: Engine, sets: &[&str]) -> Result<Bits> {
    let cluster = Cluster::tiny(engine)?.with(&RUN);
    cluster.train(sets)?.success()?;
    Ok((cluster.digest()?, cluster.metrics()?))
}

/// One worker, one shard, one step of look-ahead: what every other run is compared with.
fn reference(engine: Engine) -> &'static Bits {
    static TORCH: OnceLock<Bits> = OnceLock::new();
    static DRILL: OnceLock<Bits> = OnceLock::new();
    let slot = match engine {
        Engine::Torch => &TORCH,
        Engine::Drill => &DRILL,
    };
    slot.get_or_init(|| {
        run(engine, &["topology.workers=1", "topology.shards=1", "embedding.prefetch_steps=1"])
            .expect("the reference run must succeed")
    })
}

fn same_bits(engine: Engine, sets: &[&str]) -> Result<()> {
    let (digest, metrics) = run(engine, sets)?;
    let (reference_digest, reference_metrics) = reference(engine);
    // History first: it tells the first step that differs.
    for (step, values) in reference_metrics {
        let numbers = |bits: Option<&[u64; 3]>| bits.map(|bits| bits.map(f64::from_bits));
        let (ours, theirs) = (numbers(metrics.get(step)), numbers(Some(values)));
        ensure!(
            metrics.get(step) == Some(values),
            "{engine:?} {sets:?} differs first at step {step}: loss, norm, rate {ours:?} instead of {theirs:?}"
        );
    }
    ensure!(&digest == reference_digest, "{engine:?} {sets:?}: {digest:?} instead of {reference_digest:?}");
    Ok(())
}

#[test]
fn the_reference_is_a_whole_run() {
    let (digest, metrics) = reference(Engine::Torch);
    assert_eq!(digest.step, 20);
    assert_eq!(metrics.keys().copied().collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    for part in ["dense", "optimizer", "router_bias", "tables", "data"] {
        assert!(digest.parts.contains_key(part), "no digest of {part} in {:?}", digest.parts);
    }
    let losses: Vec<f64> = metrics.values().map(|values| f64::from_bits(values[0])).collect();
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    assert!(losses[19] < losses[0], "the loss must fall: {losses:?}");
}

#[test]
fn a_second_run_has_the_same_bits() {
    same_bits(Engine::Torch, &["topology.shards=1"]).unwrap();
}

#[test]
fn another_seed_has_other_bits() {
    let (digest, _) = run(Engine::Drill, &["run.seed=8"]).unwrap();
    assert_ne!(digest.digest, reference(Engine::Drill).0.digest);
}

/// Every division of the model over 1, 2 and 4 workers with their experts divided in every way, and 1, 2 and 3 shards.
fn every_topology(engine: Engine, workers: u32) -> Result<()> {
    let divisions = (0..3).map(|bit| 1 << bit).filter(|&experts| experts <= workers);
    for experts in divisions {
        for shards in 1..=3 {
            let set = |key: &str, value| format!("topology.{key}={value}");
            let sets = [set("workers", workers), set("expert_parallel", experts), set("shards", shards)];
            same_bits(engine, &sets.each_ref().map(String::as_str))?;
        }
    }
    Ok(())
}

#[test]
fn one_worker_with_any_shards_has_the_same_bits() {
    every_topology(Engine::Torch, 1).unwrap();
    every_topology(Engine::Drill, 1).unwrap();
}

#[test]
fn two_workers_with_any_experts_and_shards_have_the_same_bits() {
    every_topology(Engine::Torch, 2).unwrap();
    every_topology(Engine::Drill, 2).unwrap();
}

#[test]
fn four_workers_with_any_experts_and_shards_have_the_same_bits() {
    every_topology(Engine::Torch, 4).unwrap();
    every_topology(Engine::Drill, 4).unwrap();
}

/// The fastest order of sums: other bits than one worker's, the same curve, and the same bits again.
#[test]
fn topology_mode_follows_the_same_curve_and_repeats_its_bits() {
    const MODE: [&str; 3] =
        ["training.determinism=\"topology\"", "training.steps=50", "evaluation.every_steps=1000"];
    let run = |sets: &[&str]| {
        let cluster = Cluster::tiny(Engine::Torch).unwrap().with(&MODE);
        cluster.train(sets).unwrap().success().unwrap();
        (cluster.digest().unwrap(), cluster.metrics().unwrap())
    };
    let divided = ["topology.workers=4", "topology.expert_parallel=2", "topology.shards=2"];
    let (digest, metrics) = run(&divided);
    let (_, alone) = run(&["topology.workers=1", "topology.shards=1"]);
    assert_eq!(metrics.len(), 50);
    let mut worst: f64 = 0.0;
    for (step, values) in &metrics {
        let (loss, wanted) = (f64::from_bits(values[0]), f64::from_bits(alone[step][0]));
        worst = worst.max((loss / wanted - 1.0).abs());
        assert!(worst <= 1e-4, "step {step}: loss {loss}, and {wanted} on one worker");
    }
    println!("losses differ by {worst:e} at most");
    assert_eq!(run(&divided), (digest, metrics));
}

#[test]
fn lookahead_and_lanes_do_not_change_a_bit() {
    same_bits(Engine::Drill, &["embedding.prefetch_steps=0"]).unwrap();
    same_bits(Engine::Drill, &["embedding.prefetch_steps=4", "topology.workers=2"]).unwrap();
    same_bits(Engine::Drill, &["embedding.lanes=3", "topology.shards=2"]).unwrap();
    same_bits(Engine::Torch, &["embedding.prefetch_steps=3"]).unwrap();
}

#[test]
fn checkpoints_and_evaluations_do_not_change_a_bit() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    cluster.train(&["checkpoint.every_steps=3", "evaluation.every_steps=5"]).unwrap().success().unwrap();
    assert_eq!(cluster.digest().unwrap(), reference(Engine::Drill).0);
}

/// 2N steps equal N steps, a stop, and N more: in the schedule, the sample order, the moments and the history.
#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    for engine in [Engine::Drill, Engine::Torch] {
        let cluster = Cluster::tiny(engine).unwrap().with(&RUN);
        cluster.train(&["training.stop_at_step=5"]).unwrap().success().unwrap();
        let stopped = cluster.digest().unwrap();
        assert_eq!(stopped.step, 5);
        assert_eq!(cluster.commits().unwrap(), [5]);
        cluster.train(&[]).unwrap().success().unwrap();
        assert_eq!(cluster.digest().unwrap(), reference(engine).0, "{engine:?}");
        assert_eq!(cluster.metrics().unwrap(), reference(engine).1, "{engine:?}");
        // The older commit still reads the same.
        assert_eq!(cluster.digest_at(5).unwrap(), stopped);
    }
}

/// The commit knows nothing of the topology that made it.
#[test]
fn a_run_may_go_on_in_another_topology() {
    for engine in [Engine::Drill, Engine::Torch] {
        let cluster = Cluster::tiny(engine).unwrap().with(&RUN);
        cluster.train(&["training.stop_at_step=4", "topology.shards=2"]).unwrap().success().unwrap();
        let experts = "topology.expert_parallel=2";
        let sets = ["training.stop_at_step=7", "topology.workers=4", experts, "topology.shards=3"];
        cluster.train(&sets).unwrap().success().unwrap();
        cluster.train(&["topology.workers=2", "topology.shards=1"]).unwrap().success().unwrap();
        assert_eq!(cluster.digest().unwrap(), reference(engine).0, "{engine:?}");
        assert_eq!(cluster.metrics().unwrap(), reference(engine).1, "{engine:?}");
    }
}

/// A run that is complete says so and changes nothing.
#[test]
fn a_complete_run_stays_as_it_is() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    cluster.train(&[]).unwrap().success().unwrap();
    let (digest, commits) = (cluster.digest().unwrap(), cluster.commits().unwrap());
    cluster.train(&[]).unwrap().success().unwrap();
    assert_eq!(cluster.digest().unwrap(), digest);
    assert_eq!(cluster.commits().unwrap(), commits);
}
