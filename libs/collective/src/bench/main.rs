//! Measures collectives between processes of this machine: `polygram bench collective`.
//!
//! This program starts itself once for each rank. A rank's standard input brings orders and its standard output takes
//! the answers, one JSON document a line; the end of the input is the end of the rank. It is a program of its own
//! because what only launches runs must not link collectives.

mod args;
mod order;
mod outcome;
mod rank;
mod ranks;

use std::io::{BufRead, Write, stdin, stdout};
use std::process::ExitCode;

use clap::Parser;
use polygram_domain::OutputFormat;
use serde::Serialize;

use args::{Args, BenchArgs, Command};
use order::{Op, Order, Split};
use outcome::Outcome;
use ranks::Ranks;

/// What is printed of one measurement: seconds of one call, on the slowest rank.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    op: Op,
    split: Split,
    procs: u32,
    bytes: usize,
    median_seconds: f64,
    min_seconds: f64,
    max_seconds: f64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.command {
        Command::Bench(bench) if bench.on_request => on_request(&bench),
        Command::Bench(bench) => measure(&bench, args.output_format),
        Command::Rank(seat) => rank::run(&seat),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even stderr is gone, the exit status is all that is left to say.
            writeln!(std::io::stderr(), "error: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

/// Measures one order for each line of standard input, so that another program can take turns with this one.
fn on_request(args: &BenchArgs) -> Outcome {
    let mut ranks = Ranks::start(args)?;
    writeln!(stdout(), "{{\"ready\":true}}")?;
    for line in stdin().lock().lines() {
        let seconds = ranks.once(&serde_json::from_str(&line?)?)?;
        writeln!(stdout(), "{{\"seconds\":{seconds:e}}}")?;
        stdout().flush()?;
    }
    ranks.end()
}

fn measure(args: &BenchArgs, format: OutputFormat) -> Outcome {
    let mut ranks = Ranks::start(args)?;
    let mut figures = Vec::new();
    for op in &args.ops {
        for bytes in &args.bytes {
            let skewed = *op == Op::AllToAllV;
            for split in [Split::Equal, Split::Skewed].into_iter().take(1 + usize::from(skewed)) {
                let order = Order::new(*op, split, *bytes);
                for _ in 0..args.warm_up {
                    ranks.once(&order)?;
                }
                let seconds = (0..args.repetitions.max(1)).map(|_| ranks.once(&order));
                let mut seconds = seconds.collect::<Outcome<Vec<f64>>>()?;
                seconds.sort_by(f64::total_cmp);
                let figure = Figure {
                    op: *op,
                    split,
                    procs: args.procs,
                    bytes: *bytes,
                    median_seconds: seconds[seconds.len() / 2],
                    min_seconds: seconds[0],
                    max_seconds: seconds[seconds.len() - 1],
                };
                match format {
                    OutputFormat::Human => writeln!(stdout(), "{}", line_of(&figure)?)?,
                    OutputFormat::Jsonl => writeln!(stdout(), "{}", serde_json::to_string(&figure)?)?,
                    OutputFormat::Json => {}
                }
                figures.push(figure);
            }
        }
    }
    if format == OutputFormat::Json {
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&figures)?)?;
    }
    ranks.end()
}

fn line_of(figure: &Figure) -> Outcome<String> {
    let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let (op, split) = (word(serde_json::to_value(figure.op)?), word(serde_json::to_value(figure.split)?));
    let Figure { procs, bytes, median_seconds, min_seconds, max_seconds, .. } = figure;
    Ok(format!(
        "{op:<14} {split:<7} {procs:>2} processes {bytes:>11} bytes  {:>10.1} us ({:.1} to {:.1})  {:>6.2} GB/s",
        1e6 * median_seconds,
        1e6 * min_seconds,
        1e6 * max_seconds,
        1e-9 * *bytes as f64 / median_seconds,
    ))
}
