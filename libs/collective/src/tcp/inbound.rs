//! What comes from one peer: frames are taken apart as their bytes arrive.
//!
//! Headers are read ahead, also while no message of the peer is due: so a rank hears at once that a peer has
//! failed or is in another call. Payloads stay in the socket until they are due, and then go straight into place.

use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::net::TcpStream;

use polygram_domain::{Generation, Rank};

use crate::call::Call;
use crate::link::{Cause, Round, Wanted, check_message};
use crate::sink::{Discard, Sink};
use crate::wire::{Content, HEADER_BYTES, Header, TRAILER_BYTES, decode_notice};

/// Room for headers, notices, and small messages as a whole.
const BUFFER_BYTES: usize = 16 << 10;

/// What is wanted of a peer's next message.
pub(super) enum Want<'a, 'b> {
    /// It is due: into the sink with it.
    Now(&'a Round<'a>, &'b mut dyn Sink),
    /// It is not due in this round.
    Later(&'a Round<'a>),
    /// Only notices matter any more.
    Notices(&'b mut Discard),
}

impl Want<'_, '_> {
    /// Where a payload goes, if it is wanted.
    pub(super) fn sink(&mut self) -> Option<&mut dyn Sink> {
        match self {
            Want::Now(_, sink) => Some(&mut **sink),
            Want::Notices(sink) => Some(&mut **sink),
            Want::Later(_) => None,
        }
    }

    /// The call that this rank is in, unless nothing but notices matters.
    pub(super) fn round(&self) -> Option<&Round<'_>> {
        match self {
            Want::Now(round, _) | Want::Later(round) => Some(round),
            Want::Notices(_) => None,
        }
    }

    /// Whether a message of `peer` is due; its sink has then begun. The error is why it may not come at all.
    pub(super) fn admits(
        &mut self,
        peer: Rank,
        message: (Call, u16),
        payload_bytes: u64,
    ) -> Result<bool, Cause> {
        match self {
            Want::Now(round, _) => check_message(round, peer, message, Wanted::Now)?,
            Want::Later(round) => check_message(round, peer, message, Wanted::Later)?,
            Want::Notices(_) => {}
        }
        let Some(sink) = self.sink() else { return Ok(false) };
        sink.begin(payload_bytes).map_err(|detail| Cause::Corrupt { peer, detail })?;
        Ok(true)
    }
}

/// How far a peer's message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Nothing came.
    Blocked,
    /// Something came; there may be more.
    Moved,
    /// A message is there that is not due, or nothing will ever come.
    Held,
    /// The message is complete and correct.
    Complete,
}

enum State {
    /// Before a header.
    Between,
    /// After the header of a message of that many bytes that is not being read yet.
    Announced { call: Call, number: u16, payload_bytes: u64 },
    /// Inside a payload; `crc` is that of the part read.
    Payload { left: u64, crc: u32 },
    /// Before a payload's checksum.
    Trailer { crc: u32 },
    /// Nothing more will come, and why.
    Closed(String),
}

pub(super) struct Inbound {
    peer: Rank,
    generation: Generation,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    state: State,
}

impl Inbound {
    pub(super) fn new(peer: Rank, generation: Generation) -> Inbound {
        let buffer = vec![0; BUFFER_BYTES].into();
        Inbound { peer, generation, buffer, start: 0, end: 0, state: State::Between }
    }

