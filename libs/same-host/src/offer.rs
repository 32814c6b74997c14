//! Where two processes meet, and the hand-over of descriptors.
//!
//! The place is an abstract Unix socket with a random name; the secret is told only to the one who is expected, because
//! names of abstract sockets can be listed.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::SocketAddr;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::rand::{GetRandomFlags, getrandom};

/// Words of an encoded offer.
pub const OFFER_WORDS: usize = 16;
/// Descriptors handed over: memory and bell of each direction.
pub const DESCRIPTORS: usize = 4;

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

/// What one process tells another so that they can meet.
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

    /// As words.
    pub fn encode(&self) -> [u32; OFFER_WORDS] {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let mut words = [0; OFFER_WORDS];
        words[..4].copy_from_slice(&self.host.boot);
        words[4..6].copy_from_slice(&halves(self.host.network[0]));
        words[6..8].copy_from_slice(&halves(self.host.network[1]));
        words[8..12].copy_from_slice(&self.name);
        words[12..].copy_from_slice(&self.secret);
        words
    }

    /// From its words.
    pub fn decode(words: &[u32; OFFER_WORDS]) -> Offer {
        let four = |at: usize| [words[at], words[at + 1], words[at + 2], words[at + 3]];
        let whole = |at: usize| u64::from(words[at]) | (u64::from(words[at + 1]) << 32);
        Offer {
            host: HostId { boot: four(0), network: [whole(4), whole(6)] },
            name: four(8),
            secret: four(12),
        }
    }

    /// Of a new place on this host, with a name and a secret of its own.
    pub fn new() -> io::Result<Offer> {
        Ok(Offer { host: HostId::here()?, name: random()?, secret: random()? })
    }

    /// What must be said at the place.
    pub fn secret(&self) -> &[u8; 16] {
        bytemuck::cast_ref(&self.secret)
    }

    /// The same place under another secret.
    #[must_use]
    pub fn with_secret(self, secret: [u32; 4]) -> Offer {
        Offer { secret, ..self }
    }

    /// The place: an abstract socket of this host.
    pub fn address(&self) -> io::Result<SocketAddr> {
        let [a, b, c, d] = self.name;
        SocketAddr::from_abstract_name(format!("polygram-{a:08x}{b:08x}{c:08x}{d:08x}"))
    }
}

/// 128 random bits.
pub fn random() -> io::Result<[u32; 4]> {
    let mut words = [0u32; 4];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    match getrandom(&mut *bytes, GetRandomFlags::empty())? {
        16 => Ok(words),
        short => Err(io::Error::other(format!("the system gave {short} random bytes instead of 16"))),
    }
}

/// Sends descriptors over a Unix socket; `WouldBlock` where it takes nothing now.
pub fn send(socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>; DESCRIPTORS]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("the descriptors do not fit in their message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(&[1])], &mut control, flags)?;
    Ok(())
}

/// Receives what [`send`] sent; `WouldBlock` where it has not come.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<[OwnedFd; DESCRIPTORS]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let said = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if said.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut received = Vec::with_capacity(DESCRIPTORS);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            received.extend(descriptors);
        }
    }
    received.try_into().map_err(|received: Vec<OwnedFd>| {
        io::Error::other(format!("{} descriptors came instead of {DESCRIPTORS}", received.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(Offer::new().unwrap().is_here());
    }
}
