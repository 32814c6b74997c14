//! Wiring of the worker process.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use polygram_domain::control;
use polygram_member::MemberError;
use polygram_member::args::MemberArgs;
use polygram_process::{limits, panics};
use polygram_telemetry::{Identity, Logging, Role, keep_freed_memory, passive_waits};
use polygram_worker::args::{Args, Command, WorkerArgs};
use polygram_worker::observe::MetricsDesk;
use polygram_worker::{Listen, WorkerError, WorkerRole};

/// Exit status of a failure.
const FAILURE: u8 = 1;
/// Exit status of flags or an input that cannot work: nothing was started.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    limits::name_limits_on_panic();
    panics::record();
    keep_freed_memory();
    let args = Args::parse();
    // Only libtorch brings an OpenMP runtime.
    if cfg!(feature = "torch")
        && let Err(error) = passive_waits::restart_with_variables()
    {
        let message = format!(
            "warning: cannot start again with passive waits ({error}): on a shared machine steps take longer; \
             set OMP_WAIT_POLICY=PASSIVE in the worker's environment"
        );
        writeln!(std::io::stderr(), "{message}").ok();
    }
    let result = match (args.command, args.member) {
        (Some(Command::Logits(files)), _) => return logits(&files),
        (Some(Command::CheckDevice), _) => check_device(),
        (None, Some(member)) => take_part(member, args.worker),
        (None, None) => Err(anyhow::anyhow!(
            "give --coordinator, --rank and --token-file, or --pool and --token-file, or a command; see --help"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let is_usage = matches!(error.downcast_ref(), Some(WorkerError::Member(MemberError::Address(_))));
            failure(&error, ExitCode::from(if is_usage { USAGE } else { FAILURE }))
        }
    }
}

/// Reports `error` on stderr.
fn failure(error: &anyhow::Error, status: ExitCode) -> ExitCode {
    // Where even stderr is gone, the exit status is all that is left to say.
    writeln!(std::io::stderr(), "error: {error:#}").ok();
    if let Some(advice) = limits::advice_in(error.as_ref()) {
        writeln!(std::io::stderr(), "hint: {advice}").ok();
    }
    status
}

fn take_part(member: MemberArgs, worker: WorkerArgs) -> anyhow::Result<()> {
    let WorkerArgs { rank, listen, advertise } = worker;
    let metrics = MetricsDesk::new(if member.pool.is_some() { "pool" } else { &member.run });
    let identity = Identity { run: member.run.clone(), role: Role::Worker, index: rank };
    polygram_telemetry::init(&identity, &Logging::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _served = runtime.block_on(metrics.listen(member.metrics_listen))?;
    let mut role = WorkerRole::new(Listen { ip: listen, advertise }, metrics);
    let result = runtime.block_on(member.take_part((control::Role::Worker, rank), &mut role));
    // A compute thread deep in a product may outlive the run's end; the process does not wait for it.
    runtime.shutdown_background();
    Ok(result?)
}

#[cfg(feature = "torch")]
fn logits(files: &polygram_worker::args::LogitsArgs) -> ExitCode {
    use polygram_worker::logits::{is_wrong_input, run};
    match run(files) {
        Ok(done) => {
            // A pipe or a device that is the output may be standard output itself. A closed one is its reader's choice.
            if files.output.is_file() {
                writeln!(std::io::stdout(), "{done}").ok();
            } else {
                writeln!(std::io::stderr(), "{done}").ok();
            }
            ExitCode::SUCCESS
        }
        Err(error) if is_wrong_input(&error) => failure(&error, ExitCode::from(USAGE)),
        Err(error) => failure(&error, ExitCode::from(FAILURE)),
    }
}

#[cfg(not(feature = "torch"))]
fn logits(_files: &polygram_worker::args::LogitsArgs) -> ExitCode {
    let error = anyhow::anyhow!("this worker was built without libtorch; build it with `make build`");
    failure(&error, ExitCode::from(USAGE))
}

#[cfg(feature = "torch")]
fn check_device() -> anyhow::Result<()> {
    Ok(polygram_model::cuda_device(0).map(|_| ())?)
}

#[cfg(not(feature = "torch"))]
fn check_device() -> anyhow::Result<()> {
    anyhow::bail!("this worker was built without libtorch; build it with `make build`")
}
