//! The processes of one launch. They die with the launcher whatever becomes of it, and only processes that this
//! launch started are ever signalled.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ExitStatus as ProcessStatus, Stdio};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use polygram_faults::FaultInjection;
use polygram_process::child::{SIGTERM, answer_signals, end_with_parent};
use polygram_telemetry::passive_waits;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::ended::Ended;
use crate::exit::{Failure, Outcome};

#[derive(Debug)]
struct Entry {
    name: String,
    pid: u32,
    child: Child,
    started: Instant,
}

impl Entry {
    fn terminate(&self) {
        // `id` is none once the child was waited for, so the number cannot be somebody else's.
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id as i32)) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }
}

/// The living children of this launch.
#[derive(Debug, Default)]
pub(crate) struct Children {
    living: Vec<Entry>,
    faults: FaultInjection,
}

impl Children {
    /// None yet; those that are started inject `faults`.
    pub(crate) fn with_faults(faults: FaultInjection) -> Children {
        Children { faults, living: Vec::new() }
    }

    /// Starts `program`, output to `log`, and says its process id. Call it from the main thread: a child is killed when the
    /// thread that started it ends.
    pub(crate) fn spawn(&mut self, name: &str, program: &Path, args: &[OsString], log: File) -> Outcome<u32> {
        let cannot = |error: io::Error| {
            Failure::failed(format!("cannot start {name} ({})", program.display())).because(error)
        };
        let stdout = log.try_clone().map_err(cannot)?;
        let mut command = std::process::Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(log);
        if self.faults == FaultInjection::Enabled {
            command.arg(polygram_faults::FLAG);
        }
        // A worker that has them need not start itself again.
        command.envs(passive_waits::missing_variables().iter().copied());
        // A process group of its own: Ctrl-C in the terminal reaches the launcher alone, which stops the run.
        command.process_group(0);
        // The launcher ends its children by SIGTERM, also where it ignores that signal itself.
        answer_signals(end_with_parent(&mut command), &[SIGTERM]);
        let child = Command::from(command).kill_on_drop(true).spawn().map_err(cannot)?;
        let pid = child.id().unwrap_or_default();
        self.living.push(Entry { name: name.to_owned(), pid, child, started: Instant::now() });
        Ok(pid)
    }

    /// Number of living children.
    pub(crate) fn len(&self) -> usize {
        self.living.len()
    }

    /// The next child that ends; never resolves when none is left. Dropping the future loses nothing.
    pub(crate) async fn next_exit(&mut self) -> Ended {
        let mut waits: FuturesUnordered<_> = self
            .living
            .iter_mut()
            .enumerate()
            .map(|(index, entry)| async move { (index, entry.child.wait().await) })
            .collect();
        let Some((index, status)) = waits.next().await else {
            drop(waits);
            return std::future::pending().await;
        };
        drop(waits);
        let entry = self.living.swap_remove(index);
        // Waiting for one's own child fails only when the kernel has already forgotten it.
        let status = status.unwrap_or_else(|_| ProcessStatus::from_raw(0x100));
        Ended { name: entry.name, pid: entry.pid, status, lived: entry.started.elapsed() }
    }

    /// Asks the child called `name` to end (SIGTERM).
    pub(crate) fn terminate(&self, name: &str) {
        self.living.iter().filter(|entry| entry.name == name).for_each(Entry::terminate);
    }

    /// Asks the children of these process ids to end (SIGTERM).
    pub(crate) fn terminate_pids(&self, pids: &[u32]) {
        self.living.iter().filter(|entry| pids.contains(&entry.pid)).for_each(Entry::terminate);
    }

    /// Kills the child of this process id, if it lives.
    pub(crate) fn kill(&mut self, pid: u32) {
        if let Some(entry) = self.living.iter_mut().find(|entry| entry.pid == pid) {
            // It fails only for a child that has just ended.
            let _ = entry.child.start_kill();
        }
    }

    /// The process id of the living child called `name`.
    pub(crate) fn pid_of(&self, name: &str) -> Option<u32> {
        self.living.iter().find(|entry| entry.name == name).map(|entry| entry.pid)
    }

    /// Names of the living children.
    pub(crate) fn living(&self) -> impl Iterator<Item = &str> {
        self.living.iter().map(|entry| entry.name.as_str())
    }

    /// Waits until every child has ended by itself, at most for `patience`, and kills the rest. Returns all ends,
    /// and the names of those that had to be killed.
    pub(crate) async fn wind_down(&mut self, patience: Duration) -> (Vec<Ended>, Vec<String>) {
        let deadline = Instant::now() + patience;
        let mut ended = Vec::new();
        while self.len() > 0 {
            match tokio::time::timeout_at(deadline, self.next_exit()).await {
                Ok(end) => ended.push(end),
                Err(_) => break,
            }
        }
        let killed = self.living.iter().map(|entry| entry.name.clone()).collect();
        for entry in &mut self.living {
            // It fails only for a child that has just ended.
            let _ = entry.child.start_kill();
        }
        while self.len() > 0 {
            ended.push(self.next_exit().await);
        }
        (ended, killed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(children: &mut Children, name: &str, script: &str) -> u32 {
        let log = tempfile::tempfile().unwrap();
        children.spawn(name, Path::new("/bin/sh"), &["-c".into(), script.into()], log).unwrap()
    }

    #[tokio::test]
    async fn ends_are_reported_one_by_one() {
        let mut children = Children::default();
        shell(&mut children, "a", "exit 3");
        shell(&mut children, "b", "exec sleep 600");
        let end = children.next_exit().await;
        assert_eq!((end.name.as_str(), end.how().as_str()), ("a", "exited with status 3"));
        children.terminate("b");
        let end = children.next_exit().await;
        assert_eq!((end.name.as_str(), end.how().as_str()), ("b", "was killed by signal 15"));
        assert_eq!(children.len(), 0);
    }

    #[tokio::test]
    async fn the_stubborn_are_killed() {
        let mut children = Children::default();
        shell(&mut children, "willing", "exit 0");
        shell(&mut children, "stubborn", "exec sleep 600");
        let (ended, killed) = children.wind_down(Duration::from_millis(300)).await;
        assert_eq!(killed, ["stubborn"]);
        assert_eq!(ended.len(), 2);
        assert!(ended.iter().any(|end| end.name == "stubborn" && end.status.signal() == Some(9)));
    }

    #[tokio::test]
    async fn some_are_ended_and_the_others_live_on() {
        let mut children = Children::default();
        let pids = ["willing", "stubborn", "busy"].map(|name| shell(&mut children, name, "exec sleep 600"));
        children.terminate_pids(&pids[..1]);
        let end = children.next_exit().await;
        assert_eq!((end.name.as_str(), end.pid, end.status.signal()), ("willing", pids[0], Some(15)));
        children.kill(pids[0]);
        children.kill(pids[1]);
        let end = children.next_exit().await;
        assert_eq!((end.name.as_str(), end.pid, end.status.signal()), ("stubborn", pids[1], Some(9)));
        assert_eq!(children.living().collect::<Vec<_>>(), ["busy"]);
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let mut children = Children::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let log = tempfile::tempfile().unwrap();
        let error = children.spawn("ghost", Path::new("/nonexistent/ghost"), &[], log).unwrap_err();
        assert!(error.to_string().contains("ghost"));
    }
}
