//! The local launcher: every process of a run on this machine, each a process of its own with its own log.
//!
//! [`decider`] decides what is started, started again and ended, and how the launch ended; [`driver`] does it. It decides
//! nothing about training: the coordinator does.

pub(crate) mod children;
mod claim;
mod decider;
mod display;
mod driver;
mod ended;
pub(crate) mod files;
mod launch;
pub(crate) mod logs;
mod messages;
mod plan;
pub(crate) mod pool;
mod processes;
pub(crate) mod program_check;
mod programs;
pub(crate) mod progress;
pub(crate) mod siblings;
#[cfg(test)]
mod simulation;
mod stall;
mod stop_signals;
mod store_trouble;
pub(crate) mod supervisor;
mod wait;

use std::path::PathBuf;

use crate::exit::Outcome;
use crate::printer::Printer;
use driver::Driver;
use files::LaunchFiles;
use launch::Launch;
use logs::LogFolder;
use processes::Processes;

pub(crate) use claim::Claim;
pub(crate) use messages::Ending;
pub(crate) use plan::Plan;
pub(crate) use programs::Programs;
pub(crate) use stop_signals::StopSignals;

/// Runs `plan` until its run is over. No process of it is left when this returns.
pub(crate) async fn launch(
    programs: &Programs,
    plan: Plan<'_>,
    printer: &mut Printer,
) -> Outcome<(Ending, PathBuf)> {
    let Plan { configuration, root, faults, .. } = plan;
    let files = LaunchFiles::create(root, configuration)?;
    let logs = LogFolder::create(root, &configuration.spec.name)?;
    let mut launch = Launch {
        configuration,
        files,
        processes: Processes::new(programs, logs, faults),
        signals: StopSignals::listen()?,
        root,
    };
    printer.say(format!("logs in {}", launch.processes.logs.path().display()));
    let ending = Driver::new(plan.setup(), &mut launch, printer).run().await?;
    Ok((ending, launch.processes.logs.path().to_owned()))
}
