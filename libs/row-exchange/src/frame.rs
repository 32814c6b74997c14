//! One frame: a fixed header and a payload of whole 4-byte words, under one CRC32C.
//!
//! ```text
//! byte  0 magic u32   4 version u32  8 kind u32      12 chunk u32
//!      16 run u64    24 generation u64               32 step u64
//!      40 cell u32   44 payload bytes u32            48 crc u32, over bytes 0..48
//!      52 crc u32, over bytes 0..48 and the payload
//! ```
//! Everything is little endian, so that a payload of f32 rows is read and written without a copy. Decoding is
//! strict: what it does not know is an error with both numbers in it, never a guess. A length counts only in a header
//! whose own checksum is right, and below a limit. Magic and version come first and never move, so that versions can
//! refuse each other.

use std::ops::Range;
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest};
use polygram_domain::{Cell, Generation, MicroBatchRef, RunName, Step};
use thiserror::Error;

use super::pool::PooledWords;

#[cfg(target_endian = "big")]
compile_error!("the bulk protocol casts little-endian payloads in place; this target is big endian");

/// Bytes of a header.
pub const HEADER_BYTES: usize = 56;
/// Version of this protocol: 5 has the keyed challenge, heartbeats and a checksum of the header.
pub const BULK_VERSION: u32 = 5;
/// Longest payload that is sent or believed.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;
/// First four bytes of every frame: `PGBK`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"PGBK");

/// Where the header's own checksum lies; what it covers ends here.
const HEAD_CRC_AT: usize = 48;
/// Where the checksum of the whole frame lies.
const CRC_AT: usize = 52;

/// Why bytes are not a frame, or a payload is not its message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The stream does not speak this protocol, or lost its place.
    #[error("frame begins with {0:#010x}, not with the bulk protocol's magic")]
    Magic(u32),
    /// The peer speaks another version.
    #[error(
        "the peer speaks bulk protocol version {theirs}, this program version {ours}; use one build everywhere"
    )]
    Schema {
        /// Version in the frame.
        theirs: u32,
        /// Version of this program.
        ours: u32,
    },
    /// No message has this kind.
    #[error("unknown frame kind {0}")]
    Kind(u32),
    /// The payload is longer than any message.
    #[error("frame payload of {bytes} bytes is over the limit of {limit}")]
    Oversize {
        /// Payload length in the header.
        bytes: u64,
        /// [`MAX_PAYLOAD_BYTES`].
        limit: u64,
    },
    /// The payload is not a whole number of words.
    #[error("frame payload of {0} bytes is not a whole number of 4-byte words")]
    Ragged(u32),
    /// Bytes were damaged on the way.
    #[error("frame checksum is {found:#010x}, but its header says {stated:#010x}")]
    Checksum {
        /// CRC in the header.
        stated: u32,
        /// CRC of the bytes that came.
        found: u32,
    },
    /// The payload is shorter or longer than its message, or breaks one of its rules.
    #[error("{message} message is malformed: {rule}")]
    Malformed {
        /// Message name.
        message: &'static str,
        /// The rule that does not hold.
        rule: String,
    },
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal),* $(,)?) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Kind { $($(#[$doc])* $name = $code),* }

        impl Kind {
            /// The kind of a code on the wire.
            pub fn of(code: u32) -> Result<Kind, WireError> {
                match code {
                    $($code => Ok(Kind::$name),)*
                    _ => Err(WireError::Kind(code)),
                }
            }
        }
    };
}

kinds! {
    /// Worker to shard: who I am. First frame of a connection.
    Hello = 1,
    /// Shard to worker: admitted.
    Welcome = 2,
    /// Shard to worker: not admitted; the connection ends.
    Refused = 3,
    /// Worker to shard: declares a cell's rows and asks for them at version `step`.
    Lookup = 4,
    /// Worker to shard: asks for rows at version `step` and declares nothing; `cell` numbers the request.
    Read = 5,
    /// Shard to worker: some of a lookup's rows.
    Rows = 6,
    /// Shard to worker: some of a read's rows.
    ReadRows = 7,
    /// Worker to shard: some of a cell's row gradients.
    Push = 8,
    /// Worker to shard: asks for the step's sums.
    Prepare = 9,
    /// Shard to worker: finite flag and sums of squares.
    Prepared = 10,
    /// Worker to shard: vote to apply the step.
    Commit = 11,
    /// Shard to worker: the step is applied.
    Committed = 12,
    /// Worker to shard: vote to skip the step.
    Abort = 13,
    /// Shard to worker: the step is skipped.
    Aborted = 14,
    /// Shard to worker: a request was refused; code and text.
    Nack = 15,
    /// Both ways: payload bytes of rows or gradients that were taken.
    Credit = 16,
    /// Worker to shard: first frame on the path that it has chosen.
    Path = 17,
    /// Shard to worker: a random number, to be answered under the run's key.
    Challenge = 18,
    /// Worker to shard: a random number of its own, and the proof that it knows the key.
    Response = 19,
    /// Shard to worker: the proof that the shard knows the key.
    Vouch = 20,
    /// Both ways: nothing else was to be said for a while.
    Heartbeat = 21,
}

impl Kind {
    /// Whether a frame of this kind is sent on credit: rows and gradients.
    pub fn needs_credit(self) -> bool {
        matches!(self, Kind::Rows | Kind::ReadRows | Kind::Push)
    }
}

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Message.
    pub kind: Kind,
    /// Number of this frame among those of its message.
    pub chunk: u32,
    /// [`run_hash`] of the run's name.
    pub run: u64,
    /// Membership generation of the sender.
    pub generation: Generation,
    /// Step, or version of a read.
    pub step: Step,
    /// Cell, or number of a read.
    pub cell: Cell,
}

