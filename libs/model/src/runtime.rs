//! Process-wide settings of libtorch and of the allocator beneath it.

use std::sync::Once;

/// Fixes the threads of tensor arithmetic in this process. Sums inside libtorch may depend on the number, so a run
/// keeps it for good. Call it before the first tensor operation; the inter-op pool, which nothing here uses, is set to
/// one thread the first time.
pub fn set_threads(threads: u32) {
    static INTEROP: Once = Once::new();
    tch::set_num_threads(threads.max(1) as i32);
    INTEROP.call_once(|| {
        if tch::get_num_interop_threads() != 1 {
            tch::set_num_interop_threads(1);
        }
    });
}

/// Makes glibc's malloc keep the memory it has: one arena grown from the heap, no `mmap` for large blocks, no trimming.
/// Training allocates and frees the same large tensors at every step; by default each of them is mapped and unmapped,
/// and the first touch of fresh pages costs more than the arithmetic on them. Call it once, first thing in `main`.
///
/// Does nothing where the C library is not glibc.
pub fn tune_allocator() {
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
