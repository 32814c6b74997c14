//! A whole pool on this machine: its coordinator, workers and shards as children, each started again when it dies. The
//! queue outlives them, and this program too: the same command goes on with it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use polygram_domain::run_spec::RecoverySpec;
use polygram_faults::FaultInjection;
use polygram_proto::control::Token;
use polygram_proto::pool::PoolAnnouncement;

use super::ended::{COORDINATOR, Ended};
use super::files::keep_private_file;
use super::logs::LogFolder;
use super::processes::{Processes, Start, TAIL_LINES};
use super::programs::Programs;
use super::siblings::Program;
use super::stop_signals::StopSignals;
use super::supervisor::{Supervisor, Verdict};
use super::wait::sleep_until;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::{PoolFolder, Root};
use crate::units::counted;

/// How long the coordinator may take to open its queue and listen.
const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(60);
/// How often its announcement is looked for; files give no notice.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(20);
/// Members have so long to end once the coordinator has ended.
const MEMBERS_PATIENCE: Duration = Duration::from_secs(10);
/// After so long without a death, older ones are forgotten.
const QUIET: Duration = Duration::from_secs(60);

/// What a pool is to be.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Where queue, secret, address and logs are.
    pub(crate) folder: PoolFolder,
    /// Root of its runs.
    pub(crate) root: Root,
    /// Workers to start.
    pub(crate) workers: u32,
    /// Shards to start.
    pub(crate) shards: u32,
    /// Where the coordinator listens.
    pub(crate) listen: SocketAddr,
}

/// Keeps a pool up until it is told to end. No process of it is left when this returns.
pub(crate) async fn up(programs: &Programs, plan: &Plan, printer: &mut Printer) -> Outcome {
    let folder = &plan.folder;
    let cannot = |error: std::io::Error| {
        Failure::failed(format!("cannot make the pool's folder {}", folder.0.display())).because(error)
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder.0).map_err(cannot)?;
    let token = make_token(&folder.token())?;
    let logs = LogFolder::under(&folder.0.join("logs"))?;
    let mut pool = Keeper {
        plan,
        token,
        processes: Processes::new(programs, logs, FaultInjection::default()),
        signals: StopSignals::listen()?,
        supervisor: Supervisor::new(&tireless()),
        last_death: Instant::now(),
    };
    printer.say(format!("logs in {}", pool.processes.logs.path().display()));
    let ended = pool.keep(printer).await;
    pool.processes.print_warnings(printer);
    // After an orderly end nobody is left; after a failure nobody is to stay.
    pool.processes.children.wind_down(Duration::ZERO).await;
    ended
}

/// The secret of a pool that was up before is kept: its members elsewhere have it.
fn make_token(path: &Path) -> Outcome<Token> {
    let failed = |error| Failure::failed("cannot make the pool's secret").because(error);
    if path.exists() {
        return Token::read(path).map_err(failed);
    }
    Token::generate().and_then(|token| token.write(path).map(|()| token)).map_err(failed)
}

/// A pool never gives up on its processes: its jobs do by their own policy.
fn tireless() -> RecoverySpec {
    RecoverySpec {
        max_restarts: u32::MAX,
        max_fruitless_restarts: u32::MAX,
        backoff_seconds: 1.0,
        quarantine_after: u32::MAX,
        quarantine_seconds: 0.0,
    }
}

struct Keeper<'a> {
    plan: &'a Plan,
    token: Token,
    processes: Processes<'a>,
    signals: StopSignals,
    supervisor: Supervisor,
    last_death: Instant,
}

