//! What the algorithms of [`crate::Group`] need from a transport between ranks. Ranks are seats in the group here; the
//! group names those of the run.

use std::sync::Arc;
use std::time::Duration;

use polygram_domain::Rank;

use crate::abort::{AbortHandle, AbortTarget};
use crate::call::Call;
use crate::progress::Progress;
use crate::sink::Sink;

/// One exchange of messages inside a call.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// The call; messages of any other are a mismatch.
    pub call: Call,
    /// The exchange's number inside the call; both sides of a message must agree on it.
    pub number: u16,
    /// Looked at in every wait.
    pub abort: &'a AbortHandle,
    /// Told whom the link heard from.
    pub progress: &'a Progress,
}

/// A message to send: its parts are sent one after the other.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// To whom; never this rank.
    pub to: Rank,
    /// The payload.
    pub parts: Vec<&'a [u8]>,
}

/// A message to receive.
pub struct Incoming<'a> {
    /// From whom; never this rank.
    pub from: Rank,
    /// Where the payload goes.
    pub sink: &'a mut dyn Sink,
}

/// What a failing rank tells its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The rank whose failure it is (others pass it on).
    pub origin: Rank,
    /// What kind of failure.
    pub kind: NoticeKind,
    /// The rank that `origin` blames, where it blames one.
    pub suspect: Option<Rank>,
    /// The ranks that the *sender* was waiting for.
    pub waiting: Vec<Rank>,
    /// What happened, in words.
    pub reason: String,
}

/// Whether a failing rank only waited in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// It waited in vain; the culprit is found by following `waiting` from rank to rank.
    Silence,
    /// It knows what happened.
    Failure,
}

/// Why an exchange ended early.
#[derive(Debug)]
pub enum Cause {
    /// Nothing moved for `failure_detection`.
    Silent,
    /// The abort handle was used.
    Aborted,
    /// `sender` told of a failure.
    Told {
        /// Who sent the notice.
        sender: Rank,
        /// The notice.
        notice: Notice,
    },
    /// `peer` sent no heartbeat.
    Unheard {
        /// The rank of the run, not its seat: it may sit in another group.
        peer: Rank,
        /// For how long.
        waited: Duration,
    },
    /// The connection to `peer` is gone.
    Lost {
        /// The rank lost.
        peer: Rank,
        /// How it was lost.
        detail: String,
    },
    /// `peer` is in another call.
    Mismatch {
        /// The rank that disagrees.
        peer: Rank,
        /// Its call.
        theirs: Call,
    },
    /// What came from `peer` cannot be right.
    Corrupt {
        /// The sender.
        peer: Rank,
        /// What does not fit.
        detail: String,
    },
    /// A fault ordered for tests.
    Injected,
}

/// An exchange that ended early: why, and for whom it was waiting.
#[derive(Debug)]
pub struct Broken {
    /// Why.
    pub cause: Cause,
    /// Ranks whose message was outstanding.
    pub waiting: Vec<Rank>,
}

/// A transport between the ranks of one group: point-to-point messages in order, and nothing else.
pub trait Link: Send {
    /// This rank.
    fn rank(&self) -> Rank;

    /// Ranks in the group.
    fn world_size(&self) -> u32;

    /// A call begins. Only links that inject faults have something to do here.
    fn begin(&mut self, round: &Round<'_>) -> Result<(), Broken> {
        let _ = round;
        Ok(())
    }

    /// Sends and receives the round's messages, all at once and whatever their size. Returns when all receives are
    /// complete and all sends are handed over. At most one message each way between two ranks in a round.
    fn exchange(
        &mut self,
        round: &Round<'_>,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
    ) -> Result<(), Broken>;

    /// Tells every peer that this rank has failed, without waiting for any of them.
    fn announce(&mut self, notice: &Notice);

    /// Gathers notices for up to `grace`, by sender.
    fn gather_notices(&mut self, grace: Duration) -> Vec<(Rank, Notice)>;

    /// What an abort of this rank acts on.
    fn abort_target(&self) -> Arc<dyn AbortTarget>;
}

/// Whether a message that `peer` sent for `theirs`, exchange `number`, may come while this rank is in `round`.
pub(crate) fn check_message(
    round: &Round<'_>,
    peer: Rank,
    (theirs, number): (Call, u16),
    wanted: Wanted,
) -> Result<(), Cause> {
    let ahead = theirs.sequence > round.call.sequence;
    match wanted {
        Wanted::Later if ahead || theirs == round.call => Ok(()),
        Wanted::Now if theirs == round.call && number == round.number => Ok(()),
        Wanted::Now if theirs == round.call => Err(Cause::Corrupt {
            peer,
            detail: format!(
                "exchange {number:#x} of the call instead of {:#x}; are the group's options equal on all ranks?",
                round.number
            ),
        }),
        Wanted::Now | Wanted::Later => Err(Cause::Mismatch { peer, theirs }),
    }
}

/// Whether this rank waits for a message already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It is due in this exchange.
    Now,
    /// It is early: kept for a later exchange or call.
    Later,
}

/// What an abort outside any call tells the peers, in words that name this rank.
pub(crate) fn abort_notice(rank: Rank, reason: &str) -> Notice {
    let reason = reason.to_string();
    Notice { origin: rank, kind: NoticeKind::Failure, suspect: None, waiting: Vec::new(), reason }
}
