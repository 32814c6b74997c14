//! Bytes arrive where they should, and calls keep apart from each other.

use std::sync::atomic::{AtomicU32, Ordering};

use polygram_collective::{CollectiveError, Op, Stage, even_edges};
use polygram_domain::Rank;

use super::{Maker, Random, fresh_seed, on_all, options, sums};

/// All claims about groups in which nothing goes wrong.
pub(crate) fn hold(make: Maker, world_size: u32) {
    if world_size.is_power_of_two() {
        sums::both_forms_follow_the_tree(make, world_size);
        sums::scattered_sums_follow_the_tree(make, world_size);
        sums::other_types_sum_too(make, world_size);
        sums::non_finite_values_arrive(make, world_size);
    } else {
        odd_groups_do_not_sum(make, world_size);
    }
    sums::chunks_come_together(make, world_size);
    sums::wrong_edges_harm_nobody(make, world_size);
    gathers(make, world_size);
    exchanges_with_skew(make, world_size);
    broadcasts_from_every_root(make, world_size);
    nobody_leaves_a_barrier_early(make, world_size);
    wrong_arguments_harm_nobody(make, world_size);
    random_programs_run(make, world_size);
    progress_is_published(make, world_size);
}

/// What rank `from` sends to rank `to`: sizes from nothing to more than a socket holds.
fn parcel(seed: u64, from: Rank, to: Rank) -> Vec<u8> {
    let mut random = Random::of_rank(Random::of_rank(seed, from).next(), to);
    let length = match random.below(4) {
        0 => 0,
        1 => random.below(20),
        2 => random.below(100_000),
        _ => random.below(3_000_000),
    };
    random.bytes(length as usize)
}

fn gathers(make: Maker, world_size: u32) {
    let seed = fresh_seed("gathers");
    on_all(&mut make(world_size, &options()), |seat| {
        let own = parcel(seed, seat.rank(), Rank(0));
        let all = seat.all_gather(&own).unwrap();
        assert_eq!(all.len(), world_size as usize);
        for (rank, bytes) in (0..).zip(all) {
            assert!(bytes == parcel(seed, Rank(rank), Rank(0)), "from rank {rank}, seed {seed}");
        }
        assert!(seat.all_gather(&[]).unwrap().iter().all(Vec::is_empty));
    });
}

fn exchanges_with_skew(make: Maker, world_size: u32) {
    let seed = fresh_seed("exchanges_with_skew");
    on_all(&mut make(world_size, &options()), |seat| {
        let own = seat.rank();
        for call in 0..3 {
            let seed = seed + call;
            let sends: Vec<_> = (0..world_size).map(|to| parcel(seed, own, Rank(to))).collect();
            let sends: Vec<_> = sends.iter().map(Vec::as_slice).collect();
            let received = seat.all_to_all_v(&sends).unwrap();
            assert_eq!(received.len(), world_size as usize);
            for (from, bytes) in (0..).zip(received) {
                assert!(bytes == parcel(seed, Rank(from), own), "from rank {from} to {own}, seed {seed}");
            }
        }
        // All to one.
        let big = vec![own.0 as u8; 2_000_000];
        let sends: Vec<&[u8]> = (0..world_size).map(|to| if to == 0 { &big[..] } else { &[] }).collect();
        let received = seat.all_to_all_v(&sends).unwrap();
        let expected = if own == Rank(0) { big.len() } else { 0 };
        assert!(received.iter().all(|bytes| bytes.len() == expected));
    });
}

fn broadcasts_from_every_root(make: Maker, world_size: u32) {
    let seed = fresh_seed("broadcasts_from_every_root");
    on_all(&mut make(world_size, &options()), |seat| {
        for root in (0..world_size).map(Rank) {
            let expected = parcel(seed, root, root);
            let mut bytes = if seat.rank() == root { expected.clone() } else { vec![1; 77] };
            seat.broadcast(root, &mut bytes).unwrap();
            assert!(bytes == expected, "from root {root}, seed {seed}");
        }
    });
}

