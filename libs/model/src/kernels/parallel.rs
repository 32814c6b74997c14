//! Division of work over the threads that libtorch computes with.
//!
//! libtorch's products run on the threads of its OpenMP runtime. Our loops run on the same ones, so that no second team
//! competes with them for the cores: the runtime is part of the process, and its entry for parallel regions is looked up
//! by name. Where there is none, one thread does all. How the threads wait is decided where the program starts
//! (`polygram_telemetry::passive_waits`).

use std::ffi::{c_uint, c_void};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls a function on every thread of a team.
type Region = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Elements of one block, about: it stays in a core's own cache, and is worth waking a thread for.
const BLOCK_ELEMENTS: usize = 1 << 14;

fn region() -> Option<Region> {
    static REGION: OnceLock<Option<Region>> = OnceLock::new();
    *REGION.get_or_init(|| {
        #[cfg(unix)]
        {
            // SAFETY: the name is a C string; looking it up has no effect.
            let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
            if !symbol.is_null() {
                // SAFETY: this is the runtime's documented entry: function, its argument, number of threads, flags.
                return Some(unsafe { std::mem::transmute::<*mut c_void, Region>(symbol) });
            }
        }
        None
    })
}

/// Rows of one block where a row has `width` elements: a function of the width alone, so that sums over blocks depend on
/// nothing else.
pub(super) fn rows_per_block(width: usize) -> usize {
    (BLOCK_ELEMENTS / width.max(1)).clamp(1, 1024)
}

/// Calls `work` with each block of `rows` rows once, from several threads at once.
pub(super) fn for_blocks(rows: usize, per_block: usize, work: impl Fn(Range<usize>) + Sync) {
    let blocks = rows.div_ceil(per_block.max(1));
    let next = AtomicUsize::new(0);
    let share = || {
        loop {
            let block = next.fetch_add(1, Ordering::Relaxed);
            if block >= blocks {
                break;
            }
            work(block * per_block..((block + 1) * per_block).min(rows));
        }
    };
    let threads = (tch::get_num_threads().max(1) as usize).min(blocks);
    match region() {
        Some(region) if threads > 1 => on_team(region, threads, &share),
        _ => share(),
    }
}

fn on_team<F: Fn() + Sync>(region: Region, threads: usize, share: &F) {
    /// A panic in here ends the process: it cannot unwind through the runtime.
    unsafe extern "C" fn call<F: Fn() + Sync>(share: *mut c_void) {
        // SAFETY: the pointer is the `share` below, which lives until the region has ended, and may be shared.
        unsafe { (*share.cast::<F>().cast_const())() }
    }
    // SAFETY: the runtime calls `call` with our pointer on every thread and returns when all have.
    unsafe { region(call::<F>, std::ptr::from_ref(share).cast_mut().cast(), threads as c_uint, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once() {
        crate::set_threads(2);
        for (rows, per_block) in [(0, 4), (1, 4), (7, 3), (1000, 7), (64, 64)] {
            let seen: Vec<AtomicUsize> = (0..rows).map(|_| AtomicUsize::new(0)).collect();
            for_blocks(rows, per_block, |block| {
                assert!(block.len() <= per_block && block.start % per_block == 0);
                for row in block {
                    seen[row].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{rows} by {per_block}");
        }
    }

    /// Without the runtime all would be right, and slow: where libtorch brings one, it is found.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_runtime_is_found() {
        assert!(tch::get_num_threads() > 0 && region().is_some());
    }
}
