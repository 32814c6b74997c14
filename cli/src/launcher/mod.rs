//! The local launcher: every process of a run on this machine, each a process of its own with its own log.
//!
//! [`launch`] reads top to bottom: find the programs, start the coordinator, learn its address, start the members,
//! follow the run to its end, leave nothing behind. It decides nothing about training: the coordinator does. What dies
//! before the run is over is started again ([`supervisor`]).

pub(crate) mod children;
pub(crate) mod follow;
pub(crate) mod logs;
pub(crate) mod pool;
pub(crate) mod progress;
pub(crate) mod siblings;
pub(crate) mod supervisor;

use std::ffi::OsString;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use polygram_checkpoint::RunStore;
use polygram_domain::RunName;
use polygram_proto::control::{Announcement, Token};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::{Configuration, Root};
use children::{Children, Ended};
use follow::Follower;
use logs::LogFolder;
use siblings::Program;
use supervisor::{Start, Supervisor, Verdict};

pub(crate) use follow::Ending;

/// Name of the coordinator's process in messages and log names.
const COORDINATOR: &str = "coordinator";
/// How long a coordinator may take to read its store and listen.
const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(60);
/// How often its announcement is looked for; files give no notice.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(20);
/// How long processes may take to end by themselves once the run is over.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// The same when the run was lost.
const LOST_PATIENCE: Duration = Duration::from_millis(500);
/// How long the store may take to say what is committed, after everything was killed.
const STORE_DEADLINE: Duration = Duration::from_secs(10);
/// Lines of a log that are shown with a failure.
const TAIL_LINES: usize = 12;

/// Requests to stop: SIGINT, SIGTERM, and SIGHUP of a closing terminal.
pub(crate) struct StopSignals {
    signals: [Signal; 3],
}

impl StopSignals {
    pub(super) fn listen() -> Outcome<StopSignals> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::failed("cannot listen for signals").because(error));
        let signals = [
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ];
        Ok(StopSignals { signals })
    }

    /// The next one. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

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
    pub(crate) supervisor: Supervisor,
    programs: &'a Programs,
    desk: Desk,
    root: &'a Root,
}

/// The programs of a run.
#[derive(Debug)]
pub(crate) struct Programs {
    coordinator: PathBuf,
    embedding_shard: PathBuf,
    worker: PathBuf,
}

impl Programs {
    /// Finds them beside the running program.
    pub(crate) fn find() -> Outcome<Programs> {
        Ok(Programs {
            coordinator: Program::Coordinator.find()?,
            embedding_shard: Program::EmbeddingShard.find()?,
            worker: Program::Worker.find()?,
        })
    }
}

