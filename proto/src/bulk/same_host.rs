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

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::ring::{RingEnd, RingReader, RingWriter, ring};

/// Bytes of a ring: some frames, so that neither side waits for the other at each of them.
pub const RING_BYTES: usize = 4 << 20;
/// A stranger at the meeting place that says nothing is sent away after this.
const STRANGER: Duration = Duration::from_millis(500);
/// Words of an encoded offer.
pub(super) const OFFER_WORDS: usize = 16;
/// Descriptors handed over: memory and bell of each direction.
const DESCRIPTORS: usize = 4;

/// Where a process runs: two with equal values can reach each other's abstract sockets and share memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostId {
    /// Random value of the kernel's boot.
    boot: [u32; 4],
    /// Device and inode of the network namespace.
    network: [u64; 2],
}

impl HostId {
    /// Of this process.
    pub fn here() -> io::Result<HostId> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let mut boot = [0; 4];
        for (i, word) in boot.iter_mut().enumerate() {
            *word = digits
                .get(8 * i..8 * i + 8)
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                .ok_or_else(|| io::Error::other(format!("the boot id {text:?} is not 128 bits")))?;
        }
        let network = fs::metadata("/proc/self/ns/net")?;
        Ok(HostId { boot, network: [network.dev(), network.ino()] })
    }
}

/// What a shard tells a worker so that they can meet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    host: HostId,
    name: [u32; 4],
    secret: [u32; 4],
}

impl std::fmt::Debug for Offer {
    /// Without the secret: offers are logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("host", &self.host).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Offer {
    /// Whether the offer was made on this host.
    pub fn is_here(&self) -> bool {
        HostId::here().is_ok_and(|here| here == self.host)
    }

    pub(super) fn encode(&self) -> [u32; OFFER_WORDS] {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let mut words = [0; OFFER_WORDS];
        words[..4].copy_from_slice(&self.host.boot);
        words[4..6].copy_from_slice(&halves(self.host.network[0]));
        words[6..8].copy_from_slice(&halves(self.host.network[1]));
        words[8..12].copy_from_slice(&self.name);
        words[12..].copy_from_slice(&self.secret);
        words
    }

    pub(super) fn decode(words: &[u32; OFFER_WORDS]) -> Offer {
        let four = |at: usize| [words[at], words[at + 1], words[at + 2], words[at + 3]];
        let whole = |at: usize| u64::from(words[at]) | (u64::from(words[at + 1]) << 32);
        Offer {
            host: HostId { boot: four(0), network: [whole(4), whole(6)] },
            name: four(8),
            secret: four(12),
        }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        let [a, b, c, d] = self.name;
        SocketAddr::from_abstract_name(format!("polygram-{a:08x}{b:08x}{c:08x}{d:08x}"))
    }

    /// Meets the shard that made this offer. The caller sets the deadline.
    ///
    /// # Errors
    /// Whatever keeps the two from sharing memory; the TCP connection is not touched.
    pub async fn accept(&self) -> io::Result<(RingReader, RingWriter)> {
        // An abstract socket of this host is there or not: this does not wait.
        let stream = StdStream::connect_addr(&self.address()?)?;
        stream.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(stream)?;
        stream.write_all(bytemuck::cast_slice(&self.secret)).await?;
        let [memory_in, bell_in, memory_out, bell_out] = receive(&stream).await?;
        let reader = RingEnd::new(memory_in, bell_in).into_reader()?;
        Ok((reader, RingEnd::new(memory_out, bell_out).into_writer()?))
    }
}

/// 128 random bits.
fn random() -> io::Result<[u32; 4]> {
    let mut words = [0u32; 4];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    match getrandom(&mut *bytes, GetRandomFlags::empty())? {
        16 => Ok(words),
        short => Err(io::Error::other(format!("the system gave {short} random bytes instead of 16"))),
    }
}

