//! The shard's command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// Owns a slice of a Polygram run's n-gram tables: serves rows and applies gradients.
#[derive(Debug, Parser)]
#[command(name = "polygram-embedding-shard", version)]
pub struct Args {
    /// The coordinator's host:port.
    #[arg(long, value_name = "HOST:PORT")]
    pub coordinator: String,
    /// This shard's index, from 0.
    #[arg(long)]
    pub index: u32,
    /// File with the run's secret.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// The run's name, for log lines.
    #[arg(long, default_value = "")]
    pub run: String,
    /// Address to listen on for the workers; port 0: the system chooses.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
    pub listen: SocketAddr,
}
