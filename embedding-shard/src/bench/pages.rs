//! Buffers on huge pages, touched before they are measured with.

use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

use super::error::BenchError;

/// Words mapped from the system, every one of them written.
#[derive(Debug)]
pub(super) struct Pages {
    map: MmapMut,
    words: usize,
}

impl Pages {
    /// `words` words made by `value` from their index.
    pub(super) fn filled(words: usize, value: impl Fn(usize) -> u32) -> Result<Pages, BenchError> {
        let map = MmapMut::map_anon((words * 4).max(4)).map_err(BenchError::io("cannot map a buffer"))?;
        let mut pages = Pages { map, words };
        // Without huge pages the limit is lower, and so is what is compared with it.
        let _smaller_pages = pages.map.advise(Advice::HugePage);
        for (index, word) in pages.iter_mut().enumerate() {
            *word = value(index);
        }
        Ok(pages)
    }

    /// The words as f32.
    pub(super) fn floats(&self) -> &[f32] {
        bytemuck::cast_slice(self)
    }

    /// The words as f32.
    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(self)
    }
}

impl Deref for Pages {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &bytemuck::cast_slice(&self.map)[..self.words]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut bytemuck::cast_slice_mut(&mut self.map)[..self.words]
    }
}

/// Which lines of a record are brought near, and how near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Near {
    /// All, into the first cache.
    All,
    /// All, into the second cache.
    AllFar,
    /// The first four: the processor's own prefetcher follows.
    First,
}

/// Asks the processor to bring cache lines of `words` near. A hint: no result depends on it.
#[inline(always)]
pub(super) fn prefetch(words: &[u32], near: Near) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        let lines = words.chunks(16).take(if near == Near::First { 4 } else { usize::MAX });
        for line in lines {
            // SAFETY: a prefetch changes no memory and may be given any address; this one is of a live slice.
            unsafe {
                match near {
                    Near::AllFar => _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()),
                    _ => _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()),
                }
            };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (words, near);
}
