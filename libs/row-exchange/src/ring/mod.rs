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
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use polygram_same_host::{RingEnd, ring};
pub use reader::RingReader;
pub use writer::RingWriter;

/// Bytes between two publications of a long copy: the other side works on one piece while the next is copied, and a
/// piece stays in the caches of both.
const PIECE_BYTES: usize = 64 << 10;
