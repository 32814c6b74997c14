//! How two ranks of one host come to share memory, once they are connected.
//!
//! ```text
//!  higher rank                                              lower rank
//!                                         ◄────────────     reply with an offer, over TCP
//!  same host? connect to the abstract
//!  socket of that name; secret, rank u32  ────────────►
//!                                         ◄────────────     descriptors of one ring per direction
//!  path u8, over TCP: 1 rings, 0 TCP      ────────────►
//! ```
//! Nobody waits in a circle: a rank first takes up the offers of all lower ranks, and rank 0 has none to take up.
//! Whatever fails here leaves the connection as it was.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use polygram_domain::Rank;
use polygram_same_host::{Offer, RingEnd, receive, ring, send};
use rustix::event::{PollFd, PollFlags, poll};

use super::ring::RING_BYTES;
use super::timeout::timespec;

/// A stranger at the meeting place that says nothing is sent away after this.
const STRANGER: Duration = Duration::from_millis(200);
/// Secret and rank.
const WORDS_BYTES: usize = 20;

/// The ends of the rings from and to a peer.
pub(super) type Ends = (RingEnd, RingEnd);

/// Takes up `offer` as `rank`, within `time`.
pub(super) fn accept(offer: &Offer, rank: Rank, time: Duration) -> io::Result<Ends> {
    if !offer.is_here() {
        return Err(io::Error::other("it runs on another host"));
    }
    let mut stream = UnixStream::connect_addr(&offer.address()?)?;
    let words = [&offer.secret()[..], &rank.0.to_le_bytes()].concat();
    stream.write_all(&words)?;
    if poll(&mut [PollFd::new(&stream, PollFlags::IN)], Some(&timespec(time)))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let [memory_in, bell_in, memory_out, bell_out] = receive(stream.as_fd())?;
    Ok((RingEnd::new(memory_in, bell_in), RingEnd::new(memory_out, bell_out)))
}

/// A place where the higher ranks may come for memory.
pub(super) struct Meeting {
    listener: UnixListener,
    pub(super) offer: Offer,
}

/// A rank that was given the offer.
pub(super) struct Guest<'a> {
    pub(super) rank: Rank,
    pub(super) socket: &'a TcpStream,
    /// The ends handed to it.
    pub(super) ends: Option<Ends>,
    /// It has said which path it takes.
    pub(super) decided: bool,
}

impl Meeting {
    pub(super) fn open() -> io::Result<Meeting> {
        let offer = Offer::new()?;
        let listener = UnixListener::bind_addr(&offer.address()?)?;
        listener.set_nonblocking(true)?;
        Ok(Meeting { listener, offer })
    }

    /// Waits up to `time` for a guest to come or to decide, and does what it needs.
    pub(super) fn serve(&self, guests: &mut [Guest<'_>], time: Duration) -> io::Result<()> {
        let mut polled = vec![PollFd::new(&self.listener, PollFlags::IN)];
        let undecided = guests.iter().filter(|guest| !guest.decided);
        polled.extend(undecided.map(|guest| PollFd::new(guest.socket, PollFlags::IN)));
        match poll(&mut polled, Some(&timespec(time))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        match self.listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = self.receive(stream, guests) {
                    tracing::debug!(%error, "somebody came for shared memory and did not get it");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        for guest in guests.iter_mut().filter(|guest| !guest.decided) {
            let (mut path, mut socket) = ([0], guest.socket);
            guest.decided = match socket.read(&mut path) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                // One that is gone already is found out by the first call.
                Ok(_) | Err(_) => true,
            };
            if guest.decided && path == [0] {
                guest.ends = None;
            }
        }
        Ok(())
    }

    /// Hands rings to a guest that knows the secret.
    fn receive(&self, mut stream: UnixStream, guests: &mut [Guest<'_>]) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(STRANGER))?;
        let mut words = [0; WORDS_BYTES];
        stream.read_exact(&mut words)?;
        let (secret, rank) = words.split_at(16);
        let guest =
            guests.iter_mut().find(|guest| guest.rank.0.to_le_bytes() == rank && guest.ends.is_none());
        let (Some(guest), true) = (guest, secret == self.offer.secret()) else {
            return Err(io::Error::other("it does not know the secret, or came before"));
        };
        let (theirs_in, out) = ring(RING_BYTES)?;
        let (theirs_out, own_in) = ring(RING_BYTES)?;
        let ([a, b], [c, d]) = (theirs_in.descriptors(), theirs_out.descriptors());
        send(stream.as_fd(), &[a, b, c, d])?;
        guest.ends = Some((own_in, out));
        Ok(())
    }
}
