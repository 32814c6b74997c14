//! The writing side of a ring.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use polygram_same_host::Memory;
use tokio::io::AsyncWrite;
use tokio::task::coop::poll_proceed;

use super::bell::{Bell, Ring};
use super::{PIECE_BYTES, RingEnd};

/// Writes what the other end reads.
#[derive(Debug)]
pub struct RingWriter {
    pub(super) memory: Memory,
    bell: Bell,
    /// Bytes written in all.
    pub(super) written: u64,
}

impl RingWriter {
    /// The writing side of a ring. The other end must be the reading side.
    ///
    /// # Errors
    /// Memory that is no sealed ring, or a bell that cannot be watched. Call it within a tokio runtime.
    pub fn open(end: RingEnd) -> io::Result<RingWriter> {
        let (memory, bell) = end.open()?;
        Ok(RingWriter { memory, bell: Bell::new(bell)?, written: 0 })
    }

    /// Waits for room; the bytes of it.
    fn poll_free(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let free = self.memory.free(self.written)?;
            if free > 0 {
                return Poll::Ready(Ok(free));
            }
            self.memory.writer_sleeps().announce();
            let free = self.memory.free(self.written)?;
            if free > 0 {
                self.memory.writer_sleeps().withdraw();
                return Poll::Ready(Ok(free));
            }
            if ready!(self.bell.poll_rung(cx))? == Ring::Ended {
                let text = "the other process no longer reads the ring";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, text)));
            }
        }
    }

    /// Copies of `slices` what `free` bytes hold; how much that was. Every piece is published at once, for a reader that
    /// is awake; one that sleeps is woken for half a ring or for all there is, not for every piece.
    fn put(&mut self, free: usize, slices: &[IoSlice<'_>]) -> usize {
        let (mut total, mut unheard) = (0, 0);
        for slice in slices {
            let mut rest = &slice[..slice.len().min(free - total)];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(PIECE_BYTES));
                self.memory.copy_in(self.written, piece);
                self.written = self.written.wrapping_add(piece.len() as u64);
                self.memory.publish_written(self.written);
                (total, unheard, rest) = (total + piece.len(), unheard + piece.len(), after);
                if unheard >= self.memory.capacity() / 2 {
                    self.wake_reader();
                    unheard = 0;
                }
            }
        }
        if unheard > 0 {
            self.wake_reader();
        }
        total
    }

    fn wake_reader(&self) {
        if self.memory.reader_sleeps().take() {
            self.bell.ring();
        }
    }
}

impl AsyncWrite for RingWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let budget = ready!(poll_proceed(cx));
        let free = ready!(self.poll_free(cx))?;
        budget.made_progress();
        Poll::Ready(Ok(self.put(free, slices)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is written is published already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The reader sees the end once it has read everything.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.bell.end())
    }
}
