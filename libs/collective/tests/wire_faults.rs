//! What goes wrong between processes: corrupt bytes, connections cut in the middle, peers that read nothing.
//!
//! Rank 1 reaches rank 0 through a relay of this test, which tampers with what it carries.

#![allow(clippy::unwrap_used)]

mod suite;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use polygram_collective::{Collective, CollectiveError, Options, Tcp};
use polygram_domain::Rank;
use polygram_domain::embedding::SameHost;
use suite::{any_port, fresh_seed, impatient, on_all, options, tcp_joins, tcp_ranks, words};

/// What the relay does to the bytes from rank 1 to rank 0, counted from the connection's first.
#[derive(Clone, Copy, Debug)]
enum Tamper {
    /// Inverts one bit.
    Flip(u64),
    /// Cuts both connections.
    Cut(u64),
    /// Carries nothing more.
    Stall(u64),
}

/// Carries bytes until one side ends, or `tamper` does.
fn carry(mut from: TcpStream, mut to: TcpStream, tamper: Option<Tamper>) {
    let mut buffer = vec![0; 64 << 10];
    let mut carried = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => count as u64,
        };
        let here = |at: u64| (carried..carried + count).contains(&at);
        match tamper {
            Some(Tamper::Flip(at)) if here(at) => buffer[(at - carried) as usize] ^= 0x10,
            Some(Tamper::Cut(at)) if here(at) => {
                // What came before arrives.
                if to.write_all(&buffer[..(at - carried) as usize]).is_err() {
                    break;
                }
                let _ = from.shutdown(Shutdown::Both);
                break;
            }
            Some(Tamper::Stall(at)) if here(at) => {
                // The connections stay open and dead until the sender gives up.
                while !matches!(from.read(&mut buffer), Ok(0) | Err(_)) {}
                break;
            }
            _ => {}
        }
        if to.write_all(&buffer[..count as usize]).is_err() {
            break;
        }
        carried += count;
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// An address that leads to `target` through a relay.
fn relay(target: SocketAddr, tamper: Tamper) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(target).unwrap();
        let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
        let backward = thread::spawn(move || carry(back.0, back.1, None));
        carry(near, far, Some(tamper));
        backward.join().unwrap();
    });
    address
}

/// A pair of ranks with a tampering relay between them.
fn tampered(tamper: Tamper, options: &Options) -> Vec<suite::Seat> {
    let route = |rank, mut addresses: Vec<SocketAddr>| {
        if rank == Rank(1) {
            addresses[0] = relay(addresses[0], tamper);
        }
        addresses
    };
    suite::boxed(tcp_joins(2, options, route).into_iter().map(Result::unwrap).collect::<Vec<Tcp>>())
}

/// Bytes of the hello and the response of rank 1, so that tampering begins behind them.
const GREETING: u64 = 66 + 76;
const HEADER: u64 = 60;

#[test]
fn a_flipped_bit_is_an_error_wherever_it_is() {
    let mut random = suite::Random(fresh_seed("a_flipped_bit_is_an_error_wherever_it_is"));
    // Headers, the payload's beginning, middle and end, of a short and a long sum.
    let values = [100, 200_000];
    for length in values {
        let end = GREETING + 4 * length as u64 / 2;
        let mut places = vec![GREETING + 5, GREETING + HEADER, GREETING + HEADER + 9];
        places.extend((0..6).map(|_| GREETING + random.below(end - GREETING)));
        for at in places {
            let outcomes = on_all(&mut tampered(Tamper::Flip(at), &options()), |seat| {
                let mut values = vec![1.0; length];
                seat.all_reduce(&mut values)
            });
            let error = outcomes[0].as_ref().unwrap_err();
            assert!(matches!(error, CollectiveError::Corrupt { peer: Rank(1), .. }), "byte {at}: {error}");
            assert!(error.to_string().contains("all_reduce #0"), "{error}");
        }
    }
}

