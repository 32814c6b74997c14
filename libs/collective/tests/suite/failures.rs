//! What a group does when a rank is elsewhere, silent, gone or told to stop.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use polygram_collective::{Collective, CollectiveError, Stage, even_edges};
use polygram_domain::Rank;

use super::{Maker, PATIENCE, Random, Seat, fresh_seed, impatient, on_all, options, spin_until, words};

/// All claims about groups in which something goes wrong.
pub(crate) fn are_named(make: Maker, world_size: u32) {
    aborts_wake_waits(make, world_size);
    aborts_between_calls_reach_the_peers(make, world_size);
    if world_size == 1 {
        return;
    }
    other_calls_are_found_out(make, world_size);
    a_lost_rank_is_named(make, world_size);
    aborts_at_any_moment_end_all(make, world_size);
}

/// Those that wait for `PATIENCE`, all at once.
pub(crate) fn silent_ranks_are_named(make: Maker, world_sizes: &[u32]) {
    thread::scope(|scope| {
        for world_size in world_sizes {
            for silent in [0, world_size - 1] {
                scope.spawn(move || the_silent_rank_is_named(make, *world_size, Rank(silent)));
            }
        }
    });
}

type Outcome = Result<(), CollectiveError>;
type Step = fn(&mut dyn Collective) -> Outcome;

/// The name of the rank at `seat`.
fn name(seats: &[Seat], seat: Rank) -> Rank {
    seats[0].members()[seat.index()]
}

/// Edges that leave all of `length` values to the first seat.
fn to_first(length: usize, seat: &dyn Collective) -> Vec<usize> {
    std::iter::once(0).chain(std::iter::repeat_n(length, seat.world_size() as usize)).collect()
}

fn sum<const N: usize>(seat: &mut dyn Collective) -> Outcome {
    seat.all_reduce(&mut [0.0; N])
}

/// One rank makes another call than all others: everybody fails, and the words name both sides.
fn other_calls_are_found_out(make: Maker, world_size: u32) {
    let barrier: Step = |seat| seat.barrier();
    let gather: Step = |seat| seat.all_gather(b"xyz").map(drop);
    let exchange: Step = |seat| {
        let sends = vec![&b"xyz"[..]; seat.world_size() as usize];
        seat.all_to_all_v(&sends).map(drop)
    };
    let from_first: Step = |seat| seat.broadcast(Rank(0), &mut vec![7; 10]);
    let from_last: Step = |seat| seat.broadcast(Rank(seat.world_size() - 1), &mut vec![8; 10]);
    let scatter: Step = |seat| seat.reduce_scatter(&mut [0.0; 5], &even_edges(5, seat.world_size()));
    let scatter_to_one: Step = |seat| seat.reduce_scatter(&mut [0.0; 5], &to_first(5, seat));
    let spread: Step = |seat| seat.all_gather_chunks(&mut [0.0; 5], &even_edges(5, seat.world_size()));
    let spread_from_one: Step = |seat| seat.all_gather_chunks(&mut [0.0; 5], &to_first(5, seat));
    let doubles: Step = |seat| seat.all_reduce_f64(&mut [0.0; 5]);
    let twice: Step = |seat| seat.barrier().and_then(|()| seat.barrier());
    let mut cases: Vec<(Step, Step, [&str; 2])> = vec![
        (barrier, gather, ["barrier #0", "all_gather #0"]),
        (gather, exchange, ["all_gather #0", "all_to_all_v #0"]),
        // A rank that has its broadcast and has passed it on may be in the next call when it finds out.
        (from_first, barrier, ["but this rank is in", "barrier #0"]),
        (gather, from_last, ["all_gather #0", "broadcast #0"]),
        (twice, gather, ["barrier #0", "all_gather #0"]),
        (spread, gather, ["all_gather_chunks #0 of 5", "all_gather #0"]),
        (spread, spread_from_one, ["all_gather_chunks #0 of 5 values in chunks", "but this rank is in"]),
    ];
    if world_size.is_power_of_two() {
        cases.extend::<[(Step, Step, [&str; 2]); 6]>([
            (sum::<5>, sum::<6>, ["of 5 values", "of 6 values"]),
            (sum::<5>, sum::<100_000>, ["of 5 values", "of 100000 values"]),
            (sum::<5>, doubles, ["all_reduce #0 of 5", "all_reduce_f64 #0 of 5"]),
            (scatter, sum::<5>, ["reduce_scatter #0", "all_reduce #0"]),
            (scatter, scatter_to_one, ["reduce_scatter #0 of 5 values in chunks", "but this rank is in"]),
            (from_first, from_last, ["but this rank is in", "broadcast #0 from rank"]),
        ]);
    }
    for odd in [0, world_size - 1] {
        for (usual, other, names) in &cases {
            let mut seats = make(world_size, &options());
            let outcomes = on_all(&mut seats, |seat| {
                let own = if seat.rank().0 == odd { other } else { usual };
                // A rank that only sends may hear of it in its next call.
                own(seat).and_then(|()| seat.barrier())
            });
            for outcome in &outcomes {
                let words = words(outcome);
                assert!(names.iter().all(|name| words.contains(name)), "{names:?} in {words}");
            }
            let mismatch = |outcome: &Outcome| matches!(outcome, Err(CollectiveError::Mismatch { .. }));
            assert!(outcomes.iter().any(mismatch), "{names:?}: {outcomes:?}");
            on_all(&mut seats, |seat| {
                let error = seat.barrier().unwrap_err();
                assert!(matches!(error, CollectiveError::Failed { .. }), "{error}");
            });
        }
    }
}

