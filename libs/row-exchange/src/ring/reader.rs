//! The reading side of a ring.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use polygram_same_host::Memory;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::coop::poll_proceed;

use super::bell::{Bell, Ring};
use super::{PIECE_BYTES, RingEnd};

/// Reads what the other end writes.
#[derive(Debug)]
pub struct RingReader {
    pub(super) memory: Memory,
    bell: Bell,
    /// Bytes taken in all.
    pub(super) taken: u64,
    /// The writer is gone; what it published may still be in the ring.
    ended: bool,
}

impl RingReader {
    /// The reading side of a ring. The other end must be the writing side.
    ///
    /// # Errors
    /// Memory that is no sealed ring, or a bell that cannot be watched. Call it within a tokio runtime.
    pub fn open(end: RingEnd) -> io::Result<RingReader> {
        let (memory, bell) = end.open()?;
        Ok(RingReader { memory, bell: Bell::new(bell)?, taken: 0, ended: false })
    }

    /// Takes what there is, up to the room in `buf`.
    fn take(&mut self, available: usize, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let mut left = available.min(buf.remaining());
        while left > 0 {
            let target = buf.initialize_unfilled_to(left.min(PIECE_BYTES));
            self.memory.copy_out(self.taken, target);
            let bytes = target.len();
            buf.advance(bytes);
            left -= bytes;
            self.taken = self.taken.wrapping_add(bytes as u64);
            self.memory.publish_taken(self.taken);
            // A sleeping writer is woken once half of the ring is free, not for every byte.
            if self.memory.available(self.taken)? <= self.memory.capacity() / 2
                && self.memory.writer_sleeps().take()
            {
                self.bell.ring();
            }
        }
        Ok(())
    }
}

impl AsyncRead for RingReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let budget = ready!(poll_proceed(cx));
        loop {
            let available = self.memory.available(self.taken)?;
            if available > 0 || self.ended || buf.remaining() == 0 {
                budget.made_progress();
                return Poll::Ready(self.take(available, buf));
            }
            self.memory.reader_sleeps().announce();
            if self.memory.available(self.taken)? > 0 {
                self.memory.reader_sleeps().withdraw();
                continue;
            }
            match ready!(self.bell.poll_rung(cx))? {
                Ring::Woken => {}
                Ring::Ended => self.ended = true,
            }
        }
    }
}
