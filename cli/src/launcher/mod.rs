//! The local launcher: every process of a run on this machine, each a process of its own with its own log.
//!
//! [`launch`] reads top to bottom: find the programs, start the coordinator, learn its address, start the members,
//! follow the run to its end, leave nothing behind. It decides nothing about training: the coordinator does. What dies
//! before the run is over is started again ([`supervisor`]).

pub(crate) mod children;
mod claim;
pub(crate) mod files;
pub(crate) mod follow;
pub(crate) mod logs;
pub(crate) mod pool;
mod processes;
pub(crate) mod program_check;
mod programs;
pub(crate) mod progress;
pub(crate) mod siblings;
mod stop_signals;
mod store_trouble;
pub(crate) mod supervisor;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use polygram_domain::RunName;
use polygram_faults::FaultInjection;
use polygram_proto::control::Announcement;
use tokio::time::Instant;

use crate::exit::Outcome;
use crate::printer::Printer;
use crate::settings::{Configuration, Root};
use children::Children;
use files::LaunchFiles;
use follow::Follower;
use logs::LogFolder;
use processes::{ANNOUNCE_DEADLINE, ANNOUNCE_INTERVAL, COORDINATOR, IDLE_PATIENCE, Launch, TAIL_LINES};
use siblings::Program;
use supervisor::{Start, Supervisor};

pub(crate) use claim::Claim;
pub(crate) use follow::Ending;
pub(crate) use programs::Programs;
pub(crate) use stop_signals::StopSignals;

/// What is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    /// The run.
    pub(crate) configuration: &'a Configuration,
    /// Newest steps whose numbers are kept.
    pub(crate) kept_steps: usize,
    /// Where it is stored.
    pub(crate) root: &'a Root,
    /// What becomes of another coordinator that leads it.
    pub(crate) claim: Claim,
    /// Whether its processes inject faults.
    pub(crate) faults: FaultInjection,
}

/// Runs `plan` until its run is over. No process of it is left when this returns.
pub(crate) async fn launch(
    programs: &Programs,
    plan: Plan<'_>,
    printer: &mut Printer,
) -> Outcome<(Ending, PathBuf)> {
    let Plan { configuration, kept_steps, root, claim, faults } = plan;
    let mut launch = Launch {
        configuration,
        files: LaunchFiles::create(root, configuration)?,
        logs: LogFolder::create(root, &configuration.spec.name)?,
        children: Children::with_faults(faults),
        signals: StopSignals::listen()?,
        started: Instant::now(),
        kept_steps,
        is_over: false,
        started_pids: BTreeSet::new(),
        supervisor: Supervisor::new(&configuration.spec.recovery),
        programs,
        root,
        claim,
        warnings: Vec::new(),
    };
    printer.say(format!("logs in {}", launch.logs.path().display()));
    let ending = launch.start_and_follow(printer).await;
    launch.warnings.drain(..).for_each(|warning| printer.warn(warning));
    launch.clear_away(printer).await;
    Ok((ending?, launch.logs.path().to_owned()))
}

fn say_beginning(printer: &mut Printer, name: &RunName, announcement: &Announcement) {
    match announcement.resume_step {
        0 => printer.say(format!("starting run {name}")),
        step => printer.say(format!("resuming run {name} from step {step}")),
    }
}

impl Launch<'_> {
    async fn start_and_follow(&mut self, printer: &mut Printer) -> Outcome<Ending> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let announcement = self.start_coordinator(anywhere, printer).await?;
        say_beginning(printer, &self.configuration.spec.name, &announcement);
        if announcement.state.is_over() {
            self.is_over = true;
            return Ok(Ending::AlreadyOver(announcement));
        }
        let topology = self.configuration.spec.topology;
        for index in 0..topology.shards {
            let args = self.files.member_args(&announcement, "--index", index);
            self.spawn_member(format!("shard {index}"), Start { program: Program::EmbeddingShard, args })?;
        }
        for rank in 0..topology.workers {
            let args = self.files.member_args(&announcement, "--rank", rank);
            self.spawn_member(format!("worker {rank}"), Start { program: Program::Worker, args })?;
        }
        Follower::new(self, printer).follow(&announcement).await
    }
}
