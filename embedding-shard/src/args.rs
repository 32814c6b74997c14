//! The shard's command line.

use std::net::SocketAddr;

use clap::{Args as ArgGroup, Parser, Subcommand};
use polygram_member::args::MemberArgs;

use crate::bench::BenchArgs;

/// Owns a slice of a Polygram run's n-gram tables: serves rows and applies gradients.
#[derive(Debug, Parser)]
#[command(name = "polygram-embedding-shard", version)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// Something other than taking part in a run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to take part in a run, as every role does.
    #[command(flatten)]
    pub member: Option<MemberArgs>,
    /// What only a shard has.
    #[command(flatten)]
    pub shard: ShardArgs,
}

/// What the program does beside taking part in runs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure this machine with the shard's own code
    Bench(BenchArgs),
}

/// A shard of a run.
#[derive(Debug, ArgGroup)]
pub struct ShardArgs {
    /// This shard's index, from 0.
    #[arg(long, required_unless_present = "pool", conflicts_with = "pool")]
    pub index: Option<u32>,
    /// Address to listen on for the workers; port 0: the system chooses. With 0.0.0.0 they are given the address on the route
    /// to the coordinator.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Where workers reach that address, if it is another to them (behind a relay, in a container); needs a port of its own
    /// to listen on.
    #[arg(long, value_name = "IP:PORT", conflicts_with = "pool")]
    pub advertise: Option<SocketAddr>,
    /// Address to answer reads on (gRPC, with the run's token); none unless given.
    #[arg(long, value_name = "IP:PORT")]
    pub query_listen: Option<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn a_member_needs_its_flags_and_a_bench_does_not() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        let cli = parse("shard --coordinator a:1 --index 2 --token-file t").unwrap();
        assert!(cli.command.is_none() && cli.member.is_some() && cli.shard.index == Some(2));
        let cli = parse("shard --pool a:1 --token-file t").unwrap();
        assert!(cli.member.is_some_and(|member| member.pool.is_some()) && cli.shard.index.is_none());
        assert!(parse("shard --pool a:1 --index 2 --token-file t").is_err());
        assert!(parse("shard --coordinator a:1 --token-file t").is_err());
        let cli = parse("shard bench gather -o json").unwrap();
        assert!(cli.member.is_none() && matches!(cli.command, Some(Command::Bench(_))));
        let cli = parse(
            "shard --coordinator a:1 --index 2 --token-file t --listen 127.0.0.1:7 --advertise 10.0.0.1:8",
        );
        assert_eq!(cli.unwrap().shard.advertise, Some(([10, 0, 0, 1], 8).into()));
        let refused = parse("shard --index 2").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::MissingRequiredArgument);
    }
}
