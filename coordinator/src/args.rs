//! Command line of `polygram-coordinator`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// Leads one run: admits workers and shards, starts them, commits their checkpoints, ends the run.
#[derive(Clone, Debug, Parser)]
#[command(name = "polygram-coordinator", version)]
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
    /// Address to tell metrics on, at /metrics; none unless given
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// File with the run's secret token
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// File to write the coordinator's address into once it listens
    #[arg(long, value_name = "FILE")]
    pub announce_file: Option<PathBuf>,
    /// Log level or directives, for example info,polygram_coordinator=debug
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// Form of a log line: human or json
    #[arg(long, default_value = "human")]
    pub log_format: String,
}
