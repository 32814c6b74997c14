//! The launcher against stand-in programs: what it says when they misbehave, and that nothing outlives it.
#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

mod common;

use std::process::{Child, Output};

use common::{Stage, lives, until};

const ANNOUNCES: &str = r#"printf '{"address":"127.0.0.1:%s","pid":%s,"run":"tiny","attempt":1,"state":"%s","message":"%s","resume_step":%s}' \
    "$port" $$ "$state" "$message" "$step" >"$announce.part" && mv "$announce.part" "$announce""#;

fn announcing(port: u16, state: &str, step: u64, then: &str) -> String {
    format!("port={port} state={state} step={step} message='all steps are done'\n{ANNOUNCES}\n{then}")
}

/// A port that nobody listens on.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn signal(child: &Child, name: &str) {
    let status =
        std::process::Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
    assert!(status.unwrap().success());
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_coordinator_that_refuses_has_the_last_word() {
    // Its status is passed on: 2 says that the configuration is wrong.
    for status in [1, 2] {
        let refusal = format!("echo 'error: run tiny was trained with another model' >&2; exit {status}");
        let stage = Stage::new(&refusal, "exec sleep 600");
        let (code, stdout, stderr) = text(&stage.train(&[]).output().unwrap());
        assert_eq!((code, stdout.as_str()), (Some(status), ""), "{stderr}");
        assert!(stderr.contains("error: coordinator: run tiny was trained with another model"), "{stderr}");
        assert_eq!(stage.pids().len(), 1, "no member was started");
    }
}

#[test]
fn a_finished_run_starts_no_member() {
    let stage = Stage::new(&announcing(1, "completed", 60, "exit 0"), "exec sleep 600");
    let output = stage.train(&["-o", "json"]).output().unwrap();
    let (code, stdout, stderr) = text(&output);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("resuming run tiny from step 60"), "{stderr}");
    let result: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((result["state"].as_str(), result["step"].as_u64()), (Some("completed"), Some(60)));
    assert_eq!(stage.pids().len(), 1);
}

#[test]
fn a_lost_coordinator_takes_everybody_along() {
    let stage = Stage::new(&announcing(closed_port(), "pending", 0, "exec sleep 600"), "exec sleep 600");
    let overrides = ["--set", "run.failure_detection_seconds=1", "--set", "recovery.max_restarts=0"];
    let (code, _, stderr) = text(&stage.train(&overrides).output().unwrap());
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("error: the coordinator was lost"), "{stderr}");
    assert!(stage.pids().into_iter().all(|pid| !lives(pid)), "somebody outlived the launcher");
}

#[test]
fn a_dead_member_is_named_with_its_log() {
    let script = "echo 'something about a tensor' >&2; exit 7";
    let stage = Stage::new(&announcing(closed_port(), "pending", 0, "exec sleep 600"), script);
    let overrides = [
        "--set",
        "run.failure_detection_seconds=1",
        "--set",
        "topology.shards=1",
        "--set",
        "recovery.max_restarts=0",
    ];
    let (code, _, stderr) = text(&stage.train(&overrides).output().unwrap());
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("exited with status 7") && stderr.contains("something about a tensor"),
        "{stderr}"
    );
}

#[test]
fn stopping_before_the_beginning_leaves_nothing_behind() {
    let stage = Stage::new("exec sleep 600", "exec sleep 600");
    let child = stage.train(&[]).spawn().unwrap();
    until("the coordinator's start", || stage.pids().len() == 1);
    signal(&child, "TERM");
    let (code, _, stderr) = text(&child.wait_with_output().unwrap());
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("stopped before the coordinator listened"), "{stderr}");
    assert!(stage.pids().into_iter().all(|pid| !lives(pid)));
}

#[test]
fn processes_die_with_a_killed_launcher() {
    let stage = Stage::new("exec sleep 600", "exec sleep 600");
    let mut child = stage.train(&[]).spawn().unwrap();
    until("the coordinator's start", || stage.pids().len() == 1);
    signal(&child, "KILL");
    child.wait().unwrap();
    until("the coordinator's end", || stage.pids().into_iter().all(|pid| !lives(pid)));
}

#[test]
fn a_root_without_a_backend_is_refused() {
    let stage = Stage::new("exit 0", "exit 0");
    let (code, _, stderr) = text(&stage.train(&["--root", "ftp://bucket/x"]).output().unwrap());
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("no backend for ftp://"), "{stderr}");
    assert!(stage.pids().is_empty());
}

#[test]
fn a_missing_program_is_named() {
    let stage = Stage::new("exit 0", "exit 0");
    std::fs::remove_file(stage.folder.path().join("polygram-worker")).unwrap();
    let (code, _, stderr) = text(&stage.train(&[]).output().unwrap());
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("polygram-worker") && stderr.contains("make build"), "{stderr}");
    assert!(!stage.folder.path().join("polygram-root").exists(), "nothing was written");
}

