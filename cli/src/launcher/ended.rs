//! The end of a process.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus as ProcessStatus;
use std::time::Duration;

use crate::exit::ExitStatus;

/// Name of the coordinator's process in messages and log names.
pub(crate) const COORDINATOR: &str = "coordinator";

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its name, such as `worker 0`.
    pub(crate) name: String,
    /// Its process id while it lived.
    pub(crate) pid: u32,
    /// How.
    pub(crate) status: ProcessStatus,
    /// How long it lived.
    pub(crate) lived: Duration,
}

impl Ended {
    /// How it ended, as the rest of a sentence: `exited with status 3`, `was killed by signal 9`.
    pub(crate) fn how(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".into(),
        }
    }

    /// The whole sentence: `worker 0 (pid 7) exited with status 3`.
    pub(crate) fn sentence(&self) -> String {
        format!("{} (pid {}) {}", self.name, self.pid, self.how())
    }

    /// Whether the coordinator ended.
    pub(crate) fn is_coordinator(&self) -> bool {
        self.name == COORDINATOR
    }

    /// Whether it ended because its input is wrong: its exit statuses mean what ours do.
    pub(crate) fn is_usage(&self) -> bool {
        self.status.code() == Some(ExitStatus::Usage.code().into())
    }
}
