//! Shared memory between two ranks of one host, as frames in a ring of each direction.
//!
//! A frame is a header of [`crate::wire`] in the first of its units of 64 bytes and the payload in the others, so that
//! values are aligned and never divided by the ring's end. Payloads have no checksum: nothing carries them but memory.
//! Notices and the end of a rank come over the pair's socket.

use std::io;
use std::os::fd::OwnedFd;

use polygram_domain::{Generation, Rank};
use polygram_same_host::{Memory, RingEnd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::inbound::{Arrival, Want};
use super::outbound::Outbound;
use crate::call::Call;
use crate::link::Cause;
use crate::wire::{Content, HEADER_BYTES, Header};

/// Bytes of a ring: few enough to stay in a core's cache, enough for a rank to be ahead of another.
pub(super) const RING_BYTES: usize = 512 << 10;
/// The most bytes moved before the other side is told of them and others have their turn.
const PIECE_BYTES: usize = 64 << 10;
/// Frames begin and end at multiples of it.
const UNIT: usize = 64;

/// Length of a frame in a ring.
pub(super) fn ring_frame_bytes(payload_bytes: usize) -> usize {
    UNIT + payload_bytes.next_multiple_of(UNIT)
}

/// A side's bell.
pub(super) struct Bell {
    pub(super) socket: OwnedFd,
    /// The other side is gone.
    pub(super) ended: bool,
}

impl Bell {
    fn ring(&self) {
        // A bell that is full of bytes wakes the peer as well, and one without a peer is found out by its socket.
        let _full_or_ended = send(&self.socket, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Takes the bytes that have come.
    pub(super) fn quiet(&mut self) {
        match recv(&self.socket, &mut [0_u8; 64], RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.ended = true,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.ended = true,
        }
    }
}

/// The ring to a peer.
pub(super) struct RingOut {
    memory: Memory,
    pub(super) bell: Bell,
    /// Bytes written in all.
    written: u64,
}

impl RingOut {
    pub(super) fn open(end: RingEnd) -> io::Result<RingOut> {
        let (memory, socket) = end.open()?;
        Ok(RingOut { memory, bell: Bell { socket, ended: false }, written: 0 })
    }

    fn free(&self) -> io::Result<usize> {
        Ok(self.memory.free(self.written)? & !(UNIT - 1))
    }

    /// Writes one piece of a frame; false when there is no room.
    pub(super) fn write(&mut self, frame: &mut Outbound<'_>) -> io::Result<bool> {
        let mut room = self.free()?.min(PIECE_BYTES);
        if room == 0 {
            return Ok(false);
        }
        if frame.sent == 0 {
            let mut head = [0; UNIT];
            head[..HEADER_BYTES].copy_from_slice(&frame.header);
            self.put(&head);
            frame.sent = UNIT;
            room -= UNIT;
        }
        let from = frame.sent - UNIT;
        let until = frame.payload_bytes.min(from + room);
        let mut begin = 0;
        for part in frame.parts {
            let range = from.max(begin)..until.min(begin + part.len());
            if !range.is_empty() {
                self.put(&part[range.start - begin..range.end - begin]);
            }
            begin += part.len();
        }
        frame.sent = UNIT + until;
        if until == frame.payload_bytes {
            frame.sent = frame.frame_bytes;
            self.written = self.written.next_multiple_of(UNIT as u64);
        }
        self.memory.publish_written(self.written);
        if self.memory.reader_sleeps().take() {
            self.bell.ring();
        }
        Ok(true)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.memory.copy_in(self.written, bytes);
        self.written += bytes.len() as u64;
    }

    /// Says that this side is about to sleep until there is room; false when there is some.
    pub(super) fn rest(&self) -> io::Result<bool> {
        self.memory.writer_sleeps().announce();
        Ok(self.free()? == 0)
    }

    /// This side does not sleep any more.
    pub(super) fn rise(&self) {
        self.memory.writer_sleeps().withdraw();
    }
}

enum State {
    /// Before a header.
    Between,
    /// After the header of a message of that many bytes that is not being read yet.
    Announced { call: Call, number: u16, payload_bytes: u64 },
    /// Inside a payload.
    Payload { left: u64 },
}

/// The ring from a peer.
pub(super) struct RingIn {
    peer: Rank,
    generation: Generation,
    memory: Memory,
    pub(super) bell: Bell,
    /// Bytes taken in all.
    taken: u64,
    state: State,
}

impl RingIn {
    pub(super) fn open(end: RingEnd, peer: Rank, generation: Generation) -> io::Result<RingIn> {
        let (memory, socket) = end.open()?;
        let bell = Bell { socket, ended: false };
        Ok(RingIn { peer, generation, memory, bell, taken: 0, state: State::Between })
    }

    /// Whether nothing of the next message has come, as far as is known.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.state, State::Between)
    }

    fn available(&self) -> Result<usize, Cause> {
        let available = self.memory.available(self.taken).map_err(|error| self.corrupt(error.to_string()))?;
        Ok(available & !(UNIT - 1))
    }

    fn corrupt(&self, detail: String) -> Cause {
        Cause::Corrupt { peer: self.peer, detail }
    }

    /// Takes up to one piece of what has come.
    pub(super) fn advance(&mut self, want: &mut Want<'_, '_>) -> Result<Arrival, Cause> {
        loop {
            match self.state {
                State::Between => {
                    if self.available()? == 0 {
                        return Ok(Arrival::Blocked);
                    }
                    self.take_header(want)?;
                }
                State::Announced { call, number, payload_bytes } => {
                    if !want.admits(self.peer, (call, number), payload_bytes)? {
                        return Ok(Arrival::Held);
                    }
                    if payload_bytes == 0 {
                        self.publish()?;
                        return Ok(Arrival::Complete);
                    }
                    self.state = State::Payload { left: payload_bytes };
                }
                State::Payload { left } => {
                    let Some(sink) = want.sink() else { return Ok(Arrival::Held) };
                    let ready = self.available()?.min(PIECE_BYTES);
                    let ready = ready.min(usize::try_from(left).unwrap_or(usize::MAX));
                    if ready == 0 {
                        return Ok(Arrival::Blocked);
                    }
                    let span = self.memory.span(self.taken, ready);
                    let count = span.len() as u64;
                    sink.absorb(span);
                    self.taken += count;
                    self.state = State::Payload { left: left - count };
                    if count == left {
                        self.publish()?;
                        return Ok(Arrival::Complete);
                    }
                    self.release()?;
                    return Ok(Arrival::Moved);
                }
            }
        }
    }

    fn take_header(&mut self, want: &Want<'_, '_>) -> Result<(), Cause> {
        let mut head = [0; HEADER_BYTES];
        self.memory.copy_out(self.taken, &mut head);
        let Header { generation, sender, payload_bytes, content } =
            Header::decode(&head).map_err(|detail| self.corrupt(detail))?;
        let Content::Message { call, round: number } = content else {
            return Err(self.corrupt("a notice in shared memory".to_string()));
        };
        if generation != self.generation || sender != self.peer {
            return Err(self.corrupt(format!("a frame of seat {sender}, generation {generation}")));
        }
        if let Some(round) = want.round() {
            round.progress.heard(self.peer, call);
        }
        self.taken += UNIT as u64;
        self.state = State::Announced { call, number, payload_bytes };
        Ok(())
    }

    /// A message is complete: its last unit is free.
    fn publish(&mut self) -> Result<(), Cause> {
        self.taken = self.taken.next_multiple_of(UNIT as u64);
        self.state = State::Between;
        self.release()
    }

    /// Gives what was taken back to the writer. One that sleeps is woken once half of the ring is free.
    fn release(&self) -> Result<(), Cause> {
        self.memory.publish_taken(self.taken);
        if self.available()? <= self.memory.capacity() / 2 && self.memory.writer_sleeps().take() {
            self.bell.ring();
        }
        Ok(())
    }

    /// Says that this side is about to sleep until something comes; false when something is there.
    pub(super) fn rest(&self) -> Result<bool, Cause> {
        self.memory.reader_sleeps().announce();
        Ok(self.available()? == 0)
    }

    /// This side does not sleep any more.
    pub(super) fn rise(&self) {
        self.memory.reader_sleeps().withdraw();
    }
}

/// The rings of a pair of ranks, as one of them has them.
pub(super) struct Rings {
    pub(super) from: RingIn,
    pub(super) to: RingOut,
}
