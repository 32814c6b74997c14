//! What every implementation of `Collective` must do, whatever it is made of.
//!
//! Each claim takes a `Maker` and a number of ranks; `claims` runs them all. Ranks are threads here, and no claim
//! depends on how fast they are, except that a rank is late after `PATIENCE`.

// Each test program uses its own part of this module.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

pub(crate) mod claims;
pub(crate) mod failures;
pub(crate) mod sums;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use polygram_collective::{
    Collective, CollectiveError, JoinError, Local, Membership, Options, Solo, Split, Tcp,
};
use polygram_domain::embedding::SameHost;
use polygram_domain::{Generation, Rank};
use polygram_handshake::LinkKey;

/// `failure_detection` of groups that are meant to fail.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// A rank as the claims see it.
pub(crate) type Seat = Box<dyn Collective>;

/// Makes all ranks of a group.
pub(crate) type Maker = fn(u32, &Options) -> Vec<Seat>;

/// The usual options: failures are found late enough for a busy machine. Sockets alone, so that relays see all bytes.
pub(crate) fn options() -> Options {
    Options { same_host: SameHost::Tcp, ..Options::new("test", Duration::from_secs(60)) }
}

/// Options of groups that are meant to time out.
pub(crate) fn impatient() -> Options {
    Options { failure_detection: PATIENCE, ..options() }
}

pub(crate) fn solo(world_size: u32, options: &Options) -> Vec<Seat> {
    assert_eq!(world_size, 1);
    vec![Box::new(Solo::new(&options.group))]
}

pub(crate) fn local(world_size: u32, options: &Options) -> Vec<Seat> {
    boxed(Local::ranks(world_size, options))
}

/// Over sockets alone.
pub(crate) fn tcp(world_size: u32, options: &Options) -> Vec<Seat> {
    boxed(tcp_ranks(world_size, options))
}

/// Over shared memory.
pub(crate) fn shared(world_size: u32, options: &Options) -> Vec<Seat> {
    boxed(tcp_ranks(world_size, &Options { same_host: SameHost::Auto, ..options.clone() }))
}

/// Every other rank of a larger group of threads.
pub(crate) fn part_of_local(world_size: u32, options: &Options) -> Vec<Seat> {
    every_other(Local::ranks(2 * world_size, &of_the_whole(options)), options)
}

/// Every other rank of a larger group over sockets.
pub(crate) fn part_of_tcp(world_size: u32, options: &Options) -> Vec<Seat> {
    every_other(tcp_ranks(2 * world_size, &of_the_whole(options)), options)
}

/// Every other rank of a larger group over shared memory.
pub(crate) fn part_of_shared(world_size: u32, options: &Options) -> Vec<Seat> {
    let options = Options { same_host: SameHost::Auto, ..options.clone() };
    every_other(tcp_ranks(2 * world_size, &of_the_whole(&options)), &options)
}

fn of_the_whole(options: &Options) -> Options {
    Options { group: "whole".to_string(), failure_detection: Duration::from_secs(60), ..options.clone() }
}

