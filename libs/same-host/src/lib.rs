//! What two processes of one host need to share memory instead of sending bytes through the network stack.
//!
//! A [`ring`] is a byte stream in one direction: sealed anonymous memory, and a pair of connected sockets, the *bells*,
//! by which a side that sleeps is woken. An [`Offer`] says where to ask for one, and [`send`] and [`receive`] hand the
//! descriptors over. Nothing here waits: who reads, who sleeps and how is decided by those who use it.
//!
//! What always holds:
//! * Memory and bells have no name, so nothing is left when both processes are gone.
//! * The memory is sealed before it is mapped: the peer cannot take its pages away.
//! * Counts that cannot be are errors, never an access outside the ring.

mod memory;
mod offer;
mod span;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

pub use memory::{Memory, Sleep};
pub use offer::{DESCRIPTORS, HostId, OFFER_WORDS, Offer, random, receive, send};
pub use span::Span;

/// One side of a ring that is not yet used, as the descriptors that can be sent to another process.
#[derive(Debug)]
pub struct RingEnd {
    memory: OwnedFd,
    bell: OwnedFd,
}

/// A ring of `capacity` bytes (a power of two from 4 KiB to 1 GiB): two equal ends, one to write and one to read.
pub fn ring(capacity: usize) -> io::Result<(RingEnd, RingEnd)> {
    let memory = Memory::create(capacity)?;
    let (near, far) = bells()?;
    let again = memory.try_clone()?;
    Ok((RingEnd { memory, bell: near }, RingEnd { memory: again, bell: far }))
}

/// A pair of bells: two connected sockets that do not block. A byte wakes the other side, the end is the end of it.
pub fn bells() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

impl RingEnd {
    /// An end from the descriptors that another process sent; they are checked when it is opened.
    pub fn new(memory: OwnedFd, bell: OwnedFd) -> RingEnd {
        RingEnd { memory, bell }
    }

    /// The descriptors to send: memory and bell.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.memory.as_fd(), self.bell.as_fd()]
    }

    /// The mapped memory and this side's bell.
    ///
    /// # Errors
    /// Memory that is no sealed ring.
    pub fn open(self) -> io::Result<(Memory, OwnedFd)> {
        Ok((Memory::map(&self.memory)?, self.bell))
    }
}