/// One rank never comes: the others fail after `PATIENCE`, all name it, and the call.
fn the_silent_rank_is_named(make: Maker, world_size: u32, silent: Rank) {
    let call: Step = if world_size.is_power_of_two() { sum::<40_000> } else { |seat| seat.barrier() };
    let mut seats = make(world_size, &impatient());
    let named = name(&seats, silent);
    let begun = Instant::now();
    let outcomes = on_all(&mut seats, |seat| if seat.rank() == silent { Ok(()) } else { call(seat) });
    assert!(begun.elapsed() < 20 * PATIENCE, "{:?}", begun.elapsed());
    for (rank, outcome) in (0..).map(Rank).zip(&outcomes).filter(|(rank, _)| *rank != silent) {
        let error = outcome.as_ref().unwrap_err();
        assert!(matches!(error, CollectiveError::TimedOut { .. }), "{error}");
        assert_eq!(error.suspects(), [named], "rank {rank}: {error}");
        assert!(error.to_string().contains("#0"), "{error}");
        assert!(error.to_string().contains(&format!("rank {named} has entered no call")), "{error}");
    }
    // The late rank hears what it has done.
    let error = call(seats[silent.index()].as_mut()).unwrap_err();
    assert_eq!(error.suspects(), [named], "{error}");
}

