//! `polygram pool`, `submit`, `jobs`, `cancel`: a pool and its queue.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use polygram_data::local_path;
use polygram_proto::control::{ControlError, Token};
use polygram_proto::pool::{JobId, JobStatus, PoolAnnouncement, PoolClient, PoolMemberStatus, Submission};
use serde::Serialize;

use crate::args::{CancelArgs, JobsArgs, PoolArgs, PoolUpArgs, SubmitArgs};
use crate::commands::{block_on, plan};
use crate::data_check;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::launcher::{self, Programs};
use crate::printer::Printer;
use crate::settings::{Configuration, PoolFolder, PoolPlace, Root, check_writable, current_folder};
use crate::stored;
use crate::units::{columns, moment};

/// A pool's coordinator that lives answers within this.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Submitted {
    job: JobId,
    run: String,
}

#[derive(Serialize)]
struct Cancelling {
    job: JobId,
    message: String,
}

pub(crate) fn up(args: &PoolUpArgs, printer: &mut Printer) -> Outcome {
    let root = Root::resolve(&args.root)?;
    let programs = Programs::find()?;
    if args.listen.ip().is_unspecified() {
        return Err(Failure::usage(format!("--listen {} is no address to be reached at", args.listen))
            .hint("give an address of this machine"));
    }
    let here = if args.folder.is_absolute() { PathBuf::new() } else { current_folder()? };
    if let Some(problem) = local_path::problem_of(&args.folder) {
        return Err(Failure::usage(format!("--folder {:?} cannot be used: {problem}", args.folder)));
    }
    let folder = PoolFolder(here.join(&args.folder));
    block_on(refuse_second(&folder))?;
    check_writable(&folder.0)?;
    check_listen(args.listen)?;
    polygram_checkpoint::create_root(&root.address()).map_err(|error| stored::refused(&root, error))?;
    let plan = launcher::pool::Plan {
        folder,
        root,
        workers: args.workers,
        shards: args.shards,
        listen: args.listen,
    };
    block_on(launcher::pool::up(&programs, &plan, printer))
}

/// Refuses an address that the coordinator could not listen at, before anything is made for it.
fn check_listen(listen: SocketAddr) -> Outcome<()> {
    let Err(error) = std::net::TcpListener::bind(listen) else { return Ok(()) };
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another program listens there: give another port, or port 0 for any that is free"
        }
        std::io::ErrorKind::AddrNotAvailable => "give an address of this machine",
        std::io::ErrorKind::PermissionDenied => "give a port above 1023, or port 0 for any that is free",
        _ => "give another address",
    };
    Err(Failure::usage(format!("--listen {listen} cannot be listened at")).because(error).hint(hint))
}

/// Refuses a folder whose pool is up, before anything is made in it.
async fn refuse_second(folder: &PoolFolder) -> Outcome<()> {
    // What cannot be read is not that of a pool that is up; the coordinator says what is wrong with it.
    let (Ok(Some(announced)), Ok(token)) =
        (PoolAnnouncement::read(&folder.announcement()), Token::read(&folder.token()))
    else {
        return Ok(());
    };
    let address = announced.address.to_string();
    let answer = async { PoolClient::connect(&address, &token).await?.jobs().await };
    match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
        Ok(Ok(_jobs)) => Err(Failure::usage(format!(
            "the pool in {} is up already: its coordinator (pid {}) answers at {address}",
            folder.0.display(),
            announced.pid
        ))
        .hint("submit to it, stop it there first, or give this pool another --folder")),
        _ => Ok(()),
    }
}

