//! Groups within a group: who sits where, what goes on beside it, and what happens when that cannot be.

#![allow(clippy::unwrap_used)]

mod suite;

use std::thread;
use std::time::{Duration, Instant};

use polygram_collective::{Collective, CollectiveError, JoinError, Local, Options, Solo, Split, Tcp};
use polygram_domain::Rank;
use polygram_domain::embedding::SameHost;
use suite::{Random, Seat, fresh_seed, impatient, on_all, options, tcp_joins_within, tcp_ranks};

type Whole = Vec<Box<dyn Split>>;

fn boxed<S: Split + 'static>(ranks: Vec<S>) -> Whole {
    ranks.into_iter().map(|rank| Box::new(rank) as Box<dyn Split>).collect()
}

/// The world of `world_size` ranks, once of every kind that divides.
fn worlds(world_size: u32) -> Vec<Whole> {
    let shared = Options { same_host: SameHost::Auto, ..options() };
    vec![
        boxed(Local::ranks(world_size, &options())),
        boxed(tcp_ranks(world_size, &options())),
        boxed(tcp_ranks(world_size, &shared)),
    ]
}

fn part(name: &str) -> Options {
    Options { group: name.to_string(), ..options() }
}

fn ranks(seats: &[u32]) -> Vec<Rank> {
    seats.iter().copied().map(Rank).collect()
}