/// One rank is gone, with nobody told: the others learn it at once, not after `failure_detection`.
fn a_lost_rank_is_named(make: Maker, world_size: u32) {
    let mut seats = make(world_size, &options());
    let gone = name(&seats, Rank(world_size - 1));
    drop(seats.pop());
    let begun = Instant::now();
    for outcome in on_all(&mut seats, |seat| seat.barrier()) {
        let error = outcome.unwrap_err();
        assert_eq!(error.suspects(), [gone], "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// An abort ends a wait at once, and its reason reaches everybody.
fn aborts_wake_waits(make: Maker, world_size: u32) {
    let mut seats = make(world_size, &options());
    let last = Rank(world_size - 1);
    let (handle, progress) = (seats[0].abort_handle(), seats[0].progress());
    if world_size > 1 {
        // Rank 0 waits for the last rank, which comes only when rank 0 has failed.
        let (failed, wait) = mpsc::channel();
        let wait = std::sync::Mutex::new(wait);
        thread::scope(|scope| {
            scope.spawn(move || {
                spin_until(|| matches!(progress.own().latest, Some((_, Stage::Entered))));
                handle.abort("the operator said so");
            });
            let outcomes = on_all(&mut seats, |seat| {
                if seat.rank() == last {
                    wait.lock().unwrap().recv().unwrap();
                }
                let begun = Instant::now();
                let outcome = seat.barrier();
                if seat.rank() == Rank(0) {
                    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
                    failed.send(()).unwrap();
                }
                // The first message of rank 0 is out, so a barrier may yet succeed; the next one does not.
                if seat.rank() == Rank(0) { outcome } else { outcome.and_then(|()| seat.barrier()) }
            });
            assert!(matches!(outcomes[0], Err(CollectiveError::Aborted { .. })), "{outcomes:?}");
            for outcome in &outcomes {
                assert!(words(outcome).contains("the operator said so"), "{}", words(outcome));
            }
        });
    }
}

/// An abort outside any call stops the next one, and the peers' too.
fn aborts_between_calls_reach_the_peers(make: Maker, world_size: u32) {
    let mut seats = make(world_size, &options());
    on_all(&mut seats, |seat| seat.barrier().unwrap());
    let handle = seats[0].abort_handle();
    handle.abort("first");
    handle.abort("second");
    assert!(handle.is_aborted());
    assert_eq!(handle.reason().as_deref(), Some("first"));
    let outcomes = on_all(&mut seats, |seat| seat.barrier());
    assert!(matches!(outcomes[0], Err(CollectiveError::Aborted { .. })), "{outcomes:?}");
    for outcome in &outcomes {
        assert!(words(outcome).contains("first"), "{}", words(outcome));
    }
}

/// An abort at a random moment of a random program of short and long calls: every rank ends, and knows why
/// or by whom.
fn aborts_at_any_moment_end_all(make: Maker, world_size: u32) {
    let mut random = Random(fresh_seed("aborts_at_any_moment_end_all"));
    for _ in 0..6 {
        let seed = random.next();
        let (rank, call, pause) = (random.below(world_size.into()), random.below(12), random.below(3000));
        let mut seats = make(world_size, &options());
        let (handle, progress) = (seats[rank as usize].abort_handle(), seats[rank as usize].progress());
        let aborted = name(&seats, Rank(rank as u32));
        thread::scope(|scope| {
            scope.spawn(move || {
                spin_until(|| matches!(progress.own().latest, Some((at, _)) if at.sequence >= call));
                (0..pause).for_each(|_| std::hint::spin_loop());
                handle.abort("enough");
            });
            for outcome in on_all(&mut seats, |seat| endless(seat, seed)) {
                let error = outcome.unwrap_err();
                // Who has half a message can be told nothing more over the same socket, and learns who cut it.
                let named = error.suspects() == [aborted];
                assert!(
                    named || error.to_string().contains("enough"),
                    "rank {rank}, call {call}, seed {seed}: {error}"
                );
            }
        });
    }
}

/// The same random calls on all ranks, until one fails.
fn endless(seat: &mut dyn Collective, seed: u64) -> Outcome {
    let (mut program, ranks) = (Random(seed), seat.world_size());
    let mut received = Vec::new();
    loop {
        let length = [3, 5000, 900_000][program.below(3) as usize];
        match program.below(4) {
            0 if ranks.is_power_of_two() => seat.all_reduce(&mut vec![1.0; length / 4])?,
            1 => seat.all_gather_into(&vec![1; length], &mut received)?,
            2 => {
                let (all, none) = (vec![2; length], Vec::new());
                let skewed = (0..ranks).map(|to| if to == 0 { &all[..] } else { &none[..] });
                seat.all_to_all_v_into(&skewed.collect::<Vec<_>>(), &mut received)?;
            }
            _ => seat.barrier()?,
        }
    }
}
