//! Programs under test: started with a mark in their environment, which everything they start inherits. So a test can
//! tell what a cluster left behind, and a dropped cluster leaves nothing.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use polygram_process::child::{SIGINT, SIGTERM, answer_signals};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait_until;

/// Environment variable that marks the processes of one cluster.
const MARK: &str = "POLYGRAM_TEST_CLUSTER";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A program that ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Itself if it ended with status 0; otherwise an error with everything it said.
    pub fn success(self) -> Result<Finished> {
        ensure!(self.status.success(), "ended with {}\n{}", self.status, self.said());
        Ok(self)
    }

    /// Standard error if it ended with a status of its own other than 0, with a message and without a panic.
    pub fn refusal(self) -> Result<String> {
        ensure!(!self.status.success(), "ended with success, but should have failed\n{}", self.said());
        ensure!(self.status.signal().is_none(), "was ended by a signal: {}\n{}", self.status, self.said());
        ensure!(!self.stderr.contains("panicked at"), "panicked\n{}", self.said());
        ensure!(!self.stderr.trim().is_empty(), "failed without a word: {}", self.status);
        Ok(self.stderr)
    }

    /// Both outputs, for messages.
    pub fn said(&self) -> String {
        format!("--- standard output\n{}\n--- standard error\n{}", self.stdout, self.stderr)
    }
}

/// A program that runs, with everything it started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    mark: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Starts `command` with its outputs in files under `folder`, so that no pipe ever fills.
    pub fn start(mut command: Command, folder: &Path) -> Result<Running> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        let (stdout, stderr) = (folder.join(format!("{number}.out")), folder.join(format!("{number}.err")));
        // Tests stop programs by these, also where a shell runs the tests in its background and so ignores SIGINT.
        let child = answer_signals(&mut command, &[SIGINT, SIGTERM])
            .env(MARK, &mark)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Running { child, mark, stdout, stderr })
    }

    /// The program's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error so far.
    pub fn log(&self) -> Result<String> {
        read(&self.stderr)
    }

    /// Whether it has ended; if so, how and with what words.
    pub fn poll(&mut self) -> Result<Option<Finished>> {
        let Some(status) = self.child.try_wait()? else { return Ok(None) };
        Ok(Some(Finished { status, stdout: read(&self.stdout)?, stderr: read(&self.stderr)? }))
    }

    /// Waits for its end. Past the limit it is an error that shows what was said so far.
    pub fn wait(&mut self, limit: Duration) -> Result<Finished> {
        match wait_until("the program's end", limit, || self.poll()) {
            Ok(finished) => Ok(finished),
            Err(error) => {
                let (stdout, stderr) = (read(&self.stdout)?, read(&self.stderr)?);
                bail!("{error}\n--- standard output\n{stdout}\n--- standard error\n{stderr}")
            }
        }
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> Result<String> {
        read(&self.stderr)
    }

    /// Every living process that this program or its descendants started, itself included.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let wanted = format!("{MARK}={}", self.mark);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Processes end while one looks, and a zombie's environment is empty.
            let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
            if environment.split(|&byte| byte == 0).any(|variable| variable == wanted.as_bytes()) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Sends a signal to one of the processes of this cluster.
    pub fn signal(&self, pid: u32, signal: Signal) -> Result<()> {
        ensure!(self.processes()?.contains(&pid), "process {pid} is none of this cluster's");
        send(pid, signal)
    }

    /// Waits until nothing that this program started lives any more.
    pub fn wait_for_silence(&self, limit: Duration) -> Result<()> {
        wait_until("every process of the cluster to end", limit, || {
            Ok(self.processes()?.is_empty().then_some(()))
        })
        .with_context(|| format!("still alive: {:?}", self.processes()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // First the launcher, so that it cannot start more.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.processes().unwrap_or_default() {
            let _ = send(pid, Signal::KILL);
        }
    }
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process has this number")?;
    kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to process {pid:?}"))
}

fn read(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}
