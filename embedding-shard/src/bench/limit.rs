//! What the machine can do at best: the same bytes at random places, prefetched, with next to no arithmetic.
//!
//! Records of the store's size lie on huge pages in an order of their own; which record comes next is known from an
//! array. Kinds of store and prefetch and their distances are tried before, and the best counts.

use std::time::Instant;

use super::error::BenchError;
use super::pages::{Near, Pages, prefetch};

/// Records ahead that are tried.
const DISTANCES: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// What of a record is brought near.
const NEARS: [Near; 3] = [Near::All, Near::AllFar, Near::First];
/// Times each way is tried.
const TRIES: usize = 5;

/// A way to move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    distance: usize,
    near: Near,
    store: Store,
}

/// How results are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Plain,
    /// Past the caches, whole lines where the processor can.
    Streaming,
}

impl Way {
    fn all() -> impl Iterator<Item = Way> + Clone {
        let stores = [Store::Plain, Store::Streaming].into_iter();
        stores.flat_map(|store| {
            NEARS.into_iter().flat_map(move |near| DISTANCES.map(|distance| Way { distance, near, store }))
        })
    }

    /// What is tried first.
    pub(super) fn first() -> Way {
        Way { distance: 1, near: Near::All, store: Store::Plain }
    }
}

/// Records at places of their own.
#[derive(Debug)]
pub(super) struct Records {
    pages: Pages,
    stride_words: usize,
}

impl Records {
    /// `count` records of `stride_bytes`, a multiple of 64.
    pub(super) fn new(count: usize, stride_bytes: usize) -> Result<Records, BenchError> {
        let stride_words = stride_bytes / 4;
        let pages = Pages::filled(count * stride_words, |index| index as u32)?;
        Ok(Records { pages, stride_words })
    }

    #[inline(always)]
    fn record(&self, slot: u32, words: usize) -> &[u32] {
        let at = slot as usize * self.stride_words;
        &self.pages[at..at + words]
    }

    /// The first words of each of `slots`, one after another; `out` says how many.
    pub(super) fn gather(&self, slots: &[u32], out: &mut [u32], way: Way) {
        match way.store {
            Store::Plain => self.gather_with(slots, out, way, |from, out| out.copy_from_slice(from)),
            #[cfg(target_arch = "x86_64")]
            Store::Streaming if is_x86_feature_detected!("avx512f") => {
                // SAFETY: the processor has AVX-512F, as was just asked.
                unsafe { self.gather_avx512(slots, out, way) };
                fence();
            }
            Store::Streaming => {
                self.gather_with(slots, out, way, stream);
                fence();
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn gather_avx512(&self, slots: &[u32], out: &mut [u32], way: Way) {
        use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_stream_si512};
        if !out.as_ptr().addr().is_multiple_of(64) || !out.len().is_multiple_of(16 * slots.len().max(1)) {
            return self.gather_with(slots, out, way, stream);
        }
        self.gather_with(slots, out, way, |from, out| {
            let (from, out) = (from.as_chunks::<16>().0, out.as_chunks_mut::<16>().0);
            for (from, out) in from.iter().zip(out) {
                // SAFETY: both are 64 live bytes; `out` is aligned to 64, as its slice begins there and rows are whole
                // lines. The caller fences before anybody else reads.
                unsafe {
                    let value = _mm512_loadu_si512(from.as_ptr().cast::<__m512i>());
                    _mm512_stream_si512(out.as_mut_ptr().cast::<__m512i>(), value);
                }
            }
        });
    }

    #[inline(always)]
    fn gather_with(&self, slots: &[u32], out: &mut [u32], way: Way, copy: impl Fn(&[u32], &mut [u32])) {
        let words = out.len() / slots.len().max(1);
        for (index, (&slot, out)) in slots.iter().zip(out.chunks_exact_mut(words.max(1))).enumerate() {
            if let Some(&ahead) = slots.get(index + way.distance) {
                prefetch(self.record(ahead, words), way.near);
            }
            copy(self.record(slot, words), out);
        }
    }

    /// The fastest way to gather `slots` into `out`.
    pub(super) fn tune_gather(&self, slots: &[u32], out: &mut [u32]) -> Way {
        fastest(Way::first(), Way::all(), |way| self.gather(slots, out, way))
    }

    /// Reads the contributions of each place and reads and writes the first `words` words of its record.
    pub(super) fn update(&mut self, work: &Updates<'_>, way: Way) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, as was just asked.
            return unsafe { self.update_avx512(work, way) };
        }
        self.update_all(work, way);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn update_avx512(&mut self, work: &Updates<'_>, way: Way) {
        self.update_all(work, way);
    }

    #[inline(always)]
    fn update_all(&mut self, work: &Updates<'_>, way: Way) {
        let mut sum = vec![0u32; work.width];
        for (place, &slot) in work.slots.iter().enumerate() {
            if let Some(&ahead) = work.slots.get(place + way.distance) {
                prefetch(self.record(ahead, work.words), way.near);
                work.contributions(place + way.distance).for_each(|row| prefetch(row, way.near));
            }
            let mut rows = work.contributions(place);
            let Some(first) = rows.next() else { continue };
            let mut gradient = first;
            if work.starts[place + 1] - work.starts[place] > 1 {
                sum.copy_from_slice(first);
                rows.for_each(|row| add(&mut sum, row));
                gradient = &sum;
            }
            let at = slot as usize * self.stride_words;
            for part in self.pages[at..at + work.words].chunks_mut(work.width) {
                add(part, gradient);
            }
        }
    }

    /// The fastest way to do `work`.
    pub(super) fn tune_update(&mut self, work: &Updates<'_>) -> Way {
        let plain = Way::all().filter(|way| way.store == Store::Plain);
        fastest(Way::first(), plain, |way| self.update(work, way))
    }
}

/// What an update touches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Updates<'a> {
    /// Records, in the order of updates.
    pub(super) slots: &'a [u32],
    /// Words of a record that are read and written.
    pub(super) words: usize,
    /// Values of a contribution.
    pub(super) width: usize,
    /// Contributions `[n, width]`.
    pub(super) values: &'a [u32],
    /// Bounds of each place's contributions in `order` (places + 1).
    pub(super) starts: &'a [u32],
    /// Contributions, place by place.
    pub(super) order: &'a [u32],
}

impl<'a> Updates<'a> {
    #[inline(always)]
    fn contributions(&self, place: usize) -> impl Iterator<Item = &'a [u32]> + use<'a> {
        let Updates { values, width, .. } = *self;
        let order = &self.order[self.starts[place] as usize..self.starts[place + 1] as usize];
        order.iter().map(move |&at| &values[at as usize * width..][..width])
    }
}

/// Wrapping integers: as quick as floats, and never slowed by denormal values.
#[inline(always)]
fn add(into: &mut [u32], from: &[u32]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into = into.wrapping_add(*from);
    }
}

