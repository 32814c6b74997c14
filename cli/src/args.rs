//! The command line as typed (clap). Nothing here reads a file or decides anything: [`crate::settings`] resolves.
//!
//! New knobs of training go into the run file, not here.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use polygram_domain::OutputFormat;

/// Trains language models whose parameters live mostly in hashed n-gram embedding tables.
#[derive(Debug, Parser)]
#[command(name = "polygram", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Exit status: 0 done, 1 the run or the work failed, 2 wrong usage or configuration, \
                        3 stopped on request after a commit.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct GlobalArgs {
    /// How results are printed on standard output
    #[arg(short = 'o', long = "output-format", global = true, value_enum, value_name = "FORMAT")]
    #[arg(default_value_t = OutputFormat::Human, help_heading = GLOBAL_OPTIONS)]
    pub(crate) output_format: OutputFormat,
    /// Say more on standard error
    #[arg(short = 'v', long, global = true, action = clap::ArgAction::Count, help_heading = GLOBAL_OPTIONS)]
    pub(crate) verbose: u8,
    /// Root of the runs, for the commands that have one; it may stand before or after the command
    #[arg(long, value_name = "URL", global = true, hide = true)]
    pub(crate) root: Option<String>,
}

/// Heading of the options that every command takes.
const GLOBAL_OPTIONS: &str = "Global options";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a run on this machine: starts every process, follows it, resumes it if it exists
    Train(TrainArgs),
    /// What a run file costs, before anything starts
    Plan(PlanArgs),
    /// Every key of a run file: what it does, what it takes, its default
    Keys(KeysArgs),
    /// State, step and members of a run
    Status(RunArgs),
    /// The runs under a root
    Runs(RootArgs),
    /// One line per step of a run
    Metrics(MetricsArgs),
    /// Who was lost, what followed and where the run went on, from the store alone
    Why(RunArgs),
    /// Digest of a committed training state, the same in any topology
    Digest(CheckpointArgs),
    /// One line per step with its samples, bits and fingerprints, each with the hash of the line before
    Ledger(LedgerArgs),
    /// Do steps of a run again, beside it, and name the first that does not come out the same
    VerifyReplay(VerifyReplayArgs),
    /// Checkpoints of a run: what there is, whether it is sound, and what may go
    #[command(subcommand)]
    Ckpt(CkptCommand),
    /// Logits and loss of a Hugging Face model for given tokens
    Logits(LogitsArgs),
    /// N-gram row ids and table sizes
    #[command(subcommand)]
    Ngram(NgramCommand),
    /// Token files: make and look at them
    #[command(subcommand)]
    Data(DataCommand),
    /// Put a run into the queue of a pool
    Submit(SubmitArgs),
    /// The queue of a pool
    Jobs(JobsArgs),
    /// Take a job out of the queue, or have it commit and stop; once more, and it stops at once
    Cancel(CancelArgs),
    /// A pool of workers and shards with a queue of runs
    #[command(subcommand)]
    Pool(PoolCommand),
    /// What this machine does against what it could do
    #[command(subcommand)]
    Bench(BenchCommand),
}