/// Every rank of `whole` splits at once; `wants` says with which list and options.
fn split(
    whole: &mut Whole,
    wants: impl Fn(Rank) -> (Vec<Rank>, Options) + Sync,
) -> Vec<Result<Seat, JoinError>> {
    let wants = &wants;
    thread::scope(|scope| {
        let one = |rank: &mut Box<dyn Split>| {
            let (members, options) = wants(rank.rank());
            rank.split(&members, options)
        };
        let threads: Vec<_> = whole.iter_mut().map(|rank| scope.spawn(move || one(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The ranks beside and those below each other, of a world of 8 in rows of 4 and columns of 2.
#[test]
fn rows_and_columns_sum_beside_the_whole() {
    for mut whole in worlds(8) {
        let row = |rank: Rank| (0..4).map(|at| Rank(rank.0 / 4 * 4 + at)).collect::<Vec<_>>();
        let column = |rank: Rank| [rank.0 % 4, rank.0 % 4 + 4].map(Rank).to_vec();
        let rows = split(&mut whole, |rank| (row(rank), part("row")));
        let columns = split(&mut whole, |rank| (column(rank), part("column")));
        let all: Vec<(Box<dyn Split>, Seat, Seat)> = whole
            .into_iter()
            .zip(rows)
            .zip(columns)
            .map(|((whole, row), column)| (whole, row.unwrap(), column.unwrap()))
            .collect();
        thread::scope(|scope| {
            for (mut whole, mut in_row, mut in_column) in all {
                scope.spawn(move || {
                    let own = whole.rank();
                    assert_eq!((in_row.members(), in_row.rank()), (&row(own)[..], Rank(own.0 % 4)));
                    assert_eq!((in_column.members(), in_column.rank()), (&column(own)[..], Rank(own.0 / 4)));
                    assert_eq!(in_row.progress().group(), "row");
                    for _ in 0..3 {
                        let digit = 10_u64.pow(own.0);
                        let (mut of_row, mut of_column, mut of_all) = ([digit], [digit], [digit]);
                        in_row.all_reduce_u64(&mut of_row).unwrap();
                        whole.all_reduce_u64(&mut of_all).unwrap();
                        in_column.all_reduce_u64(&mut of_column).unwrap();
                        let sum = |ranks: &[Rank]| ranks.iter().map(|rank| 10_u64.pow(rank.0)).sum::<u64>();
                        assert_eq!((of_row, of_column), ([sum(&row(own))], [sum(&column(own))]));
                        assert_eq!(of_all, [11_111_111]);
                    }
                    whole.barrier().unwrap();
                });
            }
        });
    }
}

/// Any division into any number of groups, ranks alone among them.
#[test]
fn any_division_forms_its_groups() {
    let seed = fresh_seed("any_division_forms_its_groups");
    let mut random = Random(seed);
    for world_size in [1, 3, 6] {
        for mut whole in worlds(world_size) {
            for _ in 0..4 {
                let colours: Vec<u64> = (0..world_size).map(|_| random.below(3)).collect();
                let members = |rank: Rank| {
                    let same = |other: &u32| colours[*other as usize] == colours[rank.index()];
                    (0..world_size).filter(same).map(Rank).collect::<Vec<_>>()
                };
                let mut parts: Vec<Seat> = split(&mut whole, |rank| (members(rank), part("part")))
                    .into_iter()
                    .map(Result::unwrap)
                    .collect();
                let gathered = on_all(&mut parts, |seat| {
                    let own = seat.members()[seat.rank().index()];
                    (own, seat.all_gather(&own.0.to_le_bytes()).unwrap())
                });
                for (rank, (own, gathered)) in (0..).map(Rank).zip(gathered) {
                    assert_eq!(own, rank, "seed {seed}");
                    let expected: Vec<_> =
                        members(rank).iter().map(|rank| rank.0.to_le_bytes().to_vec()).collect();
                    assert_eq!(gathered, expected, "seed {seed}");
                }
            }
        }
    }
}

#[test]
fn a_rank_that_dies_is_accused_by_its_rank_in_the_run() {
    for mut whole in worlds(4) {
        let mut parts = split(&mut whole, |rank| (ranks(&[rank.0 % 2, rank.0 % 2 + 2]), part("pair")));
        let (dies, mut stays) = (parts.remove(3).unwrap(), parts.remove(1).unwrap());
        assert_eq!(stays.members(), [Rank(1), Rank(3)]);
        drop(dies);
        let error = stays.barrier().unwrap_err();
        assert!(matches!(error, CollectiveError::PeerLost { peer: Rank(3), .. }), "{error}");
        assert_eq!(error.suspects(), [Rank(3)]);
        assert!(error.to_string().contains("rank 1 of group pair, barrier #0: lost rank 3"), "{error}");
        let error = stays.barrier().unwrap_err();
        assert!(error.to_string().starts_with("rank 1 of group pair: the group is unusable"), "{error}");
        // What befalls a part does not befall the whole.
        let mut whole: Vec<Seat> = whole.into_iter().map(|rank| rank as Seat).collect();
        on_all(&mut whole, |seat| seat.barrier().unwrap());
    }
}

/// Rank 7 is the last seat of the last pair of the upper half of the odd ranks.
fn odd_upper_half<S: Split + 'static>(
    whole: Vec<S>,
    split: impl Fn(&mut S, &[Rank], Options) -> Result<S, JoinError> + Sync,
    options: &Options,
) -> Vec<Seat> {
    let split = &split;
    thread::scope(|scope| {
        let one = |mut whole: S| {
            let odd = whole.rank().0 % 2;
            let half: Vec<_> = (0..4).map(|at| Rank(2 * at + odd)).collect();
            let mut half = split(&mut whole, &half, part("half")).unwrap();
            let first = half.rank().0 / 2 * 2;
            (whole, split(&mut half, &ranks(&[first, first + 1]), options.clone()).unwrap())
        };
        let threads: Vec<_> = whole.into_iter().map(|whole| scope.spawn(move || one(whole))).collect();
        let all: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap().1).collect();
        all.into_iter()
            .enumerate()
            .filter(|(rank, _)| [5, 7].contains(rank))
            .map(|(_, s)| Box::new(s) as Seat)
            .collect()
    })
}

#[test]
fn a_group_within_a_group_within_a_group_names_the_ranks_of_the_run() {
    let impatient = impatient();
    let local = odd_upper_half(Local::ranks(8, &options()), Local::split, &impatient);
    let tcp = odd_upper_half(tcp_ranks(8, &options()), Tcp::split, &impatient);
    for mut seats in [local, tcp] {
        assert!(seats.iter().all(|seat| seat.members() == [Rank(5), Rank(7)]));
        on_all(&mut seats, |seat| seat.broadcast(Rank(1), &mut Vec::new()).unwrap());
        let rows: Vec<String> = seats[0].progress().table().iter().map(ToString::to_string).collect();
        assert_eq!(rows[0], "rank 5 left broadcast #0 from rank 7");
        assert!(rows[1].starts_with("rank 7"), "{rows:?}");
        // Seat 1 makes no call: silence is blamed on its rank.
        let error = seats[0].barrier().unwrap_err();
        assert_eq!(error.suspects(), [Rank(7)], "{error}");
        assert!(error.to_string().contains("nothing from rank 7"), "{error}");
        let error = seats[1].broadcast(Rank(0), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("broadcast #1 from rank 5"), "{error}");
    }
}

#[test]
fn an_abort_of_a_part_names_the_rank_of_the_run_and_leaves_the_whole() {
    for mut whole in worlds(4) {
        let parts = split(&mut whole, |rank| (ranks(&[rank.0 % 2, rank.0 % 2 + 2]), part("pair")));
        let mut parts: Vec<Seat> = parts.into_iter().map(Result::unwrap).collect();
        parts[3].abort_handle().abort("enough");
        let error = parts[1].barrier().unwrap_err();
        assert!(error.to_string().contains("rank 3 failed: rank 3 was aborted: enough"), "{error}");
        let mut others = vec![parts.remove(2), parts.remove(0)];
        on_all(&mut others, |seat| seat.barrier().unwrap());
        let mut whole: Vec<Seat> = whole.into_iter().map(|rank| rank as Seat).collect();
        on_all(&mut whole, |seat| seat.barrier().unwrap());
    }
}

#[test]
fn lists_that_do_not_fit_are_refused_on_all_ranks_and_harm_nothing() {
    type Wants = fn(Rank) -> (Vec<Rank>, Options);
    let cases: [(Wants, &str); 4] = [
        (
            |rank| (if rank.0 == 1 { ranks(&[1, 2]) } else { ranks(&[0, 1, 2]) }, part("p")),
            "all ranks of a group must give the same",
        ),
        (|rank| (if rank.0 == 1 { Vec::new() } else { ranks(&[0, 2]) }, part("p")), "rank 1, at seat 1 of 3"),
        (|_| (ranks(&[0, 1, 3]), part("p")), "rank 0, at seat 0 of 3"),
        (|rank| (ranks(&[0, 1, 2]), part(if rank.0 == 2 { "q" } else { "p" })), "but rank 2 in \"q\""),
    ];
    for mut whole in worlds(3) {
        for (wants, words) in cases {
            let begun = Instant::now();
            for refused in split(&mut whole, wants) {
                let error = refused.err().unwrap();
                assert!(matches!(error, JoinError::Argument { .. }), "{error}");
                assert!(error.to_string().contains(words), "{error}");
            }
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
        let whole = split(&mut whole, |_| (ranks(&[0, 1, 2]), part("again")));
        let mut whole: Vec<Seat> = whole.into_iter().map(Result::unwrap).collect();
        on_all(&mut whole, |seat| seat.barrier().unwrap());
    }
}

#[test]
fn a_failure_of_the_whole_surfaces_with_its_reason() {
    for mut whole in worlds(3) {
        drop(whole.pop());
        let outcomes = split(&mut whole, |_| (ranks(&[0, 1, 2]), part("part")));
        for outcome in outcomes {
            let error = outcome.err().unwrap();
            let JoinError::Collective { group, source } = &error else { panic!("{error}") };
            assert_eq!((group.as_str(), source.suspects()), ("part", vec![Rank(2)]), "{error}");
            assert!(std::error::Error::source(&error).is_some());
            assert!(
                error.to_string().contains("group part") && error.to_string().contains("rank 2"),
                "{error}"
            );
        }
    }
}

/// A rank agrees to a group and then is not there: within the whole's deadline it is missed by its rank in the run.
#[test]
fn a_rank_that_agrees_and_never_comes_is_missed_by_its_rank_in_the_run() {
    let deadline = Duration::from_secs(2);
    let nowhere = {
        let listener = std::net::TcpListener::bind(suite::any_port()).unwrap();
        listener.local_addr().unwrap()
    };
    for (absent, words) in [(3, "rank 1 waited 2.0 s for rank 3"), (1, "rank 3 could not join rank 1 at")] {
        let joins = tcp_joins_within(deadline, 4, &options(), |_, addresses| addresses);
        let outcomes = thread::scope(|scope| {
            let one = |mut rank: Tcp| {
                let own = rank.rank().0;
                let members = ranks(&[own % 2, own % 2 + 2]);
                if own == absent {
                    let letter = serde_json::json!({
                        "members": members, "group": "pair", "address": { "Ok": nowhere },
                    });
                    rank.all_gather(letter.to_string().as_bytes()).unwrap();
                    return None;
                }
                Some(rank.split(&members, part("pair")))
            };
            let threads: Vec<_> =
                joins.into_iter().map(|rank| scope.spawn(move || one(rank.unwrap()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        for (own, outcome) in (0..).zip(outcomes) {
            match outcome {
                Some(Err(error)) => {
                    assert_eq!(own, 4 - absent, "{error}");
                    assert!(error.to_string().contains(words), "{error}");
                }
                Some(Ok(_)) => assert_eq!(own % 2, 0),
                None => assert_eq!(own, absent),
            }
        }
    }
}

#[test]
fn ranks_that_do_other_things_are_found_out() {
    for mut whole in worlds(2) {
        let other = whole.pop().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut other = other;
                other.all_gather(b"no list").unwrap();
            });
            let error = whole[0].split(&ranks(&[0, 1]), part("part")).err().unwrap();
            assert!(error.to_string().contains("rank 1 does not say which group"), "{error}");
        });
    }
}

#[test]
fn solo_divides_into_itself() {
    let mut solo = Solo::new("whole");
    let mut seat = solo.split(&[Rank(0)], part("part")).unwrap();
    assert_eq!((seat.members(), seat.world_size(), seat.progress().group()), (&[Rank(0)][..], 1, "part"));
    seat.barrier().unwrap();
    for members in [ranks(&[]), ranks(&[1]), ranks(&[0, 1])] {
        assert!(matches!(solo.split(&members, part("part")), Err(JoinError::Argument { .. })));
    }
    solo.abort_handle().abort("enough");
    let error = solo.split(&[Rank(0)], part("part")).err().unwrap();
    assert!(matches!(error, JoinError::Collective { .. }) && error.to_string().contains("enough"), "{error}");
}
