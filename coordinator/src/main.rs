//! `polygram-coordinator`: wiring of one coordinator process.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use polygram_coordinator::args::{Args, Cli, Command, PoolArgs};
use polygram_coordinator::core::Outcome;
use polygram_coordinator::pool::core::Rules;
use polygram_coordinator::pool::{self, Pool, Store};
use polygram_coordinator::{Claim, Ended, OpeningError, Origin, interrupts, open, serve};
use polygram_domain::{ConfigError, RunFile};
use polygram_proto::control::Token;
use polygram_proto::pool::PoolAnnouncement;
use polygram_telemetry::{Identity, Logging, Role};
use tokio::net::TcpListener;

/// Exit status of a failure.
const FAILURE: u8 = 1;
/// Exit status of a configuration that is not legal, or does not fit the run: nothing was started or written.
const CONFIGURATION: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match (cli.command, cli.run) {
        (Some(Command::Pool(args)), _) => lead_pool(args).await,
        (None, Some(args)) => lead(args).await.and_then(|ended| match ended {
            Ended { outcome: Outcome::Good, .. } => Ok(()),
            Ended { status, .. } => Err(anyhow!("run {} failed: {}", status.run, status.message)),
        }),
        (None, None) => Err(anyhow!("give --config, --root and --token-file, or a command; see --help")),
    };
    let Err(error) = ended else { return ExitCode::SUCCESS };
    // Nothing is left to do about a closed stderr.
    let _closed = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::from(if is_of_configuration(&error) { CONFIGURATION } else { FAILURE })
}

/// Whether the run's configuration is what has to be changed.
fn is_of_configuration(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<ConfigError>() || cause.downcast_ref().is_some_and(OpeningError::is_of_configuration)
    })
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another address, or port 0 for a free port")
    })
}

async fn bind_metrics(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for metrics; choose another address, or port 0 for a free port")
    })?;
    tracing::info!("metrics at http://{}/metrics", listener.local_addr()?);
    Ok(Some(listener))
}

async fn lead_pool(args: PoolArgs) -> anyhow::Result<()> {
    let identity = Identity { run: "pool".into(), role: Role::Coordinator, index: None };
    polygram_telemetry::init(
        &identity,
        &Logging { level: args.log_level, format: args.log_format.parse()? },
    )?;
    if args.listen.ip().is_unspecified() {
        anyhow::bail!(
            "--listen {} is no address that members can reach; give one of this machine's",
            args.listen
        );
    }
    let token = Token::read(&args.token_file)?;
    let store = Store::open(&args.state, &args.root)?;
    let listener = bind(args.listen).await?;
    let metrics = bind_metrics(args.metrics_listen).await?;
    let announcement = PoolAnnouncement { address: listener.local_addr()?, pid: std::process::id() };
    let (interrupts, listening) = interrupts::listen()?;
    if let Some(path) = &args.announce_file {
        announcement.write(path)?;
    }
    let rules = Rules::of(args.member_silence_seconds * 1000);
    pool::serve(Pool { store, root: args.root, token, rules, metrics }, listener, interrupts).await?;
    listening.await.context("the signal task failed")
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
    let listener = bind(args.listen).await?;
    let claim = if args.take_over { Claim::TakeOver } else { Claim::IfVacant };
    let origin = Origin { config_toml, config_name, root: args.root, claim };
    let mut opened = open(origin, listener.local_addr()?).await?;
    if let Some(listener) = bind_metrics(args.metrics_listen).await? {
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
