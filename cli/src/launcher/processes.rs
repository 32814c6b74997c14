//! The processes of one launch and what they need: files, logs and signals. [`Launch`] starts the processes,
//! starts them again, and ends them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use polygram_checkpoint::RunStore;
use polygram_proto::control::{Announcement, RunStatus, Token};
use tokio::time::Instant;

use super::children::{Children, Ended};
use super::claim::Claim;
use super::files::LaunchFiles;
use super::logs::LogFolder;
use super::programs::Programs;
use super::siblings::Program;
use super::stop_signals::StopSignals;
use super::supervisor::{Start, Supervisor, Verdict};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::{Configuration, Root};

/// Name of the coordinator's process in messages and log names.
pub(super) const COORDINATOR: &str = "coordinator";
/// How long a coordinator may take to read its store and listen.
pub(super) const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(60);
/// How often its announcement is looked for; files give no notice.
pub(super) const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(20);
/// How long processes may take to end by themselves once the run is over.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// The same for members that have not started: they hold nothing that could be lost.
pub(super) const IDLE_PATIENCE: Duration = Duration::from_secs(1);
/// The same when the run was lost.
const LOST_PATIENCE: Duration = Duration::from_millis(500);
/// How long the store may take to say what is committed, after everything was killed.
const STORE_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to note that the run was killed: who asks twice wants the prompt.
const RECORD_DEADLINE: Duration = Duration::from_secs(3);
/// Lines of a log that are shown with a failure.
pub(super) const TAIL_LINES: usize = 12;

/// While there is no announcement, the coordinator's last log line is shown this often, if it is a new one.
const ANNOUNCE_QUIET: Duration = Duration::from_secs(2);

/// What becomes of a coordinator that was started.
enum Listening {
    Announced(Announcement),
    Ended(Ended),
}

/// Everything of one launch that must outlive its processes.
pub(crate) struct Launch<'a> {
    pub(crate) configuration: &'a Configuration,
    pub(crate) logs: LogFolder,
    pub(crate) children: Children,
    pub(crate) signals: StopSignals,
    pub(crate) started: Instant,
    /// Newest steps whose numbers are kept.
    pub(crate) kept_steps: usize,
    /// Whether the coordinator has said that the run is over, so that everybody is on the way out.
    pub(crate) is_over: bool,
    /// Members that had started when the run was over: they are given time to end. The others hold nothing.
    pub(crate) started_pids: BTreeSet<u32>,
    pub(crate) supervisor: Supervisor,
    pub(super) programs: &'a Programs,
    pub(super) files: LaunchFiles,
    pub(super) root: &'a Root,
    /// For the first coordinator of this launch.
    pub(super) claim: Claim,
    /// Warnings that are not printed yet.
    pub(crate) warnings: Vec<String>,
}

