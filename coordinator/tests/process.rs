//! The program itself: what it says and how it exits.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, WORKER, tiny, token};
use polygram_domain::control::{Phase, RunState};
use polygram_proto::control::{Announcement, ControlError, JoinOptions, MemberSession, OperatorClient};

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(config: &str) -> Files {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("run.toml"), config).unwrap();
        token().write(&folder.path().join("token")).unwrap();
        Files { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, listen: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polygram-coordinator"));
        command
            .args(["--listen", listen, "--root"])
            .arg(self.path("root"))
            .arg("--config")
            .arg(self.path("run.toml"))
            .arg("--token-file")
            .arg(self.path("token"))
            .arg("--announce-file")
            .arg(self.path("announce"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What it says of why, to the end; it is said once.
fn error_text(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    let stderr = text(output);
    let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr[stderr.find("error: ").unwrap()..].to_owned()
}

async fn announced(path: &Path, child: &mut Child) -> Announcement {
    let started = Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        look.tick().await;
        if let Some(announcement) = Announcement::read(path).unwrap() {
            return announcement;
        }
        assert!(child.try_wait().unwrap().is_none(), "the coordinator ended before it listened");
        assert!(started.elapsed() < PATIENCE, "the coordinator does not announce itself");
    }
}

fn signal(child: &Child, name: &str) {
    let killed = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

#[tokio::test]
async fn it_announces_itself_and_ends_at_sigterm() {
    for name in ["-TERM", "-INT"] {
        let files = Files::new(&tiny(&[]));
        let mut child = files.command("127.0.0.1:0").spawn().unwrap();
        let announcement = announced(&files.path("announce"), &mut child).await;
        assert_eq!((announcement.pid, announcement.state), (child.id(), RunState::Pending));
        let address = announcement.address.to_string();
        let status = OperatorClient::connect(&address, None).await.unwrap().status().await.unwrap();
        assert_eq!(status.state, RunState::Pending);
        signal(&child, name);
        let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
}

#[test]
fn a_port_in_use_is_one_clear_message() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let files = Files::new(&tiny(&[]));
    let output = files.command(&address).output().unwrap();
    let said = error_text(&output, 1);
    assert!(said.contains(&address) && said.to_lowercase().contains("in use"), "{said}");
    assert!(!files.path("announce").exists());
    assert!(!files.path("root").exists(), "nothing was written");
}

#[test]
fn bad_input_is_one_clear_message() {
    let unknown_key = tiny(&[]).replace("seq_len", "seq_length");
    type Spoil<'a> = &'a dyn Fn(&Files);
    let cases: [(&str, Spoil, &str, i32); 4] = [
        (&unknown_key, &|_| (), "seq_length", 2),
        (&tiny(&[]), &|files| std::fs::remove_file(files.path("run.toml")).unwrap(), "run.toml", 1),
        (&tiny(&[]), &|files| std::fs::remove_file(files.path("token")).unwrap(), "token", 1),
        (&tiny(&[]), &|files| std::fs::write(files.path("root"), "a file").unwrap(), "is a file", 2),
    ];
    for (config, spoil, words, code) in cases {
        let files = Files::new(config);
        spoil(&files);
        let output = files.command("127.0.0.1:0").output().unwrap();
        let said = error_text(&output, code);
        assert!(said.contains(words), "{words}: {said}");
        assert!(!files.path("announce").exists());
    }
}

/// A coordinator that is stopped but not dead answers no ping: members notice within failure detection.
#[tokio::test]
async fn a_frozen_coordinator_is_noticed() {
    let files = Files::new(&tiny(&["run.failure_detection_seconds=1.0"]));
    let mut child = files.command("127.0.0.1:0").spawn().unwrap();
    let announcement = announced(&files.path("announce"), &mut child).await;
    let address = announcement.address.to_string();
    let options = JoinOptions::new(address.clone(), token(), WORKER, ([127, 0, 0, 1], 4000).into());
    let (session, _joined) = MemberSession::join(options).await.unwrap();
    let (reporter, mut directives) = session.split();
    // Its phase arrives by heartbeat: then the stream is open.
    reporter.progress().phase(Phase::Loading);
    let mut operator = OperatorClient::connect(&address, None).await.unwrap();
    let mut look = tokio::time::interval(Duration::from_millis(20));
    while operator.status().await.unwrap().members.iter().all(|m| m.phase != Phase::Loading) {
        look.tick().await;
    }
    signal(&child, "-STOP");
    let lost = tokio::time::timeout(PATIENCE, directives.next()).await;
    signal(&child, "-KILL");
    child.wait().unwrap();
    let lost = lost.unwrap();
    assert!(matches!(lost, Err(ControlError::Lost { .. })), "{lost:?}");
}
