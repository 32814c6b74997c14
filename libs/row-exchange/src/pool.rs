//! Buffers of words that are used again: payloads and gathered rows come and go with every step, and fresh memory
//! costs more than what is done with it.
//!
//! What always holds: every word of a buffer is initialised; what a pool keeps for later is bounded by bytes and by
//! number; a buffer that its pool cannot take back is freed.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shorter buffers are the allocator's business.
const SHORTEST_WORDS: usize = 4 << 10;
/// Buffers are made in multiples of this, so that payloads of about one size fit in each other's buffers.
const GRAIN_WORDS: usize = 16 << 10;
/// Buffers that a pool keeps at most.
const MOST_SPARE: usize = 256;

/// A pool of word buffers. Clones are the same pool.
#[derive(Clone)]
pub struct Buffers {
    shared: Arc<Shared>,
}

struct Shared {
    limit_words: usize,
    spare: Mutex<Spare>,
}

/// Buffers that wait for use, the latest returned at the back.
#[derive(Default)]
struct Spare {
    buffers: VecDeque<Vec<u32>>,
    words: usize,
}

impl Buffers {
    /// A pool that keeps at most `retained_bytes` of unused memory.
    pub fn new(retained_bytes: usize) -> Buffers {
        Buffers { shared: Arc::new(Shared { limit_words: retained_bytes / 4, spare: Mutex::default() }) }
    }

    /// A buffer of `words` words with any contents: what it held before, or zeros.
    pub fn take(&self, words: usize) -> PooledWords {
        if words < SHORTEST_WORDS {
            return PooledWords::from(vec![0; words]);
        }
        let mut buffer = match self.shared.take(words) {
            Some(buffer) => buffer,
            None => vec![0; words.next_multiple_of(GRAIN_WORDS)],
        };
        if buffer.len() < words {
            buffer.resize(words, 0);
        }
        PooledWords { buffer, words, pool: Some(Arc::clone(&self.shared)) }
    }

    /// Lends `values` to the pool: a buffer with these contents, whose memory stays in the pool afterwards.
    pub fn adopt(&self, values: Vec<f32>) -> PooledWords {
        let buffer: Vec<u32> = bytemuck::cast_vec(values);
        let pool = (buffer.len() >= SHORTEST_WORDS).then(|| Arc::clone(&self.shared));
        PooledWords { words: buffer.len(), buffer, pool }
    }

    /// Bytes of unused memory.
    pub fn retained_bytes(&self) -> usize {
        4 * self.shared.lock().words
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").field("retained_bytes", &self.retained_bytes()).finish_non_exhaustive()
    }
}

impl Shared {
    /// The lock is held for moves of buffers only, which do not panic.
    fn lock(&self) -> MutexGuard<'_, Spare> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest returned buffer that holds `words` words and is not more than twice as long.
    fn take(&self, words: usize) -> Option<Vec<u32>> {
        let mut spare = self.lock();
        let fits = |buffer: &Vec<u32>| buffer.capacity() >= words && buffer.capacity() / 2 <= words;
        let at = spare.buffers.iter().rposition(fits)?;
        let buffer = spare.buffers.remove(at)?;
        spare.words -= buffer.capacity();
        Some(buffer)
    }

    /// Keeps a buffer. The oldest go when there are too many; one that is too long for the pool goes itself.
    fn put(&self, buffer: Vec<u32>) {
        if buffer.capacity() > self.limit_words {
            return;
        }
        // Freed after the lock: giving memory back may take long.
        let mut freed = Vec::new();
        let mut spare = self.lock();
        spare.words += buffer.capacity();
        spare.buffers.push_back(buffer);
        while spare.words > self.limit_words || spare.buffers.len() > MOST_SPARE {
            let Some(oldest) = spare.buffers.pop_front() else { break };
            spare.words -= oldest.capacity();
            freed.push(oldest);
        }
        drop(spare);
    }
}

/// Words whose memory goes back to its pool. Reads as `[u32]`.
pub struct PooledWords {
    /// At least `words` long, all of it initialised.
    buffer: Vec<u32>,
    words: usize,
    pool: Option<Arc<Shared>>,
}

