//! The connections of one rank, as others than its own thread may use them.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use polygram_domain::{Generation, Rank};

use crate::abort::AbortTarget;
use crate::link::{Notice, abort_notice};
use crate::wire::notice_frame;

/// The connections of one rank, shared with its abort handles.
pub(super) struct Mesh {
    pub(super) rank: Rank,
    pub(super) generation: Generation,
    /// By rank; none for this rank.
    pub(super) sockets: Vec<Option<TcpStream>>,
    /// A byte written here wakes the rank from `poll`.
    pub(super) alarm: UnixStream,
}

impl Mesh {
    /// Tells `notice` to the ranks that `reachable` picks, as far as that needs no waiting, and sends nothing more.
    pub(super) fn tell(&self, notice: &Notice, reachable: impl Fn(Rank) -> bool) {
        let frame = notice_frame(self.generation, self.rank, notice);
        for (peer, socket) in (0..).map(Rank).zip(&self.sockets) {
            let Some(mut socket) = socket.as_ref() else { continue };
            if reachable(peer)
                && let Err(error) = socket.write(&frame)
            {
                tracing::debug!(%peer, %error, "could not tell a rank of the failure");
            }
            if let Err(error) = socket.shutdown(Shutdown::Write) {
                tracing::debug!(%peer, %error, "a failed connection was closed already");
            }
        }
    }
}

impl AbortTarget for Mesh {
    fn interrupt(&self) {
        match (&self.alarm).write(&[1]) {
            Ok(_) => {}
            // Full: it rings already.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => tracing::debug!(%error, "the rank to be aborted has gone"),
        }
    }

    fn announce(&self, reason: &str) {
        self.tell(&abort_notice(self.rank, reason), |_| true);
    }
}
