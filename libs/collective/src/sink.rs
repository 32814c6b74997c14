//! Where the payload of a received message goes: into place, into a growing buffer, or onto a partial sum.
//!
//! A transport asks for [`Sink::space`], writes some bytes to its front and reports them with [`Sink::filled`], or
//! shows bytes that lie in memory already to [`Sink::absorb`]. So large messages are consumed in pieces that still
//! lie in the cache.

use polygram_same_host::Span;

use crate::element::{Element, Side, fold};

/// The most bytes a sink offers at once.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// Takes one message's payload, piece by piece.
pub trait Sink {
    /// The payload will be `bytes` long. The error says why that cannot be.
    fn begin(&mut self, bytes: u64) -> Result<(), String>;

    /// Room for the next bytes; not empty until the payload is complete.
    fn space(&mut self) -> &mut [u8];

    /// The first `count` bytes of `space` are the next bytes of the payload.
    fn filled(&mut self, count: usize);

    /// The next bytes of the payload lie in `span`.
    fn absorb(&mut self, span: Span<'_>) {
        pour(span, self, |span, space| span.copy_to(space));
    }
}

/// What is longer is read long after it came: it goes past the caches.
const CACHED_BYTES: usize = 2 << 20;

/// Copies `span` into the space of `sink`, which has begun.
fn pour(mut span: Span<'_>, sink: &mut (impl Sink + ?Sized), copy: impl Fn(Span<'_>, &mut [u8])) {
    while !span.is_empty() {
        let space = sink.space();
        let count = space.len().min(span.len());
        if count == 0 {
            return;
        }
        let (now, later) = span.split_at(count);
        copy(now, &mut space[..count]);
        sink.filled(count);
        span = later;
    }
}

/// Copies `span`, of something of `whole_bytes`, to where it stays.
fn place(span: Span<'_>, sink: &mut impl Sink, whole_bytes: usize) {
    if whole_bytes > CACHED_BYTES {
        pour(span, sink, |span, space| span.stream_to(space));
    } else {
        pour(span, sink, |span, space| span.copy_to(space));
    }
}

/// `buffer` becomes `bytes`.
pub(crate) fn keep(bytes: &[u8], buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
}

fn exactly(expected: usize, bytes: u64) -> Result<(), String> {
    if bytes == expected as u64 { Ok(()) } else { Err(format!("{bytes} bytes where {expected} are due")) }
}

/// Writes the payload over `parts`, one after the other.
pub(crate) struct Scatter<'a> {
    parts: Vec<&'a mut [u8]>,
    part: usize,
    offset: usize,
    /// Bytes of what the parts belong to.
    whole_bytes: usize,
}

impl<'a> Scatter<'a> {
    pub(crate) fn new(parts: Vec<&'a mut [u8]>) -> Scatter<'a> {
        Scatter::part_of(0, parts)
    }

    /// `parts` belong to something of `whole_bytes`, of which more follows.
    pub(crate) fn part_of(whole_bytes: usize, parts: Vec<&'a mut [u8]>) -> Scatter<'a> {
        let parts = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Scatter { parts, part: 0, offset: 0, whole_bytes }
    }
}

impl Sink for Scatter<'_> {
    fn begin(&mut self, bytes: u64) -> Result<(), String> {
        exactly(self.parts.iter().map(|part| part.len()).sum(), bytes)
    }

    fn space(&mut self) -> &mut [u8] {
        match self.parts.get_mut(self.part) {
            Some(part) => {
                let end = part.len().min(self.offset + PIECE_BYTES);
                &mut part[self.offset..end]
            }
            None => &mut [],
        }
    }

    fn filled(&mut self, count: usize) {
        self.offset += count;
        if self.parts.get(self.part).is_some_and(|part| part.len() == self.offset) {
            self.part += 1;
            self.offset = 0;
        }
    }

    fn absorb(&mut self, span: Span<'_>) {
        place(span, self, self.whole_bytes);
    }
}

/// Makes a buffer into the payload, whose length was not known before.
pub(crate) struct Grow<'a> {
    buffer: &'a mut Vec<u8>,
    filled: usize,
    end: usize,
    limit: u64,
}

impl<'a> Grow<'a> {
    /// Replaces what `buffer` holds, in the same memory where it has room; payloads above `limit` bytes are refused.
    pub(crate) fn new(buffer: &'a mut Vec<u8>, limit: u64) -> Grow<'a> {
        Grow { buffer, filled: 0, end: 0, limit }
    }
}

impl Sink for Grow<'_> {
    fn begin(&mut self, bytes: u64) -> Result<(), String> {
        if bytes > self.limit {
            return Err(format!("{bytes} bytes, but messages are limited to {}", self.limit));
        }
        self.end = usize::try_from(bytes).map_err(|_| format!("{bytes} bytes do not fit into memory"))?;
        self.buffer.truncate(self.end);
        let reserved = self.buffer.try_reserve_exact(self.end - self.buffer.len());
        reserved.map_err(|error| format!("no memory for {bytes} bytes: {error}"))
    }

    fn space(&mut self) -> &mut [u8] {
        let end = self.end.min(self.filled + PIECE_BYTES);
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        &mut self.buffer[self.filled..end]
    }

    fn filled(&mut self, count: usize) {
        self.filled += count;
    }

    fn absorb(&mut self, span: Span<'_>) {
        place(span, self, self.end);
    }
}

