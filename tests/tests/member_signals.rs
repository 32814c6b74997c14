//! SIGINT and SIGTERM mean the same in every role: the first has the run commit and stop, and a process that is idle in a
//! pool ends, also after it was in a run.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::{ByHand, Cluster, Engine, PoolCluster, Slot};
use rustix::process::Signal;

const END_LIMIT: Duration = Duration::from_secs(60);

fn stops(slot: Slot, signal: Signal) -> Result<()> {
    let endless = ["training.steps=1000000", "checkpoint.every_steps=1000000", "topology.workers=2"];
    let cluster = Cluster::tiny(Engine::Drill)?.with(&endless).with(&["evaluation.every_steps=1000000"]);
    let mut run = ByHand::start(&cluster, (2, 2))?;
    run.await_status("step 10", |status| {
        status["state"] == "running" && status["step"].as_u64().unwrap_or(0) >= 10
    })?;
    run.signal(slot, signal)?;
    let finished = run.ends()?;
    ensure!(!finished.stderr.contains("panicked"), "{}", finished.said());
    let commits = cluster.commits()?;
    ensure!(commits.len() == 1 && commits[0] >= 10, "it did not commit: {commits:?}\n{}", finished.said());
    Ok(())
}

#[test]
fn a_signal_to_any_member_stops_the_run() {
    for slot in [("shard", 0), ("worker", 1)] {
        for signal in [Signal::INT, Signal::TERM] {
            stops(slot, signal).with_context(|| format!("{signal:?} to {slot:?}")).unwrap();
        }
    }
}

/// Before the start, too: a run that still waits for a member is stopped, and the member leaves in order.
fn stops_a_run_that_waits(slot: Slot) -> Result<()> {
    let cluster = Cluster::tiny(Engine::Drill)?.with(&["topology.workers=2"]);
    let mut run = ByHand::start(&cluster, (1, 2))?;
    run.await_status("all members but one", |status| {
        status["message"]
            .as_str()
            .is_some_and(|message| message.contains("waiting for 1 of 2 workers: worker 1"))
    })?;
    run.signal(slot, Signal::TERM)?;
    let finished = run.ends()?;
    ensure!(!finished.stderr.contains("panicked"), "{}", finished.said());
    ensure!(run.starts(slot)? == 1, "it did not leave in order: {}", run.log(slot)?);
    ensure!(cluster.commits()?.is_empty(), "nothing was trained");
    Ok(())
}

#[test]
fn a_signal_before_the_start_stops_the_run() {
    for slot in [("shard", 1), ("worker", 0)] {
        stops_a_run_that_waits(slot).with_context(|| format!("{slot:?}")).unwrap();
    }
}

#[test]
fn a_member_of_a_pool_ends_by_a_signal_after_its_first_run() {
    let pool = PoolCluster::new().unwrap();
    let (mut coordinator, address) = pool.start_coordinator().unwrap();
    let programs = ["polygram-embedding-shard", "polygram-worker"];
    let mut members = programs.map(|program| pool.start_member(program, &address).unwrap());
    let few = ["training.steps=20", "checkpoint.every_steps=10", "topology.workers=1", "topology.shards=1"];
    let job = pool.submit("run-1", &few, &[]).unwrap();
    pool.await_job(job, "completed", |job| job.state == "completed").unwrap();
    for member in &mut members {
        member.signal(member.pid(), Signal::INT).unwrap();
        let finished = member.wait(END_LIMIT).unwrap();
        assert!(finished.status.success(), "{}", finished.said());
    }
    coordinator.signal(coordinator.pid(), Signal::TERM).unwrap();
    coordinator.wait(END_LIMIT).unwrap();
}
