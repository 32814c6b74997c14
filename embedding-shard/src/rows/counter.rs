//! Numbers of Philox blocks.

/// The number of a block of random bits; blocks that follow one another differ in `low`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    pub(super) high: u64,
    pub(super) low: u64,
}
