//! Faults that tests order strike only where they are asked for, and a panic of any thread is reported with its text and
//! place.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_faults::VARIABLE;
use polygram_tests::{Cluster, Engine, Running, Undisturbed};

const RUN: [&str; 5] = [
    "training.steps=20",
    "checkpoint.every_steps=10",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=3",
];
static UNDISTURBED: Undisturbed = Undisturbed::of(&RUN);
const END_LIMIT: Duration = Duration::from_secs(120);

/// The variable alone changes nothing: every process warns that it ignores it.
#[test]
fn no_fault_strikes_without_the_flag() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    let mut command = cluster.train_command(&[]).unwrap();
    command.env(
        VARIABLE,
        "worker.joined 1 kill; shard.ready 1 kill; coordinator.announced 1 kill; not an order",
    );
    let mut running = Running::start(command, cluster.folder()).unwrap();
    let finished = running.wait(END_LIMIT).unwrap().success().unwrap();
    assert!(cluster.trace().unwrap() == *UNDISTURBED.trace(Engine::Drill), "{}", finished.said());
    let logs = logs(&cluster).unwrap();
    assert_eq!(logs.len(), 5, "one log a process, none was started again: {logs:?}");
    for log in logs {
        let warnings = log.lines().filter(|line| line.contains("fault injection is disabled")).count();
        assert_eq!(warnings, 1, "{log}");
    }
}

/// The contents of every log under the cluster's root.
fn logs(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![cluster.root()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                found.push(std::fs::read_to_string(&path)?);
            }
        }
    }
    Ok(found)
}

/// A panic that is ordered at `point`: the run goes on to the bits of an undisturbed one, and `why` has the panic's thread,
/// text and place.
fn panicked(point: &str, thread: &str, file: &str) -> Result<()> {
    let cluster = Cluster::tiny(Engine::Drill)?.with(&RUN);
    let marks = cluster.folder().join("marks");
    std::fs::create_dir(&marks)?;
    let order = format!("{point} panic {}", marks.display());
    let mut running = cluster.start_with(&[], &[(VARIABLE, &order)])?;
    let finished = running.wait(END_LIMIT)?.success()?;
    running.wait_for_silence(END_LIMIT)?;
    ensure!(std::fs::read_dir(&marks)?.count() == 1, "{order} was not carried out: {}", finished.said());
    ensure!(cluster.trace()? == *UNDISTURBED.trace(Engine::Drill), "other bits: {}", finished.said());
    let why = cluster.polygram(&["why", "tiny", "--root", cluster.root_url()])?.success()?;
    for part in [thread, "panicked at", file, "a panic is ordered here"] {
        ensure!(why.stdout.contains(part), "why does not contain {part:?}: {}", why.said());
    }
    Ok(())
}

#[test]
fn a_panic_of_a_thread_is_reported_with_text_and_place() {
    for (point, thread, file) in [
        ("worker.applied 1:7", "compute thread", "worker/src/gradients.rs:"),
        ("worker.uploaded 0:1", "a task of this worker", "worker/src/snapshot.rs:"),
        ("shard.after_apply 1:7", "a task of this shard", "embedding-shard/src/server/engine.rs:"),
    ] {
        panicked(point, thread, file).context(point).unwrap();
    }
}
