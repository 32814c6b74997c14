//! What can be summed over ranks, and how a vector is divided among them.

use std::ops::Range;

use polygram_domain::Rank;
use polygram_same_host::Span;

use crate::call::Op;

/// A number that ranks sum.
pub(crate) trait Element: bytemuck::Pod + Send {
    /// The call that sums vectors of it.
    const ALL_REDUCE: Op;

    /// `lower + higher`, and whether the sum left the type's range.
    fn add(lower: Self, higher: Self) -> (Self, bool);
}

impl Element for f32 {
    const ALL_REDUCE: Op = Op::AllReduceF32;

    fn add(lower: f32, higher: f32) -> (f32, bool) {
        (lower + higher, false)
    }
}

impl Element for f64 {
    const ALL_REDUCE: Op = Op::AllReduceF64;

    fn add(lower: f64, higher: f64) -> (f64, bool) {
        (lower + higher, false)
    }
}

impl Element for u64 {
    const ALL_REDUCE: Op = Op::AllReduceU64;

    fn add(lower: u64, higher: u64) -> (u64, bool) {
        lower.overflowing_add(higher)
    }
}

/// Which subtree this rank's partial sums come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The lower ranks': left operand.
    Lower,
    /// The higher ranks': right operand.
    Higher,
}

/// Adds `others`, as many values, to `sums` in tree order, `sums` being of side `own`. Answers whether a sum
/// overflowed.
pub(crate) fn fold<T: Element>(sums: &mut [T], others: Span<'_>, own: Side) -> bool {
    let mut overflow = false;
    match own {
        Side::Lower => others.zip(sums, |sum, other| {
            let (value, over) = T::add(*sum, other);
            *sum = value;
            overflow |= over;
        }),
        Side::Higher => others.zip(sums, |sum, other| {
            let (value, over) = T::add(other, *sum);
            *sum = value;
            overflow |= over;
        }),
    }
    overflow
}

/// Rank `rank`'s contiguous chunk of `length` values divided among `world_size` ranks; chunks differ by at most
/// one value and tile `0..length` in rank order. `rank` must be below `world_size`.
pub fn chunk_of(length: usize, rank: Rank, world_size: u32) -> Range<usize> {
    let edge = |index: u128| (length as u128 * index / u128::from(world_size)) as usize;
    edge(rank.0.into())..edge(u128::from(rank.0) + 1)
}

/// All chunks of `values`, by rank.
pub(crate) fn chunks_mut<T>(values: &mut [T], world_size: u32) -> Vec<&mut [T]> {
    let length = values.len();
    let mut rest = values;
    (0..world_size)
        .map(|rank| {
            let chunk;
            (chunk, rest) =
                std::mem::take(&mut rest).split_at_mut(chunk_of(length, Rank(rank), world_size).len());
            chunk
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_tile() {
        for world_size in [1, 2, 3, 4, 8, 64] {
            for length in [0, 1, 2, 7, 8, 9, 1000, 1003] {
                let mut end = 0;
                for rank in 0..world_size {
                    let chunk = chunk_of(length, Rank(rank), world_size);
                    assert_eq!(chunk.start, end);
                    assert!(chunk.len() <= length.div_ceil(world_size as usize));
                    end = chunk.end;
                }
                assert_eq!(end, length);
                let mut values = vec![0; length];
                let chunks = chunks_mut(&mut values, world_size);
                assert_eq!(chunks.len(), world_size as usize);
                for (rank, chunk) in (0..).zip(chunks) {
                    assert_eq!(chunk.len(), chunk_of(length, Rank(rank), world_size).len());
                }
            }
        }
        assert_eq!(chunk_of(usize::MAX, Rank(3), 4).end, usize::MAX);
    }

    #[test]
    fn overflow_is_seen() {
        let add = |sums: &mut [u64; 2], others: [u64; 2], side| {
            fold(sums, bytemuck::cast_slice(&others).into(), side)
        };
        let mut sums = [1, u64::MAX];
        assert!(!add(&mut sums, [2, 0], Side::Lower));
        assert_eq!(sums, [3, u64::MAX]);
        assert!(add(&mut sums, [2, 1], Side::Higher));
    }
}
