//! Command line of `polygram-coordinator`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Leads one run, or a pool of members with a queue of runs.
#[derive(Clone, Debug, Parser)]
#[command(name = "polygram-coordinator", version)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// Something other than leading one run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The run to lead.
    #[command(flatten)]
    pub run: Option<Args>,
}

/// What the program does beside leading one run.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Keep a queue of runs, and place members that offer themselves in them
    Pool(PoolArgs),
}

/// A pool.
#[derive(Clone, Debug, clap::Args)]
pub struct PoolArgs {
    /// File that the queue is kept in (SQLite); made if it is not there
    #[arg(long, value_name = "FILE")]
    pub state: PathBuf,
    /// Root of the object store of the runs
    #[arg(long, value_name = "URL")]
    pub root: String,
    /// Address to listen on, one that members can reach; runs listen on its IP too. Port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Address to tell the pool's metrics on, at /metrics; none unless given
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// File with the secret token of the pool and its runs
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// File to write the coordinator's address into once it listens
    #[arg(long, value_name = "FILE")]
    pub announce_file: Option<PathBuf>,
    /// A member that says nothing for so many seconds is gone
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub member_silence_seconds: u64,
    /// Log level or directives
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// Form of a log line: human or json
    #[arg(long, default_value = "human")]
    pub log_format: String,
}

/// Leads one run: admits workers and shards, starts them, commits their checkpoints, ends the run.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Effective configuration of the run, TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Root of the object store
    #[arg(long, value_name = "URL")]
    pub root: String,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Where others reach that address, if not there; needed with --listen 0.0.0.0. Port 0 stands for the port listened on
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: Option<SocketAddr>,
    /// Address to tell metrics on, at /metrics; none unless given
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// File with the run's secret token
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// File to write the coordinator's address into once it listens
    #[arg(long, value_name = "FILE")]
    pub announce_file: Option<PathBuf>,
    /// Lead the run although another coordinator does: that one and its members end
    #[arg(long)]
    pub take_over: bool,
    /// Inject the faults that POLYGRAM_FAULT orders; for tests of Polygram itself.
    #[arg(long, hide = true)]
    pub fault_injection: bool,
    /// Log level or directives, for example info,polygram_coordinator=debug
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// Form of a log line: human or json
    #[arg(long, default_value = "human")]
    pub log_format: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_run_needs_its_flags_and_a_pool_its_own() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        let cli = parse("c --config f --root r --token-file t").unwrap();
        assert!(cli.command.is_none() && cli.run.is_some());
        let cli = parse("c pool --state s --root r --token-file t").unwrap();
        assert!(matches!(cli.command, Some(Command::Pool(_))) && cli.run.is_none());
        assert!(parse("c --config f --root r").is_err() && parse("c pool --root r --token-file t").is_err());
    }
}