impl Header {
    /// The micro-batch of a lookup, its rows or its gradients.
    pub fn micro_batch(&self) -> MicroBatchRef {
        MicroBatchRef { step: self.step, index: self.cell }
    }
}

/// FNV-1a, 64 bits, of a run's name: tells runs apart on one network; it is no secret.
pub fn run_hash(run: &RunName) -> u64 {
    fnv1a(run.as_str().as_bytes())
}

/// FNV-1a, 64 bits.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// CRC32C (Castagnoli) of all parts, one after the other.
fn crc32c<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    parts.for_each(|part| digest.update(part));
    // A 32-bit checksum in the low half of a word for any.
    digest.finalize() as u32
}

/// A run of payload words.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Words of this frame alone.
    Words(Vec<u32>),
    /// Words of this frame alone, whose memory goes back to its pool once they are written.
    Pooled(PooledWords),
    /// A range of words shared by several frames.
    Shared(Arc<PooledWords>, Range<usize>),
}

impl Piece {
    /// The piece's bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Piece::Words(words) => bytemuck::cast_slice(words),
            Piece::Pooled(words) => bytemuck::cast_slice(words),
            Piece::Shared(words, range) => bytemuck::cast_slice(&words[range.clone()]),
        }
    }
}

/// A frame ready to be written: encoded header and payload pieces.
#[derive(Clone, Debug)]
pub struct Outgoing {
    head: [u8; HEADER_BYTES],
    pieces: Vec<Piece>,
    kind: Kind,
    payload_bytes: usize,
    /// Whether the header has its checksum already.
    is_sealed: bool,
}

impl Outgoing {
    /// Seals a frame: computes its length and checksum. For a payload that was just made and is in the caches.
    ///
    /// # Errors
    /// [`WireError::Oversize`]; callers split their messages below it.
    pub fn seal(header: &Header, pieces: Vec<Piece>) -> Result<Outgoing, WireError> {
        let mut frame = Outgoing::seal_late(header, pieces)?;
        frame.head = frame.head();
        frame.is_sealed = true;
        Ok(frame)
    }

    /// As [`Outgoing::seal`], with the checksum computed when the frame is written: counting and copying are then one
    /// walk through a payload that lies in memory.
    ///
    /// # Errors
    /// As [`Outgoing::seal`].
    pub fn seal_late(header: &Header, pieces: Vec<Piece>) -> Result<Outgoing, WireError> {
        let bytes: usize = pieces.iter().map(|piece| piece.bytes().len()).sum();
        if bytes > MAX_PAYLOAD_BYTES {
            return Err(WireError::Oversize { bytes: bytes as u64, limit: MAX_PAYLOAD_BYTES as u64 });
        }
        let head = encode_head(header, BULK_VERSION, bytes as u32);
        Ok(Outgoing { head, pieces, kind: header.kind, payload_bytes: bytes, is_sealed: false })
    }

