//! Whoever dies, the run goes on by itself, and ends with the bits of a run that was never disturbed: every step is
//! recorded once, and the newest commit has the undisturbed run's digest.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test program: an unwrap is a failed test, times are told

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use polygram_faults::Point;
use polygram_tests::{Cluster, Engine, Running, Undisturbed};
use rustix::process::Signal;

/// A short run with several commits, two of everything.
const RUN: [&str; 6] = [
    "training.steps=40",
    "checkpoint.every_steps=10",
    "evaluation.every_steps=20",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=3",
];
static UNDISTURBED: Undisturbed = Undisturbed::of(&RUN);
/// A disturbed run ends long before this, on a busy machine too.
const END_LIMIT: Duration = Duration::from_secs(120);
/// What the launcher may say at most of the time from noticing a loss to the next step.
const GOING_ON_LIMIT_SECONDS: f64 = 60.0;

/// The longest time from noticing a loss to the next step, as the launcher said.
fn slowest_recovery(stderr: &str) -> Option<f64> {
    let seconds =
        |line: &str| line.split_once("going on, ")?.1.split_once(" s after the loss")?.0.parse().ok();
    stderr.lines().filter_map(seconds).max_by(f64::total_cmp)
}

fn ends_undisturbed(cluster: &Cluster, running: &mut Running, engine: Engine) -> Result<String> {
    let finished = running.wait(END_LIMIT)?.success()?;
    running.wait_for_silence(END_LIMIT)?;
    ensure!(
        cluster.trace()? == *UNDISTURBED.trace(engine),
        "other bits, or other steps\n{}",
        finished.said()
    );
    Ok(finished.stderr)
}

/// A fault that strikes once, and what became of the run.
fn struck(engine: Engine, order: &str) -> Result<Option<f64>> {
    let cluster = Cluster::tiny(engine)?.with(&RUN);
    let marks = cluster.folder().join("marks");
    std::fs::create_dir(&marks)?;
    let order = format!("{order} {}", marks.display());
    let mut running = cluster.start_with(&[], &[(polygram_faults::VARIABLE, &order)])?;
    let stderr = ends_undisturbed(&cluster, &mut running, engine).with_context(|| order.clone())?;
    ensure!(std::fs::read_dir(&marks)?.count() == 1, "{order} was not carried out:\n{stderr}");
    let seconds = slowest_recovery(&stderr);
    ensure!(seconds.is_none_or(|seconds| seconds < GOING_ON_LIMIT_SECONDS), "{order}: {seconds:?} s");
    Ok(seconds)
}

/// The run is told to stop at a crash point, does so in good order, and is continued.
fn stopped(order: &str) -> Result<String> {
    let cluster = Cluster::tiny(Engine::Drill)?.with(&RUN);
    let marks = cluster.folder().join("marks");
    std::fs::create_dir(&marks)?;
    let order = format!("{order} {}", marks.display());
    let variables = [(polygram_faults::VARIABLE, order.as_str())];
    let mut running = cluster.start_with(&[], &variables)?;
    let finished = running.wait(END_LIMIT)?;
    running.wait_for_silence(END_LIMIT)?;
    ensure!(!finished.stderr.contains("panicked at"), "{}", finished.said());
    ensure!(std::fs::read_dir(&marks)?.count() == 1, "{order} was not carried out:\n{}", finished.said());
    let last = finished.said().lines().last().unwrap_or_default().to_owned();
    // 0: the run was over already; 3: stopped on request (docs/operations.md).
    match finished.status.code() {
        Some(0) => {}
        Some(3) => {
            let mut running = cluster.start_with(&[], &variables)?;
            ends_undisturbed(&cluster, &mut running, Engine::Drill).context("continued")?;
        }
        _ => bail!("{}\n{}", finished.status, finished.said()),
    }
    ensure!(
        cluster.trace()? == *UNDISTURBED.trace(Engine::Drill),
        "other bits, or other steps\n{}",
        finished.said()
    );
    Ok(last)
}

