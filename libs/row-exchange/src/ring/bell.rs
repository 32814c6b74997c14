//! Bells: two connected sockets. A byte wakes the side that sleeps; the end of the stream is the end of the peer.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a sleeping side is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// Look again.
    Woken,
    /// The peer is gone, or says that it is done.
    Ended,
}

/// One side's bell.
#[derive(Debug)]
pub(super) struct Bell {
    socket: AsyncFd<OwnedFd>,
}

impl Bell {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Bell> {
        // SAFETY: an `OwnedFd` is open until it is dropped and always gives the same descriptor; the `AsyncFd` owns it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Bell { socket: socket.map_err(io::Error::from)? })
    }

    /// Wakes the peer.
    pub(super) fn ring(&self) {
        // A bell that is full of bytes wakes the peer as well, and one without a peer ends this side's next wait.
        let _full_or_ended = send(&self.socket, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Says that this side is done.
    pub(super) fn end(&self) -> io::Result<()> {
        match shutdown(&self.socket, Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the peer's bell.
    pub(super) fn poll_rung(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ring>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let mut rings = [0u8; 64];
            match recv(&self.socket, &mut rings, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Poll::Ready(Ok(Ring::Ended)),
                Ok(_) => return Poll::Ready(Ok(Ring::Woken)),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}
