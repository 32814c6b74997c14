//! A member's offer: one process, placed in one run after another.
//!
//! One task owns the stream to the pool and opens it again, with growing pauses, whenever it breaks: a lost pool ends
//! neither the offer nor the run that the member is in. What the pool last said is *wanted*; the member brings itself
//! there ([`PoolOffer::engaged`]), and whoever is in another seat is recalled from it.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::control::error::{Tried, deepest};
use crate::control::member::host;
use crate::control::token::random;
use crate::control::{ControlError, Recall, Token};
use crate::pool::client::open;
use crate::pool::types::{MemberWord, Offering, Placement, PoolMemberId, PoolWord, Seat};
use crate::pool::wire;
use polygram_domain::control::Role;

/// How often a member says that it lives.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Opening a stream is given up after this.
const OPENING: Duration = Duration::from_secs(10);
/// The first pause after a stream that broke or did not open; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Words that may wait for the network.
const WORDS_IN_FLIGHT: usize = 64;

/// What a process needs to offer itself.
#[derive(Clone, Debug)]
pub struct OfferOptions {
    /// The pool's coordinator, `host:port`.
    pub pool: String,
    /// The pool's secret, which is also that of its runs.
    pub token: Token,
    /// What this process can be.
    pub role: Role,
}

/// A seat that the member takes now.
#[derive(Clone, Debug)]
pub struct Engagement {
    /// Where.
    pub placement: Placement,
    /// Called when the member is wanted elsewhere, or nowhere.
    pub recall: Recall,
}

/// What the pool wants, and where the member is.
#[derive(Clone, Debug, Default, PartialEq)]
struct Whereabouts {
    wanted: Option<Placement>,
    seat: Option<Seat>,
}

/// An open offer; dropping it ends it.
pub struct PoolOffer {
    whereabouts: watch::Sender<Whereabouts>,
    words: mpsc::Sender<MemberWord>,
    task: JoinHandle<ControlError>,
    /// Calls the newest engagement back; the one before has ended.
    recalling: Option<JoinHandle<()>>,
}

impl PoolOffer {
    /// Begins to offer this process. Must run on a tokio runtime. A pool that does not answer is asked again for good.
    ///
    /// # Errors
    /// Where the system gives no random numbers.
    pub fn begin(options: OfferOptions) -> Result<PoolOffer, ControlError> {
        let mut incarnation = [0u8; 8];
        random(&mut incarnation)?;
        let member = PoolMemberId(u64::from_le_bytes(incarnation));
        let (whereabouts, _) = watch::channel(Whereabouts::default());
        let (words, waiting) = mpsc::channel(WORDS_IN_FLIGHT);
        let stream = Stream { options, member, whereabouts: whereabouts.clone(), words: waiting };
        Ok(PoolOffer { whereabouts, words, task: tokio::spawn(stream.run()), recalling: None })
    }

    /// The next seat, once the pool wants this member somewhere. Cancel safe: a seat that is not returned is returned by
    /// the next call.
    ///
    /// # Errors
    /// Where the pool refuses the offer for good: another token, another version.
    pub async fn engaged(&mut self) -> Result<Engagement, ControlError> {
        loop {
            let mut seen = self.whereabouts.subscribe();
            tokio::select! {
                refused = &mut self.task => return Err(refused.unwrap_or(ControlError::Closed)),
                _wanted = seen.wait_for(|whereabouts| whereabouts.wanted.is_some()) => {}
            }
            let mut taken = None;
            self.whereabouts.send_modify(|whereabouts| {
                // A stream that was opened in between may have taken the word back.
                taken = whereabouts.wanted.clone();
                whereabouts.seat = taken.as_ref().map(|placement| placement.seat);
            });
            let Some(placement) = taken else { continue };
            let recall = self.recall_from(placement.clone()).await;
            return Ok(Engagement { placement, recall });
        }
    }

    /// Called once anything else than `placement` is wanted.
    async fn recall_from(&mut self, placement: Placement) -> Recall {
        let (called, recall) = watch::channel(false);
        let mut seen = self.whereabouts.subscribe();
        // Ends when it has called, or with the membership or the offer.
        let recalling = tokio::spawn(async move {
            let elsewhere = async {
                seen.wait_for(|whereabouts| whereabouts.wanted.as_ref() != Some(&placement)).await.is_ok()
            };
            tokio::select! {
                true = elsewhere => {
                    let _before = called.send_replace(true);
                }
                () = called.closed() => {}
                else => {}
            }
        });
        if let Some(before) = self.recalling.replace(recalling) {
            // Its membership is over, or it has called.
            before.abort();
            if let Err(ended) = before.await
                && ended.is_panic()
            {
                std::panic::resume_unwind(ended.into_panic());
            }
        }
        Recall::by(recall)
    }

