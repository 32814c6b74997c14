//! Conversations of a worker as bytes, and ways to spoil them.

use polygram_domain::philox::{Purpose, Stream};
use polygram_domain::{Cell, Rank, RunSpec, Step};
use polygram_row_exchange::frame::{HEADER_BYTES, Header, Kind, Outgoing, run_hash};
use polygram_row_exchange::message::{HelloBody, Message, Request, RowBlock, SnapshotOrder};

use crate::common::Workload;
use crate::common::cluster::GENERATION;
use crate::common::reference::Reference;

/// A frame's bytes; after mutation maybe none.
pub(crate) type Frame = Vec<u8>;

/// Random numbers of one case.
pub(crate) struct Dice {
    stream: Stream,
    case: u64,
    drawn: u64,
}

impl Dice {
    pub(crate) fn new(seed: u64, case: u64) -> Dice {
        Dice { stream: Stream::new(seed, Purpose::SyntheticData), case, drawn: 0 }
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.drawn += 1;
        self.stream.below(self.case, self.drawn, bound)
    }

    /// A word that finds mistakes at edges.
    fn word(&mut self, now: u32) -> u32 {
        let random = self.below(1 << 32) as u32;
        let edges = [0, 1, 2, now.wrapping_add(1), now.wrapping_sub(1), now ^ (1 << (random % 32))];
        let far = [u32::MAX, i32::MAX as u32, 1 << 26, (1 << 26) + 4, random % 4096, random];
        let all = [edges, far].concat();
        all[self.below(all.len() as u64) as usize]
    }
}

/// CRC32C (Castagnoli, reflected polynomial 0x82f63b78) of a frame: its head up to the checksums, and its payload.
pub(crate) fn crc_of(frame: &[u8]) -> u32 {
    crc32c(frame[..48].iter().chain(&frame[HEADER_BYTES..]))
}

/// The same of its head alone.
pub(crate) fn head_crc_of(frame: &[u8]) -> u32 {
    crc32c(frame[..48].iter())
}

/// Whether both checksums are true.
fn is_sound(frame: &[u8]) -> bool {
    let stated = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap());
    frame.len() >= HEADER_BYTES && stated(48) == head_crc_of(frame) && stated(52) == crc_of(frame)
}

fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let step = |mut crc: u32, byte: &u8| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
        crc
    };
    !bytes.fold(u32::MAX, step)
}

/// Makes a frame's length and checksum true again.
pub(crate) fn refit(frame: &mut Frame) {
    if frame.len() >= HEADER_BYTES {
        let bytes = (frame.len() - HEADER_BYTES) as u32;
        frame[44..48].copy_from_slice(&bytes.to_le_bytes());
        reseal(frame);
    }
}

/// Makes a frame's checksums true, whatever its length says.
fn reseal(frame: &mut Frame) {
    if frame.len() >= HEADER_BYTES {
        let (head, whole) = (head_crc_of(frame), crc_of(frame));
        frame[48..52].copy_from_slice(&head.to_le_bytes());
        frame[52..56].copy_from_slice(&whole.to_le_bytes());
    }
}

