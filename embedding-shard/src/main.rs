//! `polygram-embedding-shard`: wiring of one shard process.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use polygram_domain::ShardIndex;
use polygram_embedding_shard::args::Args;
use polygram_embedding_shard::member::{MemberOptions, run};
use polygram_proto::control::Token;
use polygram_telemetry::{Identity, Logging, Role};

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match take_part(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even stderr is gone, the exit status is all that is left to say.
            let _closed = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn take_part(args: Args) -> anyhow::Result<()> {
    let identity = Identity { run: args.run, role: Role::Shard, index: Some(args.index) };
    polygram_telemetry::init(&identity, &Logging::default())?;
    let token = Token::read(&args.token_file)?;
    let options = MemberOptions {
        coordinator: args.coordinator,
        index: ShardIndex(args.index),
        token,
        listen: args.listen,
    };
    Ok(run(options).await?)
}
