//! One message on its way out: header, payload parts and checksum, written in pieces as the socket takes them.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::TcpStream;

use polygram_domain::Rank;

use crate::link::Outgoing;
use crate::sink::PIECE_BYTES;
use crate::wire::{HEADER_BYTES, Header, TRAILER_BYTES};

/// The most parts handed to the system at once.
const SLICES: usize = 64;

pub(super) struct Outbound<'a> {
    pub(super) to: Rank,
    pub(super) header: [u8; HEADER_BYTES],
    pub(super) parts: &'a [&'a [u8]],
    pub(super) payload_bytes: usize,
    /// Checksum of the first `summed` bytes of the payload.
    crc: u32,
    summed: usize,
    /// Bytes of the whole frame.
    pub(super) frame_bytes: usize,
    /// Bytes of it that the socket or ring has taken.
    pub(super) sent: usize,
}

impl<'a> Outbound<'a> {
    /// `header` describes `outgoing`'s payload; `frame_bytes` says how long a frame with so long a payload is.
    pub(super) fn new(
        header: &Header,
        outgoing: &'a Outgoing<'a>,
        frame_bytes: fn(usize) -> usize,
    ) -> Outbound<'a> {
        let payload_bytes = payload_bytes(outgoing);
        let header = header.encode();
        Outbound {
            to: outgoing.to,
            header,
            parts: &outgoing.parts,
            payload_bytes,
            crc: 0,
            summed: 0,
            frame_bytes: frame_bytes(payload_bytes),
            sent: 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.sent == self.frame_bytes
    }

    /// Whether the peer has the beginning of this message, but not its end.
    pub(super) fn is_cut(&self) -> bool {
        self.sent > 0 && !self.is_done()
    }

    /// Writes one piece to a socket; false when the socket takes nothing now.
    pub(super) fn write(&mut self, mut socket: &TcpStream) -> io::Result<bool> {
        let position = self.sent.saturating_sub(HEADER_BYTES).min(self.payload_bytes);
        let mut end = self.payload_bytes.min(position + PIECE_BYTES);
        let mut slices = Vec::with_capacity(self.parts.len().min(SLICES) + 2);
        slices.push(IoSlice::new(self.header.get(self.sent..).unwrap_or_default()));
        let mut begin = 0;
        for part in self.parts {
            let range = position.max(begin)..end.min(begin + part.len());
            if !range.is_empty() {
                if slices.len() > SLICES {
                    end = range.start;
                    break;
                }
                let unsummed = self.summed.clamp(range.start, range.end)..range.end;
                self.crc =
                    crc32c::crc32c_append(self.crc, &part[unsummed.start - begin..unsummed.end - begin]);
                slices.push(IoSlice::new(&part[range.start - begin..range.end - begin]));
            }
            begin += part.len();
        }
        self.summed = self.summed.max(end);
        let trailer = self.crc.to_le_bytes();
        if end == self.payload_bytes && end > 0 {
            let taken = self.sent.saturating_sub(HEADER_BYTES + self.payload_bytes);
            slices.push(IoSlice::new(&trailer[taken..]));
        }
        match socket.write_vectored(&slices) {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                self.sent += count;
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Length of a frame on a socket.
pub(super) fn socket_frame_bytes(payload_bytes: usize) -> usize {
    HEADER_BYTES + payload_bytes + if payload_bytes == 0 { 0 } else { TRAILER_BYTES }
}

/// Length of the message's payload.
pub(super) fn payload_bytes(outgoing: &Outgoing<'_>) -> usize {
    outgoing.parts.iter().map(|part| part.len()).sum()
}
