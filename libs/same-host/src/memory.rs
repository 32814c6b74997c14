//! The memory of a ring: counts and sleep flags on cache lines of their own, then the bytes.
//!
//! ```text
//! byte   0 bytes written, u64      128 bytes taken, u64
//!      256 reader sleeps, u32      384 writer sleeps, u32      4096 the ring
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};

use crate::span::Span;

const WRITTEN_AT: usize = 0;
const TAKEN_AT: usize = 128;
const READER_SLEEPS_AT: usize = 256;
const WRITER_SLEEPS_AT: usize = 384;
const RING_AT: usize = 4096;
const SMALLEST: usize = 4 << 10;
const LARGEST: usize = 1 << 30;

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A mapped ring.
#[derive(Debug)]
pub struct Memory {
    map: MmapRaw,
    capacity: usize,
}

impl Memory {
    /// New memory for a ring, all zero, of a size that nobody can change any more.
    pub(crate) fn create(capacity: usize) -> io::Result<OwnedFd> {
        if !capacity.is_power_of_two() || !(SMALLEST..=LARGEST).contains(&capacity) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a ring of {capacity} bytes: not a power of two from {SMALLEST} to {LARGEST}"),
            ));
        }
        let memory = memfd_create("polygram-ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memory, (RING_AT + capacity) as u64)?;
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(memory)
    }

    /// Maps a ring. Memory that is not sealed, or has not the size of a ring, is refused.
    pub(crate) fn map(memory: &OwnedFd) -> io::Result<Memory> {
        let seals = fcntl_get_seals(memory)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(invalid(format!("the ring's memory can change its size: its seals are {seals:?}")));
        }
        let bytes = fstat(memory)?.st_size;
        let capacity = usize::try_from(bytes)
            .ok()
            .and_then(|bytes| bytes.checked_sub(RING_AT))
            .filter(|capacity| capacity.is_power_of_two() && (SMALLEST..=LARGEST).contains(capacity))
            .ok_or_else(|| invalid(format!("{bytes} bytes are not the size of a ring")))?;
        let map = MmapOptions::new().len(RING_AT + capacity).map_raw(memory)?;
        Ok(Memory { map, capacity })
    }

    /// Bytes that the ring holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn u64_at(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `at` is one of the constants above: inside the mapping, which begins on a page, and aligned to 128.
        // The mapping lives as long as `self`, and both processes use these bytes as an atomic only.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    fn u32_at(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as in `u64_at`.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    /// Publishes how many bytes were written in all.
    pub fn publish_written(&self, count: u64) {
        self.u64_at(WRITTEN_AT).store(count, Ordering::Release);
    }

    /// Publishes how many bytes were taken in all.
    pub fn publish_taken(&self, count: u64) {
        self.u64_at(TAKEN_AT).store(count, Ordering::Release);
    }

    /// Bytes that may be read by the reader that has taken `taken`.
    ///
    /// # Errors
    /// A count that cannot be.
    pub fn available(&self, taken: u64) -> io::Result<usize> {
        let written = self.u64_at(WRITTEN_AT).load(Ordering::Acquire);
        match usize::try_from(written.wrapping_sub(taken)) {
            Ok(available) if available <= self.capacity => Ok(available),
            _ => Err(invalid(format!("the ring's writer says {written} bytes when {taken} are taken"))),
        }
    }

    /// Bytes that may be written by the writer that has written `written`.
    ///
    /// # Errors
    /// A count that cannot be.
    pub fn free(&self, written: u64) -> io::Result<usize> {
        let taken = self.u64_at(TAKEN_AT).load(Ordering::Acquire);
        match usize::try_from(written.wrapping_sub(taken)) {
            Ok(used) if used <= self.capacity => Ok(self.capacity - used),
            _ => Err(invalid(format!("the ring's reader says {taken} bytes when {written} are written"))),
        }
    }

    /// The reader's flag.
    pub fn reader_sleeps(&self) -> Sleep<'_> {
        Sleep(self.u32_at(READER_SLEEPS_AT))
    }

    /// The writer's flag.
    pub fn writer_sleeps(&self) -> Sleep<'_> {
        Sleep(self.u32_at(WRITER_SLEEPS_AT))
    }

    /// Where the byte of count `count` lies, and how many bytes follow it before the ring's end.
    fn place(&self, count: u64) -> (*mut u8, usize) {
        let at = (count as usize) & (self.capacity - 1);
        // SAFETY: `at` is below `capacity`, and the mapping has RING_AT + capacity bytes.
        (unsafe { self.map.as_mut_ptr().add(RING_AT + at) }, self.capacity - at)
    }

    /// The bytes from count `from` on: `bytes` of them, or fewer where the ring ends before.
    pub fn span(&self, from: u64, bytes: usize) -> Span<'_> {
        let (place, until_end) = self.place(from);
        // SAFETY: `place` is followed by `until_end` bytes of the ring, mapped as long as `self` lives.
        unsafe { Span::new(place, bytes.min(until_end)) }
    }

    /// Copies `target.len()` bytes, at most `capacity`, from count `from` on.
    pub fn copy_out(&self, from: u64, target: &mut [u8]) {
        debug_assert!(target.len() <= self.capacity);
        let (place, until_end) = self.place(from);
        let (first, second) = target.split_at_mut(target.len().min(until_end));
        let second_bytes = second.len().min(self.capacity);
        // SAFETY: `place` is followed by at least `first.len()` bytes of the ring, and the ring's first byte by at
        // least `second_bytes`; `target` is this process's own memory and does not overlap the mapping. Nobody has a
        // reference into the ring. A peer that breaks the protocol and writes meanwhile changes bytes only, any value
        // of which is a u8.
        unsafe {
            ptr::copy_nonoverlapping(place, first.as_mut_ptr(), first.len());
            ptr::copy_nonoverlapping(self.place(0).0, second.as_mut_ptr(), second_bytes);
        }
    }

    /// Copies `source`, at most `capacity` bytes, to count `to` and on.
    pub fn copy_in(&self, to: u64, source: &[u8]) {
        debug_assert!(source.len() <= self.capacity);
        let (place, until_end) = self.place(to);
        let (first, second) = source.split_at(source.len().min(until_end));
        let second_bytes = second.len().min(self.capacity);
        // SAFETY: as in `copy_out`, with the roles of source and target exchanged.
        unsafe {
            ptr::copy_nonoverlapping(first.as_ptr(), place, first.len());
            ptr::copy_nonoverlapping(second.as_ptr(), self.place(0).0, second_bytes);
        }
    }
}

/// A side's flag that it sleeps. The two full fences make sure that of "I sleep, and there was nothing" and "here is
/// something, and nobody sleeps" at most one is seen.
pub struct Sleep<'a>(&'a AtomicU32);

impl Sleep<'_> {
    /// Says that this side is about to sleep. It must look once more afterwards.
    pub fn announce(&self) {
        self.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that this side does not sleep after all.
    pub fn withdraw(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether the other side sleeps; it is then this side's duty to ring, and the flag is gone. Call it after a
    /// publication.
    pub fn take(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) != 0 && self.0.swap(0, Ordering::Relaxed) != 0
    }
}
