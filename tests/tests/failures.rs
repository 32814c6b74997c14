//! When a process dies or hangs and recovery is switched off, the job stops at once everywhere and says who; when it is asked to stop, it commits
//! first. Either way nothing is left running and the run continues from its last commit with the bits it would have
//! had.

use std::time::Duration;

use anyhow::{Result, ensure};
use polygram_tests::{Cluster, Engine, Running, Status, wait_until};
use rustix::process::Signal;

/// A run that ends only when something ends it.
const ENDLESS: [&str; 6] = [
    "recovery.max_restarts=0",
    "training.steps=10000000",
    "checkpoint.every_steps=20",
    "evaluation.every_steps=10000000",
    "topology.workers=2",
    "topology.shards=2",
];
/// `run.failure_detection_seconds` of these runs.
const DETECTION: &str = "run.failure_detection_seconds=4";
/// Detection, then the end of everything, on a busy machine.
const END_LIMIT: Duration = Duration::from_secs(40);

/// An endless run that has at least one commit behind it.
fn started(engine: Engine) -> Result<(Cluster, Running, Status)> {
    let cluster = Cluster::tiny(engine)?.with(&ENDLESS).with(&[DETECTION]);
    let mut running = cluster.start(&[])?;
    let status = cluster.await_step(&mut running, 25)?;
    // Commits are made beside training, and may come later than the steps after them.
    wait_until("a commit", END_LIMIT, || Ok((!cluster.commits()?.is_empty()).then_some(())))?;
    ensure!(status.members.len() == 4, "{status:?}");
    // The mark reaches every process, so that the silence afterwards means something.
    let processes = running.processes()?;
    for member in &status.members {
        ensure!(processes.contains(&member.pid), "{member:?} is not among {processes:?}");
    }
    Ok((cluster, running, status))
}

/// The launcher failed, named the culprit, and left nothing running.
fn failed_naming(running: &mut Running, culprit: &str) -> Result<String> {
    let message = running.wait(END_LIMIT)?.refusal()?;
    running.wait_for_silence(END_LIMIT)?;
    let said = message.to_lowercase();
    ensure!(said.contains(culprit), "{culprit:?} is not named:\n{message}");
    Ok(message)
}

/// The run goes on from its last commit and reaches the state that an undisturbed run has at the same step.
fn continues_as_if_nothing_had_happened(cluster: &Cluster, engine: Engine) -> Result<()> {
    let last = cluster.commits()?.last().copied().unwrap_or(0);
    ensure!(last >= 20, "no commit before the failure");
    let stop = format!("training.stop_at_step={}", last + 3);
    cluster.train(&[&stop])?.success()?;
    let undisturbed = Cluster::tiny(engine)?.with(&ENDLESS).with(&[DETECTION]);
    undisturbed.train(&[&stop])?.success()?;
    ensure!(cluster.digest()? == undisturbed.digest()?, "other bits after step {last}");
    Ok(())
}

#[test]
fn a_killed_worker_stops_the_job_and_is_named() {
    let (cluster, mut running, status) = started(Engine::Drill).unwrap();
    running.signal(status.member("worker", 1).unwrap().pid, Signal::KILL).unwrap();
    failed_naming(&mut running, "worker 1").unwrap();
    continues_as_if_nothing_had_happened(&cluster, Engine::Drill).unwrap();
}

#[test]
fn a_killed_worker_of_the_real_model_is_named_too() {
    let (cluster, mut running, status) = started(Engine::Torch).unwrap();
    running.signal(status.member("worker", 0).unwrap().pid, Signal::KILL).unwrap();
    failed_naming(&mut running, "worker 0").unwrap();
    continues_as_if_nothing_had_happened(&cluster, Engine::Torch).unwrap();
}

#[test]
fn a_killed_shard_stops_the_job_and_is_named() {
    let (cluster, mut running, status) = started(Engine::Drill).unwrap();
    running.signal(status.member("shard", 1).unwrap().pid, Signal::KILL).unwrap();
    failed_naming(&mut running, "shard 1").unwrap();
    continues_as_if_nothing_had_happened(&cluster, Engine::Drill).unwrap();
}