impl Command {
    /// Whether `--root` says anything to the command.
    pub(crate) fn takes_root(&self) -> bool {
        match self {
            Command::Train(_)
            | Command::Status(_)
            | Command::Runs(_)
            | Command::Metrics(_)
            | Command::Why(_)
            | Command::Digest(_)
            | Command::Ledger(_)
            | Command::VerifyReplay(_)
            | Command::Ckpt(_)
            | Command::Pool(PoolCommand::Up(_))
            | Command::Bench(BenchCommand::Checkpoint(_)) => true,
            Command::Plan(_)
            | Command::Keys(_)
            | Command::Logits(_)
            | Command::Ngram(_)
            | Command::Data(_)
            | Command::Submit(_)
            | Command::Jobs(_)
            | Command::Cancel(_)
            | Command::Pool(PoolCommand::Members(_))
            | Command::Bench(BenchCommand::Shard(_) | BenchCommand::Collective(_) | BenchCommand::Step(_)) => {
                false
            }
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// First step
    #[arg(long, value_name = "STEP", conflicts_with = "last")]
    pub(crate) from: Option<u64>,
    /// Last step
    #[arg(long, value_name = "STEP", conflicts_with = "last")]
    pub(crate) to: Option<u64>,
    /// The newest N steps only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) last: Option<u64>,
}

/// Where a pool is.
#[derive(Clone, Debug, Args)]
pub(crate) struct PoolArgs {
    /// The pool's coordinator [default: $POLYGRAM_COORDINATOR, or that of `polygram pool up` in this directory]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) coordinator: Option<String>,
    /// File with the pool's secret [default: $POLYGRAM_TOKEN_FILE, or that of `polygram pool up` in this directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) file: RunFileArgs,
    /// Name of the run, instead of run.name
    #[arg(long, value_name = "NAME")]
    pub(crate) run: Option<String>,
    /// Jobs of higher priority go first; of equal priority, the older one
    #[arg(long, value_name = "P", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) priority: i32,
    /// Let a job of higher priority have this one commit, stop and wait for its turn again
    #[arg(long)]
    pub(crate) preemptible: bool,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Those that are over too
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Number of the job
    #[arg(value_name = "JOB")]
    pub(crate) job: u64,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// A whole pool on this machine: its coordinator, workers and shards, started again when they die
    Up(PoolUpArgs),
    /// Who offers itself to a pool, and where it is placed
    Members(PoolArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PoolUpArgs {
    /// Workers to start
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) workers: u32,
    /// Embedding shards to start
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) shards: u32,
    /// Folder of the pool: queue, secret, address and logs
    #[arg(long, value_name = "DIR", default_value = "polygram-pool")]
    pub(crate) folder: PathBuf,
    /// Address that the coordinator listens on; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: std::net::SocketAddr,
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

/// A run file and its overrides.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunFileArgs {
    /// Run file (TOML)
    #[arg(value_name = "RUNFILE")]
    pub(crate) run_file: PathBuf,
    /// Override one key of the run file
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) file: RunFileArgs,
    /// Name of the run, instead of run.name
    #[arg(long, value_name = "NAME")]
    pub(crate) run: Option<String>,
    /// Lead the run although another coordinator does, for example on another host: that one ends
    #[arg(long)]
    pub(crate) take_over: bool,
    /// Inject the faults that POLYGRAM_FAULT orders; for tests of Polygram itself
    #[arg(long, hide = true)]
    pub(crate) fault_injection: bool,
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) file: RunFileArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LedgerArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// First step
    #[arg(long, value_name = "A")]
    pub(crate) from: Option<u64>,
    /// Last step
    #[arg(long, value_name = "B")]
    pub(crate) to: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyReplayArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// First step, as `polygram ledger` numbers them
    #[arg(long, value_name = "A", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) from: u64,
    /// Last step
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) to: u64,
    /// Workers of the replay [default: the run's]
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) workers: Option<u32>,
    /// Its ranks that hold all experts together
    #[arg(long, value_name = "E", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) expert_parallel: Option<u32>,
    /// Its embedding shards
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) shards: Option<u32>,
    /// Override one key of the run's configuration, which may change the outcome
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Root of the replay, which is kept [default: a temporary folder]
    #[arg(long, value_name = "URL")]
    pub(crate) scratch: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    /// Folder with config.json and safetensors files
    #[arg(long, value_name = "HFDIR")]
    pub(crate) model: PathBuf,
    /// safetensors file with input_ids, i64 [B,T]
    #[arg(long, value_name = "FILE")]
    pub(crate) input: PathBuf,
    /// safetensors file to write: ngram_ids, embedding, logits, loss
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NgramCommand {
    /// Row ids of token sequences: ids[sequence][position][table], as JSON
    Ids(NgramIdsArgs),
    /// Table sizes near a wanted number of rows whose bigrams collide least
    Size(NgramSizeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NgramIdsArgs {
    /// Hugging Face config.json
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Token sequences: a JSON list of lists
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct NgramSizeArgs {
    /// Vocabulary (V)
    #[arg(long, value_name = "V", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) vocab: u32,
    /// Rows wanted in the first table; the base found lies within 0.5 % of it
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..u64::from(u32::MAX)))]
    pub(crate) rows: u64,
    /// Longest n-gram (N)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=16))]
    pub(crate) orders: u32,
    /// Hash heads per order (K)
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) heads: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Row gather, row commit and the exchange of rows, each with the machine's limit beside it
    #[command(disable_help_flag = true)]
    Shard(BenchArgs),
    /// Sums and exchanges between processes of this machine
    #[command(disable_help_flag = true)]
    Collective(BenchArgs),
    /// A state written durably to a root, and read back (benches/peers/checkpoint.py compares it with other libraries)
    Checkpoint(BenchCheckpointArgs),
    /// Steps of a run file with all its processes on this machine: tokens per second, and where the time goes
    Step(BenchStepArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchCheckpointArgs {
    /// What is measured
    #[arg(value_enum, value_name = "WORK")]
    pub(crate) work: CheckpointWork,
    /// Size of the state in MiB, in tensors of 32 MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(32..=1 << 20))]
    pub(crate) mebibytes: u64,
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

/// What `bench checkpoint` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckpointWork {
    /// Write the state as step 0 of run `bench-checkpoint`
    Save,
    /// Read it back
    Load,
}

#[derive(Debug, Args)]
pub(crate) struct BenchStepArgs {
    #[command(flatten)]
    pub(crate) file: RunFileArgs,
    /// Steps that are measured
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) steps: u64,
    /// Steps before them, for caches, allocators and first touches
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub(crate) warmup: u64,
    /// Commit a checkpoint every N steps, and say what that costs the steps beside it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) commit_every: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure: `polygram bench shard --help` and `polygram bench collective --help` name it
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Text into .bin/.idx token files, one document after another, each closed by EOS
    Prepare(DataPrepareArgs),
    /// What a .bin/.idx pair holds; checks it
    Inspect(DataInspectArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DataPrepareArgs {
    /// Folders of text, .txt, .jsonl(.gz|.zst) or .parquet files; with --tokenizer also pipes
    #[arg(value_name = "INPUT", required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// Folder to write: train.bin/.idx, held_out.bin/.idx, tokenizer.json, meta.json
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Size of the byte-level BPE vocabulary to train
    #[arg(long, value_name = "N", default_value_t = 8192, conflicts_with = "tokenizer")]
    pub(crate) vocab_size: u32,
    /// Use this tokenizer.json instead of training one
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Token of that tokenizer which closes a document, where it has no usual name
    #[arg(long, value_name = "TOKEN", requires = "tokenizer")]
    pub(crate) eos: Option<String>,
    /// Field of a JSON line, or column of a parquet file, that holds the text
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub(crate) text_key: String,
    /// What files other than parquet hold
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = InputFormat::Auto)]
    pub(crate) format: InputFormat,
    /// Share of the documents that is held out; a document's text and the seed decide, so adding others moves none
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub(crate) held_out: f64,
    /// Stop reading after so many bytes of text
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_bytes: Option<u64>,
    /// Threads that encode [default: all cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<std::num::NonZeroUsize>,
    /// Seed of the held-out choice
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Replace what an earlier preparation left in the output folder
    #[arg(long)]
    pub(crate) replace: bool,
}

