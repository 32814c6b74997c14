//! A model without n-gram tables (`model.placement = "per_layer"`) is a run like any other: it trains through processes in
//! every topology, and every command that reads runs reads it.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::time::Duration;

use polygram_tests::{Cluster, Engine, Trace};
use rustix::process::Signal;
use serde_json::Value;

const RUN: [&str; 7] = [
    "model.placement=per_layer",
    "training.steps=12",
    "checkpoint.every_steps=4",
    "evaluation.every_steps=6",
    "topology.workers=2",
    "topology.shards=3",
    "run.failure_detection_seconds=5",
];
const END_LIMIT: Duration = Duration::from_secs(120);

fn cluster(engine: Engine) -> Cluster {
    Cluster::tiny(engine).unwrap().with(&RUN)
}

fn trained(engine: Engine, sets: &[&str]) -> Trace {
    let cluster = cluster(engine);
    cluster.train(sets).unwrap().success().unwrap();
    cluster.trace().unwrap()
}

#[test]
fn it_trains_with_the_same_bits_in_every_topology() {
    for engine in [Engine::Drill, Engine::Torch] {
        let wanted = trained(engine, &["topology.workers=1", "topology.shards=1"]);
        assert_eq!(wanted.digest.step, 12);
        let losses: Vec<f64> = wanted.metrics.values().map(|values| f64::from_bits(values[0])).collect();
        assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
        if engine == Engine::Torch {
            assert!(losses[11] < losses[0], "the loss must fall: {losses:?}");
        }
        for sets in [
            &[][..],
            &["topology.workers=4", "topology.expert_parallel=2", "topology.shards=1"],
            &["embedding.decay=all", "embedding.weight_decay=0.1", "embedding.lanes=2"],
        ] {
            let found = trained(engine, sets);
            assert_eq!(found.metrics, wanted.metrics, "{engine:?} {sets:?}");
            assert_eq!(found.digest, wanted.digest, "{engine:?} {sets:?}");
        }
    }
}

/// Killed in the middle it resumes from a recovery point, which has no rows either.
#[test]
fn it_survives_the_loss_of_a_shard_and_of_a_worker() {
    let wanted = trained(Engine::Drill, &[]);
    for (role, order) in [("shard", "shard.before_apply 1:6 kill"), ("worker", "worker.applied 0:7 kill")] {
        for sets in [&[][..], &["recovery_points.every_steps=1"]] {
            let cluster = cluster(Engine::Drill).with(sets);
            let marks = cluster.folder().join("marks");
            std::fs::create_dir(&marks).unwrap();
            let order = format!("{order} {}", marks.display());
            let mut running = cluster.start_with(&[], &[(polygram_faults::VARIABLE, &order)]).unwrap();
            running.wait(END_LIMIT).unwrap().success().unwrap();
            assert_eq!(std::fs::read_dir(&marks).unwrap().count(), 1, "no {role} was killed");
            assert_eq!(cluster.trace().unwrap(), wanted, "{role} {sets:?}");
        }
    }
}

#[test]
fn every_command_reads_it() {
    let cluster = cluster(Engine::Drill);
    let mut running = cluster.start(&["training.steps=1000000"]).unwrap();
    let status = cluster.await_step(&mut running, 6).unwrap();
    assert_eq!(status.members.len(), 5);
    running.signal(running.pid(), Signal::INT).unwrap();
    let stopped = running.wait(END_LIMIT).unwrap();
    assert_eq!(stopped.status.code(), Some(3), "{}", stopped.said());

    let cluster = self::cluster(Engine::Drill);
    cluster.train(&[]).unwrap().success().unwrap();
    let ask = |command: &str, more: &[&str]| {
        let arguments = [&[command, "tiny", "--root", cluster.root_url()], more].concat();
        cluster.polygram(&arguments).unwrap().success().unwrap().stdout
    };
    for command in ["status", "why", "metrics", "ledger", "digest"] {
        let text = ask(command, &[]);
        assert!(!text.contains("NaN") && !text.contains("inf"), "{command}:\n{text}");
        serde_json::from_str::<Value>(&ask(command, &["-o", "json"])).unwrap();
    }
    let shown = cluster.ckpt_json("show", &[]).unwrap();
    assert_eq!(shown["tables"].as_object().map(|tables| tables.len()), Some(0), "{shown}");
    let names: Vec<&String> = shown["members"].as_object().unwrap().keys().collect();
    assert!(names.iter().any(|name| name.starts_with("worker-")), "{names:?}");
    cluster.ckpt("show", &[]).unwrap().success().unwrap();
    cluster.ckpt("verify", &["--all"]).unwrap().success().unwrap();
    cluster.ckpt("diff", &["12", "12"]).unwrap().success().unwrap();
    assert_eq!(cluster.ckpt("diff", &["4", "12"]).unwrap().status.code(), Some(1));
    cluster
        .verify_replay(&["--from", "5", "--to", "10", "--workers", "1", "--shards", "1"])
        .unwrap()
        .success()
        .unwrap();
    let digest = cluster.digest().unwrap();
    let resharded = ["--step", "12", "--to-run", "other", "--workers", "1", "--shards", "2"];
    cluster.ckpt("reshard", &resharded).unwrap().success().unwrap();
    let other = ["digest", "other", "--root", cluster.root_url(), "-o", "json"];
    let other = cluster.polygram(&other).unwrap().success().unwrap().stdout;
    assert_eq!(serde_json::from_str::<Value>(&other).unwrap()["digest"], digest.digest);
}