    /// The member has left the seat of this placement; the text says why, where it was not in good order.
    pub async fn released(&self, placement: &Placement, failure: Option<String>) {
        self.whereabouts.send_modify(|whereabouts| {
            whereabouts.seat = None;
            if whereabouts.wanted.as_ref() == Some(placement) {
                whereabouts.wanted = None;
            }
        });
        // A pool that is out of reach learns it from the next stream's first word.
        let word = MemberWord::Released { seat: placement.seat, failure };
        if timeout(OPENING, self.words.send(word)).await.is_err() {
            tracing::warn!(seat = %placement.seat, "the pool does not take words");
        }
    }
}

impl Drop for PoolOffer {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(recalling) = &self.recalling {
            recalling.abort();
        }
    }
}

/// The task that owns the stream.
struct Stream {
    options: OfferOptions,
    member: PoolMemberId,
    whereabouts: watch::Sender<Whereabouts>,
    words: mpsc::Receiver<MemberWord>,
}

impl Stream {
    /// Streams, one after another, until one is refused for good.
    async fn run(mut self) -> ControlError {
        let mut pause = FIRST_PAUSE;
        let mut is_lost = false;
        loop {
            let error = match self.open().await {
                Ok((wire, inbound)) => {
                    tracing::info!(pool = self.options.pool, "offered to the pool");
                    (pause, is_lost) = (FIRST_PAUSE, false);
                    self.serve(wire, inbound).await
                }
                Err(error) => error,
            };
            let is_final = matches!(
                error,
                ControlError::Unauthenticated { .. }
                    | ControlError::Refused { .. }
                    | ControlError::Malformed(_)
            );
            if is_final {
                return error;
            }
            if !std::mem::replace(&mut is_lost, true) {
                tracing::warn!(%error, "the pool is out of reach; offering again");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn open(
        &mut self,
    ) -> Result<(mpsc::Sender<wire::MemberWord>, Streaming<wire::PoolWord>), ControlError> {
        let OfferOptions { pool, token, role } = self.options.clone();
        let mut service = open(&pool, &token, OPENING).await?;
        let (wire, queue) = mpsc::channel(WORDS_IN_FLIGHT);
        // What was waiting is of the stream before: the offering says it better.
        while self.words.try_recv().is_ok() {}
        let mut seat = None;
        self.whereabouts.send_modify(|whereabouts| {
            seat = whereabouts.seat;
            if seat.is_none() {
                // A word of the stream before that nobody has followed yet is not followed any more.
                whereabouts.wanted = None;
            }
        });
        let offering = Offering { member: self.member, role, pid: std::process::id(), host: host(), seat };
        // The queue is new and empty.
        let _sent = wire.try_send(MemberWord::Offering(offering).into());
        let tried = Tried { attempts: 1, elapsed: OPENING };
        let opened = timeout(OPENING, service.offer(ReceiverStream::new(queue))).await;
        let opened = opened.map_err(|_elapsed| ControlError::Deadline {
            call: "Offer",
            deadline_seconds: OPENING.as_secs_f64(),
            attempts: 1,
        })?;
        let inbound = opened.map_err(|status| match status.code() {
            Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented => {
                ControlError::of_status("Offer", &pool, &status, tried)
            }
            // All else may pass: a pool on its way out says so, and the next one takes the offer.
            _ => self.lost(deepest(&status)),
        })?;
        Ok((wire, inbound.into_inner()))
    }

    async fn serve(
        &mut self,
        wire: mpsc::Sender<wire::MemberWord>,
        mut inbound: Streaming<wire::PoolWord>,
    ) -> ControlError {
        let mut beat = tokio::time::interval(ALIVE_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _instant = beat.tick() => {
                    // A full queue means that the network is behind: the next beat says the same.
                    let _full = wire.try_send(MemberWord::Alive.into());
                }
                word = self.words.recv() => {
                    let Some(word) = word else { return ControlError::Closed };
                    if wire.send_timeout(word.into(), OPENING).await.is_err() {
                        return self.lost("it does not read our words".into());
                    }
                }
                message = inbound.message() => match message {
                    Ok(Some(message)) => match PoolWord::try_from(message) {
                        Ok(word) => {
                            let answer = self.take(word).map(|word| wire.try_send(word.into()));
                            if answer.is_some_and(|sent| sent.is_err()) {
                                return self.lost("it does not read our words".into());
                            }
                        }
                        Err(error) => return error.into(),
                    },
                    Ok(None) => return self.lost("it ended the stream".into()),
                    Err(status) => return self.lost(deepest(&status)),
                },
            }
        }
    }

    /// Notes what is wanted. Whoever is told to leave a seat that it is not in answers at once.
    fn take(&self, word: PoolWord) -> Option<MemberWord> {
        let (wanted, left) = match word {
            PoolWord::Place(placement) => (Some(placement), None),
            PoolWord::Withdraw(seat) => (None, Some(seat)),
        };
        let mut is_there = false;
        self.whereabouts.send_modify(|whereabouts| {
            whereabouts.wanted = wanted;
            is_there = left.is_some() && whereabouts.seat == left;
        });
        let seat = left.filter(|_| !is_there)?;
        Some(MemberWord::Released { seat, failure: None })
    }

    fn lost(&self, message: String) -> ControlError {
        ControlError::Lost { address: self.options.pool.clone(), message }
    }
}
