//! The worker's command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use polygram_member::args::MemberArgs;

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
    /// How to take part in a run, as every role does.
    #[command(flatten)]
    pub member: Option<MemberArgs>,
    /// What only a worker has.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// A worker of a run.
#[derive(Debug, clap::Args)]
pub struct WorkerArgs {
    /// This worker's rank, from 0.
    #[arg(long, required_unless_present = "pool", conflicts_with = "pool")]
    pub rank: Option<u32>,
    /// Address to listen on for the other ranks; the system chooses the port. With 0.0.0.0 they are given the address on the
    /// route to the coordinator.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub listen: IpAddr,
    /// Where the other ranks reach this worker, if not there.
    #[arg(long, value_name = "IP")]
    pub advertise: Option<IpAddr>,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_member_needs_its_flags_and_other_work_does_not() {
        Args::command().debug_assert();
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        let args = parse("worker --coordinator a:1 --rank 2 --token-file t --advertise 10.0.0.1").unwrap();
        assert!(args.command.is_none() && args.member.is_some() && args.worker.rank == Some(2));
        assert_eq!(args.worker.advertise, Some([10, 0, 0, 1].into()));
        let args = parse("worker --pool a:1 --token-file t").unwrap();
        assert!(args.member.is_some_and(|member| member.pool.is_some()) && args.worker.rank.is_none());
        assert!(parse("worker --pool a:1 --rank 2 --token-file t").is_err());
        assert!(parse("worker --coordinator a:1 --token-file t").is_err());
        let args = parse("worker check-device").unwrap();
        assert!(args.member.is_none() && matches!(args.command, Some(Command::CheckDevice)));
    }
}
