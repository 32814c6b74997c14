//! `polygram-embedding-shard`: wiring of one shard process.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use polygram_domain::control;
use polygram_embedding_shard::args::{Cli, Command, ShardArgs};
use polygram_embedding_shard::{ShardMemberError, ShardRole, bench};
use polygram_member::MemberError;
use polygram_member::args::MemberArgs;
use polygram_process::{limits, panics};
use polygram_telemetry::{Identity, Logging, Role, keep_freed_memory};

/// Exit status of a failure.
const FAILURE: u8 = 1;
/// Exit status of flags that cannot work: nothing was started.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    limits::name_limits_on_panic();
    panics::record();
    keep_freed_memory();
    match act(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even stderr is gone, the exit status is all that is left to say.
            let _closed = writeln!(std::io::stderr(), "error: {error:#}");
            if let Some(advice) = limits::advice_in(error.as_ref()) {
                let _closed = writeln!(std::io::stderr(), "hint: {advice}");
            }
            let is_usage =
                matches!(error.downcast_ref(), Some(ShardMemberError::Member(MemberError::Address(_))));
            ExitCode::from(if is_usage { USAGE } else { FAILURE })
        }
    }
}

fn act(cli: Cli) -> anyhow::Result<()> {
    match (cli.command, cli.member) {
        (Some(Command::Bench(args)), _) => Ok(bench::run(&args)?),
        (None, Some(member)) => take_part(member, cli.shard),
        (None, None) => Ok(Cli::command().print_help()?),
    }
}

fn take_part(member: MemberArgs, shard: ShardArgs) -> anyhow::Result<()> {
    let ShardArgs { index, listen, advertise, query_listen } = shard;
    let identity = Identity { run: member.run.clone(), role: Role::Shard, index };
    polygram_telemetry::init(&identity, &Logging::default())?;
    if advertise.is_some() && listen.port() == 0 {
        anyhow::bail!("--advertise leads to one port: give --listen with a port that is not 0");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut role = ShardRole { listen, advertise, query_listen, metrics_listen: member.metrics_listen };
    let ended = runtime.block_on(member.take_part((control::Role::Shard, index), &mut role));
    // Whoever leaves at once does not wait for reads of the store.
    runtime.shutdown_background();
    Ok(ended?)
}