/// A random number that tells one client from another.
pub(super) fn incarnation() -> io::Result<u64> {
    random().map(|[a, b, ..]| u64::from(a) | (u64::from(b) << 32))
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
        let offer = Offer { host: HostId::here()?, name: random()?, secret: random()? };
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
            let mut secret = [0u32; 4];
            let said = stream.read_exact(bytemuck::cast_slice_mut(&mut secret));
            if !matches!(timeout(STRANGER, said).await, Ok(Ok(_))) || secret != self.offer.secret {
                tracing::warn!("somebody without the secret came to a shard's socket");
                continue;
            }
            let (worker_in, shard_out) = ring(RING_BYTES)?;
            let (worker_out, shard_in) = ring(RING_BYTES)?;
            let ([a, b], [c, d]) = (worker_in.descriptors(), worker_out.descriptors());
            send(&stream, &[a, b, c, d]).await?;
            return Ok((shard_in.into_reader()?, shard_out.into_writer()?));
        }
    }
}

async fn send(stream: &UnixStream, descriptors: &[BorrowedFd<'_>; DESCRIPTORS]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("the descriptors do not fit in their message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut send =
        || sendmsg(stream.as_fd(), &[IoSlice::new(&[1])], &mut control, flags).map_err(io::Error::from);
    stream.async_io(Interest::WRITABLE, &mut send).await.map(|_| ())
}

async fn receive(stream: &UnixStream) -> io::Result<[OwnedFd; DESCRIPTORS]> {
    let receive = || -> io::Result<Vec<OwnedFd>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let said = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
        if said.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut received = Vec::with_capacity(DESCRIPTORS);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                received.extend(descriptors);
            }
        }
        Ok(received)
    };
    let received = stream.async_io(Interest::READABLE, receive).await?;
    received.try_into().map_err(|received: Vec<OwnedFd>| {
        io::Error::other(format!("{} descriptors came instead of {DESCRIPTORS}", received.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn offers_survive_the_trip() {
        let offer = Offer {
            host: HostId { boot: [1, 2, 3, u32::MAX], network: [u64::MAX - 4, 5] },
            name: [6, 7, 8, 9],
            secret: [10, 11, 12, 13],
        };
        assert_eq!(Offer::decode(&offer.encode()), offer);
        assert!(!offer.is_here());
        assert!(!format!("{offer:?}").contains("10"), "the secret is nobody's to read");
    }

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
        let (mut reader, mut writer) = offer.accept().await.unwrap();
        writer.write_all(&[1, 2, 3, 4]).await.unwrap();
        let mut word = [0; 4];
        reader.read_exact(&mut word).await.unwrap();
        assert_eq!(word, [2, 3, 4, 5]);
        drop((reader, writer));
        timeout(PATIENCE, shard).await.unwrap().unwrap();
        assert!(offer.accept().await.is_err(), "nothing is left of the meeting place");
    }

    /// Who does not know the secret gets nothing, and does not keep the worker from meeting the shard.
    #[tokio::test]
    async fn strangers_get_nothing() {
        let meeting = Meeting::open().unwrap();
        let offer = meeting.offer();
        let shard = tokio::spawn(meeting.meet());
        let guess = Offer { secret: offer.secret.map(|word| word ^ 1), ..offer };
        assert!(timeout(PATIENCE, guess.accept()).await.unwrap().is_err());
        let silent = StdStream::connect_addr(&offer.address().unwrap()).unwrap();
        let short = StdStream::connect_addr(&offer.address().unwrap()).unwrap();
        short.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(timeout(PATIENCE, offer.accept()).await.unwrap().is_ok());
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
                        let null = fs::File::open("/dev/null").unwrap();
                        send(&stream, &[null.as_fd(); DESCRIPTORS]).await.unwrap();
                    }
                }
            }
        });
        let none = timeout(PATIENCE, offer.accept()).await.unwrap().unwrap_err();
        assert!(none.to_string().contains("0 descriptors"), "{none}");
        assert!(timeout(PATIENCE, offer.accept()).await.unwrap().is_err());
        liar.await.unwrap();
    }
}