pub(crate) fn submit(args: &SubmitArgs, printer: &mut Printer) -> Outcome {
    let mut configuration = Configuration::load(&args.file, args.run.as_deref())?;
    plan::check_memory(&configuration)?;
    for warning in plan::warnings(&configuration)? {
        printer.warn(warning);
    }
    // The paths are those of the machines that work on the run, of which this one may be none.
    if data_check::is_here(&configuration.spec) {
        for warning in data_check::check(&mut configuration)? {
            printer.warn(warning);
        }
    }
    let place = PoolPlace::resolve(&args.pool)?;
    let submission = Submission {
        config_toml: configuration.effective_toml,
        priority: args.priority,
        preemptible: args.preemptible,
    };
    let job = block_on(async {
        let mut pool = connect(&place).await?;
        pool.submit(submission).await.map_err(|error| refused(&place, error))
    })?;
    let run = configuration.spec.name.to_string();
    let document = Submitted { job, run };
    printer.result(&document, || {
        format!(
            "job {job} (run {}) is in the queue\nnext: polygram jobs   ·   polygram status {}   ·   polygram cancel {job}\n",
            document.run, document.run
        )
    })?;
    Ok(ExitStatus::Success)
}

pub(crate) fn jobs(args: &JobsArgs, printer: &mut Printer) -> Outcome {
    let place = PoolPlace::resolve(&args.pool)?;
    let jobs = block_on(async {
        let mut pool = connect(&place).await?;
        let jobs = if args.all { pool.all_jobs().await } else { pool.jobs().await };
        jobs.map_err(|error| refused(&place, error))
    })?;
    printer.result(&jobs, || {
        let titles = ["job", "run", "priority", "state", "workers", "shards", "step", "submitted", "reason"];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        rows.extend(jobs.iter().map(job_row));
        columns(&rows)
    })?;
    Ok(ExitStatus::Success)
}

fn job_row(job: &JobStatus) -> Vec<String> {
    let preemptible = if job.preemptible { "p" } else { "" };
    let step = job.step.map_or("-".to_owned(), |step| format!("{step}/{}", job.total_steps));
    vec![
        job.job.to_string(),
        job.run.clone(),
        format!("{}{preemptible}", job.priority),
        job.state.to_string(),
        format!("{}/{}", job.workers, job.wanted_workers),
        job.shards.to_string(),
        step,
        moment(job.submitted_unix_ms),
        job.reason.clone(),
    ]
}

pub(crate) fn cancel(args: &CancelArgs, printer: &mut Printer) -> Outcome {
    let place = PoolPlace::resolve(&args.pool)?;
    let job = JobId(args.job);
    let message = block_on(async {
        let mut pool = connect(&place).await?;
        pool.cancel(job).await.map_err(|error| refused(&place, error))
    })?;
    let document = Cancelling { job, message };
    printer.result(&document, || format!("job {job}: {}\n", document.message))?;
    Ok(ExitStatus::Success)
}

pub(crate) fn members(args: &PoolArgs, printer: &mut Printer) -> Outcome {
    let place = PoolPlace::resolve(args)?;
    let members = block_on(async {
        let mut pool = connect(&place).await?;
        pool.members().await.map_err(|error| refused(&place, error))
    })?;
    printer.result(&members, || {
        let mut rows = vec![["role", "pid", "host", "placed", "heard"].map(str::to_owned).to_vec()];
        rows.extend(members.iter().map(member_row));
        columns(&rows)
    })?;
    Ok(ExitStatus::Success)
}

fn member_row(member: &PoolMemberStatus) -> Vec<String> {
    let place = match member.seat {
        Some(seat) if member.leaving => format!("leaving {seat}"),
        Some(seat) => seat.to_string(),
        None => "spare".to_owned(),
    };
    let heard = format!("{:.1} s ago", member.last_heard_ms as f64 / 1000.0);
    vec![member.role.to_string(), member.pid.to_string(), member.host.clone(), place, heard]
}

async fn connect(place: &PoolPlace) -> Outcome<PoolClient> {
    PoolClient::connect(&place.coordinator, &place.token).await.map_err(|error| refused(place, error))
}

/// What the pool refused is the caller's to mend; all else is the pool's.
fn refused(place: &PoolPlace, error: ControlError) -> Failure {
    let what = format!("the pool at {} did not do it", place.coordinator);
    match &error {
        ControlError::Refused { message, .. } => Failure::usage(message.clone()),
        ControlError::Unauthenticated { .. } => {
            Failure::usage(what).because(error).hint("give the pool's own --token-file")
        }
        _ => Failure::failed(what).because(error),
    }
}