#[test]
fn a_connection_cut_in_the_middle_names_the_peer() {
    for at in [GREETING + 10, GREETING + HEADER + 1, GREETING + 300_000] {
        let begun = Instant::now();
        let outcomes = on_all(&mut tampered(Tamper::Cut(at), &options()), |seat| {
            seat.all_reduce(&mut vec![1.0; 1_000_000])
        });
        assert!(begun.elapsed() < Duration::from_secs(20));
        for (rank, outcome) in outcomes.iter().enumerate() {
            let error = outcome.as_ref().unwrap_err();
            assert_eq!(error.suspects(), [Rank(1 - rank as u32)], "{error}");
            assert!(error.to_string().contains("all_reduce #0 of 1000000 values"), "{error}");
        }
        let words = words(&outcomes[0]);
        // Which of the two it notices first, the end of what it reads or of what it may write, is open.
        let how = ["in the middle of a message", "Broken pipe", "reset"];
        assert!(words.contains("lost rank 1") && how.iter().any(|how| words.contains(how)), "{words}");
    }
}

#[test]
fn a_connection_that_stalls_in_the_middle_times_out() {
    let mut seats = tampered(Tamper::Stall(GREETING + 300_000), &impatient());
    let outcomes = on_all(&mut seats, |seat| seat.all_reduce(&mut vec![1.0; 8_000_000]));
    for (rank, outcome) in outcomes.iter().enumerate() {
        let error = outcome.as_ref().unwrap_err();
        assert!(!error.suspects().is_empty(), "rank {rank}: {error}");
    }
    // Both run out of patience at about the same time: the first to do so times out or finds its connection closed, and the
    // other may hear of that before its own time is up.
    let own = |error: &CollectiveError| {
        matches!(error, CollectiveError::TimedOut { .. } | CollectiveError::PeerLost { .. })
    };
    assert!(outcomes.iter().any(|outcome| outcome.as_ref().is_err_and(own)), "{outcomes:?}");
}

/// A peer that dies while others send to it and wait for it: everybody fails soon, and names it.
#[test]
fn a_peer_dropped_in_the_middle_of_a_call_is_named() {
    for same_host in [SameHost::Tcp, SameHost::Auto] {
        dropped_in_the_middle(&Options { same_host, ..options() });
    }
}

fn dropped_in_the_middle(options: &Options) {
    let mut ranks = tcp_ranks(4, options);
    let dropped = ranks.pop().unwrap();
    let waiting: Vec<_> = ranks.iter().map(|rank| rank.progress()).collect();
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            let entered = || waiting.iter().all(|progress| progress.own().latest.is_some());
            suite::spin_until(entered);
            drop(dropped);
        });
        let mut seats = suite::boxed(ranks);
        let big = vec![7; 6_000_000];
        for outcome in on_all(&mut seats, |seat| seat.all_to_all_v(&[&big, &big, &big, &big]).map(drop)) {
            let error = outcome.unwrap_err();
            assert_eq!(error.suspects(), [Rank(3)], "{error}");
            assert!(error.to_string().contains("all_to_all_v #0"), "{error}");
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// A peer that is alive but takes nothing: the sender times out instead of filling memory.
#[test]
fn a_peer_that_reads_nothing_times_out() {
    for same_host in [SameHost::Tcp, SameHost::Auto] {
        reads_nothing(&Options { same_host, ..impatient() });
    }
}

fn reads_nothing(options: &Options) {
    let mut seats = suite::boxed(tcp_ranks(2, options));
    let big = vec![7; 64 << 20];
    let outcomes = on_all(&mut seats, |seat| match seat.rank() {
        Rank(0) => seat.broadcast(Rank(0), &mut big.clone()),
        _ => Ok(()),
    });
    let error = outcomes[0].as_ref().unwrap_err();
    assert!(matches!(error, CollectiveError::TimedOut { .. }), "{error}");
    assert_eq!(error.suspects(), [Rank(1)], "{error}");
    let error = seats[1].broadcast(Rank(0), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("rank 0"), "{error}");
}

#[test]
fn a_message_beyond_the_limit_is_refused() {
    let small = Options { message_limit_bytes: 1000, ..options() };
    let outcomes = on_all(&mut suite::tcp(2, &small), |seat| {
        let bytes = vec![1; if seat.rank() == Rank(0) { 1001 } else { 1000 }];
        seat.all_gather(&bytes).and_then(|_| seat.barrier())
    });
    assert!(words(&outcomes[1]).contains("1001 bytes, but messages are limited to 1000"), "{outcomes:?}");
    assert!(outcomes[0].is_err());
}
