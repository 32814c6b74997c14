//! What happens to a pool, and what is to be done about it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use polygram_domain::control::{MemberRef, StopMode};
use polygram_proto::pool::{JobId, Offering, Placement, PoolMemberId, Seat};

use super::job::{JobRecord, Needs, Progress};
use crate::core::{Level, Ticket};

/// A run file that was read and found legal.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The run's name.
    pub run: String,
    /// Jobs of higher priority go first.
    pub priority: i32,
    /// Whether a job of higher priority may have it commit, stop and wait.
    pub preemptible: bool,
    /// What it needs.
    pub needs: Needs,
    /// The effective run file.
    pub config_toml: Arc<str>,
}

/// How a session of a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// All steps are done and committed.
    Completed(String),
    /// `training.stop_at_step` is reached and committed.
    StoppedAtStep(String),
    /// Somebody asked for it; there is more to do.
    Stopped(String),
    /// It failed, or could not be opened.
    Failed(String),
}

impl SessionEnd {
    /// The run's last sentence.
    pub fn message(&self) -> &str {
        match self {
            SessionEnd::Completed(message)
            | SessionEnd::StoppedAtStep(message)
            | SessionEnd::Stopped(message)
            | SessionEnd::Failed(message) => message,
        }
    }
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A run file is to join the queue.
    Submit {
        /// Of the call.
        ticket: Ticket,
        /// What.
        admission: Admission,
    },
    /// A job is not wanted any more.
    Cancel {
        /// Of the call.
        ticket: Ticket,
        /// The job.
        job: JobId,
    },
    /// A member opened its stream.
    Offered(Offering),
    /// A member said that it lives.
    Alive {
        /// The member.
        member: PoolMemberId,
    },
    /// A member left a seat.
    Released {
        /// The member.
        member: PoolMemberId,
        /// The seat.
        seat: Seat,
        /// Why, where it was not in good order.
        failure: Option<String>,
    },
    /// A member's stream is over.
    Gone {
        /// The member.
        member: PoolMemberId,
        /// How it ended.
        message: String,
    },
    /// A session's coordinator listens.
    Opened {
        /// The job.
        job: JobId,
        /// The session.
        session: u32,
        /// Where.
        address: SocketAddr,
    },
    /// A session's run waits for members: nobody has joined it in these slots. All others have somebody, or nobody is let in.
    Awaited {
        /// The job.
        job: JobId,
        /// The session.
        session: u32,
        /// The slots.
        slots: BTreeSet<MemberRef>,
    },
    /// A session's run does its steps.
    RunStarted {
        /// The job.
        job: JobId,
        /// The session.
        session: u32,
    },
    /// How far a session's run had come when it ended; it comes before that event.
    Progressed {
        /// The job.
        job: JobId,
        /// Its run.
        progress: Progress,
    },
    /// A session's run is over; its members leave.
    RunOver {
        /// The job.
        job: JobId,
        /// The session.
        session: u32,
    },
    /// A session is over, and nothing of it is left in this process.
    SessionEnded {
        /// The job.
        job: JobId,
        /// The session.
        session: u32,
        /// How.
        end: SessionEnd,
    },
    /// The coordinator's process was asked to end: the first time sessions commit and stop, the second they abort, the
    /// third nobody is waited for.
    Interrupt {
        /// Which signal.
        reason: String,
    },
    /// Time passed.
    Tick,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The job is in the queue.
    Submitted(JobId),
    /// What becomes of the job.
    Cancelling(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Keep a new job, before anything that follows is done.
    Admit {
        /// The job.
        record: JobRecord,
        /// Its effective run file.
        config_toml: Arc<str>,
    },
    /// Keep a job that has changed, and its history by one sentence, before anything that follows is done.
    Save {
        /// The job.
        record: JobRecord,
        /// What happened.
        word: String,
    },
    /// Answer a call; the error is a refusal, one sentence.
    Reply {
        /// Of the call.
        ticket: Ticket,
        /// The answer.
        answer: Result<Reply, String>,
    },
    /// Open a session of a run: answered with [`Event::Opened`] and [`Event::SessionEnded`], or the latter alone.
    Open {
        /// The job.
        job: JobId,
        /// The session.
        session: u32,
        /// Its workers.
        workers: u32,
        /// Its effective run file, but for the number of workers.
        config_toml: Arc<str>,
    },
    /// End a session.
    End {
        /// The job.
        job: JobId,
        /// With a commit, or at once.
        mode: StopMode,
        /// Why.
        reason: String,
    },
    /// Tell a member where it is wanted.
    Place {
        /// The member.
        member: PoolMemberId,
        /// Where.
        placement: Placement,
    },
    /// Tell a member to leave a seat.
    Withdraw {
        /// The member.
        member: PoolMemberId,
        /// The seat.
        seat: Seat,
    },
    /// End a member's stream: it counts as gone.
    Drop {
        /// The member.
        member: PoolMemberId,
    },
    /// Say something.
    Log(Level, String),
    /// The process may end: no session is open.
    Exit,
}