/// A program that cannot run with this one is found before anything is made, and told once.
#[test]
fn programs_that_do_not_fit_are_refused_before_anything_is_made() {
    use std::os::unix::fs::PermissionsExt;
    for (name, script, mode, words) in [
        (
            "worker",
            "echo polygram-worker 0.0.1",
            0o755,
            &["polygram-worker", "version 0.0.1", "make build"][..],
        ),
        ("coordinator", "echo usage; exit 2", 0o755, &["polygram-coordinator", "exit status: 2"]),
        ("embedding-shard", "exit 0", 0o644, &["polygram-embedding-shard", "cannot be executed", "chmod +x"]),
        (
            "worker",
            "echo 'worker: error while loading shared libraries: libtorch_cpu.so: cannot open' >&2; exit 127",
            0o755,
            &["libtorch_cpu.so", "LD_LIBRARY_PATH"],
        ),
        ("worker", "kill -9 $$", 0o755, &["polygram-worker", "signal: 9"]),
    ] {
        let stage = Stage::new("exit 0", "exit 0");
        let path = stage.folder.path().join(format!("polygram-{name}"));
        common::script(&path, script);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let (code, stdout, stderr) = text(&stage.train(&[]).output().unwrap());
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{script}: {stderr}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{word:?} is missing: {stderr}");
        }
        assert!(!stderr.contains("configuration of run") && stage.pids().is_empty(), "{stderr}");
        assert!(!stage.folder.path().join("polygram-root").exists(), "nothing was made");
    }
}

#[test]
fn a_worker_without_libtorch_is_refused_for_a_model_and_serves_for_the_drill() {
    let stage = Stage::new("echo 'error: reached' >&2; exit 1", "exit 0");
    let version = format!("echo polygram-worker {} without libtorch", env!("CARGO_PKG_VERSION"));
    common::script(&stage.folder.path().join("polygram-worker"), &version);
    let (code, _, stderr) = text(&stage.train(&[]).output().unwrap());
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("device.engine") && stderr.contains("built without libtorch"), "{stderr}");
    let (code, _, stderr) = text(&stage.train(&["--set", "device.engine=drill"]).output().unwrap());
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("coordinator: reached"), "{stderr}");
}

#[test]
fn a_program_that_is_replaced_meanwhile_does_not_come_into_the_launch() {
    let script = "if [ $(wc -l <pids) = 1 ]; then\n\
                  printf '#!/bin/sh\\necho error: the new build >&2; exit 1\\n' >new\n\
                  chmod +x new; mv new polygram-coordinator; kill -9 $$\n\
                  fi; echo 'error: the old build' >&2; exit 1";
    let stage = Stage::new(script, "exec sleep 600");
    let (code, _, stderr) = text(&stage.train(&[]).output().unwrap());
    assert_eq!((code, stage.pids().len()), (Some(1), 2), "{stderr}");
    assert!(stderr.contains("error: coordinator: the old build"), "{stderr}");
    assert!(
        stderr.contains("polygram-coordinator was replaced or removed since this launch began"),
        "{stderr}"
    );
}

#[test]
fn a_launch_that_was_killed_leaves_no_secret_behind_for_long() {
    let stage = Stage::new("exec sleep 600", "exec sleep 600");
    let mut child = stage.train(&[]).spawn().unwrap();
    let launches = stage.folder.path().join("polygram-root/runs/tiny/launch");
    until("the coordinator's start", || stage.pids().len() == 1);
    let first: Vec<_> = std::fs::read_dir(&launches).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(first.len() == 1 && first[0].join("token").is_file(), "{first:?}");
    signal(&child, "KILL");
    child.wait().unwrap();
    let child = stage.train(&[]).spawn().unwrap();
    until("the next coordinator's start", || stage.pids().len() == 2);
    assert!(!first[0].exists(), "the next launch of the run removes it");
    signal(&child, "TERM");
    child.wait_with_output().unwrap();
    assert_eq!(std::fs::read_dir(&launches).unwrap().count(), 0);
}

/// What is started with the signals of a background job or under `nohup` keeps ignoring them.
#[test]
fn a_hangup_that_is_ignored_stops_nothing() {
    let stage = Stage::new("exec sleep 600", "exec sleep 600");
    let train = stage.train(&[]);
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", r#"trap '' HUP INT; exec "$0" "$@""#])
        .arg(train.get_program())
        .args(train.get_args());
    let child =
        command.current_dir(stage.folder.path()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    until("the coordinator's start", || stage.pids().len() == 1);
    // By now the launcher listens for signals, and its child has its own.
    for pid in [child.id(), stage.pids()[0]] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
        // Bits of SIGHUP (1) and SIGINT (2), and not of SIGTERM (15).
        assert_eq!((mask & 0b11, mask >> 14 & 1), (0b11, 0), "{pid}: {mask:x}");
    }
    signal(&child, "HUP");
    signal(&child, "INT");
    signal(&child, "TERM");
    let (code, _, stderr) = text(&child.wait_with_output().unwrap());
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stage.pids().into_iter().all(|pid| !lives(pid)));
}
