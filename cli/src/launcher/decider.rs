//! Everything that a launch decides, as a pure state machine: `apply(event, now) → actions`.
//!
//! Nothing here opens a socket, reads a clock, starts a process or prints; [`super::driver`] does. What always holds:
//! * the launch ends: every wait but that for the run itself has a deadline;
//! * [`Action::Return`] comes once, after [`Action::Conclude`], and when no process is left;
//! * a process is started again only after a death that its budget ([`Supervisor`]) covers, and never once the run is over;
//! * the second request to stop kills every process at once.

mod coordinator;
mod ending;
mod members;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use polygram_domain::control::{RunStatus, StopMode};
use polygram_domain::run_spec::RecoverySpec;
use polygram_proto::control::ControlError;

use super::claim::Claim;
use super::ended::{COORDINATOR, Ended};
use super::messages::{Action, Event};
use super::progress::ProgressLine;
use super::stall::StallWatch;
use super::store_trouble::StoreTrouble;
use super::supervisor::Supervisor;

/// How long after a process died the coordinator may take to say who and why.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);
/// How long members that have not started may take to end once the run is over: they hold nothing that could be lost.
const IDLE_PATIENCE: Duration = Duration::from_secs(1);
/// Why the operator's request to stop reaches the coordinator.
const STOP_REASON: &str = "requested by a signal to the launcher";

/// What a launch is about.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Name of the run.
    pub(crate) run: String,
    /// Names of the members, in the order in which they are started.
    pub(crate) members: Vec<String>,
    /// After this silence a member counts as lost.
    pub(crate) detection: Duration,
    /// The step that the session ends at.
    pub(crate) last_step: u64,
    /// Newest steps whose numbers are kept.
    pub(crate) kept_steps: usize,
    /// What becomes of another coordinator of the run.
    pub(crate) claim: Claim,
    /// What is done about processes that die.
    pub(crate) recovery: RecoverySpec,
}

/// Where the launch is.
#[derive(Debug)]
enum Phase {
    /// The coordinator was started and does not listen yet.
    Opening { until: Instant },
    /// It listens, and its watch is being opened.
    Connecting,
    /// The run is watched.
    Following,
    /// The watch broke; the coordinator's process has so long to end.
    AwaitingCoordinatorsEnd { until: Instant, error: Option<ControlError> },
    /// The coordinator is started again then.
    Pausing { until: Instant },
    /// The run is lost; a death that explains it may be noticed until then.
    FindingCause { until: Instant, error: Option<ControlError> },
    /// Every process was killed on request; they end.
    Killing,
    /// They have ended; the store is asked, then told.
    Recording { status: Option<Box<RunStatus>> },
    /// The launch is decided; its processes end.
    ClearingAway(Clearing),
    /// No process is left.
    Ended,
}

/// Deadlines of the processes that are still to end.
#[derive(Clone, Copy, Debug)]
struct Clearing {
    /// Of members that had not started when the run was over.
    unstarted_until: Option<Instant>,
    /// Of everybody; none once they were killed.
    until: Option<Instant>,
}

/// The first abnormal end of a process.
#[derive(Clone, Debug)]
struct Death {
    ended: Ended,
    /// Until when the coordinator may explain it.
    due: Instant,
}

/// A loss that the run is recovering from.
#[derive(Clone, Copy, Debug)]
struct Loss {
    noticed: Instant,
    /// Since when the coordinator waits for members, and for nothing else.
    missed_since: Option<Instant>,
}

