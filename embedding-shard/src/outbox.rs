//! An outbox: where frames for one worker go, whatever its connections are.
//!
//! What always holds: rows need credit that the worker grants, answers without rows never wait; a worker that grants
//! nothing for too long while somebody waits for it is given up, and so is one that takes no answers.

use std::time::Duration;

use polygram_row_exchange::codec::{LinkError, LinkWriter};
use polygram_row_exchange::frame::{Outgoing, WireError};
use polygram_row_exchange::liveness::{Heartbeats, write_queue};
use polygram_row_exchange::queue::SendQueue;
pub(crate) use polygram_row_exchange::queue::{Gone, Permit};
use tokio::time::timeout;

/// Where frames for one worker go. Clones are the same outbox.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    queue: SendQueue,
    patience: Duration,
}

impl Outbox {
    /// An outbox to a worker that grants `window_bytes` of rows, and is given up after `patience`.
    pub(crate) fn new(window_bytes: u32, patience: Duration) -> Outbox {
        Outbox { queue: SendQueue::new(window_bytes), patience }
    }

    /// Room for a frame of rows with so many payload bytes, if the worker grants it now.
    ///
    /// # Errors
    /// A worker that is gone.
    pub(crate) fn try_reserve(&self, payload_bytes: usize) -> Result<Option<Permit>, Gone> {
        self.queue.try_reserve(payload_bytes)
    }

    /// Waits for room for a frame of rows with so many payload bytes; first come, first served.
    ///
    /// # Errors
    /// A worker that is gone, or is given up.
    pub(crate) async fn reserve(&self, payload_bytes: usize) -> Result<Permit, Gone> {
        timeout(self.patience, self.queue.reserve(payload_bytes)).await.unwrap_or_else(|_| {
            tracing::warn!(patience = ?self.patience, "a worker that takes no rows is given up");
            self.queue.abandon();
            Err(Gone)
        })
    }

    /// Queues an answer that has no rows.
    ///
    /// # Errors
    /// A worker that is gone.
    pub(crate) fn answer(&self, frame: Outgoing) -> Result<(), Gone> {
        self.queue.send_urgent(frame)
    }

    /// The worker has taken so many bytes of rows.
    pub(crate) fn give_back(&self, bytes: u32) -> Result<(), WireError> {
        self.queue.give_back(bytes)
    }

    /// Writes what is queued for one of the worker's connections, until the end, and heartbeats where nothing is.
    pub(crate) async fn write_all(
        &self,
        writer: LinkWriter,
        connection: u32,
        heartbeats: Option<Heartbeats>,
    ) -> Result<(), LinkError> {
        write_queue(writer, &self.queue, connection, heartbeats).await
    }

    /// Takes no more frames; those queued are still written.
    pub(crate) fn close(&self) {
        self.queue.close();
    }

    /// Takes no more frames, and drops those queued.
    pub(crate) fn abandon(&self) {
        self.queue.abandon();
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::{Cell, Generation, Step};
    use polygram_row_exchange::frame::{Header, Kind, Piece};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn rows(words: usize) -> Outgoing {
        let header = Header {
            kind: Kind::Rows,
            chunk: 0,
            run: 1,
            generation: Generation(1),
            step: Step(0),
            cell: Cell(0),
        };
        Outgoing::seal(&header, vec![Piece::Words(vec![0; words])]).unwrap()
    }

    /// A worker that takes nothing costs its window and nothing more, and no other worker notices.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_slow_worker_costs_its_window() {
        let (slow, quick) = (Outbox::new(4000, PATIENCE), Outbox::new(4000, PATIENCE));
        let taken = tokio::spawn({
            let quick = quick.clone();
            async move {
                let mut frames = 0;
                while let Some(frame) = quick.queue.next(0).await {
                    quick.give_back(frame.payload_bytes() as u32).unwrap();
                    frames += 1;
                }
                frames
            }
        });
        let lane = {
            let (slow, quick, runtime) = (slow.clone(), quick.clone(), tokio::runtime::Handle::current());
            std::thread::spawn(move || {
                let mut refused = 0;
                for _ in 0..1000 {
                    match slow.try_reserve(400).unwrap() {
                        Some(permit) => permit.send(rows(100)),
                        None => refused += 1,
                    }
                    runtime.block_on(quick.reserve(400)).unwrap().send(rows(100));
                }
                quick.close();
                refused
            })
        };
        assert_eq!(timeout(PATIENCE, taken).await.unwrap().unwrap(), 1000);
        assert_eq!(lane.join().unwrap(), 990, "ten frames of 400 bytes fill the window");
        let mut queued = 0;
        slow.close();
        while slow.queue.next(0).await.is_some() {
            queued += 1;
        }
        assert_eq!(queued, 10);
    }

    #[tokio::test]
    async fn a_worker_that_grants_nothing_is_given_up() {
        let outbox = Outbox::new(400, Duration::from_millis(5));
        outbox.try_reserve(200).unwrap().unwrap().send(rows(50));
        outbox.try_reserve(200).unwrap().unwrap().send(rows(50));
        assert_eq!(outbox.reserve(200).await.err(), Some(Gone));
        assert!(outbox.queue.next(0).await.is_none(), "what was queued is dropped");
        assert_eq!(outbox.answer(rows(1)), Err(Gone));
    }
}
