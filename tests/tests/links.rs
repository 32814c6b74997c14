//! Hosts that lose each other and still reach the coordinator: the data plane has heartbeats of its own. A cut is
//! noticed in about the failure detection, the link is named, the run tries again as often as it takes, and goes on by
//! itself with the bits of a run that was never disturbed.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polygram_tests::{ByHand, Cluster, Engine, Undisturbed, Way, Ways};
use serde_json::Value;

const DETECTION: Duration = Duration::from_secs(2);
/// Long enough to be cut in the middle.
const RUN: [&str; 7] = [
    "training.steps=400",
    "checkpoint.every_steps=20",
    "evaluation.every_steps=200",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=2",
    // Rows are to take the way that is cut.
    "embedding.same_host=\"tcp\"",
];
static UNDISTURBED: Undisturbed = Undisturbed::of(&RUN);

const UP: Ways = Ways { up: Way::Held, ..Ways::OPEN };
const DOWN: Ways = Ways { down: Way::Held, ..Ways::OPEN };
const BOTH: Ways = Ways::both(Way::Held);

fn restarts(status: &Value) -> u64 {
    status["restarts"].as_u64().unwrap_or(0)
}

/// Cuts shard 0 off from the workers alone for `detections` times the failure detection.
fn cut(ways: Ways, detections: f64) -> Result<()> {
    let cluster = Cluster::tiny(Engine::Drill)?.with(&RUN);
    let mut run = ByHand::start(&cluster, (2, 2))?;
    run.await_status("step 50", |status| {
        status["state"] == "running" && status["step"].as_u64().unwrap_or(0) >= 50
    })?;
    let begun = Instant::now();
    run.tell_data(&[("shard", 0)], ways);
    let until = begun + DETECTION.mul_f64(detections);
    if detections > 1.0 {
        let status = run.await_status("the loss", |status| restarts(status) >= 1)?;
        let noticed = begun.elapsed();
        ensure!(noticed < DETECTION * 3, "noticed after {noticed:?} only");
        let loss = &status["last_rollback"];
        ensure!(loss["reason"] == "environment_failed", "another reason: {loss}");
        let message = loss["culprit"]["message"].as_str().context("no message")?;
        let is_named = (0..2).any(|rank| {
            message.contains(&format!("worker {rank} hears nothing from shard 0 for 2.0 s"))
                || message.contains(&format!("shard 0 hears nothing from worker {rank} for 2.0 s"))
        });
        ensure!(is_named, "the link is not named: {message}");
    }
    // Whoever dies meanwhile is started again, and the run is not over.
    while Instant::now() < until {
        run.await_status("an answer", |_| true)?;
    }
    run.tell_data(&[("shard", 0)], Ways::OPEN);
    let finished = run.completes()?;
    ensure!(
        cluster.trace()? == *UNDISTURBED.trace(Engine::Drill),
        "other bits, or other steps\n{}",
        finished.said()
    );
    ensure!(cluster.ledger()?.len() == 400, "each step has one line");
    Ok(())
}

fn cut_all_ways(detections: f64) {
    std::thread::scope(|scope| {
        let cuts = [BOTH, UP, DOWN].map(|ways| (ways, scope.spawn(move || cut(ways, detections))));
        for (ways, cut) in cuts {
            cut.join().unwrap().with_context(|| format!("{ways:?} for {detections} detections")).unwrap();
        }
    });
}

#[test]
fn a_short_cut_is_outlasted() {
    cut_all_ways(0.5);
}

#[test]
fn a_cut_is_noticed_soon_and_the_link_is_named() {
    cut_all_ways(3.0);
}

#[test]
fn a_long_cut_ends_with_the_cut() {
    cut_all_ways(60.0);
}