/// Runs `configuration` under `root` until it is over, and keeps the numbers of its newest `kept_steps` steps. No
/// process of it is left when this returns.
pub(crate) async fn launch(
    programs: &Programs,
    (configuration, kept_steps): (&Configuration, usize),
    root: &Root,
    printer: &mut Printer,
) -> Outcome<(Ending, PathBuf)> {
    let name = &configuration.spec.name;
    let desk = Desk::prepare(configuration)?;
    let mut launch = Launch {
        configuration,
        logs: LogFolder::create(root, name)?,
        children: Children::default(),
        signals: StopSignals::listen()?,
        started: Instant::now(),
        kept_steps,
        is_over: false,
        supervisor: Supervisor::new(&configuration.spec.recovery),
        programs,
        desk,
        root,
    };
    printer.say(format!("logs in {}", launch.logs.path().display()));
    let ending = launch.start_and_follow(printer).await;
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
        let announcement = self.start_coordinator(anywhere).await?;
        say_beginning(printer, &self.configuration.spec.name, &announcement);
        if announcement.state.is_over() {
            self.is_over = true;
            return Ok(Ending::AlreadyOver(announcement));
        }
        let topology = self.configuration.spec.topology;
        let programs = self.programs;
        for index in 0..topology.shards {
            let args = self.desk.member_args(&announcement, "--index", index);
            self.spawn_member(format!("shard {index}"), &programs.embedding_shard, args)?;
        }
        for rank in 0..topology.workers {
            let args = self.desk.member_args(&announcement, "--rank", rank);
            self.spawn_member(format!("worker {rank}"), &programs.worker, args)?;
        }
        Follower::new(self, printer).follow(&announcement).await
    }

    /// Starts the coordinator and waits until it listens. One that is killed meanwhile is started again.
    pub(crate) async fn start_coordinator(&mut self, listen: SocketAddr) -> Outcome<Announcement> {
        loop {
            // What an earlier one announced is not this one's word.
            self.desk.forget_announcement()?;
            let args = self.desk.coordinator_args(self.root, listen);
            let log = self.logs.open(COORDINATOR)?;
            self.children.spawn(COORDINATOR, &self.programs.coordinator, &args, log)?;
            let path = self.desk.announcement.clone();
            let ended = match self.await_announcement(&path).await? {
                Listening::Announced(announcement) => return Ok(announcement),
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

    fn spawn_member(&mut self, name: String, program: &Path, args: Vec<OsString>) -> Outcome<()> {
        let start = Start { program: program.to_owned(), args };
        self.children.spawn(&name, &start.program, &start.args, self.logs.open(&name)?)?;
        self.supervisor.started(name, start);
        Ok(())
    }

    /// Starts a member again.
    pub(crate) fn respawn(&mut self, name: &str) -> Outcome<()> {
        let Some(Start { program, args }) = self.supervisor.start_of(name) else { return Ok(()) };
        self.children.spawn(name, program, args, self.logs.open(name)?)
    }

    /// The run's token.
    pub(crate) fn token(&self) -> &Token {
        &self.desk.token
    }

    /// Seconds since the launch.
    pub(crate) fn elapsed_seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// The newest commit in the store; `None` where there is none, or the store does not answer in time.
    pub(crate) async fn newest_commit(&self) -> Option<u64> {
        let store = RunStore::open(&self.root.address(), &self.configuration.spec.name).ok()?;
        let steps = tokio::time::timeout(STORE_DEADLINE, store.committed_steps()).await.ok()?.ok()?;
        steps.last().map(|step| step.0)
    }

    /// Waits until the coordinator listens, and says where.
    async fn await_announcement(&mut self, path: &Path) -> Outcome<Listening> {
        let deadline = Instant::now() + ANNOUNCE_DEADLINE;
        let read = || {
            Announcement::read(path).map_err(|error| {
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
                        "stopped before the coordinator listened; the same command goes on from the newest commit",
                    ));
                }
                () = tokio::time::sleep(ANNOUNCE_INTERVAL) => {}
            }
            if Instant::now() >= deadline {
                let tail = self.tail_of(COORDINATOR);
                return Err(Failure::failed(format!(
                    "the coordinator did not listen within {} seconds{tail}",
                    ANNOUNCE_DEADLINE.as_secs()
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

    /// The failure of a coordinator that ended before it listened.
    fn refusal_of(&self, ended: &Ended) -> Failure {
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

    /// Leaves no process behind: waits for those on their way out, kills what does not end, and says which.
    async fn clear_away(&mut self, printer: &mut Printer) {
        if !self.is_over {
            // Nobody will tell the others any more; what is not committed is lost already.
            return drop(self.children.wind_down(LOST_PATIENCE).await);
        }
        let detection = Duration::from_secs_f64(self.configuration.spec.failure_detection_seconds);
        let patience = detection.min(END_PATIENCE);
        let (_, killed) = self.children.wind_down(patience).await;
        if !killed.is_empty() {
            printer.warn(format!("killed {}: still there after {} s", killed.join(", "), patience.as_secs()));
        }
    }
}

/// The launch's private files: token, effective configuration, announcement. Gone when it is dropped.
struct Desk {
    folder: tempfile::TempDir,
    configuration: PathBuf,
    token_file: PathBuf,
    announcement: PathBuf,
    token: Token,
}

impl Desk {
    fn prepare(configuration: &Configuration) -> Outcome<Desk> {
        let cannot = |error: std::io::Error| {
            Failure::failed("cannot write the launch's files in the temporary folder").because(error)
        };
        let folder = tempfile::Builder::new().prefix("polygram-launch-").tempdir().map_err(cannot)?;
        let at = |name: &str| folder.path().join(name);
        let (config, token_file, announcement) = (at("run.toml"), at("token"), at("announcement.json"));
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&config)
            .and_then(|mut file| file.write_all(configuration.effective_toml.as_bytes()))
            .map_err(cannot)?;
        let token = Token::generate()
            .and_then(|token| token.write(&token_file).map(|()| token))
            .map_err(|error| Failure::failed("cannot make the run's token").because(error))?;
        Ok(Desk { configuration: config, token_file, announcement, token, folder })
    }

    fn forget_announcement(&self) -> Outcome<()> {
        match std::fs::remove_file(&self.announcement) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let what = format!("cannot remove {}", self.announcement.display());
                Err(Failure::failed(what).because(error))
            }
            _ => Ok(()),
        }
    }

    fn coordinator_args(&self, root: &Root, listen: SocketAddr) -> Vec<OsString> {
        debug_assert!(self.configuration.starts_with(self.folder.path()));
        vec![
            "--config".into(),
            self.configuration.clone().into(),
            "--root".into(),
            root.address().into(),
            "--listen".into(),
            listen.to_string().into(),
            "--token-file".into(),
            self.token_file.clone().into(),
            "--announce-file".into(),
            self.announcement.clone().into(),
        ]
    }

    fn member_args(&self, coordinator: &Announcement, slot: &str, number: u32) -> Vec<OsString> {
        vec![
            "--coordinator".into(),
            coordinator.address.to_string().into(),
            slot.into(),
            number.to_string().into(),
            "--run".into(),
            coordinator.run.clone().into(),
            "--token-file".into(),
            self.token_file.clone().into(),
        ]
    }
}