impl PooledWords {
    /// Shortens to the first `words` words; longer stays as it is.
    pub fn truncate(&mut self, words: usize) {
        self.words = self.words.min(words);
    }

    /// The words as f32 values, in memory that is the caller's from now on.
    pub fn into_f32s(mut self) -> Vec<f32> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.truncate(self.words);
        self.pool = None;
        bytemuck::cast_vec(buffer)
    }
}

impl From<Vec<u32>> for PooledWords {
    /// Words of no pool.
    fn from(buffer: Vec<u32>) -> PooledWords {
        PooledWords { words: buffer.len(), buffer, pool: None }
    }
}

impl Drop for PooledWords {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.put(std::mem::take(&mut self.buffer));
        }
    }
}

impl Deref for PooledWords {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.buffer[..self.words]
    }
}

impl DerefMut for PooledWords {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.buffer[..self.words]
    }
}

impl Clone for PooledWords {
    /// A copy that belongs to no pool.
    fn clone(&self) -> PooledWords {
        PooledWords::from(self.to_vec())
    }
}

impl PartialEq for PooledWords {
    fn eq(&self, other: &PooledWords) -> bool {
        **self == **other
    }
}

impl fmt::Debug for PooledWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polygram_domain::philox::{Purpose, Stream};

    #[test]
    fn memory_is_used_again() {
        let pool = Buffers::new(1 << 20);
        let mut first = pool.take(20_000);
        assert!(first.iter().all(|&word| word == 0));
        first.fill(7);
        let at = first.as_ptr();
        drop(first);
        let again = pool.take(19_000);
        assert_eq!((again.as_ptr(), again.len()), (at, 19_000));
        assert!(again.iter().all(|&word| word == 7), "no pass over memory that is there");
        assert_eq!(pool.retained_bytes(), 0);
    }

    #[test]
    fn values_lend_their_memory() {
        let pool = Buffers::new(1 << 20);
        let values = vec![1.5f32; 10_000];
        let at = values.as_ptr() as usize;
        let adopted = pool.adopt(values);
        assert_eq!(adopted[9_999], 1.5f32.to_bits());
        drop(adopted);
        let taken = pool.take(8_000);
        assert_eq!(taken.as_ptr() as usize, at);
        let values = taken.into_f32s();
        assert_eq!((values.len(), values.as_ptr() as usize), (8_000, at));
        assert_eq!(pool.retained_bytes(), 0, "detached memory does not come back");
    }

    /// Whatever is taken and returned, contents are whole and the pool stays below its bound.
    #[test]
    fn the_bound_holds() {
        let seed = 0x9001_u64;
        let random = Stream::new(seed, Purpose::SyntheticData);
        let limit = 1 << 20;
        let pool = Buffers::new(limit);
        let mut held: Vec<(u32, PooledWords)> = Vec::new();
        for round in 0..2000u64 {
            let [a, b, c, _] = random.words(1, round);
            match a % 3 {
                0 if !held.is_empty() => {
                    let (mark, buffer) = held.swap_remove(b as usize % held.len());
                    assert!(buffer.iter().all(|&word| word == mark), "seed {seed:#x}, round {round}");
                }
                1 => {
                    let mut buffer = pool.adopt(vec![0.0; (c % 50_000) as usize]);
                    buffer.fill(b);
                    held.push((b, buffer));
                }
                _ => {
                    let mut buffer = pool.take((c % 300_000) as usize);
                    buffer.fill(b);
                    held.push((b, buffer));
                }
            }
            assert!(pool.retained_bytes() <= limit, "seed {seed:#x}, round {round}");
        }
        held.clear();
        assert!(pool.retained_bytes() > limit / 4, "seed {seed:#x}: {}", pool.retained_bytes());
    }

    #[test]
    fn buffers_outlive_their_pool() {
        let pool = Buffers::new(1 << 20);
        let buffer = pool.take(5_000);
        drop(pool);
        assert_eq!(buffer.clone().len(), 5_000);
    }
}
