//! Times `all_reduce` of 16 MB: two processes over TCP, and two threads.
//!
//! `cargo run --release -p polygram-collective --example all_reduce [-- VALUES ROUNDS]`; GB/s are bytes of the
//! vector per second, of the median round.

use std::error::Error;
use std::io::{BufRead, BufReader, Write, stdout};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use polygram_collective::{Collective, Local, Membership, Options, Tcp};
use polygram_domain::{Generation, Rank};

const DEADLINE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, first, values, rounds] = arguments.as_slice()
        && role == "second"
    {
        return second(first.parse()?, values.parse()?, rounds.parse()?);
    }
    let number = |at: usize, usual| arguments.get(at).map_or(Ok(usual), |text| text.parse());
    let (values, rounds) = (number(0, 4_000_000)?, number(1, 40)?);
    over_processes(values, rounds)?;
    over_threads(values, rounds)
}

fn options() -> Options {
    Options::new("bench", DEADLINE)
}

/// Seconds of every round.
fn measure(seat: &mut dyn Collective, values: usize, rounds: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut vector = vec![1.0; values];
    let mut seconds = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        vector.fill(1.0);
        seat.barrier()?;
        let begun = Instant::now();
        seat.all_reduce(&mut vector)?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    assert!(vector.iter().all(|value| *value == 2.0));
    Ok(seconds)
}

fn report(what: &str, values: usize, mut seconds: Vec<f64>) -> Result<(), Box<dyn Error>> {
    seconds.sort_by(f64::total_cmp);
    let gigabytes = 4e-9 * values as f64;
    let median = seconds[seconds.len() / 2];
    let rate = |seconds| gigabytes / seconds;
    writeln!(
        stdout(),
        "{what}: {:.1} MB in {:.2} ms, {:.2} GB/s (best {:.2})",
        1e3 * gigabytes,
        1e3 * median,
        rate(median),
        rate(seconds[0])
    )?;
    Ok(())
}

fn over_processes(values: usize, rounds: usize) -> Result<(), Box<dyn Error>> {
    let bound = Tcp::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["second", &bound.address().to_string(), &values.to_string(), &rounds.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output of the second process")?).read_line(&mut line)?;
    let addresses = [bound.address(), line.trim().parse()?];
    let member = Membership::new("bench", Generation(0), Rank(0));
    let mut tcp = Tcp::connect(bound, &member, &addresses, options(), DEADLINE)?;
    let seconds = measure(&mut tcp, values, rounds)?;
    child.wait()?;
    report("2 processes over tcp", values, seconds)
}

fn second(first: SocketAddr, values: usize, rounds: usize) -> Result<(), Box<dyn Error>> {
    let bound = Tcp::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    writeln!(stdout(), "{}", bound.address())?;
    let addresses = [first, bound.address()];
    let member = Membership::new("bench", Generation(0), Rank(1));
    let mut tcp = Tcp::connect(bound, &member, &addresses, options(), DEADLINE)?;
    measure(&mut tcp, values, rounds)?;
    Ok(())
}

fn over_threads(values: usize, rounds: usize) -> Result<(), Box<dyn Error>> {
    let mut ranks = Local::ranks(2, &options());
    let seconds = thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .iter_mut()
            .map(|rank| scope.spawn(move || measure(rank, values, rounds).map_err(|error| error.to_string())))
            .collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().map_err(|_| "a rank panicked".to_string()));
        joined.last().unwrap_or_else(|| Err("no ranks".to_string()))
    })??;
    report("2 threads", values, seconds)
}
