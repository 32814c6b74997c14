//! `polygram-coordinator`: wiring of one coordinator process.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use polygram_coordinator::args::{Args, Cli, Command, PoolArgs};
use polygram_coordinator::core::Outcome;
use polygram_coordinator::pool::core::Rules;
use polygram_coordinator::pool::{self, Pool, Store, StoreError};
use polygram_coordinator::{Claim, Ended, OpeningError, Origin, interrupts, open, serve};
use polygram_domain::{ConfigError, RunFile};
use polygram_process::limits;
use polygram_proto::control::Token;
use polygram_proto::pool::PoolAnnouncement;
use polygram_telemetry::{Identity, Logging, Role};
use tokio::net::TcpListener;

/// Exit status of a failure.
const FAILURE: u8 = 1;
/// Exit status of a configuration that is not legal, or does not fit the run: nothing was started or written.
const CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    limits::name_limits_on_panic();
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended =
        runtime.context("cannot start the I/O runtime").and_then(|runtime| runtime.block_on(act(cli)));
    let Err(error) = ended else { return ExitCode::SUCCESS };
    // Nothing is left to do about a closed stderr.
    let _closed = writeln!(std::io::stderr(), "error: {error:#}");
    if let Some(advice) = limits::advice_in(error.as_ref()) {
        let _closed = writeln!(std::io::stderr(), "hint: {advice}");
    }
    ExitCode::from(if is_of_configuration(&error) { CONFIGURATION } else { FAILURE })
}

async fn act(cli: Cli) -> anyhow::Result<()> {
    match (cli.command, cli.run) {
        (Some(Command::Pool(args)), _) => lead_pool(args).await,
        (None, Some(args)) => lead(args).await.and_then(|ended| match ended {
            Ended { outcome: Outcome::Good, .. } => Ok(()),
            Ended { status, .. } => Err(anyhow!("run {} failed: {}", status.run, status.message)),
        }),
        (None, None) => Err(anyhow!("give --config, --root and --token-file, or a command; see --help")),
    }
}

/// Whether the run's configuration is what has to be changed.
fn is_of_configuration(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || cause.is::<WrongFlags>()
            || cause.downcast_ref().is_some_and(OpeningError::is_of_configuration)
            || cause.downcast_ref().is_some_and(StoreError::is_of_flags)
    })
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another address, or port 0 for a free port")
    })
}

/// Flags that cannot work.
#[derive(Debug)]
struct WrongFlags(String);

impl std::fmt::Display for WrongFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongFlags {}

/// The address that others are given of a listener bound to `bound`.
fn advertised(advertise: Option<SocketAddr>, bound: SocketAddr) -> Result<SocketAddr, WrongFlags> {
    let mut address = advertise.unwrap_or(bound);
    if address.port() == 0 {
        address.set_port(bound.port());
    }
    if address.ip().is_unspecified() {
        return Err(WrongFlags(format!(
            "{address} is no address that others can reach: say by --advertise IP:PORT where they do, or listen on one \
             address of this machine"
        )));
    }
    Ok(address)
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
        let text = "is no address that members can reach; give one of this machine's";
        return Err(WrongFlags(format!("--listen {} {text}", args.listen)).into());
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
    polygram_faults::FaultInjection::from(args.fault_injection).expect("coordinator", 0)?;
    let token = Token::read(&args.token_file)?;
    let listener = bind(args.listen).await?;
    let advertised = advertised(args.advertise, listener.local_addr()?)?;
    let claim = if args.take_over { Claim::TakeOver } else { Claim::IfVacant };
    let origin = Origin { config_toml, config_name, root: args.root, claim };
    let mut opened = open(origin, advertised).await?;
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