    /// Whether nothing of the next message has come, as far as is known.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.state, State::Between | State::Closed(_))
    }

    /// Whether reading ahead makes sense while no message is due.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.state, State::Between)
    }

    /// Why nothing more will come, if that is so.
    pub(super) fn end(&self) -> Option<&str> {
        match &self.state {
            State::Closed(detail) => Some(detail),
            _ => None,
        }
    }

    /// Whether bytes behind the last message have been read, but not looked at.
    pub(super) fn is_ahead(&self) -> bool {
        self.is_between() && self.start < self.end
    }

    /// Takes apart what has come, reading at most once from `socket`.
    pub(super) fn advance(&mut self, socket: &TcpStream, want: &mut Want<'_, '_>) -> Result<Arrival, Cause> {
        let mut read = false;
        loop {
            if let Some(arrival) = self.step(want)? {
                return Ok(arrival);
            }
            if read {
                return Ok(Arrival::Moved);
            }
            match self.read(socket, want) {
                Ok(0) => self.close("it closed the connection".to_string()),
                Ok(_) => read = true,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Ok(Arrival::Blocked);
                }
                Err(error) => self.close(error.to_string()),
            }
        }
    }

    fn close(&mut self, detail: String) {
        let detail = match self.state {
            State::Between if self.start == self.end => detail,
            _ => format!("{detail} in the middle of a message"),
        };
        self.state = State::Closed(detail);
    }

    fn corrupt(&self, detail: String) -> Cause {
        Cause::Corrupt { peer: self.peer, detail }
    }

    /// Takes apart what is in the buffer; `None` when more must be read.
    fn step(&mut self, want: &mut Want<'_, '_>) -> Result<Option<Arrival>, Cause> {
        loop {
            match self.state {
                State::Between => {
                    if !self.take_header(want)? {
                        return Ok(None);
                    }
                }
                State::Announced { call, number, payload_bytes } => {
                    if !want.admits(self.peer, (call, number), payload_bytes)? {
                        return Ok(Some(Arrival::Held));
                    }
                    if payload_bytes == 0 {
                        self.state = State::Between;
                        return Ok(Some(Arrival::Complete));
                    }
                    self.state = State::Payload { left: payload_bytes, crc: 0 };
                }
                State::Payload { left: 0, crc } => self.state = State::Trailer { crc },
                State::Payload { .. } => {
                    if matches!(want, Want::Later(_)) {
                        return Ok(Some(Arrival::Held));
                    }
                    if self.start == self.end {
                        return Ok(None);
                    }
                    self.take_payload(want);
                }
                State::Trailer { crc } => {
                    let Some((sum, _)) = self.buffer[self.start..self.end].split_first_chunk() else {
                        return Ok(None);
                    };
                    let sum = u32::from_le_bytes(*sum);
                    if sum != crc {
                        let detail = format!("payload checksum {sum:#010x} instead of {crc:#010x}");
                        return Err(self.corrupt(detail));
                    }
                    self.start += TRAILER_BYTES;
                    self.state = State::Between;
                    return Ok(Some(Arrival::Complete));
                }
                State::Closed(ref detail) => {
                    return match want {
                        Want::Now(..) => Err(Cause::Lost { peer: self.peer, detail: detail.clone() }),
                        Want::Later(_) | Want::Notices(_) => Ok(Some(Arrival::Held)),
                    };
                }
            }
        }
    }

    /// Takes a header, or a whole notice, which ends everything; false when more must be read.
    fn take_header(&mut self, want: &Want<'_, '_>) -> Result<bool, Cause> {
        let buffered = &self.buffer[self.start..self.end];
        let Some((head, rest)) = buffered.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(false);
        };
        let header = Header::decode(head).map_err(|detail| self.corrupt(detail))?;
        let Header { generation, sender, payload_bytes, content } = header;
        if generation != self.generation || sender != self.peer {
            let detail = format!(
                "a frame of seat {sender}, generation {generation} instead of seat {}, generation {}",
                self.peer, self.generation
            );
            return Err(self.corrupt(detail));
        }
        match content {
            Content::Message { call, round: number } => {
                if let Some(round) = want.round() {
                    round.progress.heard(self.peer, call);
                }
                self.start += HEADER_BYTES;
                self.state = State::Announced { call, number, payload_bytes };
                Ok(true)
            }
            Content::Notice => {
                let length = payload_bytes as usize;
                let (Some(payload), true) = (rest.get(..length), rest.len() >= length + TRAILER_BYTES) else {
                    return Ok(false);
                };
                if rest[length..length + TRAILER_BYTES] != crc32c::crc32c(payload).to_le_bytes() {
                    return Err(self.corrupt("the checksum of a notice does not fit".to_string()));
                }
                let notice = decode_notice(payload).map_err(|detail| self.corrupt(detail))?;
                self.state = State::Closed(notice.reason.clone());
                Err(Cause::Told { sender: self.peer, notice })
            }
        }
    }

    /// Moves payload from the buffer into the sink.
    fn take_payload(&mut self, want: &mut Want<'_, '_>) {
        let (State::Payload { left, crc }, Some(sink)) = (&mut self.state, want.sink()) else {
            return;
        };
        let space = sink.space();
        let count = space.len().min(self.end - self.start).min(usize::try_from(*left).unwrap_or(usize::MAX));
        space[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        *crc = crc32c::crc32c_append(*crc, &space[..count]);
        sink.filled(count);
        *left -= count as u64;
        self.start += count;
    }

    /// Reads once: payload straight into the sink, anything else into the buffer. Answers the bytes read.
    fn read(&mut self, mut socket: &TcpStream, want: &mut Want<'_, '_>) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if let (State::Payload { left, crc }, Some(sink)) = (&mut self.state, want.sink()) {
            let space = sink.space();
            let room = space.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            let space = &mut space[..room];
            let read =
                socket.read_vectored(&mut [IoSliceMut::new(space), IoSliceMut::new(&mut self.buffer)])?;
            let count = read.min(room);
            *crc = crc32c::crc32c_append(*crc, &space[..count]);
            sink.filled(count);
            *left -= count as u64;
            self.end = read - count;
            return Ok(read);
        }
        let read = socket.read(&mut self.buffer[self.end..])?;
        self.end += read;
        Ok(read)
    }
}
