//! A byte stream in one direction between two processes of one host: a ring in anonymous shared memory.
//!
//! A ring is two things that travel as descriptors: sealed anonymous memory, and a pair of connected sockets, the
//! *bells*. Neither has a name, so nothing is left when both processes are gone. The writer copies bytes in and
//! publishes how many it has written, the reader copies them out and publishes how many it has taken; no system call
//! is made as long as neither has to wait. Who waits says so in the memory and sleeps until its bell rings; the
//! other rings it by one byte. The end of a bell's stream is the end of the peer, however it died.
//!
//! What always holds:
//! * Each side believes its own count and checks the other's: a count that cannot be is an error, never an access
//!   outside the ring. What the peer writes at the wrong time is torn bytes, which a frame's checksum finds.
//! * The memory is sealed before it is mapped: the peer cannot take its pages away.
//! * A reader that sees the end has read every byte that was published before it.

mod bell;
mod memory;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bell::Bell;
use memory::Memory;
pub use reader::RingReader;
pub use writer::RingWriter;

/// Bytes between two publications of a long copy: the other side works on one piece while the next is copied, and a
/// piece stays in the caches of both.
const PIECE_BYTES: usize = 64 << 10;

/// One side of a ring that is not yet used, as the descriptors that can be sent to another process.
#[derive(Debug)]
pub struct RingEnd {
    memory: OwnedFd,
    bell: OwnedFd,
}

/// A ring of `capacity` bytes (a power of two from 4 KiB to 1 GiB): two equal ends, one to write and one to read.
pub fn ring(capacity: usize) -> io::Result<(RingEnd, RingEnd)> {
    let memory = Memory::create(capacity)?;
    let (near, far) = bell::pair()?;
    let again = memory.try_clone()?;
    Ok((RingEnd { memory, bell: near }, RingEnd { memory: again, bell: far }))
}

impl RingEnd {
    /// An end from the descriptors that another process sent; they are checked when it is used.
    pub fn new(memory: OwnedFd, bell: OwnedFd) -> RingEnd {
        RingEnd { memory, bell }
    }

    /// The descriptors to send: memory and bell.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.memory.as_fd(), self.bell.as_fd()]
    }

    /// The reading side. The other end must be the writing side.
    ///
    /// # Errors
    /// Memory that is no sealed ring, or a bell that cannot be watched. Call it within a tokio runtime.
    pub fn into_reader(self) -> io::Result<RingReader> {
        Ok(RingReader::new(Memory::map(&self.memory)?, Bell::new(self.bell)?))
    }

    /// The writing side. The other end must be the reading side.
    ///
    /// # Errors
    /// As [`RingEnd::into_reader`].
    pub fn into_writer(self) -> io::Result<RingWriter> {
        Ok(RingWriter::new(Memory::map(&self.memory)?, Bell::new(self.bell)?))
    }
}