/// The decider of one launch.
#[derive(Debug)]
pub(crate) struct Decider {
    setup: Setup,
    started: Instant,
    phase: Phase,
    /// Where the coordinator listens; port 0 until it has said so.
    address: SocketAddr,
    /// The coordinator that listened last.
    coordinator: Option<u32>,
    /// Living processes by process id.
    living: BTreeMap<u32, String>,
    /// Starts that were ordered and not answered.
    starting: u32,
    /// Members that were never started.
    unborn: BTreeSet<String>,
    supervisor: Supervisor,
    line: ProgressLine,
    status: Option<Box<RunStatus>>,
    is_over: bool,
    stops: u32,
    death: Option<Death>,
    /// Every abnormal end.
    ends: Vec<Ended>,
    /// Whether the coordinator was asked to abort because of the death.
    asked_to_abort: bool,
    loss: Option<Loss>,
    /// Restarts that the coordinator has counted.
    restarts: u32,
    stall: StallWatch,
    store_trouble: StoreTrouble,
    /// What was said of checkpoints that are quarantined.
    quarantined: Vec<String>,
    /// The furthest step of this launch.
    furthest: Option<u64>,
    /// Members that have joined, by process id.
    joined: BTreeSet<u32>,
    /// The run is over; members that had not started are killed from then on.
    unstarted_until: Option<Instant>,
    /// Members that had started when the run was over.
    started_pids: BTreeSet<u32>,
    actions: Vec<Action>,
}

impl Decider {
    /// The decider of a launch that begins at `now`.
    pub(crate) fn new(setup: Setup, now: Instant) -> Decider {
        Decider {
            started: now,
            phase: Phase::Pausing { until: now },
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            coordinator: None,
            living: BTreeMap::new(),
            starting: 0,
            unborn: setup.members.iter().cloned().collect(),
            supervisor: Supervisor::new(&setup.recovery),
            line: ProgressLine::new(setup.last_step, setup.kept_steps),
            status: None,
            is_over: false,
            stops: 0,
            death: None,
            ends: Vec::new(),
            asked_to_abort: false,
            loss: None,
            restarts: 0,
            stall: StallWatch::new(setup.detection),
            store_trouble: StoreTrouble::default(),
            quarantined: Vec::new(),
            furthest: None,
            joined: BTreeSet::new(),
            unstarted_until: None,
            started_pids: BTreeSet::new(),
            actions: Vec::new(),
            setup,
        }
    }

