//! The command line as typed.

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};
use polygram_domain::embedding::SameHost;
use polygram_domain::{OutputFormat, Rank};

use crate::order::Op;

/// Measures collectives between processes of this machine.
#[derive(Debug, Parser)]
#[command(name = "polygram-collective", version)]
pub(crate) struct Args {
    /// How results are printed on standard output
    #[arg(short = 'o', long = "output-format", global = true, value_enum, value_name = "FORMAT")]
    #[arg(default_value_t = OutputFormat::Human)]
    pub(crate) output_format: OutputFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Seconds of collectives between processes of this machine
    Bench(BenchArgs),
    /// One rank; for `bench` to start
    #[command(hide = true)]
    Rank(RankArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Processes; a power of two where sums are measured
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) procs: u32,
    /// Sizes, divided by commas
    #[arg(long, value_name = "B,..", value_delimiter = ',', default_value = "8,1000000,16000000")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(0..=1 << 34))]
    pub(crate) bytes: Vec<usize>,
    /// Operations, divided by commas
    #[arg(long = "op", value_name = "OP,..", value_enum, value_delimiter = ',')]
    #[arg(default_value = "all_reduce,all_to_all_v")]
    pub(crate) ops: Vec<Op>,
    /// Measured calls of each
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) repetitions: u32,
    /// Calls before those
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) warm_up: u32,
    /// Whether the processes share memory: "auto" or "tcp"
    #[arg(long, value_name = "PATH", default_value = "auto", value_parser = same_host)]
    pub(crate) same_host: SameHost,
    /// Measure one order, a JSON object with op, split, bytes and calls, for each line of standard input
    #[arg(long)]
    pub(crate) on_request: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RankArgs {
    /// Which one
    #[arg(long, value_parser = |text: &str| text.parse().map(Rank))]
    pub(crate) rank: Rank,
    /// Whether it shares memory
    #[arg(long, value_parser = same_host)]
    pub(crate) same_host: SameHost,
    /// A call in which for so long nothing moves has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) patience_seconds: u64,
}

fn same_host(text: &str) -> Result<SameHost, String> {
    match text {
        "auto" => Ok(SameHost::Auto),
        "tcp" => Ok(SameHost::Tcp),
        _ => Err("\"auto\" or \"tcp\"".to_owned()),
    }
}
