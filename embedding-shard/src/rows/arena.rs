//! Memory of written rows: fixed-size records in big chunks, given out in the order of first writes and never
//! returned. A chunk is mapped when its first record is given out, and begins on a page: records whose size is a
//! multiple of a cache line lie on whole lines.

use std::io;

use super::region::Region;

/// Bytes of a chunk, about: many huge pages, and small against any table worth sharding.
const CHUNK_BYTES: usize = 64 << 20;

/// Records of equally many 4-byte words, numbered from 1; 0 stands for no record.
#[derive(Debug)]
pub(super) struct Arena {
    record_words: usize,
    /// Records in a chunk, as a power of two.
    chunk_bits: u32,
    chunks: Vec<Region>,
    records: u32,
    node: Option<u32>,
}

impl Arena {
    /// An empty arena for records of `record_words` words, on memory node `node` if one is given.
    pub(super) fn new(record_words: usize, node: Option<u32>) -> Arena {
        let fitting = (CHUNK_BYTES / 4 / record_words.max(1)).max(1);
        Arena { record_words, chunk_bits: fitting.ilog2(), chunks: Vec::new(), records: 0, node }
    }

    /// Records given out.
    pub(super) fn records(&self) -> u32 {
        self.records
    }

    /// A new record, all zero. `Ok(None)` when record numbers are used up; an error when the system gives no memory.
    pub(super) fn allocate(&mut self) -> io::Result<Option<u32>> {
        let Some(number) = self.records.checked_add(1) else { return Ok(None) };
        if (self.records >> self.chunk_bits) as usize == self.chunks.len() {
            self.chunks.push(Region::map(self.record_words << self.chunk_bits, self.node)?);
        }
        self.records = number;
        Ok(Some(number))
    }

    /// Record `number`, which was given out.
    #[inline(always)]
    pub(super) fn get(&self, number: u32) -> &[u32] {
        let (chunk, start) = self.place(number);
        &self.chunks[chunk][start..start + self.record_words]
    }

    /// Record `number`, which was given out.
    #[inline(always)]
    pub(super) fn get_mut(&mut self, number: u32) -> &mut [u32] {
        let (chunk, start) = self.place(number);
        &mut self.chunks[chunk][start..start + self.record_words]
    }

    /// Chunk, and first word within it.
    #[inline(always)]
    fn place(&self, number: u32) -> (usize, usize) {
        let index = number - 1;
        let within = index & ((1 << self.chunk_bits) - 1);
        ((index >> self.chunk_bits) as usize, within as usize * self.record_words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_apart_and_zero_at_first() {
        for words in [1usize, 3, 1 << 25] {
            let mut arena = Arena::new(words, None);
            let count = if words > 1000 { 2 } else { 100 };
            for number in 1..=count {
                assert_eq!(arena.allocate().unwrap(), Some(number));
                let record = arena.get_mut(number);
                assert!(record.iter().take(8).all(|&word| word == 0));
                record[0] = number;
                record[words - 1] = number;
            }
            assert!((1..=count).all(|n| arena.get(n)[0] == n && arena.get(n)[words - 1] == n));
            assert_eq!(arena.records(), count);
        }
    }

    #[test]
    fn chunks_follow_each_other() {
        let mut arena = Arena::new(CHUNK_BYTES / 4 / 2, Some(0));
        for number in 1..=5 {
            assert_eq!(arena.allocate().unwrap(), Some(number));
            arena.get_mut(number)[0] = number;
        }
        assert_eq!(arena.chunks.len(), 3);
        assert!((1..=5).all(|number| arena.get(number)[0] == number));
    }

    #[test]
    fn records_of_whole_lines_begin_on_a_line() {
        let mut arena = Arena::new(16 * 49, None);
        for _ in 0..100 {
            let number = arena.allocate().unwrap().unwrap();
            assert!((arena.get(number).as_ptr() as usize).is_multiple_of(64));
        }
    }
}
