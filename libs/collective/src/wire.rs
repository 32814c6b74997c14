//! Frames between two ranks: a header with its own CRC32C, a payload, and the payload's CRC32C.
//!
//! ```text
//! 0 magic u32 | 4 kind u8 | 5 op u8 | 6 round u16 | 8 generation u64 | 16 sequence u64 | 24 length u64
//! 32 root u32 | 36 sender u32 | 40 payload bytes u64 | 48 division u64 | 56 crc of bytes 0..56 u32
//! 60 payload | crc of the payload u32 (absent when the payload is empty)
//! ```
//! All integers are little-endian. A notice (kind 2) leaves op, round, sequence, length, root and
//! division zero.

use polygram_domain::{Generation, Rank};

use crate::call::{Call, Op};
use crate::link::{Notice, NoticeKind};

const MAGIC: u32 = u32::from_le_bytes(*b"PGcl");
/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 60;
/// Those that its checksum covers.
const SUMMED_BYTES: usize = 56;
/// Bytes of the checksum behind a payload.
pub(crate) const TRAILER_BYTES: usize = 4;
/// The most bytes a notice's payload may have.
pub(crate) const NOTICE_BYTES: usize = 8 << 10;
const REASON_BYTES: usize = 2048;
const NOTICE_RANKS: usize = 1024;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A message of a call's round.
    Message {
        /// The sender's call.
        call: Call,
        /// The exchange inside the call.
        round: u16,
    },
    /// An encoded [`Notice`].
    Notice,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) generation: Generation,
    pub(crate) sender: Rank,
    pub(crate) payload_bytes: u64,
    pub(crate) content: Content,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC.to_le_bytes());
        put(8, &self.generation.0.to_le_bytes());
        put(36, &self.sender.0.to_le_bytes());
        put(40, &self.payload_bytes.to_le_bytes());
        match self.content {
            Content::Message { call, round } => {
                put(4, &[1, call.op.code()]);
                put(6, &round.to_le_bytes());
                put(16, &call.sequence.to_le_bytes());
                put(24, &call.length.to_le_bytes());
                put(32, &call.root.0.to_le_bytes());
                put(48, &call.division.to_le_bytes());
            }
            Content::Notice => put(4, &[2]),
        }
        let crc = crc32c::crc32c(&bytes[..SUMMED_BYTES]);
        bytes[SUMMED_BYTES..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; the error says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, String> {
        let mut fields = Fields { bytes };
        let magic = fields.u32()?;
        if magic != MAGIC {
            return Err(format!("a frame begins with {magic:#010x} instead of {MAGIC:#010x}"));
        }
        let sum = Fields { bytes: &bytes[SUMMED_BYTES..] }.u32()?;
        let expected = crc32c::crc32c(&bytes[..SUMMED_BYTES]);
        if sum != expected {
            return Err(format!("header checksum {sum:#010x} instead of {expected:#010x}"));
        }
        let (kind, op) = (fields.u8()?, fields.u8()?);
        let round = fields.u16()?;
        let generation = Generation(fields.u64()?);
        let (sequence, length) = (fields.u64()?, fields.u64()?);
        let (root, sender) = (Rank(fields.u32()?), Rank(fields.u32()?));
        let (payload_bytes, division) = (fields.u64()?, fields.u64()?);
        let content = match kind {
            1 => {
                let op = Op::from_code(op).ok_or_else(|| format!("unknown collective {op}"))?;
                Content::Message { call: Call { op, sequence, length, root, division }, round }
            }
            2 if payload_bytes <= NOTICE_BYTES as u64 => Content::Notice,
            2 => return Err(format!("a notice of {payload_bytes} bytes")),
            _ => return Err(format!("unknown frame kind {kind}")),
        };
        Ok(Header { generation, sender, payload_bytes, content })
    }
}

/// A whole frame that carries `notice`.
pub(crate) fn notice_frame(generation: Generation, sender: Rank, notice: &Notice) -> Vec<u8> {
    let payload = encode_notice(notice);
    let header = Header { generation, sender, payload_bytes: payload.len() as u64, content: Content::Notice };
    let mut frame = header.encode().to_vec();
    frame.extend_from_slice(&payload);
    frame.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    frame
}

