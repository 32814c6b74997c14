//! Zeroed words mapped from the system, on huge pages where it has them.
//!
//! Mapped, not allocated: the system backs them only as they are touched, and they take no part in the allocator's
//! bookkeeping.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

use crate::numa::prefer_node;

/// Below this the waste of a huge page is larger than its use.
const HUGE_BYTES: usize = 2 << 20;

/// Some words; page-aligned.
#[derive(Debug)]
pub(super) struct Region {
    map: MmapMut,
    words: usize,
}

impl Region {
    /// `words` zeros, from memory node `node` if one is given.
    pub(super) fn map(words: usize, node: Option<u32>) -> io::Result<Region> {
        let bytes = words.checked_mul(4).ok_or_else(|| {
            io::Error::new(io::ErrorKind::OutOfMemory, "more words than an address space has")
        })?;
        let mut map = MmapMut::map_anon(bytes.max(4))?;
        if bytes >= HUGE_BYTES
            && let Err(error) = map.advise(Advice::HugePage)
        {
            tracing::debug!(%error, "huge pages are not available");
        }
        if let Some(node) = node {
            prefer_node(&mut map, node);
        }
        Ok(Region { map, words })
    }
}

impl Deref for Region {
    type Target = [u32];

    #[inline(always)]
    fn deref(&self) -> &[u32] {
        &bytemuck::cast_slice(&self.map)[..self.words]
    }
}

impl DerefMut for Region {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut bytemuck::cast_slice_mut(&mut self.map)[..self.words]
    }
}

/// Asks the processor to bring the cache lines of `values` near. A hint: no result depends on it.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch changes no memory and may be given any address; this one is of a live slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}