    /// The header with the checksum of the whole frame.
    pub fn head(&self) -> [u8; HEADER_BYTES] {
        let mut head = self.head;
        if self.is_sealed {
            return head;
        }
        let crc = crc32c(std::iter::once(&head[..HEAD_CRC_AT]).chain(self.payload()));
        head[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// The payload's byte slices, in order, for a vectored write.
    pub fn payload(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(Piece::bytes).filter(|bytes| !bytes.is_empty())
    }

    /// The whole frame in one piece, as it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        std::iter::once(&self.head()[..]).chain(self.payload()).flatten().copied().collect()
    }

    /// Message.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes of the payload.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// What a handshake proves of this frame: its header up to the checksums, and its payload.
    pub fn transcript(&self) -> Vec<u8> {
        std::iter::once(&self.head[..HEAD_CRC_AT]).chain(self.payload()).flatten().copied().collect()
    }

    /// Bytes on the wire.
    pub fn wire_bytes(&self) -> usize {
        HEADER_BYTES + self.payload_bytes
    }
}

/// A header as it came: its own checksum and the length are right, the payload is not checked yet.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// What the frame is about.
    pub header: Header,
    /// Payload words that follow.
    pub payload_words: usize,
    /// The checksum, which also tells a repeated frame from a different one.
    pub crc: u32,
    /// What the checksums cover of the header.
    head: [u8; HEAD_CRC_AT],
}

impl Incoming {
    /// Decodes a header. Nothing is allocated for a frame that is refused here.
    pub fn decode(head: &[u8; HEADER_BYTES]) -> Result<Incoming, WireError> {
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | (u64::from(u32_at(at + 4)) << 32);
        if u32_at(0) != MAGIC {
            return Err(WireError::Magic(u32_at(0)));
        }
        if u32_at(4) != BULK_VERSION {
            return Err(WireError::Schema { theirs: u32_at(4), ours: BULK_VERSION });
        }
        let (stated, found) = (u32_at(HEAD_CRC_AT), crc32c(std::iter::once(&head[..HEAD_CRC_AT])));
        if stated != found {
            return Err(WireError::Checksum { stated, found });
        }
        let kind = Kind::of(u32_at(8))?;
        let bytes = u32_at(44);
        if bytes as usize > MAX_PAYLOAD_BYTES {
            return Err(WireError::Oversize { bytes: u64::from(bytes), limit: MAX_PAYLOAD_BYTES as u64 });
        }
        if bytes % 4 != 0 {
            return Err(WireError::Ragged(bytes));
        }
        Ok(Incoming {
            header: Header {
                kind,
                chunk: u32_at(12),
                run: u64_at(16),
                generation: Generation(u64_at(24)),
                step: Step(u64_at(32)),
                cell: Cell(u32_at(40)),
            },
            payload_words: bytes as usize / 4,
            crc: u32_at(CRC_AT),
            head: std::array::from_fn(|at| head[at]),
        })
    }

    /// What a handshake proves of this frame, whose payload is `words`.
    pub fn transcript(&self, words: &[u32]) -> Vec<u8> {
        [&self.head[..], bytemuck::cast_slice(words)].concat()
    }

    /// Begins to check the frame: the header is counted in.
    pub fn check(&self) -> Check {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&self.head);
        Check { digest, stated: self.crc }
    }
}

/// The checksum of a frame whose payload comes piece by piece.
#[derive(Debug)]
pub struct Check {
    digest: Digest,
    stated: u32,
}

impl Check {
    /// The next bytes of the payload.
    pub fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    /// Whether what came is what the header says.
    pub fn finish(self) -> Result<(), WireError> {
        let (stated, found) = (self.stated, self.digest.finalize() as u32);
        if found == stated { Ok(()) } else { Err(WireError::Checksum { stated, found }) }
    }
}