fn encode_notice(notice: &Notice) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&notice.origin.0.to_le_bytes());
    bytes.push(match notice.kind {
        NoticeKind::Silence => 1,
        NoticeKind::Failure => 2,
    });
    match notice.suspect {
        None => bytes.push(0),
        Some(rank) => {
            bytes.push(1);
            bytes.extend_from_slice(&rank.0.to_le_bytes());
        }
    }
    let waiting = &notice.waiting[..notice.waiting.len().min(NOTICE_RANKS)];
    bytes.extend_from_slice(&(waiting.len() as u32).to_le_bytes());
    for rank in waiting {
        bytes.extend_from_slice(&rank.0.to_le_bytes());
    }
    let mut end = notice.reason.len().min(REASON_BYTES);
    while !notice.reason.is_char_boundary(end) {
        end -= 1;
    }
    bytes.extend_from_slice(&notice.reason.as_bytes()[..end]);
    bytes
}

/// Reads a notice's payload; the error says what is wrong with it.
pub(crate) fn decode_notice(bytes: &[u8]) -> Result<Notice, String> {
    let mut fields = Fields { bytes };
    let origin = Rank(fields.u32()?);
    let kind = match fields.u8()? {
        1 => NoticeKind::Silence,
        2 => NoticeKind::Failure,
        kind => return Err(format!("unknown kind of notice {kind}")),
    };
    let suspect = match fields.u8()? {
        0 => None,
        _ => Some(Rank(fields.u32()?)),
    };
    let count = fields.u32()?;
    if count as usize > NOTICE_RANKS {
        return Err(format!("a notice that waits for {count} ranks"));
    }
    let waiting = (0..count).map(|_| fields.u32().map(Rank)).collect::<Result<_, _>>()?;
    let reason = String::from_utf8_lossy(fields.bytes).into_owned();
    Ok(Notice { origin, kind, suspect, waiting, reason })
}

/// Reads little-endian integers off the front of some bytes.
pub(crate) struct Fields<'a> {
    pub(crate) bytes: &'a [u8],
}

impl Fields<'_> {
    pub(crate) fn u8(&mut self) -> Result<u8, String> {
        Ok(u8::from_le_bytes(self.take()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// A u16 length and as many bytes of text.
    pub(crate) fn text(&mut self) -> Result<String, String> {
        let length = usize::from(self.u16()?);
        let (text, rest) = self.bytes.split_at_checked(length).ok_or("a text is cut short")?;
        self.bytes = rest;
        String::from_utf8(text.to_vec()).map_err(|_| "a text is not UTF-8".to_string())
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (field, rest) = self.bytes.split_first_chunk::<N>().ok_or("a frame is cut short")?;
        self.bytes = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(content: Content) -> Header {
        Header { generation: Generation(9), sender: Rank(3), payload_bytes: 77, content }
    }

    fn message() -> Header {
        let call = Call { op: Op::AllGather, sequence: 1 << 40, length: 5, root: Rank(2), division: 1 << 50 };
        header(Content::Message { call, round: 513 })
    }

    #[test]
    fn headers_read_back() {
        for header in [message(), header(Content::Notice)] {
            assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_seen() {
        let bytes = message().encode();
        for bit in 0..8 * HEADER_BYTES {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn long_reasons_are_cut_at_a_character() {
        let notice = Notice {
            origin: Rank(1),
            kind: NoticeKind::Failure,
            suspect: None,
            waiting: Vec::new(),
            reason: "é".repeat(5000),
        };
        let frame = notice_frame(Generation(0), Rank(0), &notice);
        assert!(frame.len() <= HEADER_BYTES + NOTICE_BYTES + TRAILER_BYTES);
        let read = decode_notice(&frame[HEADER_BYTES..frame.len() - TRAILER_BYTES]).unwrap();
        assert_eq!(read.reason, "é".repeat(REASON_BYTES / 2));
    }

    proptest! {
        #[test]
        fn notices_read_back(
            origin: u32, silent: bool, suspect: Option<u32>, waiting in prop::collection::vec(any::<u32>(), 0..9),
            reason in ".{0,80}",
        ) {
            let notice = Notice {
                origin: Rank(origin),
                kind: if silent { NoticeKind::Silence } else { NoticeKind::Failure },
                suspect: suspect.map(Rank),
                waiting: waiting.into_iter().map(Rank).collect(),
                reason,
            };
            prop_assert_eq!(decode_notice(&encode_notice(&notice)).unwrap(), notice);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_notice(&bytes);
            if let Some((head, _)) = bytes.split_first_chunk::<HEADER_BYTES>() {
                let _ = Header::decode(head);
            }
        }
    }
}
