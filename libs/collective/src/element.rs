//! What can be summed over ranks, and how a vector is divided among them.

use std::ops::Range;

use polygram_domain::Rank;
use polygram_same_host::Span;

use crate::call::Op;
use crate::error::CollectiveError;

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

/// Where the chunks of [`chunk_of`] begin and end, as [`crate::Collective::reduce_scatter`] takes it: `world_size` + 1
/// ascending numbers from 0 to `length`.
pub fn even_edges(length: usize, world_size: u32) -> Vec<usize> {
    let ends = (0..world_size).map(|rank| chunk_of(length, Rank(rank), world_size).end);
    std::iter::once(0).chain(ends).collect()
}

/// Whether `edges` divide `length` values among `world_size` ranks, for `op`; answers their digest ([`digest`]).
pub(crate) fn check_edges(
    op: Op,
    edges: &[usize],
    length: usize,
    world_size: u32,
) -> Result<u64, CollectiveError> {
    let refuse = |detail| Err(CollectiveError::Argument { op, detail });
    if edges.len() != world_size as usize + 1 {
        let due = u64::from(world_size) + 1;
        return refuse(format!("{} edges of chunks; a group of {world_size} ranks needs {due}", edges.len()));
    }
    if let Some(first) = edges.first().filter(|first| **first != 0) {
        return refuse(format!("the first chunk begins at value {first}; it must begin at 0"));
    }
    if let Some(rank) = edges.windows(2).position(|pair| pair[0] > pair[1]) {
        let (begin, end) = (edges[rank], edges[rank + 1]);
        return refuse(format!("chunk {rank} begins at value {begin} and ends at {end}; edges must ascend"));
    }
    match edges.last() {
        Some(last) if *last != length => {
            refuse(format!("the last chunk ends at value {last}; it must end with the {length} values"))
        }
        _ => Ok(digest(edges)),
    }
}

/// A number that tells edges apart: certainly where only one differs, and almost certainly otherwise. Every step is
/// one-to-one, both in what came before and in the edge.
fn digest(edges: &[usize]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    edges.iter().fold(ODD, |digest, edge| {
        let mixed = (digest ^ *edge as u64).wrapping_mul(ODD);
        mixed ^ (mixed >> 32)
    })
}

/// All chunks of `values`, divided evenly, by rank.
pub(crate) fn chunks_mut<T>(values: &mut [T], world_size: u32) -> Vec<&mut [T]> {
    let edges = even_edges(values.len(), world_size);
    divided_mut(values, &edges)
}

/// The chunks of `values` between `edges`, which have been checked, by rank.
pub(crate) fn divided_mut<'a, T>(values: &'a mut [T], edges: &[usize]) -> Vec<&'a mut [T]> {
    let mut rest = values;
    let lengths = edges.windows(2).map(|pair| pair[1] - pair[0]);
    lengths.map(|length| front_mut(&mut rest, length)).collect()
}

/// Takes up to `length` values off the front of `rest`.
pub(crate) fn front_mut<'a, T>(rest: &mut &'a mut [T], length: usize) -> &'a mut [T] {
    let whole = std::mem::take(rest);
    let (front, back) = whole.split_at_mut(length.min(whole.len()));
    *rest = back;
    front
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
    fn even_edges_are_those_of_the_chunks() {
        assert_eq!(even_edges(10, 4), [0, 2, 5, 7, 10]);
        assert_eq!(even_edges(0, 2), [0, 0, 0]);
        assert!(check_edges(Op::ReduceScatterF32, &even_edges(1003, 8), 1003, 8).is_ok());
    }

    #[test]
    fn edges_that_divide_nothing_are_refused_with_the_reason() {
        let refused =
            |edges: &[usize]| check_edges(Op::ReduceScatterF32, edges, 9, 2).unwrap_err().to_string();
        assert_eq!(refused(&[0, 9]), "reduce_scatter: 2 edges of chunks; a group of 2 ranks needs 3");
        assert!(refused(&[]).contains("0 edges"));
        assert!(refused(&[1, 4, 9]).contains("begins at value 1"));
        assert!(refused(&[0, 10, 9]).contains("chunk 1 begins at value 10 and ends at 9"));
        assert!(refused(&[0, 4, 8]).contains("ends at value 8"));
        assert!(refused(&[0, 4, 10]).contains("ends at value 10"));
    }

    #[test]
    fn digests_tell_edges_apart() {
        let usual = [0, 3, 3, 8, 20];
        for at in 1..4 {
            for value in 0..=20 {
                let mut other = usual;
                other[at] = value;
                assert_eq!(digest(&other) == digest(&usual), other == usual, "{other:?}");
            }
        }
        assert_ne!(digest(&[0, 4, 4, 9, 20]), digest(&usual));
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
