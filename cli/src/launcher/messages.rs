//! What reaches the decider of a launch, what it orders, and how a launch can end.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_domain::control::Stall;
use polygram_domain::control::{Reason, RunState, RunStatus, StepMetrics, StopMode, WatchEvent};
use polygram_proto::control::{Announcement, ControlError};

use super::claim::Claim;
use super::ended::Ended;
use super::progress::MeanLoss;
use crate::exit::{ExitStatus, Failure};

/// What happens to a launch.
#[derive(Debug)]
pub(crate) enum Event {
    /// A process was started.
    Started {
        /// Its name.
        name: String,
        /// Its process id.
        pid: u32,
    },
    /// A process could not be started.
    NotStarted {
        /// Its name.
        name: String,
        /// Why.
        failure: Failure,
    },
    /// The coordinator listens.
    Announced(Announcement),
    /// What the coordinator announced cannot be read.
    Unreadable(Failure),
    /// The watch of the coordinator is open.
    Connected,
    /// It could not be opened.
    NotConnected(ControlError),
    /// The coordinator's watch showed something.
    Watched(WatchEvent),
    /// The watch ended: in good order, or broken by an error.
    WatchEnded(Option<ControlError>),
    /// A process ended.
    Exited(Exit),
    /// The operator asks for the end.
    Signal,
    /// The answer to [`Action::RequestStop`].
    StopAnswered(Result<(), ControlError>),
    /// The answer to [`Action::AskWhatIsWaitedFor`]; none also where there is no answer.
    StallAnswered(Option<Stall>),
    /// The answer to [`Action::ReadNewestCommit`]: the newest commit in the store.
    NewestCommit(Option<u64>),
    /// The answer to [`Action::Record`]: whether the store has it.
    Recorded(bool),
    /// Time passed. The first one begins the launch.
    Tick,
}

/// The end of a process.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    /// Who, and how.
    pub(crate) ended: Ended,
    /// The last line of its log.
    pub(crate) last_line: String,
    /// What the coordinator had announced by then, if it is the coordinator that ended.
    pub(crate) announcement: Option<Announcement>,
}

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Print a line.
    Say(String),
    /// Print the run's state; it is not printed again while it lasts.
    SayState(String),
    /// Print a warning.
    Warn(String),
    /// Start the coordinator and look for its announcement.
    Open {
        /// Where it listens.
        listen: SocketAddr,
        /// What becomes of another coordinator of the run.
        claim: Claim,
    },
    /// Open the coordinator's watch, in the place of an older one.
    Connect(SocketAddr),
    /// Start this member.
    Start(String),
    /// Ask the coordinator to end the run, in the place of an older request.
    RequestStop {
        /// How.
        mode: StopMode,
        /// Why.
        reason: String,
    },
    /// Ask the coordinator what the run waits for.
    AskWhatIsWaitedFor,
    /// Ask these processes to end (SIGTERM).
    Terminate(Vec<u32>),
    /// Kill these processes (SIGKILL).
    Kill(Vec<u32>),
    /// Look for the newest commit in the store.
    ReadNewestCommit,
    /// Record in the store how the run ended, in the place of its coordinator, which was killed.
    Record {
        /// How it ended.
        status: Box<RunStatus>,
        /// The coordinator's process id.
        coordinator: u32,
    },
    /// The launch is decided; only its processes are still to end.
    Conclude(Box<Conclusion>),
    /// No process is left: return.
    Return,
}

/// How a launch ended.
#[derive(Debug)]
pub(crate) enum Conclusion {
    /// As it should, or on request.
    Ended(Ending),
    /// Not so.
    Failed(Failed),
}

impl Conclusion {
    /// The launcher's exit status.
    #[cfg(test)]
    pub(crate) fn exit_status(&self) -> ExitStatus {
        match self {
            Conclusion::Ended(ending) => ending.exit_status(),
            Conclusion::Failed(failed) => failed.status,
        }
    }
}

/// How a run ended that did not fail.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It was complete before anything started.
    AlreadyOver(Announcement),
    /// The coordinator's last word, or the launcher's in its place.
    Over(Box<Final>),
}

impl Ending {
    /// Whether the run was stopped on request before its end.
    pub(crate) fn is_stopped(&self) -> bool {
        match self {
            Ending::AlreadyOver(_) => false,
            Ending::Over(last) => {
                last.status.state == RunState::Stopped && last.status.reason != Reason::StopAtStep
            }
        }
    }

    /// The exit status of a command that ran it.
    pub(crate) fn exit_status(&self) -> ExitStatus {
        if self.is_stopped() { ExitStatus::Stopped } else { ExitStatus::Success }
    }
}

/// The last status and the launch's own view.
#[derive(Debug)]
pub(crate) struct Final {
    /// State, reason, members as last seen.
    pub(crate) status: RunStatus,
    /// Seconds since the launch.
    pub(crate) seconds: f64,
    /// Share of them spent in steps.
    pub(crate) goodput: f64,
    /// The mean loss of the newest steps.
    pub(crate) mean_loss: Option<MeanLoss>,
    /// The newest steps, as many as the launch was asked to keep or a few.
    pub(crate) steps: Vec<StepMetrics>,
}

/// A launch that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// What happened.
    pub(crate) cause: Cause,
    /// The exit status.
    pub(crate) status: ExitStatus,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

/// Why a launch failed.
#[derive(Debug)]
pub(crate) enum Cause {
    /// In the launcher's own words.
    Own(Failure),
    /// A process ended; the end of its log says more.
    Process(Ended),
    /// The coordinator said why.
    Run {
        /// Its last status.
        status: Box<RunStatus>,
        /// How the member ended that it blames.
        culprit: Option<Ended>,
    },
    /// The coordinator was lost, and no process ended.
    CoordinatorLost(ControlError),
    /// The coordinator did not listen in time.
    NotListening(Duration),
}