fn nobody_leaves_a_barrier_early(make: Maker, world_size: u32) {
    let entered = AtomicU32::new(0);
    on_all(&mut make(world_size, &options()), |seat| {
        for round in 1..=50 {
            entered.fetch_add(1, Ordering::SeqCst);
            seat.barrier().unwrap();
            assert!(entered.load(Ordering::SeqCst) >= round * world_size);
        }
    });
}

fn wrong_arguments_harm_nobody(make: Maker, world_size: u32) {
    on_all(&mut make(world_size, &options()), |seat| {
        let sends = vec![&[][..]; world_size as usize + 1];
        let error = seat.all_to_all_v(&sends).unwrap_err();
        assert!(matches!(error, CollectiveError::Argument { op: Op::AllToAllV, .. }), "{error}");
        let error = seat.broadcast(Rank(world_size), &mut Vec::new()).unwrap_err();
        assert!(matches!(error, CollectiveError::Argument { op: Op::Broadcast, .. }), "{error}");
        seat.barrier().unwrap();
    });
}

fn odd_groups_do_not_sum(make: Maker, world_size: u32) {
    on_all(&mut make(world_size, &options()), |seat| {
        let error = seat.all_reduce(&mut [1.0]).unwrap_err();
        assert!(error.to_string().contains(&format!("the group has {world_size}")), "{error}");
        let scattered = seat.reduce_scatter(&mut [1.0], &even_edges(1, world_size));
        assert!(matches!(scattered, Err(CollectiveError::WorldSize { .. })));
        seat.barrier().unwrap();
    });
}

/// The same random sequence of calls on all ranks, each rank with its own data and pace.
fn random_programs_run(make: Maker, world_size: u32) {
    let seed = fresh_seed("random_programs_run");
    on_all(&mut make(world_size, &options()), |seat| {
        let mut program = Random(seed);
        let mut pace = Random::of_rank(seed, seat.rank());
        for _ in 0..60 {
            let (op, seed) = (program.below(5), program.next());
            if pace.below(3) == 0 {
                std::thread::yield_now();
            }
            match op {
                0 if world_size.is_power_of_two() => {
                    let mut values = vec![1_u64; (seed % 20_000) as usize];
                    seat.all_reduce_u64(&mut values).unwrap();
                    assert!(values.iter().all(|value| *value == u64::from(world_size)), "seed {seed}");
                }
                1 => {
                    let all = seat.all_gather(&seat.rank().0.to_le_bytes()).unwrap();
                    assert!((0..world_size).zip(all).all(|(rank, bytes)| bytes == rank.to_le_bytes()));
                }
                2 => {
                    let root = Rank((seed % u64::from(world_size)) as u32);
                    let expected = Random(seed).bytes((seed % 9000) as usize);
                    let mut bytes = if seat.rank() == root { expected.clone() } else { Vec::new() };
                    seat.broadcast(root, &mut bytes).unwrap();
                    assert!(bytes == expected, "seed {seed}");
                }
                3 => {
                    let own = [seat.rank().0 as u8];
                    let received = seat.all_to_all_v(&vec![&own[..]; world_size as usize]).unwrap();
                    assert!((0..).zip(received).all(|(rank, bytes)| bytes == [rank]));
                }
                _ => seat.barrier().unwrap(),
            }
        }
    });
}

fn progress_is_published(make: Maker, world_size: u32) {
    let mut seats = make(world_size, &options());
    for seat in &seats {
        let progress = seat.progress();
        assert_eq!((progress.group(), progress.own().latest), ("test", None));
        let named: Vec<Rank> = progress.table().iter().map(|row| row.rank).collect();
        assert_eq!(named, seat.members());
        assert_eq!(seat.members().len(), world_size as usize);
    }
    on_all(&mut seats, |seat| {
        seat.barrier().unwrap();
        seat.broadcast(Rank(0), &mut vec![1, 2, 3]).unwrap();
    });
    for seat in &seats {
        let own = seat.progress().own();
        let (call, stage) = own.latest.unwrap();
        let name = seat.members()[seat.rank().index()];
        assert_eq!((own.rank, call.op, call.sequence, stage), (name, Op::Broadcast, 1, Stage::Left));
        let root = seat.members()[0];
        assert_eq!(own.to_string(), format!("rank {name} left broadcast #1 from rank {root}"));
    }
}