/// The way with the shortest of a few runs; `first` where nothing is quicker.
fn fastest<W: Copy>(first: W, others: impl Iterator<Item = W> + Clone, mut run: impl FnMut(W)) -> W {
    let (mut least, mut best) = (f64::INFINITY, first);
    for _ in 0..TRIES {
        for way in std::iter::once(first).chain(others.clone()) {
            let start = Instant::now();
            run(way);
            let seconds = start.elapsed().as_secs_f64();
            if seconds < least {
                (least, best) = (seconds, way);
            }
        }
    }
    best
}

/// Copies past the caches, 16 bytes at a time; plainly where alignment or processor do not allow it.
#[inline(always)]
fn stream(from: &[u32], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if out.as_ptr().addr().is_multiple_of(16) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        let (from, from_rest) = from.as_chunks::<4>();
        let (out, out_rest) = out.as_chunks_mut::<4>();
        for (from, out) in from.iter().zip(out) {
            // SAFETY: both are 16 live bytes, `out` aligned to 16 as its slice begins there and steps by 16; SSE2
            // belongs to every x86-64 processor. The caller fences before anybody else reads.
            unsafe {
                let value = _mm_loadu_si128(from.as_ptr().cast::<__m128i>());
                _mm_stream_si128(out.as_mut_ptr().cast::<__m128i>(), value);
            }
        }
        return out_rest.copy_from_slice(from_rest);
    }
    out.copy_from_slice(from);
}

/// Ends streaming stores.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a store fence has no operands; SSE belongs to every x86-64 processor.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_gathers_the_same() {
        let records = Records::new(10, 128).unwrap();
        let slots = [7, 0, 9, 7];
        // Rows of whole lines and rows that are none.
        for words in [16, 21, 32] {
            let mut out = Pages::filled(slots.len() * words, |_| 0).unwrap();
            for way in Way::all() {
                out.fill(0);
                records.gather(&slots, &mut out, way);
                for (&slot, out) in slots.iter().zip(out.chunks(words)) {
                    assert!(
                        out.iter().zip(slot * 32..).all(|(found, expected)| *found == expected),
                        "{way:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn updates_touch_weights_and_state() {
        let mut records = Records::new(3, 64).unwrap();
        let values: Vec<u32> = (0..12).collect();
        let (starts, order) = ([0, 1, 3], [2, 0, 1]);
        let work =
            Updates { slots: &[2, 0], words: 9, width: 4, values: &values, starts: &starts, order: &order };
        records.update(&work, Way::first());
        let expected = |slot: u32, gradient: [u32; 4]| -> Vec<u32> {
            (0..16).map(|i| slot * 16 + i + if i < 9 { gradient[i as usize % 4] } else { 0 }).collect()
        };
        assert_eq!(records.record(2, 16), expected(2, [8, 9, 10, 11]));
        assert_eq!(records.record(0, 16), expected(0, [4, 6, 8, 10]));
        assert_eq!(records.record(1, 16), expected(1, [0; 4]));
    }
}