/// SIGTERM to the launcher when the role's process is at each of its crash points in turn.
fn stopped_at_every_point_of(role: &str) {
    let mut failures = Vec::new();
    for point in points_of(role) {
        let order = format!("{} {} terminate", point.as_str(), passing(point));
        match stopped(&order) {
            Ok(last) => println!("{order}: {last}"),
            Err(error) => failures.push(format!("{order}: {error:#}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn points_of(role: &str) -> Vec<Point> {
    // Ways back from spikes and damaged checkpoints have tests of their own: spikes.rs, damage.rs.
    let elsewhere =
        [Point::CoordinatorRollBackDecided, Point::CoordinatorDamageFound, Point::CoordinatorSetAside];
    let here = |point: &Point| point.role() == role && !elsewhere.contains(point);
    let points: Vec<Point> = Point::ALL.iter().copied().filter(here).collect();
    assert!(points.len() >= 12, "{points:?}");
    points
}

/// Kills the role's process at each of its crash points in turn: at the first passing, and in the middle of the run.
fn every_point_of(role: &str) {
    let mut failures = Vec::new();
    for point in points_of(role) {
        let order = format!("{} {} kill", point.as_str(), passing(point));
        match struck(Engine::Drill, &order) {
            Ok(Some(seconds)) => {
                println!("{order}: the next step came {seconds:.2} s after the loss was noticed")
            }
            Ok(None) => println!("{order}: no step was left to do"),
            Err(error) => failures.push(format!("{order}: {error:#}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Which passing of a point is the fault's: one in the middle of the run where it is passed often.
fn passing(point: Point) -> u64 {
    match point {
        Point::WorkerBeforePush | Point::ShardBeforeDeclare | Point::ShardBeforeAdd => 31,
        Point::WorkerBeforePrepare
        | Point::WorkerAfterPrepare
        | Point::WorkerAgreed
        | Point::WorkerAfterCommit
        | Point::WorkerApplied
        | Point::ShardPrepared
        | Point::ShardBeforeApply
        | Point::ShardAfterApply => 17,
        Point::WorkerSnapshotTaken
        | Point::WorkerUploaded
        | Point::WorkerReported
        | Point::WorkerCommitted
        | Point::ShardConnected
        | Point::ShardSnapshotBegun
        | Point::ShardUploaded
        | Point::ShardReported
        | Point::CoordinatorAdmitted
        | Point::CoordinatorAssigned
        | Point::CoordinatorStarted
        | Point::CoordinatorPartsComplete
        | Point::CoordinatorLedgerWritten
        | Point::CoordinatorBeforeManifest
        | Point::CoordinatorAfterManifest
        | Point::CoordinatorAfterRetention => 2,
        Point::CoordinatorPartNoted => 6,
        _ => 1,
    }
}

#[test]
fn a_worker_may_die_at_every_crash_point() {
    every_point_of("worker");
}

#[test]
fn a_shard_may_die_at_every_crash_point() {
    every_point_of("shard");
}

#[test]
fn a_coordinator_may_die_at_every_crash_point() {
    every_point_of("coordinator");
}

#[test]
fn the_run_may_be_told_to_stop_at_every_crash_point_of_a_worker() {
    stopped_at_every_point_of("worker");
}

#[test]
fn the_run_may_be_told_to_stop_at_every_crash_point_of_a_shard() {
    stopped_at_every_point_of("shard");
}

#[test]
fn the_run_may_be_told_to_stop_at_every_crash_point_of_a_coordinator() {
    stopped_at_every_point_of("coordinator");
}

#[test]
fn a_worker_of_the_real_model_may_die() {
    for order in ["worker.before_push 1:31 kill", "worker.applied 0:25 kill"] {
        let seconds = struck(Engine::Torch, order).unwrap();
        println!("{order} with the real model: the next step came {seconds:?} s after the loss was noticed");
    }
}

/// One that stands still is lost after the failure detection, and another process takes its place.
#[test]
fn a_member_that_freezes_is_replaced() {
    for order in [
        "worker.before_push 1:31 freeze",
        "shard.before_apply 0:17 freeze",
        "coordinator.parts_complete 2 freeze",
    ] {
        let seconds = struck(Engine::Drill, order).unwrap();
        println!("{order}: the next step came {seconds:?} s after the loss was noticed");
    }
}

/// The same failure at the same step again is a bug, not bad luck: the run ends and says so.
#[test]
fn a_failure_that_comes_again_ends_the_run() {
    // Weights overflow within a few steps, and always at the same one.
    let sets = ["training.lr=1000", "training.optimizer.weight_decay=1000"];
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN).with(&sets);
    let message = cluster.train(&[]).unwrap().refusal().unwrap();
    assert!(message.contains("this failure came at step "), "{message}");
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Random processes die at random times, as often as `POLYGRAM_SOAK_KILLS` says.
#[test]
fn random_kills_change_nothing() {
    let kills: u64 = std::env::var("POLYGRAM_SOAK_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let seed = std::env::var("POLYGRAM_SOAK_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |s| s.parse().unwrap());
    println!("{kills} kills, POLYGRAM_SOAK_SEED={seed}");
    soak(kills, seed).unwrap();
}

fn soak(kills: u64, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    // Long enough that it is still at work at the last kill: stopped then, it is compared at the step it has reached.
    let sets = [&RUN[1..], &["training.steps=1000000", "evaluation.every_steps=1000000"]].concat();
    let cluster = Cluster::tiny(Engine::Drill)?.with(&sets);
    let mut running = cluster.start(&[])?;
    let mut reached = 0;
    for kill in 0..kills {
        // The run gets further between any two of them.
        cluster.await_step(&mut running, reached + 5)?;
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        let victims: Vec<u32> =
            running.processes()?.into_iter().filter(|pid| *pid != running.pid()).collect();
        let victim = victims[random.below(victims.len() as u64) as usize];
        // It may have ended by itself meanwhile.
        let struck = running.signal(victim, Signal::KILL);
        reached = cluster.metrics()?.last_key_value().map_or(0, |(step, _)| *step);
        println!("kill {kill}: process {victim} near step {reached}: {struck:?}");
    }
    cluster.await_step(&mut running, reached + 5)?;
    running.signal(running.pid(), Signal::TERM)?;
    let finished = running.wait(END_LIMIT)?;
    ensure!(finished.status.code() == Some(3), "{}", finished.said());
    running.wait_for_silence(END_LIMIT)?;
    println!("slowest recovery: {:?} s after the loss was noticed", slowest_recovery(&finished.stderr));
    let found = cluster.trace()?;
    let calm = Cluster::tiny(Engine::Drill)?.with(&sets);
    let stop = format!("training.stop_at_step={}", found.digest.step);
    calm.start(&[&stop])?.wait(END_LIMIT * 5)?.success()?;
    let calm = calm.trace()?;
    ensure!(calm.digest == found.digest, "other bits\n{}", finished.said());
    ensure!(calm.metrics == found.metrics, "other steps: {} and {}", found.metrics.len(), calm.metrics.len());
    ensure!(found.ledger.len() as u64 == found.digest.step, "{} lines in the ledger", found.ledger.len());
    ensure!(calm.ledger == found.ledger, "another ledger");
    Ok(())
}

/// The run is over when its launcher is, whenever that dies; the same command continues it.
#[test]
fn a_killed_launcher_is_continued_by_the_next() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    for step in [7, 24] {
        let mut running = cluster.start(&[]).unwrap();
        cluster.await_step(&mut running, step).unwrap();
        running.signal(running.pid(), Signal::KILL).unwrap();
        running.wait(END_LIMIT).unwrap();
        running.wait_for_silence(END_LIMIT).unwrap();
    }
    let mut running = cluster.start(&[]).unwrap();
    ends_undisturbed(&cluster, &mut running, Engine::Drill).unwrap();
}
