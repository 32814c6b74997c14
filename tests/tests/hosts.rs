//! Partitions between hosts: every process in a network namespace of its own, and what two of them send each other is
//! lost, one way or both, while both reach the coordinator.
//!
//! Needs root and iproute2: `make test-hosts`.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test program: an unwrap is a failed test, a skip is told

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polygram_tests::{Cluster, Engine, Hosts, OnHosts, Slot, Undisturbed};
use serde_json::Value;

const DETECTION: Duration = Duration::from_secs(2);
/// Long enough to be cut in the middle.
const RUN: [&str; 6] = [
    "training.steps=400",
    "checkpoint.every_steps=20",
    "evaluation.every_steps=200",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=2",
];
static UNDISTURBED: Undisturbed = Undisturbed::of(&RUN);

/// Which direction is cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Both,
    There,
}

fn restarts(status: &Value) -> u64 {
    status["restarts"].as_u64().unwrap_or(0)
}

/// "worker 1 hears nothing from shard 0", or with ranks where both are workers, either way round.
fn names_link(message: &str, (a, b): (Slot, Slot)) -> bool {
    let name = |(role, index): Slot| match (a.0, b.0) {
        ("worker", "worker") => format!("rank {index}"),
        _ => format!("{role} {index}"),
    };
    [(a, b), (b, a)].iter().any(|(hears, silent)| {
        message.contains(&format!("{} hears nothing from {}", name(*hears), name(*silent)))
    })
}

/// Loses what `link`'s two ends send each other for `detections` times the failure detection.
fn cut(name: &str, link: (Slot, Slot), how: Cut, detections: f64) -> Result<()> {
    let hosts = Hosts::make(name, 5)?;
    let cluster = Cluster::tiny(Engine::Drill)?.with(&RUN);
    let mut run = OnHosts::start(&cluster, &hosts, (2, 2))?;
    run.await_status("step 50", |status| {
        status["state"] == "running" && status["step"].as_u64().unwrap_or(0) >= 50
    })?;
    let (a, b) = (run.host(link.0)?, run.host(link.1)?);
    let begun = Instant::now();
    hosts.cut(a, b)?;
    if matches!(how, Cut::Both) {
        hosts.cut(b, a)?;
    }
    if detections > 1.0 {
        let status = run.await_status("the loss", |status| restarts(status) >= 1)?;
        let noticed = begun.elapsed();
        ensure!(noticed < DETECTION * 3, "noticed after {noticed:?} only");
        let loss = &status["last_rollback"];
        ensure!(loss["reason"] == "environment_failed", "another reason: {loss}");
        let message = loss["culprit"]["message"].as_str().context("no message")?;
        ensure!(names_link(message, link), "another link is named: {message}");
    }
    while begun.elapsed() < DETECTION.mul_f64(detections) {
        run.await_status("an answer", |_| true)?;
    }
    hosts.heal(a, b)?;
    if matches!(how, Cut::Both) {
        hosts.heal(b, a)?;
    }
    let finished = run.completes()?;
    ensure!(
        cluster.trace()? == *UNDISTURBED.trace(Engine::Drill),
        "other bits, or other steps\n{}",
        finished.said()
    );
    Ok(())
}

/// Detections that a link is cut for: noticed or not, and as long as a run would wait for a member.
const SHORT: [f64; 2] = [0.5, 3.0];
const LONG: [f64; 1] = [60.0];

/// Cuts a link in both ways, one after the other, for each of `detections`.
fn cut_link(name: &str, link: (Slot, Slot), detections: &[f64]) {
    if !Hosts::are_possible() {
        println!("skipped: network namespaces need root and iproute2");
        return;
    }
    let cuts = detections.iter().flat_map(|detections| [(Cut::Both, *detections), (Cut::There, *detections)]);
    for (number, (how, detections)) in cuts.enumerate() {
        let done = cut(&format!("{name}{number}"), link, how, detections);
        done.with_context(|| format!("{link:?} {how:?} for {detections} detections")).unwrap();
    }
}

const WORKERS: (Slot, Slot) = (("worker", 1), ("worker", 0));
const WORKER_AND_SHARD: (Slot, Slot) = (("worker", 1), ("shard", 0));
const SHARD_AND_WORKER: (Slot, Slot) = (("shard", 1), ("worker", 0));

#[test]
#[ignore = "needs root: make test-hosts"]
fn two_workers_lose_each_other() {
    cut_link("w", WORKERS, &SHORT);
}

#[test]
#[ignore = "needs root: make test-hosts"]
fn two_workers_lose_each_other_for_long() {
    cut_link("wl", WORKERS, &LONG);
}

#[test]
#[ignore = "needs root: make test-hosts"]
fn a_worker_and_a_shard_lose_each_other() {
    cut_link("s", WORKER_AND_SHARD, &SHORT);
}

#[test]
#[ignore = "needs root: make test-hosts"]
fn a_worker_and_a_shard_lose_each_other_for_long() {
    cut_link("sl", WORKER_AND_SHARD, &LONG);
}

#[test]
#[ignore = "needs root: make test-hosts"]
fn a_shard_and_a_worker_lose_each_other() {
    cut_link("t", SHARD_AND_WORKER, &SHORT);
}

#[test]
#[ignore = "needs root: make test-hosts"]
fn a_shard_and_a_worker_lose_each_other_for_long() {
    cut_link("tl", SHARD_AND_WORKER, &LONG);
}
