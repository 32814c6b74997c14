//! Zeroed words mapped from the system, on huge pages where it has them.
//!
//! Mapped, not allocated: the system backs them only as they are touched, and they take no part in the allocator's
//! bookkeeping.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

use crate::numa::prefer_node;

/// Bytes of a huge page; below this the waste of one is larger than its use.
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
        // Linux begins a mapping on a huge page only where it is a whole number of them.
        let length = if bytes < HUGE_BYTES { bytes.max(4) } else { bytes.next_multiple_of(HUGE_BYTES) };
        let mut map = MmapMut::map_anon(length)?;
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
        // SAFETY: the map has at least `words` words, begins on a page, is initialised, and lives as long as `self`;
        // any bits are a word.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<u32>(), self.words) }
    }
}

impl DerefMut for Region {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `deref`; the borrow of `self` is the only way to the map.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast::<u32>(), self.words) }
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

/// Copies past the caches: for memory that nobody reads again soon, where a plain store would first fetch what it
/// overwrites. Plain where the processor has no such store or `to` does not begin on 16 bytes. To be followed by
/// [`finish_streams`]; both have the same length.
#[inline(always)]
pub(super) fn copy_streaming(from: &[u8], to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        let start = to.as_ptr() as usize;
        if start.is_multiple_of(64) && from.len() == to.len() && is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, and `to` begins on 64 bytes.
            return unsafe { copy_lines(from, to) };
        }
        if start.is_multiple_of(16) && from.len() == to.len() {
            // SAFETY: SSE2 is part of every x86-64 processor, and `to` begins on 16 bytes.
            return unsafe { copy_quarters(from, to) };
        }
    }
    to.copy_from_slice(from);
}

/// As [`copy_streaming`], 64 bytes at a time.
///
/// # Safety
/// The processor must have AVX-512F, and `to` begin on 64 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn copy_lines(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_stream_si512};
    let (sources, source_rest) = from.as_chunks::<64>();
    let (targets, target_rest) = to.as_chunks_mut::<64>();
    for (source, target) in sources.iter().zip(targets) {
        // SAFETY: both are 64 bytes of live slices, and `target` is a whole number of lines into one that begins on a
        // line, as the caller says.
        unsafe {
            let line = _mm512_loadu_si512(source.as_ptr().cast::<__m512i>());
            _mm512_stream_si512(target.as_mut_ptr().cast::<__m512i>(), line);
        }
    }
    target_rest.copy_from_slice(source_rest);
}

/// As [`copy_streaming`], 16 bytes at a time.
///
/// # Safety
/// `to` must begin on 16 bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_quarters(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    let (sources, source_rest) = from.as_chunks::<16>();
    let (targets, target_rest) = to.as_chunks_mut::<16>();
    for (source, target) in sources.iter().zip(targets) {
        // SAFETY: both are 16 bytes of live slices, and `target` is a multiple of 16 into one that begins on 16 bytes,
        // as the caller says.
        unsafe {
            let part = _mm_loadu_si128(source.as_ptr().cast::<__m128i>());
            _mm_stream_si128(target.as_mut_ptr().cast::<__m128i>(), part);
        }
    }
    target_rest.copy_from_slice(source_rest);
}

/// Makes what was copied past the caches visible to other threads before anything later.
#[inline(always)]
pub(super) fn finish_streams() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a fence has no operands, and SSE is part of every x86-64 processor.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_copies_every_byte() {
        let from: Vec<u8> = (0..200u8).collect();
        for offset in [0, 1, 4, 16] {
            for length in [0, 1, 15, 16, 17, 64, 150] {
                let mut to = vec![0xaa; 320];
                let start = to.as_ptr().align_offset(64) + offset;
                copy_streaming(&from[3..3 + length], &mut to[start..start + length]);
                finish_streams();
                assert_eq!(to[start..start + length], from[3..3 + length]);
                assert!(to[start + length..].iter().chain(&to[..start]).all(|&byte| byte == 0xaa));
            }
        }
    }
}
