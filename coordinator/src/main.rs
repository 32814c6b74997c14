//! `polygram-coordinator`: wiring of one coordinator process.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use polygram_coordinator::args::Args;
use polygram_coordinator::core::Outcome;
use polygram_coordinator::{Ended, Origin, interrupts, open, serve};
use polygram_domain::RunFile;
use polygram_proto::control::Token;
use polygram_telemetry::{Identity, Logging, Role};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match lead(Args::parse()).await {
        Ok(Ended { outcome: Outcome::Good, .. }) => return ExitCode::SUCCESS,
        Ok(Ended { status, .. }) => anyhow!("run {} failed: {}", status.run, status.message),
        Err(error) => error,
    };
    // Nothing is left to do about a closed stderr.
    let _closed = writeln!(std::io::stderr(), "error: {ended:#}");
    ExitCode::FAILURE
}

async fn lead(args: Args) -> anyhow::Result<Ended> {
    let config_name = args.config.display().to_string();
    let config_toml =
        std::fs::read_to_string(&args.config).with_context(|| format!("cannot read {config_name}"))?;
    let file = RunFile::parse(&config_toml, &config_name, &[])?;
    let identity = Identity { run: file.run.name, role: Role::Coordinator, index: None };
    polygram_telemetry::init(
        &identity,
        &Logging { level: args.log_level, format: args.log_format.parse()? },
    )?;
    polygram_faults::expect("coordinator", 0)?;
    let token = Token::read(&args.token_file)?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("cannot listen on {}; choose another address, or port 0 for a free port", args.listen)
    })?;
    let origin = Origin { config_toml, config_name, root: args.root };
    let mut opened = open(origin, listener.local_addr()?).await?;
    if let Some(address) = args.metrics_listen {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address} for metrics; choose another address, or port 0 for a free port"
            )
        })?;
        tracing::info!("metrics at http://{}/metrics", listener.local_addr()?);
        opened = opened.with_metrics(listener);
    }
    let (interrupts, listening) = interrupts::listen()?;
    if let Some(path) = &args.announce_file {
        opened.announcement().write(path)?;
        polygram_faults::pass(polygram_faults::Point::CoordinatorAnnounced);
    }
    let ended = serve(opened, listener, token, interrupts).await?;
    listening.await.context("the signal task failed")?;
    Ok(ended)
}