impl Launch<'_> {
    /// Starts the coordinator and waits until it listens. One that is killed meanwhile is started again.
    pub(crate) async fn start_coordinator(
        &mut self,
        listen: SocketAddr,
        printer: &mut Printer,
    ) -> Outcome<Announcement> {
        loop {
            // What an earlier one announced is not this one's word.
            self.files.forget_announcement()?;
            let args = self.files.coordinator_args(self.root, listen, self.claim);
            self.spawn(COORDINATOR, Program::Coordinator, &args)?;
            let ended = match self.await_announcement(printer).await? {
                Listening::Announced(announcement) => {
                    // From now on the run is this launch's own; what another one takes is its.
                    self.claim = Claim::IfVacant;
                    return Ok(announcement);
                }
                Listening::Ended(ended) => ended,
            };
            // One that ends by itself has said why, and would say it again.
            let was_killed = ended.status.code().is_none();
            match self.supervisor.died(COORDINATOR) {
                Verdict::Again(pause) if was_killed => tokio::time::sleep(pause).await,
                _ => return Err(self.refusal_of(&ended)),
            }
        }
    }

    /// Starts a process of this launch, once the files that it reads are there.
    fn spawn(&mut self, name: &str, program: Program, args: &[OsString]) -> Outcome<()> {
        self.files.restore()?;
        let log = self.logs.open(name)?;
        let (path, warning) = self.programs.startable(program)?;
        self.warnings.extend(log.lost.into_iter().chain(warning));
        self.children.spawn(name, &path, args, log.file)
    }

    pub(super) fn spawn_member(&mut self, name: String, start: Start) -> Outcome<()> {
        self.spawn(&name, start.program, &start.args)?;
        self.supervisor.started(name, start);
        Ok(())
    }

    /// Starts a member again.
    pub(crate) fn respawn(&mut self, name: &str) -> Outcome<()> {
        let Some(Start { program, args }) = self.supervisor.start_of(name) else { return Ok(()) };
        let (program, args) = (*program, args.clone());
        self.spawn(name, program, &args)
    }

    /// The run's token.
    pub(crate) fn token(&self) -> &Token {
        self.files.token()
    }

    /// Seconds since the launch.
    pub(crate) fn elapsed_seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Records in the store how the run ended, in the place of its coordinator, the killed process `coordinator`. Whether it
    /// is recorded.
    pub(crate) async fn record_status(&self, status: &RunStatus, coordinator: u32) -> bool {
        let record = async {
            let store = RunStore::open(&self.root.address(), &self.configuration.spec.name).ok()?;
            // Another coordinator may have taken the run over: its word counts then.
            let newest = store.latest_coordinator().await.ok()??;
            if newest.pid != coordinator {
                return None;
            }
            store.put_status(status).await.ok()
        };
        matches!(tokio::time::timeout(RECORD_DEADLINE, record).await, Ok(Some(())))
    }

    /// The newest commit in the store; `None` where there is none, or the store does not answer in time.
    pub(crate) async fn newest_commit(&self) -> Option<u64> {
        let store = RunStore::open(&self.root.address(), &self.configuration.spec.name).ok()?;
        let steps = tokio::time::timeout(STORE_DEADLINE, store.committed_steps()).await.ok()?.ok()?;
        steps.last().map(|step| step.0)
    }

    /// Waits until the coordinator listens, and says where.
    async fn await_announcement(&mut self, printer: &mut Printer) -> Outcome<Listening> {
        // It may have to see first whether another coordinator is silent for as long as members may be.
        let detection = Duration::from_secs_f64(self.configuration.spec.failure_detection_seconds);
        let patience = ANNOUNCE_DEADLINE.saturating_add(detection);
        let deadline = Instant::now() + patience;
        let mut quiet_until = Instant::now() + ANNOUNCE_QUIET;
        let mut said = String::new();
        let path = self.files.announcement();
        let read = || {
            Announcement::read(&path).map_err(|error| {
                Failure::failed("the coordinator announced itself unreadably").because(error)
            })
        };
        loop {
            if let Some(announcement) = read()? {
                return Ok(Listening::Announced(announcement));
            }
            tokio::select! {
                ended = self.children.next_exit() => {
                    if ended.name != COORDINATOR {
                        // A member that dies meanwhile is started again when there is a coordinator to join.
                        self.supervisor.schedule(ended.name, Instant::now());
                        continue;
                    }
                    // It may have announced that nothing is left to do, and ended.
                    return Ok(match read()? {
                        Some(announcement) if ended.status.success() => Listening::Announced(announcement),
                        _ => Listening::Ended(ended),
                    });
                }
                () = self.signals.next() => {
                    self.children.wind_down(Duration::ZERO).await;
                    return Err(Failure::stopped(
                        "stopped before the coordinator listened: nothing was trained; the same command goes on from the newest \
                         commit",
                    ));
                }
                () = tokio::time::sleep(ANNOUNCE_INTERVAL) => {}
            }
            if Instant::now() >= quiet_until {
                quiet_until = Instant::now() + ANNOUNCE_QUIET;
                let doing = self.logs.tail(COORDINATOR, 1).pop();
                let doing = doing.unwrap_or_else(|| "it is opening the run".into());
                if doing != said {
                    printer.say(format!("the coordinator does not listen yet: {doing}"));
                    said = doing;
                }
            }
            if Instant::now() >= deadline {
                let tail = self.tail_of(COORDINATOR);
                return Err(Failure::failed(format!(
                    "the coordinator did not listen within {} seconds{tail}",
                    patience.as_secs()
                )));
            }
        }
    }

    /// A failure told by a child's end and the last lines of its log.
    pub(crate) fn failure_of(&self, ended: &Ended) -> Failure {
        let Ended { name, pid, .. } = ended;
        // A program's last word is its own error message; it is the message then, not a quotation.
        let tail = self.logs.tail(name, TAIL_LINES);
        let last_word = tail.iter().rposition(|line| line.starts_with("error: "));
        match (ended.status.success(), last_word) {
            (false, Some(at)) => {
                let message = tail[at..].join("\n");
                Failure::failed(format!("{name}: {}", message.trim_start_matches("error: ")))
            }
            _ => Failure::failed(format!("{name} (pid {pid}) {}{}", ended.how(), self.tail_of(name))),
        }
    }

    /// The failure of a process that ended before anything was done.
    pub(crate) fn refusal_of(&self, ended: &Ended) -> Failure {
        let mut failure = self.failure_of(ended);
        // Its statuses mean what ours do.
        if ended.status.code() == Some(ExitStatus::Usage.code().into()) {
            failure.status = ExitStatus::Usage;
        }
        failure
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

    /// Living members that had not started when the run was over, by process id.
    pub(crate) fn unstarted(&self) -> Vec<u32> {
        let members = self.children.living().filter(|(name, _)| *name != COORDINATOR);
        members.map(|(_, pid)| pid).filter(|pid| !self.started_pids.contains(pid)).collect()
    }

    /// Leaves no process behind: waits for those on their way out, kills what does not end, and says which.
    pub(super) async fn clear_away(&mut self, printer: &mut Printer) {
        if !self.is_over {
            // Nobody will tell the others any more; what is not committed is lost already.
            return drop(self.children.wind_down(LOST_PATIENCE).await);
        }
        let unstarted = self.unstarted();
        self.children.end(&unstarted, IDLE_PATIENCE).await;
        let detection = Duration::from_secs_f64(self.configuration.spec.failure_detection_seconds);
        let patience = detection.min(END_PATIENCE);
        let (_, killed) = self.children.wind_down(patience).await;
        if !killed.is_empty() {
            printer.warn(format!("killed {}: still there after {} s", killed.join(", "), patience.as_secs()));
        }
    }
}
