//! How processes of one host meet to share memory instead of sending bytes through the network stack.
//!
//! ```text
//!  worker                                                     shard
//!  HELLO over TCP                            ────────────►
//!                                            ◄────────────    WELCOME with an offer: host, name, secret
//!  same host? connect to the abstract Unix
//!  socket of that name, present the secret   ────────────►
//!                                            ◄────────────    descriptors of one ring per direction
//!  PATH over the ring (or over TCP: stays)   ────────────►
//! ```
//! The name is random and belongs to one connection; the secret is told only in that connection's WELCOME, because names
//! of abstract sockets can be listed. Socket, memory and bells are all without a file, so nothing outlives the two
//! processes. Whatever fails here leaves the TCP connection as it was.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::time::Duration;

use polygram_same_host::DESCRIPTORS;
pub use polygram_same_host::{HostId, OFFER_WORDS, Offer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::ring::{RingEnd, RingReader, RingWriter, ring};

/// Bytes of a ring: some frames, so that neither side waits for the other at each of them.
pub const RING_BYTES: usize = 4 << 20;
/// A stranger at the meeting place that says nothing is sent away after this.
const STRANGER: Duration = Duration::from_millis(500);

/// Meets the shard that made `offer`. The caller sets the deadline.
///
/// # Errors
/// Whatever keeps the two from sharing memory; the TCP connection is not touched.
pub async fn accept(offer: &Offer) -> io::Result<(RingReader, RingWriter)> {
    // An abstract socket of this host is there or not: this does not wait.
    let stream = StdStream::connect_addr(&offer.address()?)?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    stream.write_all(offer.secret()).await?;
    let [memory_in, bell_in, memory_out, bell_out] = receive(&stream).await?;
    let reader = RingReader::open(RingEnd::new(memory_in, bell_in))?;
    Ok((reader, RingWriter::open(RingEnd::new(memory_out, bell_out))?))
}

/// A random number that tells one client from another.
pub(super) fn incarnation() -> io::Result<u64> {
    polygram_same_host::random().map(|[a, b, ..]| u64::from(a) | (u64::from(b) << 32))
}

/// A shard's side: a place where one worker may come.
#[derive(Debug)]
pub struct Meeting {
    listener: UnixListener,
    offer: Offer,
}

impl Meeting {
    /// Opens a place with a name and a secret of its own.
    pub fn open() -> io::Result<Meeting> {
        let offer = Offer::new()?;
        let listener = StdListener::bind_addr(&offer.address()?)?;
        listener.set_nonblocking(true)?;
        Ok(Meeting { listener: UnixListener::from_std(listener)?, offer })
    }

    /// What the worker must be told.
    pub fn offer(&self) -> Offer {
        self.offer
    }

    /// Waits for the worker that knows the secret, and shares a ring in each direction with it.
    pub async fn meet(self) -> io::Result<(RingReader, RingWriter)> {
        loop {
            let (mut stream, _) = self.listener.accept().await?;
            let mut secret = [0; 16];
            let said = stream.read_exact(&mut secret);
            if !matches!(timeout(STRANGER, said).await, Ok(Ok(_))) || secret != *self.offer.secret() {
                tracing::warn!("somebody without the secret came to a shard's socket");
                continue;
            }
            let (worker_in, shard_out) = ring(RING_BYTES)?;
            let (worker_out, shard_in) = ring(RING_BYTES)?;
            let ([a, b], [c, d]) = (worker_in.descriptors(), worker_out.descriptors());
            send(&stream, &[a, b, c, d]).await?;
            return Ok((RingReader::open(shard_in)?, RingWriter::open(shard_out)?));
        }
    }
}

async fn send(stream: &UnixStream, descriptors: &[BorrowedFd<'_>; DESCRIPTORS]) -> io::Result<()> {
    let send = || polygram_same_host::send(stream.as_fd(), descriptors);
    stream.async_io(Interest::WRITABLE, send).await
}

async fn receive(stream: &UnixStream) -> io::Result<[OwnedFd; DESCRIPTORS]> {
    stream.async_io(Interest::READABLE, || polygram_same_host::receive(stream.as_fd())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn both_directions_are_joined() {
        let meeting = Meeting::open().unwrap();
        let offer = meeting.offer();
        assert!(offer.is_here());
        let shard = tokio::spawn(async move {
            let (mut reader, mut writer) = meeting.meet().await.unwrap();
            let mut word = [0; 4];
            reader.read_exact(&mut word).await.unwrap();
            writer.write_all(&word.map(|byte| byte + 1)).await.unwrap();
            assert_eq!(reader.read(&mut word).await.unwrap(), 0, "the worker is gone");
        });
        let (mut reader, mut writer) = accept(&offer).await.unwrap();
        writer.write_all(&[1, 2, 3, 4]).await.unwrap();
        let mut word = [0; 4];
        reader.read_exact(&mut word).await.unwrap();
        assert_eq!(word, [2, 3, 4, 5]);
        drop((reader, writer));
        timeout(PATIENCE, shard).await.unwrap().unwrap();
        assert!(accept(&offer).await.is_err(), "nothing is left of the meeting place");
    }

    /// Who does not know the secret gets nothing, and does not keep the worker from meeting the shard.
    #[tokio::test]
    async fn strangers_get_nothing() {
        let meeting = Meeting::open().unwrap();
        let offer = meeting.offer();
        let shard = tokio::spawn(meeting.meet());
        let guess = offer.with_secret([1, 2, 3, 4]);
        assert!(timeout(PATIENCE, accept(&guess)).await.unwrap().is_err());
        let silent = StdStream::connect_addr(&offer.address().unwrap()).unwrap();
        let short = StdStream::connect_addr(&offer.address().unwrap()).unwrap();
        short.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(timeout(PATIENCE, accept(&offer)).await.unwrap().is_ok());
        assert!(timeout(PATIENCE, shard).await.unwrap().unwrap().is_ok());
        drop((silent, short));
    }

    /// A shard that hands over something else, or nothing, is refused.
    #[tokio::test]
    async fn wrong_descriptors_are_refused() {
        let meeting = Meeting::open().unwrap();
        let (offer, listener) = (meeting.offer(), meeting.listener);
        let liar = tokio::spawn(async move {
            for round in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_exact(&mut [0; 16]).await.unwrap();
                match round {
                    0 => stream.write_all(&[1]).await.unwrap(),
                    _ => {
                        let null = std::fs::File::open("/dev/null").unwrap();
                        send(&stream, &[null.as_fd(); DESCRIPTORS]).await.unwrap();
                    }
                }
            }
        });
        let none = timeout(PATIENCE, accept(&offer)).await.unwrap().unwrap_err();
        assert!(none.to_string().contains("0 descriptors"), "{none}");
        assert!(timeout(PATIENCE, accept(&offer)).await.unwrap().is_err());
        liar.await.unwrap();
    }
}
