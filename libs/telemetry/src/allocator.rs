//! What a member's process asks of its C library's allocator.

/// Makes glibc's malloc keep the memory it has: one arena grown from the heap, no mapping of large blocks, no trimming.
/// A step allocates and frees the same tensors, rows and gradients as the step before; by default each large one is
/// mapped and unmapped, and the first touch of fresh pages costs more than what is done with them. Call it once, first
/// thing in `main`.
///
/// Does nothing where the C library is not glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const TOP_PAD_BYTES: libc::c_int = 64 << 20;
        for (parameter, value) in [
            (libc::M_ARENA_MAX, 1),
            (libc::M_MMAP_MAX, 0),
            (libc::M_TRIM_THRESHOLD, -1),
            (libc::M_TOP_PAD, TOP_PAD_BYTES),
        ] {
            // SAFETY: mallopt takes two integers, may be called at any time, and only sets tuning values; it answers 0
            // where it does not know a parameter, which leaves the default in place.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_may_be_called_twice() {
        super::keep_freed_memory();
        super::keep_freed_memory();
        assert_eq!(vec![7u8; 64 << 20].iter().filter(|byte| **byte == 7).count(), 64 << 20);
    }
}
