//! Ranks that lose each other while nobody's connection breaks: a relay between two of them stops carrying.

#![allow(clippy::unwrap_used)]

mod suite;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use polygram_collective::{Collective, CollectiveError, Options, Split, Tcp};
use polygram_domain::{FailureKind, Rank};
use suite::{any_port, options, tcp_joins};

const DETECTION: Duration = Duration::from_secs(1);

/// What a relay holds back, by direction.
#[derive(Clone, Debug, Default)]
struct Held {
    up: Arc<AtomicBool>,
    down: Arc<AtomicBool>,
}

/// An address that leads to `target` through a relay that carries any number of connections.
fn relay(target: SocketAddr, held: Held) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((near, _)) = listener.accept() {
            let Ok(far) = TcpStream::connect(target) else { return };
            let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
            let (up, down) = (Arc::clone(&held.up), Arc::clone(&held.down));
            thread::spawn(move || carry(near, far, &up));
            thread::spawn(move || carry(back.0, back.1, &down));
        }
    });
    address
}

fn carry(mut from: TcpStream, mut to: TcpStream, held: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        while held.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    let _ended = to.shutdown(Shutdown::Write);
}

/// Four ranks on hosts of their own; rank 2 reaches rank 0 over the relay.
fn ranks(held: &Held) -> Vec<Tcp> {
    let options = Options { link_detection: Some(DETECTION), ..options() };
    let route = |rank, mut addresses: Vec<SocketAddr>| {
        if rank == Rank(2) {
            addresses[0] = relay(addresses[0], held.clone());
        }
        addresses
    };
    tcp_joins(4, &options, route).into_iter().map(Result::unwrap).collect()
}

/// How each rank's calls ended, and after how long. A rank that still hears the others may get through some.
fn ends(ranks: &mut [Tcp]) -> Vec<(CollectiveError, Duration)> {
    let begun = Instant::now();
    let until_it_fails = |rank: &mut Tcp| loop {
        if let Err(error) = rank.barrier() {
            return (error, begun.elapsed());
        }
    };
    thread::scope(|scope| {
        let calls: Vec<_> = ranks.iter_mut().map(|rank| scope.spawn(move || until_it_fails(rank))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

/// Whoever is cut off from whom: both calls end in about the detection, and the link is named.
#[test]
fn a_link_that_carries_nothing_is_noticed_and_named() {
    for (up, down) in [(true, true), (true, false), (false, true)] {
        let held = Held::default();
        let mut ranks = ranks(&held);
        thread::scope(|scope| {
            ranks.iter_mut().for_each(|rank| drop(scope.spawn(move || rank.barrier().unwrap())))
        });
        held.up.store(up, Ordering::Relaxed);
        held.down.store(down, Ordering::Relaxed);
        let ended = ends(&mut ranks);
        held.up.store(false, Ordering::Relaxed);
        held.down.store(false, Ordering::Relaxed);
        let mut named = Vec::new();
        for (rank, (error, waited)) in ended.iter().enumerate() {
            assert!(*waited < DETECTION * 3, "rank {rank} noticed after {waited:?}: {error}");
            assert!(error.kind().is_environment(), "rank {rank}: {error}");
            let text = error.to_string();
            let is_link = text.contains("rank 0 hears nothing from rank 2 for 1.0 s")
                || text.contains("rank 2 hears nothing from rank 0 for 1.0 s");
            assert!(is_link, "rank {rank} names another link: {text}");
            if let CollectiveError::Unheard { peer, .. } = error {
                assert_eq!(error.kind(), FailureKind::Timeout);
                assert_eq!(error.suspects(), [*peer]);
                named.push((rank, peer.index()));
            }
        }
        // Who hears nothing says so; with one direction cut the other side hears it from its peers.
        let expected: &[(usize, usize)] = match (up, down) {
            (true, true) => &[(0, 2), (2, 0)],
            (true, false) => &[(0, 2)],
            _ => &[(2, 0)],
        };
        assert!(!named.is_empty() && named.iter().all(|link| expected.contains(link)), "{named:?}");
    }
}

/// A rank that computes for many times the detection is alive, and is waited for; a group within the group relies on the
/// same heartbeats.
#[test]
fn a_rank_that_computes_is_waited_for() {
    let held = Held::default();
    let mut ranks = ranks(&held);
    // A rank that fails leaves its error here, and still comes to every gate: no other rank waits for it in vain.
    let (all_heard, all_seen) = (Barrier::new(4), Barrier::new(4));
    let ended: Vec<_> = thread::scope(|scope| {
        let ranks: Vec<_> = ranks
            .iter_mut()
            .enumerate()
            .map(|(index, rank)| {
                let (held, all_heard, all_seen) = (&held, &all_heard, &all_seen);
                scope.spawn(move || {
                    let mut pairs = heard_after_computing(index, rank);
                    // The link is cut when everybody is through: who leaves a barrier first is not the last to be served.
                    all_heard.wait();
                    held.up.store(true, Ordering::Relaxed);
                    held.down.store(true, Ordering::Relaxed);
                    let begun = Instant::now();
                    // Only its partner never comes: the smaller group's call ends with the larger one's link.
                    let ended = match (&mut pairs, index) {
                        (Ok(pairs), 2) => Ok(Some(pairs.barrier().unwrap_err())),
                        _ => Ok(None),
                    };
                    let waited = begun.elapsed();
                    all_seen.wait();
                    (pairs.and(ended), waited)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    held.up.store(false, Ordering::Relaxed);
    held.down.store(false, Ordering::Relaxed);
    for (index, (ended, waited)) in ended.into_iter().enumerate() {
        let Some(error) = ended.unwrap_or_else(|error| panic!("rank {index}: {error}")) else { continue };
        assert!(waited < DETECTION * 3, "after {waited:?}: {error}");
        assert!(error.to_string().contains("rank 2 hears nothing from rank 0"), "{error}");
    }
}

/// Rank 0 computes for three times the detection before it joins the others' calls.
fn heard_after_computing(index: usize, rank: &mut Tcp) -> Result<Box<dyn Collective>, CollectiveError> {
    let mut pairs = Split::split(rank, &[[0, 2], [1, 3]][index % 2].map(Rank), options()).unwrap();
    if index == 0 {
        thread::sleep(DETECTION * 3);
    }
    rank.barrier()?;
    pairs.barrier()?;
    rank.barrier()?;
    Ok(pairs)
}
