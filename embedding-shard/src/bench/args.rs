//! The command line of `polygram-embedding-shard bench`, which `polygram bench shard` runs.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use polygram_domain::{OutputFormat, RunFile, RunSpec};

use super::error::BenchError;
use super::ids::Distribution;

/// Measures this machine with the shard's own code, and in the same run what the machine can do at best.
#[derive(Clone, Debug, Parser)]
#[command(name = "polygram-embedding-shard bench", version, max_term_width = 110)]
pub struct BenchArgs {
    /// Sizes and ids.
    #[command(flatten)]
    pub(super) sizes: Sizes,
    /// What is measured: without it gather, commit and exchange.
    #[command(subcommand)]
    pub(super) section: Option<Section>,
}

/// What is measured.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Section {
    /// Rows out of a store, in process, against random reads of the same bytes
    Gather,
    /// Sums of duplicates and row updates, in process, against reads and writes of the same bytes
    Commit,
    /// Lookup, push and commit between one worker and shards in processes of their own, against plain TCP
    Exchange(ExchangeArgs),
    /// Forward, backward and update of every id of a step, in process, as benches/peers measures other libraries
    Step(StepArgs),
    /// A whole run file's tables: start-up, memory, and steps until the memory ceiling
    Full(FullArgs),
    /// One shard's process, for the sections that need some
    #[command(hide = true)]
    Serve,
}

/// Sizes, ids and repetitions of every section.
#[derive(Clone, Debug, Args)]
pub(super) struct Sizes {
    /// Rows of the first table; each later one has two more
    #[arg(long, global = true, value_name = "N", default_value_t = 100_003)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 31))]
    pub(super) rows: u32,
    /// Values per row
    #[arg(long, global = true, value_name = "N", default_value_t = 256)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(super) width: u32,
    /// Longest n-gram; tables are (orders − 1) · heads
    #[arg(long, global = true, value_name = "N", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=16))]
    pub(super) orders: u32,
    /// Tables per order
    #[arg(long, global = true, value_name = "N", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) heads: u32,
    /// Tokens of a step; ids are tokens · tables
    #[arg(long, global = true, value_name = "N", default_value_t = 8192)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 26))]
    pub(super) tokens: usize,
    /// Which ids, one after another
    #[arg(long, global = true, value_enum, value_delimiter = ',', default_value = "uniform,zipf")]
    pub(super) ids: Vec<Distribution>,
    /// Zipf's exponent
    #[arg(long, global = true, value_name = "S", default_value_t = 1.0)]
    pub(super) exponent: f64,
    /// Lanes in process, each with a thread of its own, one number after another
    #[arg(long, global = true, value_name = "N", value_delimiter = ',', default_value = "1,2")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) lanes: Vec<u32>,
    /// Repetitions
    #[arg(long, global = true, value_name = "N", default_value_t = 21)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub(super) repetitions: usize,
    /// Steps whose ids are made; repetitions go round them
    #[arg(long, global = true, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub(super) steps: usize,
    /// Seed of ids
    #[arg(long, global = true, value_name = "SEED", default_value_t = 1)]
    pub(super) seed: u64,
    /// Override one key of the run file behind it, such as embedding.same_host="tcp"
    #[arg(long = "set", global = true, value_name = "SECTION.KEY=VALUE")]
    pub(super) overrides: Vec<String>,
    /// Form of the report
    #[arg(short = 'o', long = "output-format", global = true, value_enum, value_name = "FORMAT")]
    #[arg(default_value_t = OutputFormat::Human, overrides_with = "output_format")]
    pub(super) output_format: OutputFormat,
}

/// Sizes of the exchange.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct ExchangeArgs {
    /// Shard processes
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) shards: u32,
    /// Cells that the step's tokens are divided into
    #[arg(long, value_name = "N", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(super) cells: u32,
}

impl Default for ExchangeArgs {
    fn default() -> ExchangeArgs {
        ExchangeArgs { shards: 2, cells: 4 }
    }
}

/// How whole steps are run.
#[derive(Clone, Debug, Args)]
pub(super) struct StepArgs {
    /// Ids to use: little-endian u32 [steps, tables, tokens]
    #[arg(long, value_name = "FILE")]
    pub(super) id_file: Option<PathBuf>,
    /// Which rows are written before anything is measured
    #[arg(long, value_enum, default_value_t = Written::All)]
    pub(super) written: Written,
    /// Run one step for each line on standard input, and answer each with its seconds
    #[arg(long)]
    pub(super) on_request: bool,
}

