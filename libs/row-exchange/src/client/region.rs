//! Memory that several connections fill at once, each its own places.

use std::ops::Range;
use std::slice;
use std::sync::{Mutex, PoisonError};

use crate::pool::PooledWords;

/// Words that are written through shared references, range by range. Lives as long as anybody may write to it.
#[derive(Debug)]
pub(super) struct Region {
    /// Owns the memory until it is taken; nobody reads or writes through it before.
    words: Mutex<Option<PooledWords>>,
    first: *mut u32,
    count: usize,
}

// SAFETY: `first` points to memory that `words` owns, which may move between threads; access to it through a shared
// reference is bound to the conditions of `slice_mut`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    pub(super) fn new(mut words: PooledWords) -> Region {
        let (first, count) = (words.as_mut_ptr(), words.len());
        Region { words: Mutex::new(Some(words)), first, count }
    }

    /// The words of `range`.
    ///
    /// # Panics
    /// A range that is not inside the region.
    ///
    /// # Safety
    /// As long as the slice lives, no other slice of any of these words does, and [`Region::take`] is not called;
    /// it was not called before.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches that nobody else has these words")]
    pub(super) unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [u32] {
        assert!(range.start <= range.end && range.end <= self.count, "{range:?} of {} words", self.count);
        // SAFETY: the range is inside the memory that `words` owns and does not move or give back before `take`, all
        // of it initialised; the caller vouches that nobody else has access to these words.
        unsafe { slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }

    /// The memory; empty the second time.
    pub(super) fn take(&self) -> PooledWords {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.take().unwrap_or_else(|| PooledWords::from(Vec::new()))
    }
}
