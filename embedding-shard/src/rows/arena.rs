//! Memory of written rows: fixed-size records in big chunks, given out in the order of first writes and never
//! returned.

/// Bytes of a chunk, about: large enough for huge pages, small against any table worth sharding.
const CHUNK_BYTES: usize = 64 << 20;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Records of equally many 4-byte words, numbered from 1; 0 stands for no record.
#[derive(Debug)]
pub(super) struct Arena {
    record_words: usize,
    /// Records in a chunk, as a power of two.
    chunk_bits: u32,
    chunks: Vec<Vec<u32>>,
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

    /// A new record, all zero. `None` when record numbers are used up.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let number = self.records.checked_add(1)?;
        if (self.records >> self.chunk_bits) as usize == self.chunks.len() {
            self.chunks.push(chunk(self.record_words << self.chunk_bits));
        }
        self.records = number;
        Some(number)
    }

    /// Record `number`, which was given out.
    pub(super) fn get(&self, number: u32) -> &[u32] {
        let (chunk, start) = self.place(number);
        &self.chunks[chunk][start..start + self.record_words]
    }

    /// Record `number`, which was given out.
    pub(super) fn get_mut(&mut self, number: u32) -> &mut [u32] {
        let (chunk, start) = self.place(number);
        &mut self.chunks[chunk][start..start + self.record_words]
    }

    fn place(&self, number: u32) -> (usize, usize) {
        let index = number - 1;
        let within = index & ((1 << self.chunk_bits) - 1);
        ((index >> self.chunk_bits) as usize, within as usize * self.record_words)
    }
}

/// Zeroed words that the system backs only as they are touched, on huge pages where it can.
fn chunk(words: usize) -> Vec<u32> {
    let chunk = vec![0u32; words];
    let start = chunk.as_ptr() as usize;
    let aligned = start.next_multiple_of(HUGE_PAGE_BYTES);
    let end = (start + words * 4) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if aligned < end {
        // SAFETY: `aligned..end` lies within the allocation of `chunk`, and MADV_HUGEPAGE changes how pages are
        // backed, never what they hold.
        let advised = unsafe { libc::madvise(aligned as *mut _, end - aligned, libc::MADV_HUGEPAGE) };
        if advised != 0 {
            tracing::debug!("huge pages are not available");
        }
    }
    chunk
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
                assert_eq!(arena.allocate(), Some(number));
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
            assert_eq!(arena.allocate(), Some(number));
            arena.get_mut(number)[0] = number;
        }
        assert_eq!(arena.chunks.len(), 3);
        assert!((1..=5).all(|number| arena.get(number)[0] == number));
    }
}
