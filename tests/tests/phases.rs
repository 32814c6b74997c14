//! A worker that dies or freezes in any phase of a step: the others leave, and the report names that worker and what it
//! was doing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use polygram_tests::{Cluster, Engine, wait_until};
use serde_json::Value;

/// Two workers that share the experts and two shards, in a run that only a fault ends.
const RUN: [&str; 7] = [
    "recovery.max_restarts=0",
    "training.steps=10000000",
    "topology.workers=2",
    "topology.expert_parallel=2",
    "topology.shards=2",
    "evaluation.every_steps=10000000",
    "run.failure_detection_seconds=3",
];
/// From the first sight of the fault's place to the end of every process: the stay there, the detection, and time for a
/// busy machine.
const END_LIMIT: Duration = Duration::from_secs(25);

/// Seconds from the last step before the fault to the end of all.
fn struck(engine: Engine, phase: &str, kind: &str) -> Result<f64> {
    let cluster = Cluster::tiny(engine)?.with(&RUN);
    let order = format!("1 7 {phase} {kind}");
    let mut running = cluster.start_with(&[], &[("POLYGRAM_FAULT", &order)])?;
    cluster.await_step(&mut running, 6)?;
    let begun = Instant::now();
    let message = running.wait(END_LIMIT)?.refusal()?;
    running.wait_for_silence(END_LIMIT)?;
    let seconds = begun.elapsed().as_secs_f64();
    for wanted in ["worker 1", "step 7", &format!("while {phase}")] {
        ensure!(message.contains(wanted), "{order}: {wanted:?} is not in:\n{message}");
    }
    Ok(seconds)
}

#[test]
fn a_worker_that_freezes_anywhere_in_a_step_is_named_with_its_phase() {
    for phase in ["lookup", "pushing", "reducing", "updating"] {
        println!("freeze while {phase}: {:.1} s", struck(Engine::Drill, phase, "freeze").unwrap());
    }
}

#[test]
fn a_worker_that_dies_anywhere_in_a_step_is_named_with_its_phase() {
    for phase in ["lookup", "pushing", "reducing", "updating"] {
        println!("kill while {phase}: {:.1} s", struck(Engine::Drill, phase, "kill").unwrap());
    }
}

#[test]
fn a_worker_of_the_real_model_that_freezes_is_named_with_its_phase() {
    for phase in ["computing", "exchanging"] {
        println!("freeze while {phase}: {:.1} s", struck(Engine::Torch, phase, "freeze").unwrap());
    }
}

#[test]
fn a_worker_of_the_real_model_that_dies_is_named_with_its_phase() {
    for phase in ["computing", "exchanging"] {
        println!("kill while {phase}: {:.1} s", struck(Engine::Torch, phase, "kill").unwrap());
    }
}

/// Before a worker that freezes counts as lost, `status` and the launcher name it as what the run waits for.
#[test]
fn a_stalled_run_says_what_it_waits_for() {
    let cluster =
        Cluster::tiny(Engine::Drill).unwrap().with(&RUN).with(&["run.failure_detection_seconds=12"]);
    let fault = ("POLYGRAM_FAULT", "1 7 updating freeze");
    let mut running = cluster.start_with(&[], &[fault]).unwrap();
    cluster.await_step(&mut running, 6).unwrap();
    let status = |format: &[&str]| {
        let arguments = [&["status", "tiny", "--root", cluster.root_url()], format].concat();
        Ok::<_, anyhow::Error>(cluster.polygram(&arguments)?.success()?.stdout)
    };
    let waiting_for = wait_until("the stall", END_LIMIT, || {
        let status: Value = serde_json::from_str(&status(&["-o", "json"])?)?;
        let text = status["stall"]["waiting_for"].as_str().unwrap_or_default();
        Ok(text.contains("silent").then(|| text.to_owned()))
    })
    .unwrap();
    assert!(waiting_for.starts_with("worker 1 (updating at step 7), silent for "), "{waiting_for}");
    let text = status(&[]).unwrap();
    assert!(text.contains("no step for ") && text.contains(" s, waiting for worker 1 (updating"), "{text}");
    // Everybody has the longer detection to leave, too.
    let said = running.wait(END_LIMIT * 3).unwrap().refusal().unwrap();
    assert!(said.contains("no step for ") && said.contains(" s, waiting for worker 1 (updating"), "{said}");
    let status: Value = serde_json::from_str(&status(&["-o", "json"]).unwrap()).unwrap();
    assert_eq!(status["stall"], Value::Null, "a run that is over waits for nothing");
}
