//! Which process on which machine: enough to see from the same machine whether it still runs.

use std::fs;
use std::io::ErrorKind;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// Milliseconds since 1970 UTC; 0 where the system's clock stands before that.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A process, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Name of its host, for people.
    pub host: String,
    /// Random value of its kernel's boot; empty where the system does not say.
    pub boot_id: String,
    /// Its namespace of process ids; empty where the system does not say.
    pub pid_namespace: String,
    /// Its process id there.
    pub pid: u32,
    /// When it started, clock ticks since the boot: a later process of the same id has another.
    pub start_ticks: u64,
}

/// What this process can see of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It runs on this machine.
    Running,
    /// It ran on this machine and has ended.
    Gone,
    /// It is on another machine, or in a container of its own.
    Elsewhere,
}

impl ProcessIdentity {
    /// This process.
    pub fn current() -> ProcessIdentity {
        let pid = std::process::id();
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        ProcessIdentity {
            host: line("/proc/sys/kernel/hostname"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            pid_namespace: namespace.display().to_string(),
            pid,
            start_ticks: stat(pid).map_or(0, |stat| stat.start_ticks),
        }
    }

    /// Whether it runs, as far as this process can see. A process that was not waited for counts as gone.
    pub fn presence(&self) -> Presence {
        let here = ProcessIdentity::current();
        let is_known = !self.boot_id.is_empty() && !self.pid_namespace.is_empty();
        if !is_known || self.boot_id != here.boot_id || self.pid_namespace != here.pid_namespace {
            return Presence::Elsewhere;
        }
        match stat(self.pid) {
            Ok(stat) if stat.is_ended || stat.start_ticks != self.start_ticks => Presence::Gone,
            Ok(_) => Presence::Running,
            // Processes of other users may be hidden; a signal that is none asks the kernel itself.
            Err(_) => match i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
                Some(pid) if rustix::process::test_kill_process(pid) != Err(Errno::SRCH) => Presence::Running,
                _ => Presence::Gone,
            },
        }
    }

    /// Whether this process is the one.
    pub fn is_current(&self) -> bool {
        *self == ProcessIdentity::current()
    }
}

struct Stat {
    is_ended: bool,
    start_ticks: u64,
}

/// State and start of a process (proc_pid_stat(5), fields 3 and 22). The name before them may hold anything.
fn stat(pid: u32) -> std::io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let mut fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let state = fields.next().unwrap_or_default();
    match fields.nth(18).and_then(|ticks| ticks.parse().ok()) {
        Some(start_ticks) => Ok(Stat { is_ended: matches!(state, "Z" | "X" | "x"), start_ticks }),
        None => {
            Err(std::io::Error::new(ErrorKind::InvalidData, format!("/proc/{pid}/stat is not understood")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn identity_of(pid: u32) -> ProcessIdentity {
        ProcessIdentity { pid, start_ticks: stat(pid).unwrap().start_ticks, ..ProcessIdentity::current() }
    }

    #[test]
    fn a_process_is_running_until_it_ends() {
        let here = ProcessIdentity::current();
        assert!(here.is_current() && here.presence() == Presence::Running && here.start_ticks > 0);
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let identity = identity_of(child.id());
        assert_eq!(identity.presence(), Presence::Running);
        let reused = ProcessIdentity { start_ticks: identity.start_ticks + 1, ..identity.clone() };
        assert_eq!(reused.presence(), Presence::Gone, "a later process of the same id is another");
        child.kill().unwrap();
        // Not waited for yet: a zombie, at the latest a moment later.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while identity.presence() == Presence::Running {
            assert!(std::time::Instant::now() < deadline, "a killed process counts as running");
        }
        child.wait().unwrap();
        assert_eq!(identity.presence(), Presence::Gone);
    }

    #[test]
    fn other_machines_and_containers_are_elsewhere() {
        let here = ProcessIdentity::current();
        for other in [
            ProcessIdentity { boot_id: "another".into(), ..here.clone() },
            ProcessIdentity { pid_namespace: "pid:[1]".into(), ..here.clone() },
            ProcessIdentity { boot_id: String::new(), ..here.clone() },
        ] {
            assert_eq!(other.presence(), Presence::Elsewhere, "{other:?}");
        }
    }
}
