//! Sums have the bits of the binary tree over ranks, on every rank, in both forms.

use polygram_collective::{CollectiveError, Op, Options, even_edges};
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

/// Edges of `length` values for `world_size` ranks, and often of empty chunks.
fn edges(random: &mut Random, length: usize, world_size: u32) -> Vec<usize> {
    let mut inner: Vec<usize> = (1..world_size).map(|_| random.below(length as u64 + 1) as usize).collect();
    if random.below(3) == 0
        && let Some(first) = inner.first().copied()
    {
        let every_other = inner.iter_mut().step_by(2);
        every_other.for_each(|edge| *edge = first);
    }
    inner.sort_unstable();
    [vec![0], inner, vec![length]].concat()
}

/// Even and random divisions, everything to one rank, and chunks that end around the ends of blocks of 2 MiB.
fn divisions(random: &mut Random, world_size: u32) -> Vec<(usize, Vec<usize>)> {
    let block = 512 << 10;
    let mut divisions = Vec::new();
    for length in lengths(random, world_size) {
        divisions.push((length, even_edges(length, world_size)));
        divisions.push((length, edges(random, length, world_size)));
    }
    for owner in [0, world_size as usize - 1] {
        let edge = |at: usize| if at > owner { 3000 } else { 0 };
        divisions.push((3000, (0..=world_size as usize).map(edge).collect()));
    }
    for around in [block - 1, block, 2 * block + 1] {
        let lengths = (0..world_size).map(|rank| if rank + 1 == world_size { around } else { rank as usize });
        let edges: Vec<usize> = std::iter::once(0)
            .chain(lengths.scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        divisions.push((edges[world_size as usize], edges));
    }
    divisions
}

/// `reduce_scatter` leaves each rank its chunk of the sum, with the bits of `all_reduce`, however it is divided, and
/// `all_gather_chunks` then gives all of it to everybody.
pub(crate) fn scattered_sums_follow_the_tree(make: Maker, world_size: u32) {
    let seed = fresh_seed("scattered_sums_follow_the_tree");
    let mut seats = make(world_size, &options());
    for (length, edges) in divisions(&mut Random(seed), world_size) {
        let expected = tree(&all_ranks(world_size, |rank| floats(seed, rank, length)), |a, b| a + b);
        on_all(&mut seats, |seat| {
            let mut values = floats(seed, seat.rank(), length);
            let mut whole = values.clone();
            seat.all_reduce(&mut whole).unwrap();
            assert!(bits(&whole) == bits(&expected), "{length} values, seed {seed}");
            seat.reduce_scatter(&mut values, &edges).unwrap();
            let own = edges[seat.rank().index()]..edges[seat.rank().index() + 1];
            assert!(bits(&values[own.clone()]) == bits(&whole[own.clone()]), "edges {edges:?}, seed {seed}");
            let mut all = vec![f32::NAN; length];
            all[own.clone()].copy_from_slice(&values[own]);
            seat.all_gather_chunks(&mut all, &edges).unwrap();
            assert!(bits(&all) == bits(&whole), "edges {edges:?}, seed {seed}");
        });
    }
}

/// Chunks come together again in groups of any size, also where nothing can be summed.
pub(crate) fn chunks_come_together(make: Maker, world_size: u32) {
    let seed = fresh_seed("chunks_come_together");
    let mut seats = make(world_size, &options());
    let mut random = Random(seed);
    for length in [0, 1, 9, 20_000, 1_000_003] {
        let edges = edges(&mut random, length, world_size);
        on_all(&mut seats, |seat| {
            let own = edges[seat.rank().index()]..edges[seat.rank().index() + 1];
            let mut values = vec![f32::NAN; length];
            own.for_each(|index| values[index] = index as f32);
            seat.all_gather_chunks(&mut values, &edges).unwrap();
            let right = values.iter().enumerate().all(|(index, value)| *value == index as f32);
            assert!(right, "edges {edges:?}, seed {seed}");
        });
    }
}

/// Edges that do not divide the values are refused before anything is sent.
pub(crate) fn wrong_edges_harm_nobody(make: Maker, world_size: u32) {
    let ranks = world_size as usize;
    let usual = even_edges(100, world_size);
    let change = |at: usize, value: usize| {
        let mut edges = usual.clone();
        edges[at] = value;
        edges
    };
    let mut wrong = vec![Vec::new(), usual[1..].to_vec(), [&usual[..], &[100]].concat()];
    wrong.extend([change(0, 1), change(ranks, 99), change(ranks, 101)]);
    if ranks > 1 {
        wrong.extend([change(1, 101), change(ranks - 1, usize::MAX)]);
    }
    on_all(&mut make(world_size, &options()), |seat| {
        for edges in &wrong {
            let mut values = [1.0; 100];
            let gathered = seat.all_gather_chunks(&mut values, edges).unwrap_err();
            let refused = matches!(gathered, CollectiveError::Argument { op: Op::AllGatherChunksF32, .. });
            assert!(refused, "{edges:?}: {gathered}");
            assert!(gathered.suspects().is_empty());
            if world_size.is_power_of_two() {
                let summed = seat.reduce_scatter(&mut values, edges).unwrap_err();
                let refused = matches!(summed, CollectiveError::Argument { op: Op::ReduceScatterF32, .. });
                assert!(refused, "{edges:?}: {summed}");
            }
            assert_eq!(values, [1.0; 100]);
        }
        seat.barrier().unwrap();
    });
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
