//! One rank: joins the others and does what it is told, with buffers that it keeps.

use std::io::{BufRead, Write, stdin, stdout};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use polygram_collective::{Collective, Membership, Options, Tcp, even_edges};
use polygram_domain::{Generation, Rank};
use polygram_handshake::LinkKey;
use serde::Serialize;

use crate::args::RankArgs;
use crate::order::{Op, Order, Split};
use crate::outcome::Outcome;

const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &RankArgs) -> Outcome {
    let bound = Tcp::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    say(&bound.address())?;
    let mut lines = stdin().lock().lines();
    let Some(addresses) = lines.next() else { return Ok(()) };
    let addresses: Vec<SocketAddr> = serde_json::from_str(&addresses?)?;
    let key = LinkKey::of_secret(b"a measurement on this machine");
    let member = Membership::new("bench", Generation(0), args.rank, key);
    let patience = Duration::from_secs(args.patience_seconds);
    let options = Options { same_host: args.same_host, ..Options::new("bench", patience) };
    let seat = Tcp::connect(bound, &member, &addresses, options, DEADLINE)?;
    let mut bench = Bench { seat, values: Vec::new(), bytes: Vec::new(), received: Vec::new() };
    for line in lines {
        say(&bench.once(&serde_json::from_str(&line?)?)?)?;
    }
    Ok(())
}

fn say(words: &impl Serialize) -> Outcome {
    writeln!(stdout(), "{}", serde_json::to_string(words)?)?;
    Ok(stdout().flush()?)
}

struct Bench {
    seat: Tcp,
    values: Vec<f32>,
    bytes: Vec<u8>,
    received: Vec<Vec<u8>>,
}

impl Bench {
    /// Seconds of one call of `order`.
    fn once(&mut self, order: &Order) -> Outcome<f64> {
        let ranks = self.seat.world_size() as usize;
        let sums = matches!(order.op, Op::AllReduce | Op::ReduceScatter);
        if sums {
            self.values.resize(order.bytes.div_ceil(4), 0.0);
            self.values.fill(1.0);
        } else if self.bytes.len() != order.bytes {
            self.bytes.resize(order.bytes, 7);
        }
        let (ends, edges) = (ends(order, ranks), even_edges(self.values.len(), self.seat.world_size()));
        self.seat.barrier()?;
        let begun = Instant::now();
        for _ in 0..order.calls {
            match order.op {
                Op::AllReduce => self.seat.all_reduce(&mut self.values)?,
                Op::ReduceScatter => self.seat.reduce_scatter(&mut self.values, &edges)?,
                Op::AllGather => self.seat.all_gather_into(&self.bytes, &mut self.received)?,
                Op::AllToAllV => {
                    let parts = ends.windows(2).map(|ends| &self.bytes[ends[0]..ends[1]]);
                    let parts: Vec<&[u8]> = parts.collect();
                    self.seat.all_to_all_v_into(&parts, &mut self.received)?;
                }
                Op::Broadcast => self.seat.broadcast(Rank(0), &mut self.bytes)?,
            }
        }
        let seconds = begun.elapsed().as_secs_f64() / f64::from(order.calls);
        if order.op == Op::AllReduce && order.calls == 1 {
            let expected = ranks as f32;
            if self.values.iter().any(|value| *value != expected) {
                return Err("a sum is wrong".into());
            }
        }
        Ok(seconds)
    }
}

/// Where each rank's part of the bytes sent ends, from 0.
fn ends(order: &Order, ranks: usize) -> Vec<usize> {
    let first = match order.split {
        Split::Equal => order.bytes / ranks,
        Split::Skewed if ranks == 1 => order.bytes,
        Split::Skewed => order.bytes * 7 / 10,
    };
    let others = |index: usize| first + (order.bytes - first) * index / (ranks - 1).max(1);
    std::iter::once(0).chain((0..ranks).map(others)).collect()
}