/// Adds the payload, values of `T`, to `parts`, one after the other.
pub(crate) struct Fold<'a, T> {
    parts: Vec<&'a mut [T]>,
    part: usize,
    offset: usize,
    side: Side,
    window: Vec<T>,
    held_bytes: usize,
    left_bytes: usize,
    overflow: bool,
}

impl<'a, T: Element> Fold<'a, T> {
    /// `parts` hold partial sums of `side`.
    pub(crate) fn new(parts: Vec<&'a mut [T]>, side: Side) -> Fold<'a, T> {
        let left_bytes = parts.iter().map(|part| size_of_val(*part)).sum();
        let window = Vec::new();
        Fold { parts, part: 0, offset: 0, side, window, held_bytes: 0, left_bytes, overflow: false }
    }

    /// Whether a sum left the type's range.
    pub(crate) fn overflowed(&self) -> bool {
        self.overflow
    }

    /// Adds whole values.
    fn add(&mut self, mut values: Span<'_>) {
        while let (Some(part), false) = (self.parts.get_mut(self.part), values.is_empty()) {
            let room = &mut part[self.offset..];
            let (now, later) = values.split_at(size_of_val(room));
            let count = now.len() / size_of::<T>();
            self.overflow |= fold(&mut room[..count], now, self.side);
            values = later;
            self.offset += count;
            if self.offset == part.len() {
                self.part += 1;
                self.offset = 0;
            }
        }
    }
}

impl<T: Element> Sink for Fold<'_, T> {
    fn begin(&mut self, bytes: u64) -> Result<(), String> {
        exactly(self.left_bytes, bytes)
    }

    fn space(&mut self) -> &mut [u8] {
        if self.window.is_empty() {
            self.window.resize(self.left_bytes.min(PIECE_BYTES) / size_of::<T>(), T::zeroed());
        }
        let window: &mut [u8] = bytemuck::cast_slice_mut(&mut self.window);
        let end = window.len().min(self.held_bytes + self.left_bytes);
        &mut window[self.held_bytes..end]
    }

    fn filled(&mut self, count: usize) {
        self.held_bytes += count;
        self.left_bytes -= count;
        if self.left_bytes == 0 || self.held_bytes == size_of_val(self.window.as_slice()) {
            let window = std::mem::take(&mut self.window);
            let held = std::mem::take(&mut self.held_bytes);
            self.add(Span::from(&bytemuck::cast_slice(&window)[..held]));
            self.window = window;
        }
    }

    fn absorb(&mut self, span: Span<'_>) {
        let whole = self.held_bytes == 0 && span.len().is_multiple_of(size_of::<T>());
        if whole && span.len() <= self.left_bytes {
            self.left_bytes -= span.len();
            self.add(span);
        } else {
            pour(span, self, |span, space| span.copy_to(space));
        }
    }
}

/// Throws payloads away, also the rest of one that began elsewhere: it has room without end.
#[derive(Default)]
pub(crate) struct Discard {
    window: Vec<u8>,
}

impl Sink for Discard {
    fn begin(&mut self, _bytes: u64) -> Result<(), String> {
        Ok(())
    }

    fn space(&mut self) -> &mut [u8] {
        self.window.resize(PIECE_BYTES, 0);
        &mut self.window
    }

    fn filled(&mut self, _count: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drip(bytes: &[u8], step: usize, sink: &mut dyn Sink) {
        for piece in bytes.chunks(step) {
            sink.absorb(piece.into());
        }
        assert!(sink.space().is_empty());
    }

    #[test]
    fn folds_across_parts_whatever_the_pieces() {
        let others: Vec<u64> = (0..40_000).collect();
        for step in [1, 3, 8, 4096, 1 << 20] {
            let mut sums = vec![7; others.len()];
            let (left, right) = sums.split_at_mut(12_345);
            let mut sink = Fold::new(vec![left, &mut [], right], Side::Lower);
            sink.begin(8 * 40_000).unwrap();
            drip(bytemuck::cast_slice(&others), step, &mut sink);
            assert!(!sink.overflowed());
            assert!(sums.iter().zip(&others).all(|(sum, other)| *sum == other + 7), "pieces of {step}");
        }
    }

    #[test]
    fn scatters_and_grows() {
        let bytes: Vec<u8> = (0..700_000_u32).map(|i| (i % 251) as u8).collect();
        let mut target = vec![0; bytes.len()];
        let (left, right) = target.split_at_mut(3);
        let mut sink = Scatter::new(vec![&mut [], left, right]);
        sink.begin(bytes.len() as u64).unwrap();
        drip(&bytes, 100_003, &mut sink);
        assert_eq!(target, bytes);

        let mut buffer = vec![9; 10];
        let mut sink = Grow::new(&mut buffer, 1 << 20);
        sink.begin(bytes.len() as u64).unwrap();
        drip(&bytes, 65_537, &mut sink);
        assert_eq!(buffer, bytes);
    }

    #[test]
    fn other_lengths_are_refused() {
        let mut sums = [0.0_f32; 4];
        assert!(Fold::new(vec![&mut sums], Side::Lower).begin(15).unwrap_err().contains("16"));
        assert!(Scatter::new(vec![&mut [0; 4]]).begin(5).unwrap_err().contains('4'));
        assert!(Grow::new(&mut Vec::new(), 10).begin(11).unwrap_err().contains("10"));
        assert!(Grow::new(&mut Vec::new(), u64::MAX).begin(u64::MAX).is_err());
    }
}