/// The header's bytes with a frame checksum of 0. `version` is a parameter so that tests can play another one.
fn encode_head(header: &Header, version: u32, bytes: u32) -> [u8; HEADER_BYTES] {
    let mut head = [0; HEADER_BYTES];
    let mut put = |at: usize, value: &[u8]| head[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC.to_le_bytes());
    put(4, &version.to_le_bytes());
    put(8, &(header.kind as u32).to_le_bytes());
    put(12, &header.chunk.to_le_bytes());
    put(16, &header.run.to_le_bytes());
    put(24, &header.generation.0.to_le_bytes());
    put(32, &header.step.0.to_le_bytes());
    put(40, &header.cell.0.to_le_bytes());
    put(44, &bytes.to_le_bytes());
    let crc = crc32c(std::iter::once(&head[..HEAD_CRC_AT]));
    head[HEAD_CRC_AT..CRC_AT].copy_from_slice(&crc.to_le_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Push,
            chunk: 3,
            run: 0x1122_3344_5566_7788,
            generation: Generation(9),
            step: Step(u64::MAX - 1),
            cell: Cell(7),
        }
    }

    fn decode(bytes: &[u8]) -> Result<(Incoming, Vec<u32>), WireError> {
        let head: &[u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().unwrap();
        let incoming = Incoming::decode(head)?;
        let words = bytes[HEADER_BYTES..].as_chunks::<4>().0;
        let payload: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let mut check = incoming.check();
        check.update(bytemuck::cast_slice(&payload));
        check.finish()?;
        Ok((incoming, payload))
    }

    #[test]
    fn frames_survive_the_trip() {
        let shared = Arc::new(PooledWords::from(vec![1, 2, 3, 4]));
        let own = PooledWords::from(vec![9]);
        let pieces = vec![Piece::Words(vec![5, 6]), Piece::Shared(shared, 1..3), Piece::Pooled(own)];
        let late = Outgoing::seal_late(&header(), pieces.clone()).unwrap();
        let frame = Outgoing::seal(&header(), pieces).unwrap();
        assert_eq!(late.to_bytes(), frame.to_bytes());
        let (incoming, payload) = decode(&frame.to_bytes()).unwrap();
        assert_eq!(incoming.header, header());
        assert_eq!(incoming.payload_words, 5);
        assert_eq!(payload, [5, 6, 2, 3, 9]);
    }

    /// The check value of CRC-32C (RFC 3720, appendix B.4: 32 bytes of zeros, then ascending).
    #[test]
    fn the_checksum_is_crc32c() {
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c([&[0u8; 32][..]].into_iter()), 0x8a91_36aa);
        assert_eq!(crc32c([&ascending[..]].into_iter()), 0x46dd_794e);
        assert_eq!(crc32c([&ascending[..5], &[], &ascending[5..]].into_iter()), 0x46dd_794e);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let frame = Outgoing::seal(&header(), vec![Piece::Words(vec![1, 2, 3])]).unwrap();
        let good = frame.to_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_are_checked_before_they_are_believed() {
        let oversize = encode_head(&header(), BULK_VERSION, u32::MAX);
        assert!(matches!(Incoming::decode(&oversize), Err(WireError::Oversize { .. })));
        let ragged = encode_head(&header(), BULK_VERSION, 5);
        assert_eq!(Incoming::decode(&ragged).unwrap_err(), WireError::Ragged(5));
        let words = vec![Piece::Words(vec![0; MAX_PAYLOAD_BYTES / 4 + 1])];
        assert!(matches!(Outgoing::seal(&header(), words), Err(WireError::Oversize { .. })));
    }

    /// A damaged length is found before anything is read or allocated for it.
    #[test]
    fn a_damaged_header_is_refused_before_its_payload_comes() {
        let good = encode_head(&header(), BULK_VERSION, 12);
        assert!(Incoming::decode(&good).is_ok());
        for bit in 64..8 * CRC_AT {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Incoming::decode(&bad), Err(WireError::Checksum { .. })), "bit {bit}");
        }
    }

    #[test]
    fn another_version_names_both() {
        let head = encode_head(&header(), BULK_VERSION + 1, 0);
        let error = Incoming::decode(&head).unwrap_err();
        assert_eq!(error, WireError::Schema { theirs: BULK_VERSION + 1, ours: BULK_VERSION });
    }
}
