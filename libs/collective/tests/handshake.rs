//! Who may join a group over TCP, and what those are told who may not.

#![allow(clippy::unwrap_used)]

mod suite;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use polygram_collective::{Collective, JoinError, Membership, Options, Tcp};
use polygram_domain::{Generation, Rank};
use polygram_handshake::LinkKey;
use suite::{any_port, member, options, tcp_joins};

const SOON: Duration = Duration::from_secs(30);
const BRIEF: Duration = Duration::from_millis(400);

/// Rank 1 joins as `caller` under `theirs`, while rank 0 waits for the usual rank 1: what each gets.
fn meet(caller: &Membership, theirs: &Options, world_size: usize) -> [Result<Tcp, JoinError>; 2] {
    let (first, second) = (Tcp::bind(any_port()).unwrap(), Tcp::bind(any_port()).unwrap());
    let addresses = [first.address(), second.address()];
    let mut more = addresses.to_vec();
    more.resize(world_size, second.address());
    thread::scope(|scope| {
        let waits = scope.spawn(|| Tcp::connect(first, &member(0), &addresses, options(), BRIEF));
        let dials = Tcp::connect(second, caller, &more, theirs.clone(), SOON);
        [waits.join().unwrap(), dials]
    })
}

#[test]
fn strangers_are_refused_with_the_reason() {
    let usual = member(1);
    let other_group = Options::new("experts", options().failure_detection);
    let other_form = Options { short_bytes: 1, ..options() };
    let cases = [
        (
            Membership { run: "other".into(), ..usual.clone() },
            options(),
            2,
            "run \"other\" instead of \"suite\"",
        ),
        (
            Membership { generation: Generation(2), ..usual.clone() },
            options(),
            2,
            "generation 2 instead of 3",
        ),
        (Membership { version: 99, ..usual.clone() }, options(), 2, "protocol version 99 instead of"),
        (
            Membership { key: LinkKey::of_secret(b"another secret"), ..usual.clone() },
            options(),
            2,
            "does not know the run's token",
        ),
        (usual.clone(), options(), 4, "a group of size 4 instead of 2"),
        (usual.clone(), other_group, 2, "group \"experts\" instead of \"test\""),
        (usual, other_form, 2, "short_bytes 1 instead of"),
    ];
    for (caller, theirs, world_size, reason) in cases {
        let [waits, dials] = meet(&caller, &theirs, world_size);
        let error = dials.err().unwrap();
        assert!(matches!(error, JoinError::Refused { peer: Rank(0), .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        let error = waits.err().unwrap();
        let JoinError::Missing { missing, .. } = &error else { panic!("{error}") };
        assert_eq!(missing, &[Rank(1)]);
        assert!(error.to_string().contains(reason), "{error}");
    }
}

/// The handshake of rank 1 is recorded on its way and said again: the rank that sits keeps its seat, and who said it
/// learns nothing but that.
#[test]
fn a_replayed_handshake_gets_no_seat() {
    const HELLO_BYTES: usize = 66;
    const CHALLENGE_BYTES: usize = 44;
    const RESPONSE_BYTES: usize = 76;
    const REPLY_BYTES: usize = 51;
    let mut bound = (0..3).map(|_| Tcp::bind(any_port()).unwrap());
    let (zero, one, two) = (bound.next().unwrap(), bound.next().unwrap(), bound.next().unwrap());
    let addresses = [zero.address(), one.address(), two.address()];
    let relay = TcpListener::bind(any_port()).unwrap();
    let through_relay = [relay.local_addr().unwrap(), addresses[1], addresses[2]];
    thread::scope(|scope| {
        let zero = scope.spawn(|| Tcp::connect(zero, &member(0), &addresses, options(), SOON));
        let one = scope.spawn(|| Tcp::connect(one, &member(1), &through_relay, options(), SOON));
        let (mut near, _) = relay.accept().unwrap();
        let mut far = TcpStream::connect(addresses[0]).unwrap();
        let (mut hello, mut challenge) = ([0; HELLO_BYTES], [0; CHALLENGE_BYTES]);
        let (mut response, mut reply) = ([0; RESPONSE_BYTES], [0; REPLY_BYTES]);
        let pass = |from: &mut TcpStream, bytes: &mut [u8], to: &mut TcpStream| {
            from.read_exact(bytes).unwrap();
            to.write_all(bytes).unwrap();
        };
        pass(&mut near, &mut hello, &mut far);
        pass(&mut far, &mut challenge, &mut near);
        pass(&mut near, &mut response, &mut far);
        pass(&mut far, &mut reply, &mut near);

        let mut again = TcpStream::connect(addresses[0]).unwrap();
        again.write_all(&hello).unwrap();
        let mut fresh = [0; CHALLENGE_BYTES];
        again.read_exact(&mut fresh).unwrap();
        assert_ne!(fresh, challenge, "each connection has a challenge of its own");
        again.write_all(&response).unwrap();
        let mut answer = Vec::new();
        again.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.contains("does not know the run's token"), "{answer:?}");

        // Who knows the token and is a second process with the rank is refused by name.
        let bound = Tcp::bind(any_port()).unwrap();
        let second = Tcp::connect(bound, &member(1), &addresses, options(), SOON).err().unwrap();
        assert!(second.to_string().contains("rank 1 is connected already"), "{second}");

        let two = scope.spawn(|| Tcp::connect(two, &member(2), &addresses, options(), SOON));
        for joined in [zero, one, two] {
            assert!(joined.join().unwrap().is_ok());
        }
    });
}

#[test]
fn an_address_of_another_rank_is_found_out() {
    let swapped = |rank: Rank, mut addresses: Vec<SocketAddr>| {
        if rank == Rank(2) {
            addresses.swap(0, 1);
        }
        addresses
    };
    let options = options();
    let bound: Vec<_> = (0..3).map(|_| Tcp::bind(any_port()).unwrap()).collect();
    let addresses: Vec<_> = bound.iter().map(|bound| bound.address()).collect();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let joins: Vec<_> = (0..)
            .map(Rank)
            .zip(bound)
            .map(|(rank, bound)| {
                let (addresses, options) = (swapped(rank, addresses.clone()), options.clone());
                scope.spawn(move || Tcp::connect(bound, &member(rank.0), &addresses, options, BRIEF))
            })
            .collect();
        joins.into_iter().map(|join| join.join().unwrap()).collect()
    });
    let error = outcomes[2].as_ref().err().unwrap();
    assert!(error.to_string().contains("a call for rank 0 instead of 1"), "{error}");
}