impl Keeper<'_> {
    async fn keep(&mut self, printer: &mut Printer) -> Outcome {
        let Some(address) = self.start_coordinator().await? else {
            return Err(Failure::stopped("stopped before the pool was up"));
        };
        let Plan { workers, shards, folder, .. } = self.plan;
        printer.say(format!(
            "the pool listens at {address}: {}, {}\n\
             submit with: polygram submit RUNFILE --coordinator {address} --token-file {}",
            counted(u64::from(*workers), "worker"),
            counted(u64::from(*shards), "shard"),
            folder.token().display()
        ));
        let members = [(Program::EmbeddingShard, "shard", *shards), (Program::Worker, "worker", *workers)];
        for (program, role, count) in members {
            for number in 0..count {
                let args: Vec<OsString> = vec![
                    "--pool".into(),
                    address.to_string().into(),
                    "--token-file".into(),
                    folder.token().into(),
                    "--run".into(),
                    "pool".into(),
                ];
                self.start(format!("{role} {number}"), Start { program, args })?;
            }
        }
        let mut stops = 0;
        loop {
            let due = self.supervisor.next_due();
            tokio::select! {
                ended = self.processes.children.next_exit() => {
                    if stops > 0 && ended.name == COORDINATOR {
                        break;
                    }
                    self.note_exit(ended, stops, printer);
                }
                () = sleep_until(due) => self.respawn_due(printer),
                () = self.signals.next() => {
                    stops += 1;
                    match stops {
                        1 => printer.say("stopping: every run commits and stops (once more: they stop at once)"),
                        2 => printer.say("stopping at once (once more to kill everything now)"),
                        _ => {
                            self.processes.children.wind_down(Duration::ZERO).await;
                            return Err(Failure::failed("killed on request").hint("the same command goes on"));
                        }
                    }
                    self.supervisor.retire();
                    self.processes.children.terminate(COORDINATOR);
                }
            }
        }
        let children = &mut self.processes.children;
        children.living().for_each(|name| children.terminate(name));
        let (_, killed) = children.wind_down(MEMBERS_PATIENCE).await;
        if !killed.is_empty() {
            let seconds = MEMBERS_PATIENCE.as_secs();
            printer.warn(format!("killed {}: still there after {seconds} s", killed.join(", ")));
        }
        printer.say("the pool is down; its queue is kept, and the same command goes on with it");
        Ok(ExitStatus::Stopped)
    }

    fn start(&mut self, name: String, start: Start) -> Outcome<()> {
        self.processes.learn(name.clone(), start);
        self.spawn(&name)
    }

    /// Starts a process, once the secret that it reads is there.
    fn spawn(&mut self, name: &str) -> Outcome<()> {
        let token = self.plan.folder.token();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.plan.folder.0)
            .and_then(|()| keep_private_file(&token, &self.token.line()))
            .map_err(|error| Failure::failed(format!("cannot write {}", token.display())).because(error))?;
        self.processes.start(name).map(|_pid| ())
    }

    /// Starts those again whose pause is over. Where that fails, it is tried again later: a pool never gives up.
    fn respawn_due(&mut self, printer: &mut Printer) {
        while let Some(name) = self.supervisor.take_due(Instant::now()) {
            let started = self.spawn(&name);
            self.processes.print_warnings(printer);
            if let Err(failure) = started {
                printer.warn(failure.to_string());
                self.start_again(name);
            }
        }
    }

    fn start_again(&mut self, name: String) {
        // It is never given up.
        if let Verdict::Again(pause) = self.supervisor.died(&name) {
            self.supervisor.schedule(name, Instant::now() + pause);
        }
    }

    fn note_exit(&mut self, ended: Ended, stops: u32, printer: &mut Printer) {
        printer.say(ended.sentence());
        if stops > 0 {
            return;
        }
        if self.last_death.elapsed() > QUIET {
            self.supervisor.forgive();
        }
        self.last_death = Instant::now();
        self.start_again(ended.name);
    }

    /// Starts the coordinator and waits until it listens; none where a signal came first.
    async fn start_coordinator(&mut self) -> Outcome<Option<SocketAddr>> {
        let path = self.plan.folder.announcement();
        let program = Program::Coordinator;
        self.start(COORDINATOR.to_owned(), Start { program, args: self.args(self.plan.listen) })?;
        let deadline = Instant::now() + ANNOUNCE_DEADLINE;
        loop {
            let announced = PoolAnnouncement::read(&path).map_err(|error| {
                Failure::failed("the coordinator announced itself unreadably").because(error)
            })?;
            // What another one announced is not this one's word.
            let own = self.processes.children.pid_of(COORDINATOR);
            if let Some(PoolAnnouncement { address, .. }) = announced.filter(|said| Some(said.pid) == own) {
                // One that is started again listens where members look for it.
                let args = self.args(address);
                self.processes.learn(COORDINATOR.to_owned(), Start { program, args });
                return Ok(Some(address));
            }
            tokio::select! {
                ended = self.processes.children.next_exit() => return Err(self.failure_of(&ended)),
                () = self.signals.next() => return Ok(None),
                () = tokio::time::sleep(ANNOUNCE_INTERVAL) => {}
            }
            if Instant::now() >= deadline {
                let seconds = ANNOUNCE_DEADLINE.as_secs();
                return Err(Failure::failed(format!(
                    "the coordinator did not listen within {seconds} seconds"
                )));
            }
        }
    }

    fn args(&self, listen: SocketAddr) -> Vec<OsString> {
        let folder = &self.plan.folder;
        vec![
            "pool".into(),
            "--state".into(),
            folder.state().into(),
            "--root".into(),
            self.plan.root.address().into(),
            "--listen".into(),
            listen.to_string().into(),
            "--token-file".into(),
            folder.token().into(),
            "--announce-file".into(),
            folder.announcement().into(),
        ]
    }

    /// The failure of the coordinator that this pool began with: its own last word, or how it ended.
    fn failure_of(&self, ended: &Ended) -> Failure {
        let tail = self.processes.logs.tail(&ended.name, TAIL_LINES);
        let last_word = tail.iter().rev().find_map(|line| line.strip_prefix("error: "));
        match last_word {
            Some(word) => {
                // The file that the coordinator has from --state lies in this command's --folder.
                let word = word.replace("--state", "--folder");
                let mut failure = Failure::failed(format!("{}: {word}", ended.name));
                // Its statuses mean what ours do.
                if ended.is_usage() {
                    failure.status = ExitStatus::Usage;
                }
                failure
            }
            None => Failure::failed(ended.sentence()),
        }
    }
}
