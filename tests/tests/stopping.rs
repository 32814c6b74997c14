//! A stop that cannot end with a commit: in time, at all, or for want of room. Nothing that was committed is lost, the
//! message says what happened, and the same command continues with the bits of an undisturbed run.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use polygram_tests::{Cluster, Engine, Running, program, repository, wait_until};
use rustix::process::Signal;

const RUN: [&str; 5] = [
    "training.steps=60",
    "checkpoint.every_steps=10",
    "evaluation.every_steps=60",
    "topology.workers=2",
    "topology.shards=2",
];
const END_LIMIT: Duration = Duration::from_secs(120);

fn undisturbed() -> Result<String> {
    let cluster = Cluster::tiny(Engine::Drill)?.with(&RUN);
    cluster.train(&[])?.success()?;
    Ok(cluster.digest()?.digest)
}

/// A run whose second commit will never be whole: a shard stands still in it, and is not given up for long.
fn stuck_in_a_commit(more: &[&str]) -> Result<(Cluster, Running)> {
    let cluster = Cluster::tiny(Engine::Drill)?.with(&RUN).with(&["run.failure_detection_seconds=20"]);
    let marks = cluster.folder().join("marks");
    std::fs::create_dir(&marks)?;
    let order = format!("shard.snapshot_begun 1:2 freeze {}", marks.display());
    let mut running = cluster.start_with(more, &[(polygram_faults::VARIABLE, &order)])?;
    wait_until("the second snapshot", END_LIMIT, || {
        ensure!(running.poll()?.is_none(), "it ended before: {}", running.stderr()?);
        Ok((std::fs::read_dir(&marks)?.count() == 1 && cluster.commits()? == [10]).then_some(()))
    })?;
    Ok((cluster, running))
}

fn continues_undisturbed(cluster: &Cluster) -> Result<()> {
    cluster.train(&[])?.success()?;
    ensure!(cluster.digest()?.digest == undisturbed()?, "other bits");
    let steps: Vec<u64> = cluster.metrics()?.into_keys().collect();
    ensure!(steps == (1..=60).collect::<Vec<_>>(), "recorded are {steps:?}");
    Ok(())
}

#[test]
fn a_deadline_shorter_than_the_upload_is_told() {
    let (cluster, mut running) = stuck_in_a_commit(&["run.stop_grace_seconds=2"]).unwrap();
    running.signal(running.pid(), Signal::TERM).unwrap();
    let finished = running.wait(END_LIMIT).unwrap();
    running.wait_for_silence(END_LIMIT).unwrap();
    assert_eq!(finished.status.code(), Some(3), "{}", finished.said());
    for words in ["stopped without a commit", "run.stop_grace_seconds", "goes on from step 10"] {
        assert!(finished.said().contains(words), "{words:?} is not in\n{}", finished.said());
    }
    assert_eq!(cluster.commits().unwrap(), [10]);
    continues_undisturbed(&cluster).unwrap();
}

#[test]
fn a_second_signal_does_not_wait_for_the_commit() {
    let (cluster, mut running) = stuck_in_a_commit(&[]).unwrap();
    running.signal(running.pid(), Signal::TERM).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(running.poll().unwrap().is_none(), "the first signal waits for the commit");
    running.signal(running.pid(), Signal::TERM).unwrap();
    let finished = running.wait(Duration::from_secs(15)).unwrap();
    running.wait_for_silence(END_LIMIT).unwrap();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.said());
    assert!(finished.said().contains("since the last commit must be done again"), "{}", finished.said());
    assert!(!finished.stderr.contains("panicked"), "{}", finished.said());
    assert_eq!(cluster.commits().unwrap(), [10]);
    // It is recorded where the run was.
    let status = cluster.polygram(&["status", "tiny", "--root", cluster.root_url()]).unwrap();
    assert!(status.stdout.contains("run tiny: stopped, step"), "{}", status.said());
    assert!(status.stdout.contains("killed on request at step"), "{}", status.said());
    let why = cluster.polygram(&["why", "tiny", "--root", cluster.root_url()]).unwrap();
    assert!(why.stdout.contains("stopped: killed on request at step"), "{}", why.said());
    assert!(cluster.status().unwrap().step > 10, "{}", status.said());
    continues_undisturbed(&cluster).unwrap();
}

