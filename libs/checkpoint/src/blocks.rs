//! Checksums of a data object's blocks, so that a part of it can be read and believed without the rest.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Length of a block; the last one of an object may be shorter.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// CRC-32C of every block of an object, in order; eight hex digits each in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockSums(Vec<u32>);

impl TryFrom<String> for BlockSums {
    type Error = String;

    fn try_from(text: String) -> Result<BlockSums, String> {
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(8) || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err("block checksums are eight hex digits each".into());
        }
        let word = |at: usize| u32::from_str_radix(&text[at..at + 8], 16).map_err(|e| e.to_string());
        (0..text.len()).step_by(8).map(word).collect::<Result<_, _>>().map(BlockSums)
    }
}

impl From<BlockSums> for String {
    fn from(sums: BlockSums) -> String {
        sums.0.iter().map(|sum| format!("{sum:08x}")).collect()
    }
}

impl BlockSums {
    /// How many blocks an object of so many bytes has.
    pub(crate) fn count(bytes: u64) -> u64 {
        bytes.div_ceil(BLOCK_BYTES)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// The CRC-32C of the whole object of so many bytes.
    pub(crate) fn whole(&self, bytes: u64) -> u32 {
        let mut left = bytes;
        self.0.iter().fold(0, |sum, &block| {
            let length = left.min(BLOCK_BYTES);
            left -= length;
            crc32c::crc32c_combine(sum, block, length as usize)
        })
    }

    /// The first block of `bytes`, which begin at `offset`, a block's start, that is not what was written.
    pub(crate) fn first_damaged(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let first = offset / BLOCK_BYTES;
        let blocks = bytes.chunks(BLOCK_BYTES as usize).zip(first..);
        blocks
            .map(|(block, number)| (crc32c::crc32c(block), number))
            .find(|(sum, number)| self.0.get(*number as usize) != Some(sum))
            .map(|(_, number)| number)
    }
}

/// Makes the sums of bytes that come in any number of pieces.
#[derive(Debug, Default)]
pub(crate) struct BlockSummer {
    sums: Vec<u32>,
    open: u32,
    open_bytes: u64,
}

impl BlockSummer {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (BLOCK_BYTES - self.open_bytes).min(bytes.len() as u64) as usize;
            let (now, later) = bytes.split_at(room);
            self.open = crc32c::crc32c_append(self.open, now);
            self.open_bytes += now.len() as u64;
            if self.open_bytes == BLOCK_BYTES {
                self.close();
            }
            bytes = later;
        }
    }

    fn close(&mut self) {
        self.sums.push(self.open);
        (self.open, self.open_bytes) = (0, 0);
    }

    pub(crate) fn finish(mut self) -> BlockSums {
        if self.open_bytes > 0 {
            self.close();
        }
        BlockSums(self.sums)
    }
}

/// Gaps up to this size are read over, which is cheaper than another request.
const GAP_BYTES: u64 = BLOCK_BYTES;

/// What to read of an object of `length` bytes so as to have `wanted` of it (ascending): whole blocks, neighbours
/// together, at most `grain` bytes each, which are whole blocks too.
pub(crate) fn reads(
    wanted: &[Range<u64>],
    length: u64,
    grain: u64,
) -> impl Iterator<Item = Range<u64>> + use<> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for range in wanted.iter().filter(|range| !range.is_empty()) {
        let start = range.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = range.end.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES).min(length);
        match runs.last_mut() {
            Some(last) if start <= last.end.saturating_add(GAP_BYTES) => last.end = last.end.max(end),
            _ => runs.push(start..end),
        }
    }
    let pieces = move |run: Range<u64>| {
        let end = run.end;
        run.step_by(grain as usize).map(move |start| start..end.min(start.saturating_add(grain)))
    };
    runs.into_iter().flat_map(pieces)
}

/// A verified piece of an object.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// Where it begins in the object.
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
}

impl Span {
    /// What it has of `range` of the object, if anything.
    pub(crate) fn part_of(&self, range: &Range<u64>) -> Option<Span> {
        let end = self.offset + self.bytes.len() as u64;
        let (from, to) = (range.start.max(self.offset), range.end.min(end));
        let inner = |at: u64| (at - self.offset) as usize;
        (from < to).then(|| Span { offset: from, bytes: self.bytes.slice(inner(from)..inner(to)) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sums_are_hex_in_json() {
        let sums = BlockSums(vec![0, 0xdead_beef]);
        let text = serde_json::to_string(&sums).unwrap();
        assert_eq!(text, "\"00000000deadbeef\"");
        assert_eq!(serde_json::from_str::<BlockSums>(&text).unwrap(), sums);
        for bad in ["\"0\"", "\"0000000g\"", "\"+0000000\"", "\"größe12\""] {
            assert!(serde_json::from_str::<BlockSums>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pieces_make_the_sums_of_the_whole() {
        let bytes: Vec<u8> = (0..5 * BLOCK_BYTES / 2).map(|i| ((i * 31) >> 3) as u8).collect();
        let mut summer = BlockSummer::default();
        for piece in bytes.chunks(700_001) {
            summer.update(piece);
        }
        let sums = summer.finish();
        assert_eq!(sums.whole(bytes.len() as u64), crc32c::crc32c(&bytes));
        assert_eq!((sums.len(), BlockSums::count(bytes.len() as u64)), (3, 3));
        assert_eq!(sums.first_damaged(0, &bytes), None);
        let mut flipped = bytes.clone();
        flipped[BLOCK_BYTES as usize + 5] ^= 4;
        assert_eq!(sums.first_damaged(0, &flipped), Some(1));
        assert_eq!(sums.first_damaged(2 * BLOCK_BYTES, &bytes[2 * BLOCK_BYTES as usize..]), None);
        assert_eq!(sums.first_damaged(3 * BLOCK_BYTES, &[1]), Some(3));
    }

    proptest! {
        /// Reads are whole blocks, ascending, inside the object, have all that is wanted, and little more.
        #[test]
        fn reads_have_what_is_wanted(
            length in 1u64..200 * BLOCK_BYTES,
            mut edges in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            grain in (1u64..9).prop_map(|blocks| blocks * BLOCK_BYTES),
        ) {
            let mut places: Vec<u64> = edges.drain(..).map(|i| i.index(length as usize + 1) as u64).collect();
            places.sort_unstable();
            let wanted: Vec<Range<u64>> = places.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let found: Vec<_> = reads(&wanted, length, grain).collect();
            for (index, read) in found.iter().enumerate() {
                prop_assert!(read.start % BLOCK_BYTES == 0 && read.start < read.end && read.end <= length);
                prop_assert!(read.end == length || read.end % BLOCK_BYTES == 0);
                prop_assert!(read.end - read.start <= grain);
                prop_assert!(index == 0 || found[index - 1].end <= read.start);
            }
            for range in &wanted {
                let mut at = range.start;
                while at < range.end {
                    let read = found.iter().find(|read| read.contains(&at));
                    prop_assert!(read.is_some(), "byte {at} of {wanted:?} is not in {found:?}");
                    at = read.unwrap().end;
                }
            }
            let sum = |ranges: &[Range<u64>]| ranges.iter().map(|r| r.end - r.start).sum::<u64>();
            prop_assert!(sum(&found) <= sum(&wanted) + wanted.len() as u64 * (2 * BLOCK_BYTES + GAP_BYTES));
        }
    }
}