    /// Applies `event` at `now` and says what is to be done, in order.
    pub(crate) fn apply(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Tick => {}
            Event::Started { name, pid } => self.process_started(name, pid),
            Event::NotStarted { name, failure } => self.process_not_started(name, failure, now),
            Event::Announced(announcement) => self.announced(announcement, now),
            Event::Unreadable(failure) => self.unreadable(failure, now),
            Event::Connected => self.connected(),
            Event::NotConnected(error) => self.watch_ended(Some(error), now),
            Event::Watched(event) => self.watched(event, now),
            Event::WatchEnded(error) => self.watch_ended(error, now),
            Event::Exited(exit) => self.exited(exit, now),
            Event::Signal => self.signal(now),
            Event::StopAnswered(result) => self.stop_answered(result),
            Event::StallAnswered(stall) => self.stall_answered(stall, now),
            Event::NewestCommit(committed) => self.newest_commit(committed, now),
            Event::Recorded(is_recorded) => self.recorded(is_recorded, now),
        }
        self.pass_time(now);
        self.settle();
        std::mem::take(&mut self.actions)
    }

    /// When time alone changes something; [`Event::Tick`] is due then, and twice a second.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Opening { until }
            | Phase::Pausing { until }
            | Phase::AwaitingCoordinatorsEnd { until, .. }
            | Phase::FindingCause { until, .. } => Some(*until),
            Phase::Following => {
                self.supervisor.next_due().into_iter().chain(self.death.as_ref().map(|death| death.due)).min()
            }
            Phase::ClearingAway(Clearing { unstarted_until, until }) => {
                unstarted_until.iter().chain(until).min().copied()
            }
            Phase::Connecting | Phase::Killing | Phase::Recording { .. } | Phase::Ended => None,
        }
    }

    /// What to show now in at most `width` columns: the progress, or why there is none.
    pub(crate) fn line(&self, now: Instant, width: usize) -> Option<String> {
        if let Some(stall) = self.stall.line(now) {
            let done = self.furthest.unwrap_or(0);
            return Some(format!("step {done}/{}  {stall}", self.setup.last_step));
        }
        match (self.line.render(self.seconds(now), width), &self.status) {
            (Some(line), _) if self.loss.is_none() => Some(line),
            (_, Some(status)) => Some(format!("{}: {}", status.state, status.message)),
            (_, None) => None,
        }
    }

    /// Steps done, if this launch has done any.
    pub(crate) fn steps_done(&self) -> Option<u64> {
        self.line.newest().map(|metrics| metrics.step.0.saturating_add(1))
    }

    /// What is due by now.
    fn pass_time(&mut self, now: Instant) {
        match &self.phase {
            Phase::Opening { until } if *until <= now => self.not_listening(now),
            Phase::Pausing { until } if *until <= now => self.open(now),
            Phase::AwaitingCoordinatorsEnd { until, .. } if *until <= now => self.kill_coordinator(now),
            Phase::FindingCause { until, .. } if *until <= now => self.cause_found(now),
            Phase::Following => {
                self.restart_due(now);
                self.kill_absent(now);
                self.kill_unstarted(now);
                if self.stall.asks(now) {
                    self.actions.push(Action::AskWhatIsWaitedFor);
                }
                self.death_due(now);
            }
            Phase::ClearingAway(clearing) => {
                let clearing = *clearing;
                self.clear_due(clearing, now);
            }
            _ => {}
        }
    }

    /// Goes on where all that was waited for are processes that have ended.
    fn settle(&mut self) {
        if !self.living.is_empty() || self.starting > 0 {
            return;
        }
        match self.phase {
            Phase::Killing => {
                self.phase = Phase::Recording { status: None };
                self.actions.push(Action::ReadNewestCommit);
            }
            Phase::ClearingAway(_) => {
                self.phase = Phase::Ended;
                self.actions.push(Action::Return);
            }
            _ => {}
        }
    }

    /// The operator asks for the end. Once means commit and stop, twice means at once.
    fn signal(&mut self, now: Instant) {
        self.stops += 1;
        match self.phase {
            Phase::ClearingAway(_) if self.stops > 1 => self.kill_everybody(),
            // Everybody is ending already, within seconds.
            Phase::ClearingAway(_)
            | Phase::FindingCause { .. }
            | Phase::Killing
            | Phase::Recording { .. }
            | Phase::Ended => {}
            _ if self.stops > 1 => self.kill(),
            Phase::Following | Phase::Connecting => {
                self.say("stopping: this step, then a commit (once more to kill everything now)");
                if let Phase::Following = self.phase {
                    self.request_stop();
                }
            }
            Phase::Opening { .. } | Phase::Pausing { .. } | Phase::AwaitingCoordinatorsEnd { .. } => {
                match self.has_begun() {
                    true => self.kill(),
                    false => self.stopped_before_listening(now),
                }
            }
        }
    }

    fn request_stop(&mut self) {
        self.actions.push(Action::RequestStop { mode: StopMode::Commit, reason: STOP_REASON.to_owned() });
    }

    fn stop_answered(&mut self, result: Result<(), ControlError>) {
        let Err(error) = result else { return };
        if let (Phase::Following, Some(coordinator)) = (&self.phase, self.pid_of(COORDINATOR)) {
            // The coordinator takes the same wish as a signal.
            self.warn(format!("the stop request did not get through ({error}); signalling"));
            self.actions.push(Action::Terminate(vec![coordinator]));
        }
    }

    /// Whether the run goes on, and processes are started again for it.
    fn goes_on(&self) -> bool {
        self.supervisor.restarts() && !self.is_over && !self.asked_to_abort
    }

    fn pid_of(&self, name: &str) -> Option<u32> {
        self.living.iter().find(|(_, known)| *known == name).map(|(pid, _)| *pid)
    }

    /// Living members that had not started when the run was over.
    fn unstarted(&self) -> Vec<u32> {
        let members = self.living.iter().filter(|(_, name)| *name != COORDINATOR);
        members.map(|(pid, _)| *pid).filter(|pid| !self.started_pids.contains(pid)).collect()
    }

    fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.started).as_secs_f64()
    }

    fn say(&mut self, text: impl Into<String>) {
        self.actions.push(Action::Say(text.into()));
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.actions.push(Action::Warn(text.into()));
    }
}