#[test]
fn a_hung_worker_is_lost_within_the_failure_detection() {
    let (_cluster, mut running, status) = started(Engine::Drill).unwrap();
    running.signal(status.member("worker", 0).unwrap().pid, Signal::STOP).unwrap();
    failed_naming(&mut running, "worker 0").unwrap();
}

#[test]
fn a_hung_shard_is_lost_within_the_failure_detection() {
    let (_cluster, mut running, status) = started(Engine::Drill).unwrap();
    running.signal(status.member("shard", 0).unwrap().pid, Signal::STOP).unwrap();
    failed_naming(&mut running, "shard 0").unwrap();
}

#[test]
fn a_killed_coordinator_stops_the_job_and_is_named() {
    let (cluster, mut running, status) = started(Engine::Drill).unwrap();
    let members: Vec<u32> = status.members.iter().map(|member| member.pid).collect();
    let others: Vec<u32> = running
        .processes()
        .unwrap()
        .into_iter()
        .filter(|pid| *pid != running.pid() && !members.contains(pid))
        .collect();
    assert_eq!(others.len(), 1, "the coordinator should be the only process beside launcher and members");
    running.signal(others[0], Signal::KILL).unwrap();
    failed_naming(&mut running, "coordinator").unwrap();
    continues_as_if_nothing_had_happened(&cluster, Engine::Drill).unwrap();
}

/// Not even a killed launcher leaves processes behind.
#[test]
fn a_killed_launcher_takes_its_processes_with_it() {
    let (_cluster, mut running, _status) = started(Engine::Drill).unwrap();
    running.signal(running.pid(), Signal::KILL).unwrap();
    running.wait(END_LIMIT).unwrap();
    running.wait_for_silence(END_LIMIT).unwrap();
}

fn stops_cleanly_on(signal: Signal, engine: Engine) -> Result<()> {
    let (cluster, mut running, _status) = started(engine)?;
    running.signal(running.pid(), signal)?;
    let finished = running.wait(END_LIMIT)?;
    running.wait_for_silence(END_LIMIT)?;
    // 3: stopped on request, state committed (docs/operations.md).
    ensure!(finished.status.code() == Some(3), "{}\n{}", finished.status, finished.said());
    let commits = cluster.commits()?;
    let reached = cluster.metrics()?.last_key_value().map_or(0, |(step, _)| *step);
    ensure!(commits.last() == Some(&reached), "stopped at step {reached}, commits {commits:?}");
    continues_as_if_nothing_had_happened(&cluster, engine)
}

/// One worker that is told to go is enough: all ranks agree to stop at one boundary, and nothing is lost.
#[test]
fn a_signalled_worker_makes_the_run_commit_and_stop() {
    let (cluster, mut running, status) = started(Engine::Drill).unwrap();
    running.signal(status.member("worker", 1).unwrap().pid, Signal::TERM).unwrap();
    let finished = running.wait(END_LIMIT).unwrap();
    running.wait_for_silence(END_LIMIT).unwrap();
    assert_eq!(finished.status.code(), Some(3), "{}", finished.said());
    let reached = cluster.metrics().unwrap().last_key_value().map_or(0, |(step, _)| *step);
    assert_eq!(cluster.commits().unwrap().last(), Some(&reached));
    continues_as_if_nothing_had_happened(&cluster, Engine::Drill).unwrap();
}

#[test]
fn sigint_commits_and_stops() {
    stops_cleanly_on(Signal::INT, Engine::Drill).unwrap();
}

#[test]
fn sigterm_commits_and_stops() {
    stops_cleanly_on(Signal::TERM, Engine::Drill).unwrap();
}

#[test]
fn sigterm_commits_and_stops_the_real_model() {
    stops_cleanly_on(Signal::TERM, Engine::Torch).unwrap();
}