/// Rows that exist before a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Written {
    /// Every row of every table
    All,
    /// Those that the steps use
    Used,
}

/// How a whole run file is served.
#[derive(Clone, Debug, Args)]
pub(super) struct FullArgs {
    /// The run file
    #[arg(long, value_name = "RUNFILE", default_value = "configs/longcat-flash-lite.toml")]
    pub(super) config: PathBuf,
    /// Shard processes
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) shards: u32,
    /// Ceiling of all shards' records together, in GiB
    #[arg(long, value_name = "GIB", default_value_t = 12.0)]
    #[arg(value_parser = gibibytes)]
    pub(super) memory_limit_gib: f64,
    /// Stop after so many steps even below the ceiling
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub(super) most_steps: u64,
}

fn gibibytes(text: &str) -> Result<f64, String> {
    const RANGE: RangeInclusive<f64> = 1e-6..=65_536.0;
    let number = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if RANGE.contains(&number) {
        return Ok(number);
    }
    Err(format!("{number} is not in {}..={}", RANGE.start(), RANGE.end()))
}

impl Sizes {
    /// The smallest run with these tables, resolved; `more` overrides come before the user's own.
    pub(super) fn spec(&self, more: &[String]) -> Result<RunSpec, BenchError> {
        Ok(self.file(more)?.resolve()?)
    }

    /// As [`Sizes::spec`], as written.
    pub(super) fn file(&self, more: &[String]) -> Result<RunFile, BenchError> {
        if !(self.exponent > 0.0 && self.exponent < 10.0) {
            return Err(BenchError::Usage(format!("--exponent {} is not between 0 and 10", self.exponent)));
        }
        let tables = u64::from(self.orders.saturating_sub(1)) * u64::from(self.heads);
        let mut overrides = vec![
            format!("model.hidden_size={}", u64::from(self.width) * tables),
            format!("ngram.max_order={}", self.orders),
            format!("ngram.heads={}", self.heads),
            format!("ngram.base_rows={}", self.rows),
            "topology.workers=1".to_owned(),
            "topology.shards=1".to_owned(),
            "embedding.memory_limit_gib=1024.0".to_owned(),
        ];
        overrides.extend_from_slice(more);
        overrides.extend_from_slice(&self.overrides);
        let text = include_str!("../../../configs/tiny.toml");
        Ok(RunFile::parse(text, "configs/tiny.toml", &overrides)?)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn declaration_is_consistent() {
        BenchArgs::command().debug_assert();
    }

    #[test]
    fn flags_go_before_and_after_the_section() {
        for line in ["bench --rows 977 gather -o json", "bench gather --rows 977 -o jsonl -o json"] {
            let args = BenchArgs::try_parse_from(line.split(' ')).unwrap();
            assert_eq!((args.sizes.rows, args.sizes.output_format), (977, OutputFormat::Json));
            assert_eq!(args.sizes.spec(&[]).unwrap().tables().rows(), 12 * 977 + 2 * 66);
        }
    }

    #[test]
    fn bad_sizes_are_refused_in_words() {
        for (flags, word) in [
            ("--tokens 0", "--tokens"),
            ("--lanes 0", "--lanes"),
            ("--exponent 0", "--exponent"),
            ("--orders 1", "--orders"),
            ("--heads 0", "--heads"),
            ("--width 0", "--width"),
            ("--rows 0", "--rows"),
            ("--rows 4294967295", "--rows"),
            ("--tokens 18446744073709551615", "--tokens"),
            ("--repetitions 18446744073709551615", "--repetitions"),
            ("--steps 18446744073709551615", "--steps"),
            ("--lanes 4294967295", "--lanes"),
            ("--exponent nan", "--exponent"),
            ("exchange --shards 4294967295", "--shards"),
            ("exchange --cells 4294967295", "--cells"),
            ("full --memory-limit-gib 1e300", "--memory-limit-gib"),
            ("full --most-steps 0", "--most-steps"),
            ("--set embedding.optimizer=\"none\"", "optimizer"),
        ] {
            let text = match BenchArgs::try_parse_from(format!("bench {flags}").split(' ')) {
                Ok(args) => args.sizes.spec(&[]).unwrap_err().to_string(),
                Err(error) => error.to_string(),
            };
            assert!(text.contains(word), "{flags}: {word:?} is not in {text:?}");
        }
    }
}