/// A run whose coordinator stands still after its first commit, before it has told anybody.
fn frozen_after_its_commit(more: &[&str]) -> Result<(Cluster, Running)> {
    let cluster = Cluster::tiny(Engine::Drill)?.with(&["run.failure_detection_seconds=20"]).with(more);
    let variable = [(polygram_faults::VARIABLE, "coordinator.after_retention 1 freeze")];
    let running = cluster.start_with(&[], &variable)?;
    Ok((cluster, running))
}

fn await_commit(cluster: &Cluster) -> Result<u64> {
    wait_until("the commit", END_LIMIT, || Ok(cluster.commits()?.last().copied()))
}

#[test]
fn a_second_signal_after_the_commit_is_a_stop_like_any_other() {
    let endless =
        ["training.steps=1000000", "checkpoint.every_steps=1000000", "evaluation.every_steps=1000000"];
    let (cluster, mut running) = frozen_after_its_commit(&endless).unwrap();
    cluster.await_step(&mut running, 3).unwrap();
    running.signal(running.pid(), Signal::INT).unwrap();
    let step = await_commit(&cluster).unwrap();
    assert!(running.poll().unwrap().is_none(), "the coordinator has not told its launcher of the commit");
    running.signal(running.pid(), Signal::INT).unwrap();
    let finished = running.wait(END_LIMIT).unwrap();
    running.wait_for_silence(END_LIMIT).unwrap();
    assert_eq!(finished.status.code(), Some(3), "{}", finished.said());
    let words = format!("killed on request at step {step} of 1000000, committed");
    assert!(finished.stdout.contains(&words), "{}", finished.said());
    let stop = format!("training.stop_at_step={}", step + 5);
    cluster.train(&[&stop]).unwrap().success().unwrap();
    assert_eq!(cluster.commits().unwrap(), [step, step + 5]);
}

#[test]
fn a_second_signal_after_the_last_commit_ends_a_complete_run() {
    let few = ["training.steps=12", "checkpoint.every_steps=1000"];
    let (cluster, mut running) = frozen_after_its_commit(&few).unwrap();
    assert_eq!(await_commit(&cluster).unwrap(), 12);
    running.signal(running.pid(), Signal::INT).unwrap();
    wait_until("the first signal", END_LIMIT, || Ok(running.stderr()?.contains("stopping:").then_some(())))
        .unwrap();
    running.signal(running.pid(), Signal::INT).unwrap();
    let finished = running.wait(END_LIMIT).unwrap();
    running.wait_for_silence(END_LIMIT).unwrap();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.said());
    assert!(finished.stdout.contains("all 12 steps done and committed"), "{}", finished.said());
    let again = cluster.train(&[]).unwrap().success().unwrap();
    assert!(again.said().contains("nothing is left to train"), "{}", again.said());
}

/// The root lies on a file system of its own, first too small for the run, then large enough.
#[test]
fn a_full_disk_is_told_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let sets: Vec<String> = RUN.iter().map(|set| format!("--set {set}")).collect();
    let polygram = program("polygram").unwrap();
    // Nobody else sees the mount, and it goes with the last process that does.
    let script = format!(
        "mount -t tmpfs -o size=$SMALL tmpfs {root} || exit 99\n\
         train() {{ {polygram} train {file} --root {root} --set device.engine=drill {sets}; echo \"status $?\"; }}\n\
         train\n{polygram} ckpt ls tiny --root {root}\nmount -o remount,size=200m {root} || exit 98\ntrain\n\
         {polygram} digest tiny --root {root}\n",
        root = root.display(),
        polygram = polygram.display(),
        file = repository().join("configs/tiny.toml").display(),
        sets = sets.join(" "),
    );
    let mut command = Command::new("unshare");
    // As the superuser of a namespace of its own, who may mount.
    command.args(["-rm", "sh", "-c", &script]).env("SMALL", "4m").current_dir(folder.path());
    // Minutes, unless the environment says otherwise.
    command.env("POLYGRAM_STORE_RETRY_SECONDS", "5");
    let mut running = Running::start(command, folder.path()).unwrap();
    let finished = running.wait(END_LIMIT).unwrap();
    let said = finished.said();
    let statuses: Vec<&str> = finished.stdout.lines().filter_map(|l| l.strip_prefix("status ")).collect();
    assert_eq!(statuses, ["1", "0"], "{said}");
    assert!(said.contains("the disk is full"), "{said}");
    assert!(said.contains("resuming run tiny from step"), "the commits before are kept\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(finished.stdout.contains(&undisturbed().unwrap()), "other bits\n{said}");
}