/// How the inputs of `data prepare` are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputFormat {
    /// Name and content of each file decide
    Auto,
    /// Each file is one text
    Text,
    /// One JSON object a line
    Jsonl,
}

#[derive(Debug, Args)]
pub(crate) struct DataInspectArgs {
    /// Path of the .bin/.idx pair without extension
    #[arg(value_name = "PREFIX")]
    pub(crate) prefix: PathBuf,
}

mod ckpt;
#[cfg(test)]
mod global_tests;
mod keys;
mod run;

pub(crate) use ckpt::*;
pub(crate) use keys::KeysArgs;
pub(crate) use run::{RootArgs, RunArgs};

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn declaration_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_a_bench_is_told_goes_through() {
        for (line, expected) in [
            ("polygram bench shard", vec![]),
            ("polygram bench shard --help", vec!["--help"]),
            ("polygram bench shard --rows 5 gather -o json", vec!["--rows", "5", "gather", "-o", "json"]),
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Bench(BenchCommand::Shard(args)) = cli.command else { panic!("{line}") };
            assert_eq!(args.arguments, expected, "{line}");
        }
        let cli = Cli::try_parse_from("polygram bench step run.toml --steps 3 -o json".split(' ')).unwrap();
        let Command::Bench(BenchCommand::Step(args)) = cli.command else { panic!() };
        assert_eq!((args.steps, args.warmup), (3, 5));
        let cli = Cli::try_parse_from("polygram bench shard -o json".split(' ')).unwrap();
        let Command::Bench(BenchCommand::Shard(args)) = cli.command else { panic!() };
        assert!(cli.global.output_format == OutputFormat::Json || args.arguments == ["-o", "json"]);
    }

    #[test]
    fn output_format_and_output_file_do_not_clash() {
        let line = "polygram logits --model m --input i --output o -o json";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(cli.global.output_format, OutputFormat::Json);
        assert!(matches!(cli.command, Command::Logits(args) if args.output.as_os_str() == "o"));
    }
}
