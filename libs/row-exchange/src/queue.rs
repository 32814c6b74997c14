//! Frames on their way to one peer, over one or several connections.
//!
//! *Urgent* frames (requests, votes, answers without rows, credit) go over the first connection, in order, and wait for
//! nothing but its socket. *Spread* frames (rows, gradients) need credit before they are queued, and then go over
//! whichever connection is free first.
//!
//! What always holds: the queue never blocks who holds a permit; spread frames in it are bounded by the peer's window,
//! urgent ones by number and bytes; an urgent frame never waits for credit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::credit::cost;
use super::frame::{Outgoing, WireError};

/// Urgent frames that wait at most.
const URGENT_FRAMES: usize = 4096;
/// Bytes of urgent frames that wait at most.
const URGENT_BYTES: usize = 256 << 20;

/// The peer is no longer there, or is no longer spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the connection is closed")]
pub struct Gone;

/// The queue of one peer. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct SendQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    window_bytes: u32,
    /// What may still be queued, in bytes of [`cost`].
    credit: Arc<Semaphore>,
    state: Mutex<State>,
    urgent_came: Notify,
    spread_came: Notify,
}

#[derive(Debug, Default)]
struct State {
    urgent: VecDeque<Outgoing>,
    urgent_bytes: usize,
    spread: VecDeque<Outgoing>,
    /// Written and not yet given back by the peer.
    unreturned: u64,
    is_closed: bool,
}

impl SendQueue {
    /// A queue to a peer that grants `window_bytes`.
    pub fn new(window_bytes: u32) -> SendQueue {
        SendQueue {
            shared: Arc::new(Shared {
                window_bytes,
                credit: Arc::new(Semaphore::new(window_bytes as usize)),
                state: Mutex::default(),
                urgent_came: Notify::new(),
                spread_came: Notify::new(),
            }),
        }
    }

    /// The lock is held for moves of frames only.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an urgent frame. A peer that lets too many of them pile up is given up.
    ///
    /// # Errors
    /// A closed queue.
    pub fn send_urgent(&self, frame: Outgoing) -> Result<(), Gone> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Gone);
        }
        state.urgent_bytes += frame.wire_bytes();
        state.urgent.push_back(frame);
        if state.urgent.len() > URGENT_FRAMES || state.urgent_bytes > URGENT_BYTES {
            drop(state);
            self.abandon();
            return Err(Gone);
        }
        drop(state);
        self.shared.urgent_came.notify_one();
        Ok(())
    }

    /// Room for a spread frame with so many payload bytes, if there is credit for it now.
    ///
    /// # Errors
    /// A closed queue.
    pub fn try_reserve(&self, payload_bytes: usize) -> Result<Option<Permit>, Gone> {
        let cost = cost(payload_bytes, self.shared.window_bytes);
        match Arc::clone(&self.shared.credit).try_acquire_many_owned(cost) {
            Ok(credit) => Ok(Some(Permit { queue: self.clone(), credit })),
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(Gone),
        }
    }

    /// Waits for credit for a spread frame with so many payload bytes; first come, first served.
    ///
    /// # Errors
    /// A queue that is closed, now or meanwhile.
    pub async fn reserve(&self, payload_bytes: usize) -> Result<Permit, Gone> {
        let cost = cost(payload_bytes, self.shared.window_bytes);
        let credit = Arc::clone(&self.shared.credit).acquire_many_owned(cost).await.map_err(|_| Gone)?;
        Ok(Permit { queue: self.clone(), credit })
    }

    /// The peer has taken so many bytes.
    ///
    /// # Errors
    /// More than it was sent.
    pub fn give_back(&self, bytes: u32) -> Result<(), WireError> {
        let mut state = self.lock();
        let Some(rest) = state.unreturned.checked_sub(u64::from(bytes)) else {
            let rule = format!("{bytes} bytes are given back, only {} were sent", state.unreturned);
            return Err(WireError::Malformed { message: "credit", rule });
        };
        state.unreturned = rest;
        drop(state);
        self.shared.credit.add_permits(bytes as usize);
        Ok(())
    }

    /// Takes no more frames; those queued are still written.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.shared.credit.close();
        self.shared.urgent_came.notify_waiters();
        self.shared.spread_came.notify_waiters();
    }

    /// Takes no more frames, and drops those queued.
    pub fn abandon(&self) {
        let dropped = {
            let mut state = self.lock();
            state.urgent_bytes = 0;
            (std::mem::take(&mut state.urgent), std::mem::take(&mut state.spread))
        };
        self.close();
        drop(dropped);
    }

    /// The next frame for connection `connection`; `None` once the queue is closed and there is no more for it. Safe
    /// to cancel.
    pub async fn next(&self, connection: u32) -> Option<Outgoing> {
        loop {
            let (urgent, spread) = (self.shared.urgent_came.notified(), self.shared.spread_came.notified());
            tokio::pin!(urgent, spread);
            // From here on no notification is missed, so that what the look below misses wakes this task.
            spread.as_mut().enable();
            if connection == 0 {
                urgent.as_mut().enable();
            }
            {
                let mut state = self.lock();
                if connection == 0
                    && let Some(frame) = state.urgent.pop_front()
                {
                    state.urgent_bytes = state.urgent_bytes.saturating_sub(frame.wire_bytes());
                    state.unreturned += u64::from(self.charge(&frame));
                    if !state.spread.is_empty() {
                        // This connection may have been woken for it, and is busy now.
                        self.shared.spread_came.notify_one();
                    }
                    return Some(frame);
                }
                if let Some(frame) = state.spread.pop_front() {
                    state.unreturned += u64::from(self.charge(&frame));
                    return Some(frame);
                }
                if state.is_closed {
                    return None;
                }
            }
            match connection {
                0 => tokio::select! {
                    () = urgent => {}
                    () = spread => {}
                },
                _ => spread.await,
            }
        }
    }

    /// What the peer will give back for a frame.
    fn charge(&self, frame: &Outgoing) -> u32 {
        match frame.kind().needs_credit() {
            true => cost(frame.payload_bytes(), self.shared.window_bytes),
            false => 0,
        }
    }
}

