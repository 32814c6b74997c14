//! Sizes of direct transfers.

/// Bytes of one transfer, and of a buffer.
pub(super) const PIECE_BYTES: usize = 4 << 20;

/// Direct transfers begin, end and lie in memory at multiples of this: what every common disk takes.
pub(super) const ALIGNMENT: usize = 4096;
