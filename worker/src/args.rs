//! The worker's command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// What `--version` answers. The launcher reads it before it starts anything.
const VERSION: &str = if cfg!(feature = "torch") {
    env!("CARGO_PKG_VERSION")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " without libtorch")
};

/// One process per device of a Polygram run.
#[derive(Debug, Parser)]
#[command(name = "polygram-worker", version = VERSION, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do instead of taking part in a run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Taking part in a run.
    #[command(flatten)]
    pub member: Option<MemberArgs>,
}

/// Taking part in a run.
#[derive(Debug, clap::Args)]
pub struct MemberArgs {
    /// The coordinator's host:port.
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "pool", conflicts_with = "pool")]
    pub coordinator: Option<String>,
    /// This worker's rank, from 0.
    #[arg(long, required_unless_present = "pool", conflicts_with = "pool")]
    pub rank: Option<u32>,
    /// The host:port of a pool to offer this process to, instead of a rank of one run.
    #[arg(long, value_name = "HOST:PORT")]
    pub pool: Option<String>,
    /// File with the run's secret.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// The run's name, for log lines.
    #[arg(long, default_value = "")]
    pub run: String,
    /// Address to listen on for the other ranks; the system chooses the port. With 0.0.0.0 they are given the address on the
    /// route to the coordinator.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub listen: IpAddr,
    /// Where the other ranks reach this worker, if not there.
    #[arg(long, value_name = "IP")]
    pub advertise: Option<IpAddr>,
    /// Address to tell metrics on, at /metrics; none unless given.
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Inject the faults that POLYGRAM_FAULT orders; for tests of Polygram itself.
    #[arg(long, hide = true)]
    pub fault_injection: bool,
}

/// Work outside a run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Row ids, input embedding, logits and loss of given tokens, from a Hugging Face directory.
    Logits(LogitsArgs),
    /// Whether this machine has a CUDA device and the libraries that use it.
    CheckDevice,
}

/// Files of `logits`.
#[derive(Debug, clap::Args)]
pub struct LogitsArgs {
    /// Directory with config.json and safetensors files.
    #[arg(long, value_name = "HFDIR")]
    pub model: PathBuf,
    /// Safetensors file with `input_ids`, i64 [B, T].
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Safetensors file to write: `ngram_ids`, `embedding`, `logits`, `loss`.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
}
