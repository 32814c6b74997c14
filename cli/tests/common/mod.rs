//! What the command-line tests share: running the built program and reading what it said.
#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What one run of the program gave.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// The result as JSON; the command must have succeeded.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Checks that the command was refused with exactly one message, which has all of `words`, and no panic.
    pub(crate) fn refused(&self, words: &[&str]) {
        let Said { code, stdout, stderr } = self;
        assert_eq!(*code, Some(2), "{stderr}");
        assert!(stdout.is_empty(), "a refusal prints no result: {stdout}");
        assert_eq!(stderr.matches("error: ").count(), 1, "one message: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
        let message = &stderr[stderr.find("error: ").unwrap()..];
        for word in words {
            assert!(message.contains(word), "{word:?} is missing: {stderr}");
        }
    }
}

/// Runs the program in `folder`.
pub(crate) fn polygram_in(folder: &Path, args: &[&str]) -> Said {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_polygram")).args(args).current_dir(folder).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs the program at the top of the repository.
pub(crate) fn polygram(args: &[&str]) -> Said {
    polygram_in(&repository(), args)
}

/// The top of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Writes `text` to `folder/name` and gives the path as text.
pub(crate) fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Copies a program by another process: a file that this one had open for writing may be so still in a child that another
/// test is just starting, and then it cannot be executed.
fn install(from: &Path, to: &Path) {
    let status = Command::new("install").args(["-m", "755"]).args([from, to]).status().unwrap();
    assert!(status.success(), "cannot install {}", to.display());
}

/// Puts a shell script with this body at `path`, executable.
pub(crate) fn script(path: &Path, body: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, format!("#!/bin/sh\n{body}\n")).unwrap();
    install(&draft, path);
}

/// A folder with the built program and stand-ins for its siblings: shell scripts.
pub(crate) struct Stage {
    pub(crate) folder: tempfile::TempDir,
}

impl Stage {
    /// `coordinator` and `member` are bodies of shell scripts. Both note their process id in `pids` first; the
    /// coordinator's announcement is to be written to `$announce`.
    pub(crate) fn new(coordinator: &str, member: &str) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        install(Path::new(env!("CARGO_BIN_EXE_polygram")), &folder.path().join("polygram"));
        std::fs::copy(repository().join("configs/tiny.toml"), folder.path().join("tiny.toml")).unwrap();
        let options = "while [ $# -gt 0 ]; do case $1 in --announce-file) announce=$2;; esac; shift; done";
        for (name, body) in [("coordinator", coordinator), ("embedding-shard", member), ("worker", member)] {
            let path = folder.path().join(format!("polygram-{name}"));
            let pids = folder.path().join("pids").display().to_string();
            let draft = path.with_extension("draft");
            let version = format!("polygram-{name} {}", env!("CARGO_PKG_VERSION"));
            let asked = format!("if [ \"$1\" = --version ]; then echo '{version}'; exit; fi");
            let script = format!("#!/bin/sh\n{asked}\necho $$ >>'{pids}'\n{options}\n{body}\n");
            std::fs::write(&draft, script).unwrap();
            install(&draft, &path);
        }
        Stage { folder }
    }

    /// `train tiny.toml` on this stage, more arguments appended.
    pub(crate) fn train(&self, more: &[&str]) -> Command {
        let mut command = Command::new(self.folder.path().join("polygram"));
        command.args(["train", "tiny.toml"]).args(more).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The processes that were started, as noted by themselves.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.folder.path().join("pids")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

/// Whether a process lives; one that was never waited for counts as dead.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// Looks until `condition` holds; fails the test after ten seconds.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}