/// Room for one spread frame. Dropped unused, it gives its credit back.
#[derive(Debug)]
pub struct Permit {
    queue: SendQueue,
    credit: OwnedSemaphorePermit,
}

impl Permit {
    /// Queues a frame with at most the payload bytes that were reserved, for whichever connection is free first. Lost
    /// where the queue was closed meanwhile.
    pub fn send(self, frame: Outgoing) {
        self.queue_up(frame, |state| &mut state.spread, |shared| &shared.spread_came);
    }

    /// As [`Permit::send`], over the first connection and behind the urgent frames queued before it.
    pub fn send_in_order(self, frame: Outgoing) {
        self.queue_up(frame, |state| &mut state.urgent, |shared| &shared.urgent_came);
    }

    fn queue_up(
        self,
        frame: Outgoing,
        line: impl FnOnce(&mut State) -> &mut VecDeque<Outgoing>,
        came: impl FnOnce(&Shared) -> &Notify,
    ) {
        let Permit { queue, mut credit } = self;
        let charge = queue.charge(&frame) as usize;
        debug_assert!(charge <= credit.num_permits(), "a frame of more bytes than were reserved");
        drop(credit.split(credit.num_permits().saturating_sub(charge)));
        let mut state = queue.lock();
        if state.is_closed {
            return;
        }
        credit.forget();
        line(&mut state).push_back(frame);
        drop(state);
        came(&queue.shared).notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use polygram_domain::{Cell, Generation, Step};
    use tokio::time::timeout;

    use super::*;
    use crate::frame::{Header, Kind, Piece};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn frame(kind: Kind, chunk: u32, words: usize) -> Outgoing {
        let header = Header { kind, chunk, run: 1, generation: Generation(1), step: Step(2), cell: Cell(3) };
        Outgoing::seal(&header, vec![Piece::Words(vec![0; words])]).unwrap()
    }

    async fn next(queue: &SendQueue, connection: u32) -> Option<(Kind, u32)> {
        let frame = timeout(PATIENCE, queue.next(connection)).await.expect("a frame or the end");
        frame.map(|frame| (frame.kind(), u32::from_le_bytes(frame.head()[12..16].try_into().unwrap())))
    }

    #[tokio::test]
    async fn urgent_frames_overtake_and_keep_to_the_first_connection() {
        let queue = SendQueue::new(1000);
        for chunk in 0..2 {
            queue.reserve(40).await.unwrap().send(frame(Kind::Push, chunk, 10));
        }
        queue.send_urgent(frame(Kind::Lookup, 2, 1)).unwrap();
        queue.reserve(40).await.unwrap().send_in_order(frame(Kind::Push, 3, 10));
        queue.close();
        assert_eq!(queue.send_urgent(frame(Kind::Prepare, 4, 0)), Err(Gone));
        assert_eq!(next(&queue, 1).await, Some((Kind::Push, 0)));
        assert_eq!(next(&queue, 0).await, Some((Kind::Lookup, 2)));
        assert_eq!(next(&queue, 0).await, Some((Kind::Push, 3)));
        assert_eq!(next(&queue, 1).await, Some((Kind::Push, 1)));
        assert_eq!((next(&queue, 1).await, next(&queue, 0).await), (None, None));
    }

    #[tokio::test]
    async fn credit_is_spent_and_given_back() {
        let queue = SendQueue::new(100);
        let first = queue.reserve(40).await.unwrap();
        let second = queue.try_reserve(40).unwrap().unwrap();
        assert!(queue.try_reserve(40).unwrap().is_none(), "20 bytes are left");
        queue.send_urgent(frame(Kind::Commit, 0, 3)).unwrap();
        assert_eq!(next(&queue, 0).await, Some((Kind::Commit, 0)), "no credit is needed for a vote");
        drop(second);
        first.send(frame(Kind::Rows, 1, 5));
        let large = queue.try_reserve(1 << 20).unwrap();
        assert!(
            large.is_some(),
            "40 unused and 20 of a short frame are back; a large frame costs half a window"
        );
        assert!(queue.give_back(20).is_err(), "nothing is written yet");
        assert_eq!(next(&queue, 0).await, Some((Kind::Rows, 1)));
        let waits = tokio::spawn({
            let queue = queue.clone();
            async move { queue.reserve(50).await.map(drop) }
        });
        queue.give_back(20).unwrap();
        assert_eq!(timeout(PATIENCE, waits).await.unwrap().unwrap(), Ok(()));
        assert!(queue.give_back(1).unwrap_err().to_string().contains("only 0 were sent"));
    }

    #[tokio::test]
    async fn who_waits_learns_of_the_end() {
        let queue = SendQueue::new(10);
        let held = queue.reserve(5).await.unwrap();
        let waiters: Vec<_> = (0..3u32)
            .map(|connection| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    match connection {
                        2 => queue.reserve(10).await.map(drop).unwrap_err(),
                        _ => {
                            assert!(queue.next(connection).await.is_none());
                            Gone
                        }
                    }
                })
            })
            .collect();
        let more = queue.try_reserve(5).unwrap();
        tokio::task::yield_now().await;
        queue.abandon();
        for waiter in waiters {
            assert_eq!(timeout(PATIENCE, waiter).await.unwrap().unwrap(), Gone);
        }
        held.send(frame(Kind::Push, 0, 1));
        drop(more);
        assert_eq!(next(&queue, 0).await, None, "nothing is queued for a peer that is given up");
        assert_eq!(queue.try_reserve(1).unwrap_err(), Gone);
    }

    /// Every frame comes out once, whatever the connections and the order of writers.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_lost_between_connections() {
        let queue = SendQueue::new(4096);
        let writers: Vec<_> = (0..3u32)
            .map(|connection| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    let mut chunks = Vec::new();
                    while let Some((kind, chunk)) = next(&queue, connection).await {
                        if kind == Kind::Push {
                            queue.give_back(400).unwrap();
                        }
                        chunks.push(chunk);
                    }
                    chunks
                })
            })
            .collect();
        for chunk in 0..3000 {
            match chunk % 3 {
                0 => queue.send_urgent(frame(Kind::Prepare, chunk, 0)).unwrap(),
                1 => queue.reserve(400).await.unwrap().send_in_order(frame(Kind::Push, chunk, 100)),
                _ => queue.reserve(400).await.unwrap().send(frame(Kind::Push, chunk, 100)),
            }
            if chunk % 50 == 0 {
                tokio::task::yield_now().await;
            }
        }
        queue.close();
        let mut chunks = Vec::new();
        for writer in writers {
            chunks.extend(timeout(PATIENCE, writer).await.unwrap().unwrap());
        }
        chunks.sort_unstable();
        assert!(chunks.into_iter().eq(0..3000));
    }

    #[tokio::test]
    async fn a_peer_that_takes_no_answers_is_given_up() {
        let queue = SendQueue::new(10);
        let sent =
            (0..10_000).take_while(|&i| queue.send_urgent(frame(Kind::Committed, i, 0)).is_ok()).count();
        assert_eq!(sent, URGENT_FRAMES);
        assert_eq!(next(&queue, 0).await, None);
    }
}