#[test]
fn silent_and_babbling_strangers_hold_nobody_up() {
    let bound: Vec<_> = (0..2).map(|_| Tcp::bind(any_port()).unwrap()).collect();
    let addresses: Vec<_> = bound.iter().map(|bound| bound.address()).collect();
    let silent = TcpStream::connect(addresses[0]).unwrap();
    let mut babbling = TcpStream::connect(addresses[0]).unwrap();
    babbling.write_all(b"GET / HTTP/1.1\r\nhost: polygram\r\n\r\n").unwrap();
    let hung_up = TcpStream::connect(addresses[0]).unwrap();
    drop(hung_up);
    let begun = Instant::now();
    thread::scope(|scope| {
        let joins: Vec<_> = (0..)
            .zip(bound)
            .map(|(rank, bound)| {
                let addresses = &addresses;
                scope.spawn(move || {
                    let mut tcp = Tcp::connect(bound, &member(rank), addresses, options(), SOON).unwrap();
                    tcp.barrier().unwrap();
                })
            })
            .collect();
        joins.into_iter().for_each(|join| join.join().unwrap());
    });
    assert!(begun.elapsed() < SOON / 2);
    let mut answer = Vec::new();
    // The end may come as a reset, since not all of the babble was read.
    let _ = babbling.read_to_end(&mut answer);
    drop(silent);
}

#[test]
fn missing_ranks_are_named_when_the_deadline_comes() {
    let bound = Tcp::bind(any_port()).unwrap();
    let nobody = TcpListener::bind(any_port()).unwrap().local_addr().unwrap();
    let addresses = [bound.address(), nobody, nobody];
    let error = Tcp::connect(bound, &member(0), &addresses, options(), BRIEF).err().unwrap();
    let JoinError::Missing { missing, waited, .. } = &error else { panic!("{error}") };
    assert_eq!(missing, &[Rank(1), Rank(2)]);
    assert!(*waited >= BRIEF);
    assert!(error.to_string().contains("ranks 1, 2, which did not connect"), "{error}");

    let bound = Tcp::bind(any_port()).unwrap();
    let error = Tcp::connect(bound, &member(1), &addresses, options(), BRIEF).err().unwrap();
    assert!(matches!(error, JoinError::Unreachable { peer: Rank(0), .. }), "{error}");
}

#[test]
fn a_peer_that_never_answers_is_named() {
    let mute = TcpListener::bind(any_port()).unwrap();
    let bound = Tcp::bind(any_port()).unwrap();
    let addresses = [mute.local_addr().unwrap(), bound.address()];
    let error = Tcp::connect(bound, &member(1), &addresses, options(), BRIEF).err().unwrap();
    assert!(error.to_string().contains("could not join rank 0"), "{error}");
    assert!(error.to_string().contains("no answer"), "{error}");
}

#[test]
fn impossible_arguments_are_refused() {
    let connect = |member: Membership, options: Options| {
        let bound = Tcp::bind(any_port()).unwrap();
        let addresses = [bound.address()];
        Tcp::connect(bound, &member, &addresses, options, BRIEF).err().unwrap()
    };
    assert!(connect(member(1), options()).to_string().contains("rank 1 with 1 addresses"));
    let endless = Membership { run: "x".repeat(5000), ..member(0) };
    assert!(matches!(connect(endless, options()), JoinError::Argument { .. }));
    // And the possible ones work.
    assert!(tcp_joins(2, &options(), |_, addresses| addresses).iter().all(Result::is_ok));
}
