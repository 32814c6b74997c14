//! Faults ordered at (rank, sequence) in groups of threads.

mod suite;

use std::time::{Duration, Instant};

use polygram_collective::{CollectiveError, Fault, InjectedFault, Local, Progress};
use polygram_domain::Rank;
use suite::{PATIENCE, Seat, boxed, impatient, on_all, options, words};

const RANKS: u32 = 4;

fn faulty(rank: u32, sequence: u64, fault: Fault) -> InjectedFault {
    InjectedFault { rank: Rank(rank), sequence, fault }
}

/// Five sums on every rank; the error and how many sums came before it.
fn five_sums(seats: &mut [Seat]) -> Vec<(u32, Result<(), CollectiveError>)> {
    on_all(seats, |seat| {
        for done in 0..5 {
            let mut values = vec![1.0; 100];
            if let Err(error) = seat.all_reduce(&mut values) {
                return (done, Err(error));
            }
            assert!(values.iter().all(|value| *value == RANKS as f32));
        }
        (5, Ok(()))
    })
}

#[test]
fn a_failing_rank_is_named_with_its_call() {
    for rank in 0..RANKS {
        for sequence in [0, 3] {
            let faults = [faulty(rank, sequence, Fault::Fail)];
            let outcomes = five_sums(&mut boxed(Local::ranks_with_faults(RANKS, &options(), &faults)));
            for (own, (done, outcome)) in (0..).zip(&outcomes) {
                let error = outcome.as_ref().unwrap_err();
                // A peer may hear of it while it is still in an earlier call.
                assert!(u64::from(*done) <= sequence, "rank {own}: {error}");
                assert_eq!(error.suspects(), [Rank(rank)], "rank {own}: {error}");
                assert!(error.to_string().contains(&format!("all_reduce #{sequence}")), "{error}");
                assert_eq!(matches!(error, CollectiveError::Injected { .. }), own == rank, "{error}");
            }
        }
    }
}

#[test]
fn a_vanished_rank_is_named_at_once() {
    let faults = [faulty(2, 1, Fault::Vanish)];
    let begun = Instant::now();
    let outcomes = five_sums(&mut boxed(Local::ranks_with_faults(RANKS, &options(), &faults)));
    assert!(begun.elapsed() < Duration::from_secs(20));
    for (done, outcome) in &outcomes {
        assert!(*done <= 1, "{outcome:?}");
        assert_eq!(outcome.as_ref().unwrap_err().suspects(), [Rank(2)], "{outcome:?}");
    }
    assert!(outcomes.iter().any(|(_, outcome)| matches!(outcome, Err(CollectiveError::PeerLost { .. }))));
}

#[test]
fn a_hanging_rank_is_named_after_failure_detection() {
    let faults = [faulty(3, 2, Fault::Hang)];
    let mut seats = boxed(Local::ranks_with_faults(RANKS, &impatient(), &faults));
    let begun = Instant::now();
    let outcomes = five_sums(&mut seats);
    assert!(begun.elapsed() >= PATIENCE);
    for (rank, (done, outcome)) in (0..).zip(&outcomes) {
        assert_eq!(*done, 2);
        assert_eq!(outcome.as_ref().unwrap_err().suspects(), [Rank(3)], "rank {rank}: {outcome:?}");
    }
    for (_, outcome) in &outcomes[..3] {
        assert!(words(outcome).contains("nothing from rank 3 for 1.0 s"), "{}", words(outcome));
        assert!(words(outcome).contains("all_reduce #2"), "{}", words(outcome));
    }
}

#[test]
fn a_late_rank_changes_nothing() {
    let faults = [faulty(1, 0, Fault::Delay(PATIENCE / 10)), faulty(0, 3, Fault::Delay(PATIENCE / 10))];
    let begun = Instant::now();
    let outcomes = five_sums(&mut boxed(Local::ranks_with_faults(RANKS, &options(), &faults)));
    assert!(begun.elapsed() >= PATIENCE / 5);
    assert!(outcomes.iter().all(|(done, outcome)| *done == 5 && outcome.is_ok()), "{outcomes:?}");
}

#[test]
fn own_lines_put_together_name_the_rank_behind() {
    let faults = [faulty(1, 2, Fault::Fail)];
    let mut seats = boxed(Local::ranks_with_faults(2, &options(), &faults));
    let outcomes = on_all(&mut seats, |seat| (0..5).try_for_each(|_| seat.barrier()));
    assert!(outcomes.iter().all(Result::is_err));
    let table: Vec<_> = seats.iter().map(|seat| seat.progress().own()).collect();
    assert_eq!(table[1].to_string(), "rank 1 failed in barrier #2");
    assert!(Progress::never_entered(&table).is_empty());
    let mut behind = table.clone();
    behind[1].latest = None;
    assert_eq!(Progress::never_entered(&behind), [Rank(1)]);
}
