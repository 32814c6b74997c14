//! The processes of a simulated launch.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus as ProcessStatus;

use super::coordinator::Coordinator;
use super::member::Member;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl End {
    pub(super) fn status(self) -> ProcessStatus {
        ProcessStatus::from_raw(match self {
            End::Code(code) => code << 8,
            End::Signal(signal) => signal,
        })
    }
}

/// A living process.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) started: u64,
    /// It stands still for good; only SIGKILL ends it.
    pub(super) is_frozen: bool,
    pub(super) part: Part,
}

/// What a process is.
pub(super) enum Part {
    /// A coordinator that does not listen yet, or never will.
    Opening,
    /// A coordinator that listens.
    Coordinator(Box<Coordinator>),
    /// A member.
    Member(Box<Member>),
}

impl Process {
    pub(super) fn member(&self) -> Option<&Member> {
        match &self.part {
            Part::Member(member) => Some(member),
            _ => None,
        }
    }

    pub(super) fn is_coordinator(&self) -> bool {
        !matches!(self.part, Part::Member(_))
    }
}
