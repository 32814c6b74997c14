//! Sums have the bits of the binary tree over ranks, on every rank, in both forms.

use polygram_collective::{Options, chunk_of};
use polygram_domain::Rank;
use polygram_domain::sum_tree::SumTree;

use super::{Maker, Random, fresh_seed, on_all, options};

/// Element-wise tree sum over ranks, by the domain's own tree.
pub(crate) fn tree<T: Copy>(by_rank: &[Vec<T>], add: impl Fn(T, T) -> T) -> Vec<T> {
    (0..by_rank[0].len())
        .map(|index| {
            let mut tree = SumTree::default();
            for values in by_rank {
                tree.push(values[index], &add);
            }
            tree.finish(&add).unwrap()
        })
        .collect()
}

/// The vector that `rank` brings.
pub(crate) fn floats(seed: u64, rank: Rank, length: usize) -> Vec<f32> {
    let mut random = Random::of_rank(seed, rank);
    (0..length).map(|_| random.float() as f32).collect()
}

fn all_ranks<T>(world_size: u32, one: impl Fn(Rank) -> T) -> Vec<T> {
    (0..world_size).map(Rank).map(one).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Lengths that divide evenly, unevenly, not at all, and (for two ranks) beyond any socket buffer.
fn lengths(random: &mut Random, world_size: u32) -> Vec<usize> {
    let mut lengths = vec![0, 1, 2, 3, 7, 8, 1000, 65_536];
    if world_size == 2 {
        lengths.push(4_000_001);
    }
    lengths.extend((0..4).map(|_| random.below(5000) as usize));
    lengths.push((70_000 + random.below(60_000)) as usize);
    lengths
}

/// `all_reduce` of f32: one length, one form.
pub(crate) fn reduces(make: Maker, world_size: u32, options: &Options, (seed, length): (u64, usize)) {
    let expected = bits(&tree(&all_ranks(world_size, |rank| floats(seed, rank, length)), |a, b| a + b));
    let sums = on_all(&mut make(world_size, options), |seat| {
        let mut values = floats(seed, seat.rank(), length);
        seat.all_reduce(&mut values).unwrap();
        values
    });
    for (rank, sum) in sums.iter().enumerate() {
        assert!(bits(sum) == expected, "rank {rank} of {world_size}, {length} values, seed {seed}");
    }
}

/// The short and the long form of `all_reduce` and `reduce_scatter`, over all lengths, in one group.
pub(crate) fn both_forms_follow_the_tree(make: Maker, world_size: u32) {
    let seed = fresh_seed("both_forms_follow_the_tree");
    let lengths = lengths(&mut Random(seed), world_size);
    for short_bytes in [0, usize::MAX, options().short_bytes] {
        let options = Options { short_bytes, ..options() };
        let sums = on_all(&mut make(world_size, &options), |seat| {
            let one = |length: &usize| {
                let mut values = floats(seed, seat.rank(), *length);
                seat.all_reduce(&mut values).unwrap();
                values
            };
            lengths.iter().map(one).collect::<Vec<_>>()
        });
        for (index, length) in lengths.iter().enumerate() {
            let expected =
                bits(&tree(&all_ranks(world_size, |rank| floats(seed, rank, *length)), |a, b| a + b));
            for (rank, sums) in sums.iter().enumerate() {
                let equal = bits(&sums[index]) == expected;
                assert!(
                    equal,
                    "rank {rank} of {world_size}, {length} values, short {short_bytes}, seed {seed}"
                );
            }
        }
    }
}

/// `reduce_scatter` leaves each rank its chunk of the same sum.
pub(crate) fn scattered_sums_follow_the_tree(make: Maker, world_size: u32) {
    let seed = fresh_seed("scattered_sums_follow_the_tree");
    let mut seats = make(world_size, &options());
    for length in lengths(&mut Random(seed), world_size) {
        let expected = tree(&all_ranks(world_size, |rank| floats(seed, rank, length)), |a, b| a + b);
        on_all(&mut seats, |seat| {
            let mut values = floats(seed, seat.rank(), length);
            let own = seat.reduce_scatter(&mut values).unwrap();
            assert_eq!(own, chunk_of(length, seat.rank(), world_size));
            assert!(bits(&values[own.clone()]) == bits(&expected[own]), "{length} values, seed {seed}");
        });
    }
}

/// f64 and u64 follow the same tree; u64 beyond 64 bits is an error on all ranks.
pub(crate) fn other_types_sum_too(make: Maker, world_size: u32) {
    let seed = fresh_seed("other_types_sum_too");
    let doubles = |rank, length| {
        let mut random = Random::of_rank(seed, rank);
        (0..length).map(|_| random.float()).collect::<Vec<f64>>()
    };
    let counts = |rank, length| {
        let mut random = Random::of_rank(seed, rank);
        (0..length).map(|_| random.below(1 << 40)).collect::<Vec<u64>>()
    };
    let mut seats = make(world_size, &options());
    on_all(&mut seats, |seat| {
        for length in [0, 1, 5, 40_001] {
            let mut values = doubles(seat.rank(), length);
            seat.all_reduce_f64(&mut values).unwrap();
            let expected = tree(&all_ranks(world_size, |rank| doubles(rank, length)), |a, b| a + b);
            assert!(values.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()), "seed {seed}");
            let mut values = counts(seat.rank(), length);
            seat.all_reduce_u64(&mut values).unwrap();
            assert!(values == tree(&all_ranks(world_size, |rank| counts(rank, length)), |a, b| a + b));
        }
    });
    let outcomes = on_all(&mut seats, |seat| seat.all_reduce_u64(&mut [1, u64::MAX]));
    assert_eq!(outcomes.iter().all(Result::is_err), world_size > 1);
    if world_size > 1 {
        assert!(outcomes.iter().any(|outcome| super::words(outcome).contains("64 bits")));
    }
}

/// NaN stays NaN and infinities behave, on every rank alike.
pub(crate) fn non_finite_values_arrive(make: Maker, world_size: u32) {
    on_all(&mut make(world_size, &options()), |seat| {
        let last = seat.rank().0 + 1 == world_size;
        let mut values =
            [0.0, if last { f32::NAN } else { 1.0 }, if last { f32::INFINITY } else { 1.0 }, -0.0];
        seat.all_reduce(&mut values).unwrap();
        assert_eq!(values[0].to_bits(), 0);
        assert!(values[1].is_nan() && values[2] == f32::INFINITY);
        assert_eq!(values[3].to_bits(), (-0.0_f32).to_bits());
    });
}
