//! Bytes that another process may be writing: read once, never referred to.

use std::marker::PhantomData;
use std::ptr;

use bytemuck::AnyBitPattern;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Contiguous bytes of a ring, or of this process.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    start: *const u8,
    bytes: usize,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> From<&'a [u8]> for Span<'a> {
    fn from(bytes: &'a [u8]) -> Span<'a> {
        Span { start: bytes.as_ptr(), bytes: bytes.len(), memory: PhantomData }
    }
}

impl Span<'_> {
    /// # Safety
    /// `start` is followed by `bytes` bytes that stay readable for the span's lifetime.
    pub(crate) unsafe fn new<'a>(start: *const u8, bytes: usize) -> Span<'a> {
        Span { start, bytes, memory: PhantomData }
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The first `count` bytes (at most all), and the others.
    pub fn split_at(self, count: usize) -> (Self, Self) {
        let count = count.min(self.bytes);
        // SAFETY: `count` is at most the length, so both parts lie inside this span.
        unsafe { (Span::new(self.start, count), Span::new(self.start.add(count), self.bytes - count)) }
    }

    /// Copies the first `target.len()` bytes.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn copy_to(&self, target: &mut [u8]) {
        assert!(target.len() <= self.bytes, "a span of {} bytes for {}", self.bytes, target.len());
        // SAFETY: the span has that many readable bytes (see `new`), and `target` is this process's own. Bytes that the
        // other process changes meanwhile are any bytes, which are all valid.
        unsafe { ptr::copy_nonoverlapping(self.start, target.as_mut_ptr(), target.len()) }
    }

    /// [`Span::copy_to`] for a target that will not be read soon: past the caches, where the processor can.
    ///
    /// # Panics
    /// Where the span is shorter than `target`.
    pub fn stream_to(&self, target: &mut [u8]) {
        assert!(target.len() <= self.bytes, "a span of {} bytes for {}", self.bytes, target.len());
        let head = target.as_ptr().align_offset(LINE).min(target.len());
        let (first, rest) = target.split_at_mut(head);
        let (lines, last) = rest.split_at_mut(rest.len() / LINE * LINE);
        let (head, rest) = self.split_at(first.len());
        head.copy_to(first);
        let (body, tail) = rest.split_at(lines.len());
        body.stream_lines(lines);
        tail.copy_to(last);
    }

    #[cfg(target_arch = "x86_64")]
    fn stream_lines(&self, lines: &mut [u8]) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        for (index, line) in lines.chunks_exact_mut(LINE).enumerate() {
            let target: *mut __m128i = line.as_mut_ptr().cast();
            for quarter in 0..LINE / size_of::<__m128i>() {
                // SAFETY: SSE2 is part of x86-64. The span is as long as `lines`, so what is loaded lies inside it; `line` is
                // a whole line and aligned to one, so each quarter is in it and aligned.
                unsafe {
                    let source: *const __m128i = self.start.add(index * LINE).cast();
                    _mm_stream_si128(target.add(quarter), _mm_loadu_si128(source.add(quarter)));
                }
            }
        }
        // SAFETY: as above; later stores and loads see what was streamed.
        unsafe { _mm_sfence() }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn stream_lines(&self, lines: &mut [u8]) {
        self.copy_to(lines);
    }

    /// Calls `each` with every value of `target` and the value at its place in the span.
    ///
    /// # Panics
    /// Where the span is shorter than `target`.
    #[inline]
    pub fn zip<T: AnyBitPattern>(&self, target: &mut [T], mut each: impl FnMut(&mut T, T)) {
        assert!(size_of_val(target) <= self.bytes, "a span of {} bytes is too short", self.bytes);
        for (index, value) in target.iter_mut().enumerate() {
            // SAFETY: inside the span, as asserted; read once, unaligned, and of a type for which any bytes are valid.
            each(value, unsafe { self.start.cast::<T>().add(index).read_unaligned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_where_they_lie() {
        let bytes: Vec<u8> = (0..64).collect();
        let (first, rest) = Span::from(&bytes[..]).split_at(3);
        assert_eq!((first.len(), rest.len()), (3, 61));
        let mut copied = [0; 4];
        rest.copy_to(&mut copied);
        assert_eq!(copied, [3, 4, 5, 6]);
        let mut sums = [1_u32, 2];
        rest.zip(&mut sums, |sum, value| *sum += value);
        assert_eq!(sums, [1 + 0x0605_0403, 2 + 0x0a09_0807]);
        assert!(rest.split_at(100).1.is_empty());
    }

    #[test]
    fn streams_arrive_whole() {
        let bytes: Vec<u8> = (0..1000).map(|index| (index % 251) as u8).collect();
        for begin in [0, 1, 17, 64] {
            for length in [0, 1, 63, 64, 65, 700] {
                let mut target = vec![0; 800];
                let place = begin + 3..begin + 3 + length;
                Span::from(&bytes[begin..]).stream_to(&mut target[place.clone()]);
                assert_eq!(
                    target[place.clone()],
                    bytes[begin..begin + length],
                    "{length} bytes from {begin}"
                );
                assert!(target[..place.start].iter().chain(&target[place.end..]).all(|byte| *byte == 0));
            }
        }
    }
}
