//! Memory of written rows: fixed-size records in big chunks, given out in the order of first writes and never
//! returned.
//!
//! Chunks are mapped from the system, not allocated: the system backs them only as they are touched, on huge pages
//! where it can, and they take no part in the allocator's bookkeeping.

use std::io;

use memmap2::{Advice, MmapMut};

/// Bytes of a chunk, about: many huge pages, and small against any table worth sharding.
const CHUNK_BYTES: usize = 64 << 20;

/// Records of equally many 4-byte words, numbered from 1; 0 stands for no record.
#[derive(Debug)]
pub(super) struct Arena {
    record_words: usize,
    /// Records in a chunk, as a power of two.
    chunk_bits: u32,
    chunks: Vec<MmapMut>,
    records: u32,
}

impl Arena {
    /// An empty arena for records of `record_words` words.
    pub(super) fn new(record_words: usize) -> Arena {
        let fitting = (CHUNK_BYTES / 4 / record_words.max(1)).max(1);
        Arena { record_words, chunk_bits: fitting.ilog2(), chunks: Vec::new(), records: 0 }
    }

    /// Records given out.
    pub(super) fn records(&self) -> u32 {
        self.records
    }

    /// A new record, all zero. `Ok(None)` when record numbers are used up; an error when the system gives no memory.
    pub(super) fn allocate(&mut self) -> io::Result<Option<u32>> {
        let Some(number) = self.records.checked_add(1) else { return Ok(None) };
        if (self.records >> self.chunk_bits) as usize == self.chunks.len() {
            let chunk = MmapMut::map_anon(4 * (self.record_words << self.chunk_bits))?;
            if let Err(error) = chunk.advise(Advice::HugePage) {
                tracing::debug!(%error, "huge pages are not available");
            }
            self.chunks.push(chunk);
        }
        self.records = number;
        Ok(Some(number))
    }

    /// Record `number`, which was given out.
    pub(super) fn get(&self, number: u32) -> &[u32] {
        let (chunk, start) = self.place(number);
        &bytemuck::cast_slice(&self.chunks[chunk][..])[start..start + self.record_words]
    }

    /// Record `number`, which was given out.
    pub(super) fn get_mut(&mut self, number: u32) -> &mut [u32] {
        let (chunk, start) = self.place(number);
        &mut bytemuck::cast_slice_mut(&mut self.chunks[chunk][..])[start..start + self.record_words]
    }

    /// Chunk, and first word within it.
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
            let mut arena = Arena::new(words);
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
        let mut arena = Arena::new(CHUNK_BYTES / 4 / 2);
        for number in 1..=5 {
            assert_eq!(arena.allocate().unwrap(), Some(number));
            arena.get_mut(number)[0] = number;
        }
        assert_eq!(arena.chunks.len(), 3);
        assert!((1..=5).all(|number| arena.get(number)[0] == number));
    }
}