/// Divides `ranks` into those of even and those of odd number; answers the odd ones' group. The larger group is gone then.
fn every_other<S: Split>(mut ranks: Vec<S>, options: &Options) -> Vec<Seat> {
    let world_size = ranks.len() as u32;
    let divided = thread::scope(|scope| {
        let divide = |rank: &mut S| {
            let own = rank.rank().0 % 2;
            let members: Vec<Rank> = (0..world_size).filter(|seat| seat % 2 == own).map(Rank).collect();
            rank.split(&members, options.clone()).unwrap()
        };
        let threads: Vec<_> = ranks.iter_mut().map(|rank| scope.spawn(move || divide(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    divided.into_iter().skip(1).step_by(2).collect()
}

/// Over the devices 0, 1, … of this host.
#[cfg(feature = "nccl")]
pub(crate) fn nccl(world_size: u32, options: &Options) -> Vec<Seat> {
    let ranks = tcp_ranks(world_size, options);
    thread::scope(|scope| {
        let joins: Vec<_> = (0..)
            .zip(ranks)
            .map(|(device, rank)| scope.spawn(move || rank.with_nccl(device).unwrap()))
            .collect();
        joins.into_iter().map(|join| Box::new(join.join().unwrap()) as Seat).collect()
    })
}

pub(crate) fn boxed<C: Collective + 'static>(ranks: Vec<C>) -> Vec<Seat> {
    ranks.into_iter().map(|rank| Box::new(rank) as Seat).collect()
}

/// An address on this host; the system chooses the port.
pub(crate) fn any_port() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

pub(crate) fn member(rank: u32) -> Membership {
    Membership::new("suite", Generation(3), Rank(rank), LinkKey::of_secret(b"a secret of these tests"))
}

pub(crate) fn tcp_ranks(world_size: u32, options: &Options) -> Vec<Tcp> {
    let joined = tcp_joins(world_size, options, |_, addresses| addresses);
    joined.into_iter().map(Result::unwrap).collect()
}

/// Joins a group over TCP; `route` may give a rank other addresses than the true ones.
pub(crate) fn tcp_joins(
    world_size: u32,
    options: &Options,
    route: impl Fn(Rank, Vec<SocketAddr>) -> Vec<SocketAddr>,
) -> Vec<Result<Tcp, JoinError>> {
    tcp_joins_within(Duration::from_secs(30), world_size, options, route)
}

/// [`tcp_joins`] with a deadline.
pub(crate) fn tcp_joins_within(
    deadline: Duration,
    world_size: u32,
    options: &Options,
    route: impl Fn(Rank, Vec<SocketAddr>) -> Vec<SocketAddr>,
) -> Vec<Result<Tcp, JoinError>> {
    let bound: Vec<_> = (0..world_size).map(|_| Tcp::bind(any_port()).unwrap()).collect();
    let addresses: Vec<_> = bound.iter().map(|bound| bound.address()).collect();
    thread::scope(|scope| {
        let joins: Vec<_> = (0..)
            .zip(bound)
            .map(|(rank, bound)| {
                let addresses = route(Rank(rank), addresses.clone());
                let join = move || Tcp::connect(bound, &member(rank), &addresses, options.clone(), deadline);
                scope.spawn(join)
            })
            .collect();
        joins.into_iter().map(|join| join.join().unwrap()).collect()
    })
}

/// Runs `body` on every rank at once, and answers what each said, by rank. Seats stay until all are done, so that
/// nobody is lost just because it was quick.
pub(crate) fn on_all<R: Send>(seats: &mut [Seat], body: impl Fn(&mut dyn Collective) -> R + Sync) -> Vec<R> {
    let body = &body;
    thread::scope(|scope| {
        let threads: Vec<_> = seats.iter_mut().map(|seat| scope.spawn(move || body(seat.as_mut()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The words of an error that must be there.
pub(crate) fn words<R: std::fmt::Debug>(outcome: &Result<R, CollectiveError>) -> String {
    outcome.as_ref().unwrap_err().to_string()
}

/// Waits, without sleeping, until `ready`.
pub(crate) fn spin_until(ready: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !ready() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never became ready");
        thread::yield_now();
    }
}

/// Random numbers that a printed seed gives again (SplitMix64: Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Of either sign and of very different sizes, so that the order of a sum shows in its bits.
    pub(crate) fn float(&mut self) -> f64 {
        const SCALES: [f64; 8] = [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3];
        let mantissa = (self.next() >> 11) as f64 / (1_u64 << 53) as f64 - 0.5;
        mantissa * SCALES[self.below(8) as usize]
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
        bytes
    }

    /// The stream of one rank.
    pub(crate) fn of_rank(seed: u64, rank: Rank) -> Random {
        Random(seed ^ (u64::from(rank.0) + 1).wrapping_mul(0x2545_f491_4f6c_dd1d))
    }
}

/// A seed of its own for every run, printed.
pub(crate) fn fresh_seed(claim: &str) -> u64 {
    let seed = std::env::var("POLYGRAM_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let clock =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = seed.unwrap_or_else(clock);
    println!("{claim}: POLYGRAM_TEST_SEED={seed}");
    seed
}
