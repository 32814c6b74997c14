//! A launch whose programs do not come up: it ends at once, says why once, and leaves nothing behind.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use polygram_tests::{Cluster, Engine, Finished, Running, program, repository, wait_until};
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_secs(120);
/// Said of processes that were waited for in vain.
const WAITED: &str = "still there after";

/// A folder with the programs, of which one may be a stand-in.
struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    /// In place of the program `name` a shell script, which notes each start in `starts`.
    fn with(name: &str, script: &str) -> Result<Stage> {
        let stage = Stage { folder: tempfile::tempdir()? };
        for name in ["polygram", "polygram-coordinator", "polygram-embedding-shard", "polygram-worker"] {
            // Another process writes it, so that no child of a parallel test holds it open for writing.
            let copied = Command::new("cp").arg(program(name)?).arg(stage.at(name)).status()?;
            ensure!(copied.success(), "cannot copy {name}");
        }
        let path = stage.at(name);
        let version =
            format!("if [ \"$1\" = --version ]; then exec {} --version; fi", program(name)?.display());
        let starts = stage.at("starts").display().to_string();
        let draft = stage.at("draft");
        fs::write(&draft, format!("#!/bin/sh\n{version}\necho $$ >>{starts}\n{script}\n"))?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
        let copied = Command::new("cp").arg("--remove-destination").arg(&draft).arg(&path).status()?;
        ensure!(copied.success(), "cannot write {}", path.display());
        Ok(stage)
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn starts(&self) -> usize {
        fs::read_to_string(self.at("starts")).unwrap_or_default().lines().count()
    }

    fn train(&self) -> Result<Running> {
        let mut command = Command::new(self.at("polygram"));
        command.arg("train").arg(repository().join("configs/tiny.toml")).args(["--root", "root"]);
        command
            .args(["--set", "device.engine=drill", "--set", "topology.shards=1"])
            .current_dir(self.folder.path());
        Running::start(command, self.folder.path())
    }
}

/// Stopped before the first step: status 3, nobody was waited for in vain, and nothing is left.
fn stopped_untrained(running: &mut Running) -> Result<Finished> {
    let finished = running.wait(LIMIT)?;
    running.wait_for_silence(LIMIT)?;
    ensure!(finished.status.code() == Some(3), "{}\n{}", finished.status, finished.said());
    ensure!(finished.said().contains("nothing was trained"), "{}", finished.said());
    ensure!(!finished.said().contains(WAITED), "{}", finished.said());
    Ok(finished)
}

#[test]
fn a_member_that_ends_at_once_for_the_same_reason_is_not_started_nine_times() {
    for (name, code, status) in [("polygram-worker", 1, 1), ("polygram-embedding-shard", 2, 2)] {
        let stage =
            Stage::with(name, &format!("echo \"error: no luck in process $$\" >&2; exit {code}")).unwrap();
        let finished = stage.train().unwrap().wait(LIMIT).unwrap();
        assert_eq!(finished.status.code(), Some(status), "{}", finished.said());
        assert_eq!(stage.starts(), 3, "{}", finished.said());
        assert_eq!(finished.stderr.matches("no luck in process").count(), 1, "{}", finished.said());
        assert!(finished.stderr.contains("it is not started again"), "{}", finished.said());
    }
}

/// Members that never join, and do not even answer a signal.
#[test]
fn a_stop_does_not_wait_for_members_that_never_join() {
    for name in ["polygram-worker", "polygram-embedding-shard"] {
        let stage = Stage::with(name, "trap '' TERM INT; while :; do sleep 0.1; done").unwrap();
        let mut running = stage.train().unwrap();
        wait_until("the stand-in's start", LIMIT, || Ok((stage.starts() > 0).then_some(()))).unwrap();
        wait_until("the run's beginning", LIMIT, || {
            Ok(running.stderr()?.contains("waiting for").then_some(()))
        })
        .unwrap();
        running.signal(running.pid(), Signal::INT).unwrap();
        stopped_untrained(&mut running).unwrap();
    }
}

/// Members that stand still in every state before their start.
#[test]
fn a_stop_before_the_first_step_does_not_wait_for_members_that_hang() {
    for point in ["worker.joined", "worker.assigned", "worker.ready", "shard.joined", "shard.restored"] {
        let cluster = Cluster::tiny(Engine::Drill).unwrap();
        let marks = cluster.folder().join("marks");
        fs::create_dir(&marks).unwrap();
        let order = format!("{point} 1 freeze {}", marks.display());
        let mut running = cluster.start_with(&[], &[(polygram_faults::VARIABLE, &order)]).unwrap();
        wait_until(point, LIMIT, || Ok((fs::read_dir(&marks)?.count() == 1).then_some(()))).unwrap();
        running.signal(running.pid(), Signal::TERM).unwrap();
        let finished = stopped_untrained(&mut running).unwrap();
        assert!(finished.stdout.contains("stopped before the first step"), "{point}: {}", finished.said());
        assert_eq!(cluster.status().unwrap().state, "stopped", "{point}");
    }
}

#[test]
fn a_second_signal_before_the_first_step_is_recorded() {
    let stage = Stage::with("polygram-worker", "trap '' TERM INT; while :; do sleep 0.1; done").unwrap();
    let mut running = stage.train().unwrap();
    wait_until("the run's beginning", LIMIT, || Ok(running.stderr()?.contains("waiting for").then_some(())))
        .unwrap();
    running.signal(running.pid(), Signal::INT).unwrap();
    running.signal(running.pid(), Signal::TERM).unwrap();
    stopped_untrained(&mut running).unwrap();
    let mut command = Command::new(program("polygram").unwrap());
    command.args(["status", "tiny", "--root", "root"]).current_dir(stage.folder.path());
    let finished = Running::start(command, stage.folder.path()).unwrap().wait(LIMIT).unwrap();
    assert!(finished.stdout.contains("run tiny: stopped, step 0/60"), "{}", finished.said());
}

/// Another libtorch, or none: whatever the worker is asked for, it is told once, and nothing is made.
#[test]
fn a_worker_that_cannot_load_libtorch_is_told_before_anything_is_made() {
    let cluster = Cluster::tiny(Engine::Torch).unwrap();
    let libraries = cluster.folder().join("lib");
    fs::create_dir(&libraries).unwrap();
    fs::write(libraries.join("libtorch_cpu.so"), "not a library").unwrap();
    let variable = [("LD_LIBRARY_PATH", libraries.to_str().unwrap())];
    let refused = |finished: &Finished, root: &Path| {
        assert_eq!(finished.status.code(), Some(2), "{}", finished.said());
        for words in ["libtorch_cpu.so", "LD_LIBRARY_PATH", "polygram-worker cannot be started"] {
            assert!(finished.stderr.contains(words), "{words:?}: {}", finished.said());
        }
        assert!(!root.exists(), "something was made");
    };
    refused(&cluster.start_with(&[], &variable).unwrap().wait(LIMIT).unwrap(), &cluster.root());
    let golden = repository().join("tests/golden/A");
    let mut command = Command::new(program("polygram").unwrap());
    command.arg("logits").arg("--model").arg(&golden).arg("--input").arg(golden.join("forward.safetensors"));
    command.args(["--output", "out"]).envs(variable).current_dir(cluster.folder());
    let finished = Running::start(command, cluster.folder()).unwrap().wait(LIMIT).unwrap();
    refused(&finished, &cluster.folder().join("out"));
}
