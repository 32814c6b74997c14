//! What reaches the driver of a pool, and what it answers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use polygram_domain::control::RunStatus;
use polygram_proto::pool::{
    JobId, JobStatus, MemberWord, Offering, PoolMemberId, PoolMemberStatus, PoolWord, Submission,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::core::{Event, Tallies};

/// A call's answer; the error is a refusal, one sentence.
pub(super) type Answer<T> = oneshot::Sender<Result<T, String>>;
/// What a member says; the error is the end, and how it came.
pub(super) type Words = Pin<Box<dyn Stream<Item = Result<MemberWord, String>> + Send>>;

/// What reaches the driver.
pub(super) enum Input {
    /// From inside: sessions.
    Happened(Event),
    /// A session's coordinator listens.
    Opened {
        job: JobId,
        session: u32,
        address: SocketAddr,
        statuses: watch::Receiver<Arc<RunStatus>>,
    },
    Offer {
        offering: Offering,
        words: Words,
        answer: oneshot::Sender<mpsc::Receiver<PoolWord>>,
    },
    /// On this connection, a member said something.
    Word {
        member: PoolMemberId,
        connection: u64,
        word: MemberWord,
    },
    /// This connection of a member ended.
    Hung {
        member: PoolMemberId,
        connection: u64,
        message: String,
    },
    Submit {
        submission: Submission,
        answer: Answer<JobId>,
    },
    Cancel {
        job: JobId,
        answer: Answer<String>,
    },
    Jobs {
        answer: oneshot::Sender<Vec<JobStatus>>,
    },
    Members {
        answer: oneshot::Sender<Vec<PoolMemberStatus>>,
    },
    Numbers {
        answer: oneshot::Sender<Numbers>,
    },
}

/// A pool at one instant.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    pub(super) jobs: Vec<JobStatus>,
    pub(super) members: Vec<PoolMemberStatus>,
    pub(super) tallies: Tallies,
    /// Times that runs went back because a member was lost.
    pub(super) restarts: u64,
}