fn u64_at(frame: &[u8], at: usize) -> u64 {
    frame.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// All that a worker of a one-shard run says in its first steps.
pub(crate) struct Conversation {
    run: u64,
    frames: Vec<Frame>,
}

impl Conversation {
    /// The frames of `workload`'s first `steps` steps, in an order that a shard takes.
    pub(crate) fn of(spec: &RunSpec, workload: Workload, steps: u64) -> Conversation {
        let run = run_hash(&spec.name);
        let seal = |message: &Message, step: u64, cell: u32| {
            let (kind, pieces) = message.encode();
            let (step, cell) = (Step(step), Cell(cell));
            let header = Header { kind, chunk: 0, run, generation: GENERATION, step, cell };
            Outgoing::seal(&header, pieces).unwrap().to_bytes()
        };
        let hello = HelloBody::plain(Rank(0), spec.topology.workers, &spec.tables());
        let mut frames = vec![seal(&Message::Hello(hello), 0, 0)];
        let mut reference = Reference::new(spec);
        for step in 0..steps {
            let expected = reference.step(&workload, Step(step));
            let cells = 0..spec.training.cells;
            for cell in cells.clone() {
                let ids = workload.ids(spec, Step(step), Cell(cell));
                let request = Request { offsets: ids.offsets.clone(), rows: ids.rows.clone() };
                frames.push(seal(&Message::Lookup(request), step, cell));
            }
            for cell in cells {
                let rows = workload.ids(spec, Step(step), Cell(cell)).rows.len() as u32;
                let gradients = workload.gradients(Step(step), Cell(cell), &expected.rows[cell as usize]);
                let mut words = match rows {
                    0 => RowBlock::head(&[]),
                    rows => RowBlock::head(std::slice::from_ref(&(0..rows))),
                };
                words.extend(gradients.iter().map(|value| value.to_bits()));
                let shape = crate::shape(spec);
                let push = Message::decode(Kind::Push, words, shape).unwrap();
                frames.push(seal(&push, step, cell));
            }
            frames.push(seal(&Message::Prepare, step, 0));
            frames.push(match expected.prepared.finite {
                true => seal(&Message::Commit(workload.commit(Step(step))), step, 0),
                false => seal(&Message::Abort { snapshot: SnapshotOrder::None }, step, 0),
            });
        }
        Conversation { run, frames }
    }

    pub(crate) fn hello(&self) -> &Frame {
        &self.frames[0]
    }

    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// A part of the conversation, mostly from its beginning, with some frames spoilt and some out of place.
    pub(crate) fn mutated(&self, dice: &mut Dice) -> Vec<Frame> {
        let mut frames = self.frames.clone();
        for _ in 0..dice.below(4) {
            let (a, b) = (dice.below(frames.len() as u64) as usize, dice.below(frames.len() as u64) as usize);
            match dice.below(4) {
                0 => frames.swap(a, b),
                1 => frames.insert(a, self.frames[b % self.frames.len()].clone()),
                2 if frames.len() > 1 => drop(frames.remove(a)),
                _ => frames.truncate(a + 1),
            }
        }
        for _ in 0..dice.below(4) {
            let at = dice.below(frames.len() as u64) as usize;
            let other = self.frames[self.some(dice)].clone();
            spoil(&mut frames[at], &other, dice);
        }
        frames
    }

    /// Frames that no worker may send while steps from `open` on are open: replays of closed steps, frames of closed or
    /// far steps, of other runs and generations, and bytes that are no frames. All but a few come after a good hello.
    pub(crate) fn forged(&self, dice: &mut Dice, open: u64) -> Vec<Frame> {
        let mut frames = Vec::new();
        if dice.below(8) > 0 {
            frames.push(self.frames[0].clone());
        }
        for _ in 0..1 + dice.below(10) {
            let mut frame = self.frames[self.some(dice)].clone();
            if dice.below(4) > 0 {
                let other = self.frames[self.some(dice)].clone();
                spoil(&mut frame, &other, dice);
            }
            if !self.is_harmless(&frame, open) {
                // Closed, far ahead, or of another generation.
                let step =
                    [dice.below(open.max(1)), u64::MAX - dice.below(3), 1 << 20][dice.below(3) as usize];
                frame[32..40].copy_from_slice(&step.to_le_bytes());
                if step >= open && step < 1 << 20 {
                    frame[24] ^= 1 << dice.below(8);
                }
                reseal(&mut frame);
            }
            frames.push(frame);
        }
        frames
    }

    fn some(&self, dice: &mut Dice) -> usize {
        dice.below(self.frames.len() as u64) as usize
    }

    /// Whether a shard whose steps from `open` on are open must not let this frame change anything: it is damaged, of
    /// another run or generation, of a closed step, or of one that is too far ahead.
    fn is_harmless(&self, frame: &[u8], open: u64) -> bool {
        if !is_sound(frame) {
            return true;
        }
        let is_of_run = u64_at(frame, 16) == self.run && u64_at(frame, 24) == GENERATION.0;
        let step = u64_at(frame, 32);
        !is_of_run || step < open || step >= 1 << 20
    }
}

/// Spoils one frame.
fn spoil(frame: &mut Frame, other: &Frame, dice: &mut Dice) {
    if frame.is_empty() {
        return;
    }
    let payload = frame.len().saturating_sub(HEADER_BYTES) / 4;
    match dice.below(9) {
        // Damage under the old checksum.
        0 => {
            for _ in 0..1 + dice.below(8) {
                let bit = dice.below(8 * frame.len() as u64);
                frame[bit as usize / 8] ^= 1 << (bit % 8);
            }
        }
        // The same under a new one.
        1 if payload > 0 => {
            for _ in 0..1 + dice.below(3) {
                let bit = dice.below(32 * payload as u64);
                frame[HEADER_BYTES + bit as usize / 8] ^= 1 << (bit % 8);
            }
            reseal(frame);
        }
        // A head that says something else: kind, chunk, run, generation, step, cell, length.
        2 | 3 if frame.len() >= HEADER_BYTES => {
            let at = [8, 12, 16, 24, 28, 32, 36, 40, 40, 44][dice.below(10) as usize];
            let now = u64_at(frame, at) as u32;
            let word = if at == 8 { dice.below(24) as u32 } else { dice.word(now) };
            frame[at..at + 4].copy_from_slice(&word.to_le_bytes());
            reseal(frame);
        }
        4 => frame.truncate(dice.below(frame.len() as u64) as usize),
        // A payload word at an edge.
        5 | 6 if payload > 0 => {
            // Counts and bounds come first: mostly those.
            let reach = (payload as u64).min(1 << dice.below(8));
            let at = HEADER_BYTES + 4 * dice.below(reach) as usize;
            let now = u32::from_le_bytes(frame[at..at + 4].try_into().unwrap());
            let word = dice.word(now);
            frame[at..at + 4].copy_from_slice(&word.to_le_bytes());
            reseal(frame);
        }
        // A longer or shorter payload.
        7 if frame.len() >= HEADER_BYTES => {
            match dice.below(2) {
                0 => frame.truncate(HEADER_BYTES + 4 * dice.below(payload as u64 + 1) as usize),
                _ => {
                    frame.extend(std::iter::repeat_n(dice.below(256) as u8, 4 + 4 * dice.below(64) as usize))
                }
            }
            refit(frame);
        }
        // Another frame's payload.
        _ if frame.len() >= HEADER_BYTES && other.len() >= HEADER_BYTES => {
            frame.truncate(HEADER_BYTES);
            frame.extend_from_slice(&other[HEADER_BYTES..]);
            refit(frame);
        }
        _ => frame.clear(),
    }
}
