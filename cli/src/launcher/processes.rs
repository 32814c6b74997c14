//! The processes of a launch or a pool: how each is started, its log, and what is said of its end.

use std::collections::BTreeMap;
use std::ffi::OsString;

use polygram_faults::FaultInjection;

use super::children::Children;
use super::ended::Ended;
use super::logs::LogFolder;
use super::programs::Programs;
use super::siblings::Program;
use crate::exit::{Failure, Outcome};
use crate::printer::Printer;

/// Lines of a log that are shown with a failure.
pub(super) const TAIL_LINES: usize = 12;

/// How a process is started.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// The program.
    pub(crate) program: Program,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
}

/// The processes that one command keeps running.
pub(crate) struct Processes<'a> {
    pub(crate) children: Children,
    pub(crate) logs: LogFolder,
    programs: &'a Programs,
    starts: BTreeMap<String, Start>,
    /// Warnings that are not printed yet.
    warnings: Vec<String>,
}

impl<'a> Processes<'a> {
    /// None yet; those that are started inject `faults` and write logs to `logs`.
    pub(crate) fn new(programs: &'a Programs, logs: LogFolder, faults: FaultInjection) -> Processes<'a> {
        let children = Children::with_faults(faults);
        Processes { children, logs, programs, starts: BTreeMap::new(), warnings: Vec::new() }
    }

    /// Remembers how the process called `name` is started.
    pub(crate) fn learn(&mut self, name: String, start: Start) {
        self.starts.insert(name, start);
    }

    /// Starts the process called `name`, and says its process id.
    pub(crate) fn start(&mut self, name: &str) -> Outcome<u32> {
        let Some(Start { program, args }) = self.starts.get(name) else {
            return Err(Failure::failed(format!("nobody has said how {name} is started")));
        };
        let log = self.logs.open(name)?;
        let (path, warning) = self.programs.startable(*program)?;
        self.warnings.extend(log.lost.into_iter().chain(warning));
        self.children.spawn(name, &path, args, log.file)
    }

    /// Prints the warnings that were not printed yet.
    pub(crate) fn print_warnings(&mut self, printer: &mut Printer) {
        self.warnings.drain(..).for_each(|warning| printer.warn(warning));
    }

    /// A failure told by a child's end and the last lines of its log.
    pub(crate) fn failure_of(&self, ended: &Ended) -> Failure {
        let name = &ended.name;
        // A program's last word is its own error message; it is the message then, not a quotation.
        let tail = self.logs.tail(name, TAIL_LINES);
        let last_word = tail.iter().rposition(|line| line.starts_with("error: "));
        match (ended.status.success(), last_word) {
            (false, Some(at)) => {
                let message = tail[at..].join("\n");
                Failure::failed(format!("{name}: {}", message.trim_start_matches("error: ")))
            }
            _ => Failure::failed(format!("{}{}", ended.sentence(), self.tail_of(name))),
        }
    }

    /// The end of a process's log, as lines to append to a message; empty when it wrote nothing.
    pub(crate) fn tail_of(&self, name: &str) -> String {
        let tail = self.logs.tail(name, TAIL_LINES);
        if tail.is_empty() {
            return String::new();
        }
        let file = self.logs.file(name);
        format!("\n  {} ends with:\n    {}", file.display(), tail.join("\n    "))
    }
}
