//! Buffers for direct transfers. They are used again and again: memory that is new to a process is slow to touch.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::sizes::{ALIGNMENT, PIECE_BYTES};

/// Buffers kept for later, at most.
const KEPT: usize = 16;

/// Buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    pub(super) fn take(self: &Arc<Buffers>) -> Buffer {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = free.unwrap_or_else(|| vec![0; PIECE_BYTES + ALIGNMENT]);
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Buffer { memory, start, home: Arc::clone(self) }
    }
}

/// [`PIECE_BYTES`] of aligned memory.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    home: Arc<Buffers>,
}

impl Buffer {
    pub(super) fn all(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + PIECE_BYTES]
    }

    /// Its first `len` bytes, for whoever wants to keep them for a while.
    pub(super) fn share(self, len: usize) -> Bytes {
        struct Filled(Buffer, usize);
        impl AsRef<[u8]> for Filled {
            fn as_ref(&self) -> &[u8] {
                let Filled(Buffer { memory, start, .. }, len) = self;
                &memory[*start..start + len]
            }
        }
        Bytes::from_owner(Filled(self, len.min(PIECE_BYTES)))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_comes_back() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take();
        assert_eq!(buffer.all().len(), PIECE_BYTES);
        let place = buffer.all().as_ptr();
        assert_eq!(place.align_offset(ALIGNMENT), 0);
        buffer.all()[..3].copy_from_slice(b"abc");
        let shared = buffer.share(3);
        let part = shared.slice(1..);
        drop(shared);
        assert_eq!(&part[..], b"bc");
        assert!(buffers.free.lock().unwrap().is_empty());
        drop(part);
        assert_eq!(buffers.take().all().as_ptr(), place);
    }
}
