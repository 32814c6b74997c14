//! Following a run to its end: the watch, the children, the operator's signals, and what is said about them. [`end`] says
//! how it ended.

mod end;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::time::Duration;

use polygram_proto::control::{
    Announcement, ControlError, OperatorClient, Reason, RunState, RunStatus, StepMetrics, StopMode, Token,
    WatchEvent, WatchStream,
};
use tokio::time::{Instant, MissedTickBehavior};

use super::children::Ended;
use super::progress::{MeanLoss, ProgressLine};
use super::store_trouble::StoreTrouble;
use super::supervisor::{AT_ONCE, Verdict};
use super::{COORDINATOR, IDLE_PATIENCE, Launch};
use crate::evaluations;
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;

/// Between progress lines where a line cannot be rewritten.
const QUIET_INTERVAL: Duration = Duration::from_secs(5);
/// A reason to wait is worth a line of its own when it has lasted so long.
const WAITING_INTERVAL: Duration = Duration::from_millis(900);
/// How long after a process died the coordinator may take to say who and why.
const VERDICT_GRACE: Duration = Duration::from_secs(5);

/// A coordinator whose watch broke has so long to end by itself before it is taken for frozen.
const COORDINATOR_PATIENCE: Duration = Duration::from_secs(1);
/// The same for one that ended its watch in good order.
const LEAVING_PATIENCE: Duration = Duration::from_secs(10);
/// A member that ended well before the run was over is started again after this, unless the run is over by then.
const QUIET_PAUSE: Duration = Duration::from_secs(1);

/// Within this time deaths count as one event.
const BLAME_WINDOW: Duration = Duration::from_millis(300);

/// How a followed run ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It was complete before anything started.
    AlreadyOver(Announcement),
    /// The coordinator's last word.
    Over(Box<Final>),
}

/// The coordinator's last word and the session's own view.
#[derive(Debug)]
pub(crate) struct Final {
    /// State, reason, members as last seen.
    pub(crate) status: RunStatus,
    /// Seconds since the launch.
    pub(crate) seconds: f64,
    /// Share of them spent in steps.
    pub(crate) goodput: f64,
    /// The mean loss of the newest steps.
    pub(crate) mean_loss: Option<MeanLoss>,
    /// The newest steps, as many as the launch was asked to keep or a few.
    pub(crate) steps: Vec<StepMetrics>,
}

/// Follows one launch.
pub(crate) struct Follower<'l, 'c, 'p> {
    launch: &'l mut Launch<'c>,
    printer: &'p mut Printer,
    line: ProgressLine,
    status: Option<RunStatus>,
    /// The newest line and since when it has been so.
    shown: (String, Instant),
    said: String,
    said_step: Option<u64>,
    said_at: Instant,
    stops: u32,
    /// First abnormal end of a process, and until when the coordinator may explain it.
    death: Option<(Ended, Instant)>,
    /// Every abnormal end.
    ends: Vec<Ended>,
    /// Whether the coordinator was told of it.
    told: bool,
    /// The loss that the run is recovering from, by this clock, and whether those who stay away were killed.
    loss: Option<Loss>,
    restarts: u32,
    store_trouble: StoreTrouble,
    /// What was said of checkpoints that were set aside.
    set_aside: Vec<String>,
    /// The furthest step of this launch.
    furthest: Option<u64>,
    /// Members that have joined, by process id.
    joined: BTreeSet<u32>,
    /// The run is over; members that had not started are killed from then on.
    unstarted_until: Option<Instant>,
}

/// A loss that the run is recovering from.
#[derive(Clone, Copy, Debug)]
struct Loss {
    noticed: Instant,
    /// Since when the coordinator waits for members, and for nothing else.
    missed_since: Option<Instant>,
}

/// The line to the coordinator.
struct Line {
    client: OperatorClient,
    watch: WatchStream,
    address: SocketAddr,
}

impl Line {
    async fn connect(address: SocketAddr, token: &Token) -> Result<Line, ControlError> {
        let mut client = OperatorClient::connect(&address.to_string(), Some(token)).await?;
        let watch = client.watch().await?;
        Ok(Line { client, watch, address })
    }
}

/// A stop request on its way; it ends with its deadline at the latest.
type Stopping = Pin<Box<dyn Future<Output = Result<String, ControlError>>>>;

fn stop(client: &OperatorClient, mode: StopMode, reason: String) -> Stopping {
    let mut client = client.clone();
    Box::pin(async move { client.stop(mode, &reason).await })
}

/// A coordinator that was started again.
enum Revived {
    Leads(Box<Line>),
    /// It found nothing left to do.
    Over(Announcement),
}

enum Event {
    Watch(Result<Option<WatchEvent>, ControlError>),
    Exit(Ended),
    Signal,
    Stopped(Result<String, ControlError>),
    /// A process is to be started again.
    Due(String),
    Tick,
}

impl<'l, 'c, 'p> Follower<'l, 'c, 'p> {
    /// A follower of `launch`.
    pub(crate) fn new(launch: &'l mut Launch<'c>, printer: &'p mut Printer) -> Self {
        let line = ProgressLine::new(launch.configuration.spec.last_step(), launch.kept_steps);
        Follower {
            launch,
            printer,
            line,
            status: None,
            shown: (String::new(), Instant::now()),
            said: String::new(),
            said_step: None,
            said_at: Instant::now(),
            stops: 0,
            death: None,
            ends: Vec::new(),
            told: false,
            loss: None,
            restarts: 0,
            store_trouble: StoreTrouble::default(),
            set_aside: Vec::new(),
            furthest: None,
            joined: BTreeSet::new(),
            unstarted_until: None,
        }
    }

    /// Follows until the run is over or lost.
    pub(crate) async fn follow(mut self, announcement: &Announcement) -> Outcome<Ending> {
        let mut line = match Line::connect(announcement.address, self.launch.token()).await {
            Ok(line) => line,
            Err(error) if !self.goes_on() => return Err(self.lost(Some(error)).await),
            Err(error) => match self.revive(announcement.address, Some(error)).await? {
                Revived::Leads(line) => *line,
                Revived::Over(announcement) => return Ok(Ending::AlreadyOver(announcement)),
            },
        };
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping: Option<Stopping> = None;
        loop {
            match self.next_event(&mut line.watch, &mut stopping, &mut ticks).await {
                Event::Watch(Ok(Some(event))) => self.see(event),
                // The stream ends after its last status, or with the coordinator.
                Event::Watch(Ok(None)) if !self.goes_on() => return self.end(None).await,
                Event::Watch(Err(error)) if !self.goes_on() => return self.end(Some(error)).await,
                Event::Watch(broken) => match self.revive(line.address, broken.err()).await? {
                    Revived::Leads(again) => {
                        line = *again;
                        // The new one knows nothing of an older wish.
                        let wish = "requested by a signal to the launcher".to_owned();
                        stopping = (self.stops > 0).then(|| stop(&line.client, StopMode::Commit, wish));
                    }
                    Revived::Over(announcement) => return Ok(Ending::AlreadyOver(announcement)),
                },
                Event::Exit(ended) => self.note_exit(ended),
                Event::Due(name) => self.respawn(name),
                Event::Signal if self.stops == 0 => {
                    self.stops = 1;
                    self.printer.say("stopping: this step, then a commit (once more to kill everything now)");
                    let reason = "requested by a signal to the launcher".to_owned();
                    stopping = Some(stop(&line.client, StopMode::Commit, reason));
                }
                Event::Signal => return self.kill().await,
                Event::Stopped(result) => {
                    stopping = None;
                    if let Err(error) = result {
                        // The coordinator takes the same wish as a signal.
                        self.printer
                            .warn(format!("the stop request did not get through ({error}); signalling"));
                        self.launch.children.terminate(COORDINATOR);
                    }
                }
                Event::Tick => {
                    self.kill_absent();
                    self.kill_unstarted();
                }
            }
            match &self.death {
                Some((_, due)) if Instant::now() >= *due && self.told => return self.end(None).await,
                Some((ended, due)) if Instant::now() >= *due => {
                    // One that dies before it has joined is nobody to the coordinator: it is told, and has the last word.
                    let reason = format!("{} (pid {}) {}", ended.name, ended.pid, ended.how());
                    stopping = Some(stop(&line.client, StopMode::Abort, reason));
                    self.grant_time();
                }
                _ => {}
            }
            self.show();
        }
    }

    async fn next_event(
        &mut self,
        watch: &mut WatchStream,
        stopping: &mut Option<Stopping>,
        ticks: &mut tokio::time::Interval,
    ) -> Event {
        let stopped = async {
            match stopping.as_mut() {
                Some(request) => request.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = watch.next() => Event::Watch(event),
            ended = self.launch.children.next_exit() => Event::Exit(ended),
            name = self.launch.supervisor.next_due() => Event::Due(name),
            () = self.launch.signals.next() => Event::Signal,
            result = stopped => Event::Stopped(result),
            _ = ticks.tick() => Event::Tick,
        }
    }

    fn grant_time(&mut self) {
        self.told = true;
        if let Some((_, due)) = &mut self.death {
            *due = Instant::now() + VERDICT_GRACE;
        }
    }

    fn see(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Status(status) => {
                if let Some(step) = status.last_commit {
                    self.line.committed(step.0);
                }
                self.joined.extend(status.members.iter().map(|member| member.pid));
                self.launch.is_over = status.state.is_over();
                if self.launch.is_over {
                    self.launch.supervisor.retire();
                    self.end_unstarted(&status);
                }
                for sentence in &status.set_aside {
                    if !self.set_aside.contains(sentence) {
                        self.printer.warn(sentence);
                        self.set_aside.push(sentence.clone());
                    }
                }
                self.store_trouble.see(&status, self.printer);
                self.see_losses(&status);
                self.status = Some(*status);
            }
            WatchEvent::Metrics(metrics) => {
                let done = metrics.step.0 + 1;
                self.line.step(metrics, self.launch.elapsed_seconds());
                if let Some(loss) = self.loss.take() {
                    let seconds = loss.noticed.elapsed().as_secs_f64();
                    self.printer.say(format!("step {done}  going on, {seconds:.2} s after the loss"));
                }
                if self.furthest.is_none_or(|furthest| furthest < done) {
                    self.furthest = Some(done);
                    self.launch.supervisor.forgive();
                }
            }
            WatchEvent::Evaluation(evaluation) => {
                let (step, label) = (evaluation.step, evaluations::label(&evaluation.set));
                self.printer.say(format!("step {step}  {label} {:.4} nats per token", evaluation.loss));
            }
            WatchEvent::Committed { step } => {
                self.line.committed(step.0);
                self.printer.say(format!("step {step}  committed"));
            }
        }
    }

    /// The run is over: members that have not started it, or not again after a loss, have nothing to finish, and must not
    /// wait for what does not come any more.
    fn end_unstarted(&mut self, status: &RunStatus) {
        if self.unstarted_until.is_some() {
            return;
        }
        self.unstarted_until = Some(Instant::now() + IDLE_PATIENCE);
        if self.furthest.is_some() && self.loss.is_none() {
            self.launch.started_pids.extend(status.members.iter().map(|member| member.pid));
        }
        self.launch.children.terminate_pids(&self.launch.unstarted());
    }

    /// Kills those of them that are still there after their time.
    fn kill_unstarted(&mut self) {
        if self.unstarted_until.is_some_and(|until| Instant::now() >= until) {
            for pid in self.launch.unstarted() {
                self.launch.children.kill(pid);
            }
        }
    }

    /// Whether the run goes on, and processes are started again for it.
    fn goes_on(&self) -> bool {
        self.launch.supervisor.restarts() && !self.launch.is_over && !self.told
    }

    fn see_losses(&mut self, status: &RunStatus) {
        if status.restarts <= self.restarts {
            // A new coordinator counts from 0.
            self.restarts = status.restarts;
            return;
        }
        self.restarts = status.restarts;
        self.said = format!("{}: {}", status.state, status.message);
        self.printer.say(&self.said);
        let noticed = self.loss.map_or(Instant::now(), |loss| loss.noticed);
        self.loss = Some(Loss { noticed, missed_since: None });
        // A process that hangs does not come back by itself.
        let silent = status.last_rollback.as_ref().filter(|last| last.reason == Reason::MemberSilent);
        if let Some(last) = silent
            && let Some(name) = self.launch.children.kill(last.culprit.pid)
        {
            self.printer.say(format!("killed {name} (pid {}), which hangs", last.culprit.pid));
        }
    }

    /// Members that live and did not come back in time hang somewhere: they are killed, and started again.
    fn kill_absent(&mut self) {
        let Some(loss) = &mut self.loss else { return };
        let is_waiting = |status: &&RunStatus| {
            status.state == RunState::Recovering && status.reason == Reason::WaitingForMembers
        };
        let Some(status) = self.status.as_ref().filter(is_waiting) else {
            loss.missed_since = None;
            return;
        };
        let patience = Duration::from_secs_f64(self.launch.configuration.spec.failure_detection_seconds);
        if loss.missed_since.get_or_insert_with(Instant::now).elapsed() < patience {
            return;
        }
        loss.missed_since = None;
        let back = |pid: u32| status.members.iter().any(|member| member.pid == pid);
        let absent = self.launch.children.living().filter(|(name, pid)| *name != COORDINATOR && !back(*pid));
        let absent: Vec<u32> = absent.map(|(_, pid)| pid).collect();
        for pid in absent {
            if let Some(name) = self.launch.children.kill(pid) {
                self.printer.say(format!("killed {name} (pid {pid}), which did not come back"));
            }
        }
    }

    /// Starts the coordinator again where it listened before.
    async fn revive(&mut self, address: SocketAddr, error: Option<ControlError>) -> Outcome<Revived> {
        let noticed = self.loss.map_or(Instant::now(), |loss| loss.noticed);
        self.loss = Some(Loss { noticed, missed_since: None });
        let mut error = error;
        loop {
            let patience = if error.is_some() { COORDINATOR_PATIENCE } else { LEAVING_PATIENCE };
            self.await_coordinators_end(patience).await;
            match self.launch.supervisor.died(COORDINATOR) {
                Verdict::GiveUp => return Err(self.lost(error).await),
                Verdict::Again(pause) => tokio::time::sleep(pause).await,
            }
            let started = self.launch.start_coordinator(address, self.printer).await;
            let announcement = started.map_err(|mut refused| {
                // Processes were started before: its status 2 (nothing was started) does not hold here.
                refused.status = ExitStatus::Failed;
                refused
            })?;
            let Announcement { pid, resume_step, .. } = announcement;
            self.printer
                .say(format!("the coordinator was started again (pid {pid}); committed step {resume_step}"));
            if announcement.state.is_over() {
                self.launch.is_over = true;
                self.launch.supervisor.retire();
                return Ok(Revived::Over(announcement));
            }
            match Line::connect(address, self.launch.token()).await {
                Ok(line) => return Ok(Revived::Leads(Box::new(line))),
                Err(lost) => error = Some(lost),
            }
        }
    }

    /// Waits until the coordinator's process has ended; one that does not is killed.
    async fn await_coordinators_end(&mut self, patience: Duration) {
        let mut due = Instant::now() + patience;
        while let Some(pid) = self.launch.children.pid_of(COORDINATOR) {
            match tokio::time::timeout_at(due, self.launch.children.next_exit()).await {
                Ok(ended) => self.note_exit(ended),
                Err(_) => {
                    self.printer.say(format!("killing the coordinator (pid {pid}), which hangs"));
                    self.launch.children.kill(pid);
                    due = Instant::now() + LEAVING_PATIENCE;
                }
            }
        }
    }

    /// Writes the progress line, or why there is none yet.
    fn show(&mut self) {
        for warning in std::mem::take(&mut self.launch.warnings) {
            self.printer.warn(warning);
        }
        let line = match (self.line.render(self.launch.elapsed_seconds(), self.printer.width()), &self.status)
        {
            (Some(line), _) if self.loss.is_none() => line,
            // Before the first step, who is waited for says it all.
            (_, Some(status)) if matches!(status.state, RunState::Pending | RunState::Admitting) => {
                status.message.clone()
            }
            (_, Some(status)) => format!("{}: {}", status.state, status.message),
            (_, None) => return,
        };
        if self.printer.is_live() {
            return self.printer.live(&line);
        }
        let done = self.line.newest().map(|metrics| metrics.step.0 + 1);
        if line != self.shown.0 {
            self.shown = (line.clone(), Instant::now());
        }
        let is_due = match done {
            // While waiting, a reason that stays is said once.
            None => line != self.said && self.shown.1.elapsed() >= WAITING_INTERVAL,
            Some(_) if done == self.said_step => false,
            Some(step) => {
                self.said_step.is_none()
                    || step == self.launch.configuration.spec.last_step()
                    || self.said_at.elapsed() >= QUIET_INTERVAL
            }
        };
        if is_due {
            self.printer.say(&line);
            (self.said, self.said_step, self.said_at) = (line, done, Instant::now());
        }
    }

    fn note_exit(&mut self, ended: Ended) {
        let is_over = self.status.as_ref().is_some_and(|status| status.state.is_over());
        // One that this launcher has ended with the run says nothing about why the run ended.
        let is_sent_away = self.unstarted_until.is_some() && !self.launch.started_pids.contains(&ended.pid);
        if !ended.status.success() && !is_sent_away {
            self.ends.push(ended.clone());
        }
        let is_quiet = ended.status.success() && ended.name != COORDINATOR;
        if is_over || self.death.is_some() {
            return;
        }
        if self.goes_on() {
            return self.start_again(ended, is_quiet);
        }
        if is_quiet {
            return;
        }
        self.printer.say(format!("{} (pid {}) {}", ended.name, ended.pid, ended.how()));
        self.death = Some((ended, Instant::now() + VERDICT_GRACE));
    }

    /// Starts a member again. Where that fails, it counts as another death: what the system refuses now it may grant later.
    fn respawn(&mut self, name: String) {
        let Err(failure) = self.launch.respawn(&name) else { return };
        self.printer.warn(failure.to_string());
        match self.launch.supervisor.died(&name) {
            Verdict::Again(pause) => self.launch.supervisor.schedule(name, Instant::now() + pause),
            Verdict::GiveUp => {
                let (status, lived) = (ExitStatusExt::from_raw(0x100), Duration::ZERO);
                let ended = Ended { name, pid: 0, status, lived };
                self.death = Some((ended, Instant::now()));
            }
        }
    }

    /// Sees to it that a process that died before the run was over is started again.
    fn start_again(&mut self, ended: Ended, is_quiet: bool) {
        self.printer.say(format!("{} (pid {}) {}", ended.name, ended.pid, ended.how()));
        if ended.name == COORDINATOR {
            // The end of its watch follows, and with it the next one.
            return;
        }
        match self.launch.supervisor.died(&ended.name) {
            _ if self.is_hopeless(&ended) => {
                self.printer
                    .say(format!("{} ends like this at every start: it is not started again", ended.name));
                self.death = Some((ended, Instant::now()));
            }
            Verdict::Again(pause) => {
                let pause = if is_quiet { pause.max(QUIET_PAUSE) } else { pause };
                self.launch.supervisor.schedule(ended.name, Instant::now() + pause);
            }
            Verdict::GiveUp => self.death = Some((ended, Instant::now())),
        }
    }

    /// Whether a process that ended would do so again: it ends by itself before it joins, at every start, for one reason.
    fn is_hopeless(&mut self, ended: &Ended) -> bool {
        let failed_by_itself = ended.status.code().is_some_and(|code| code != 0);
        let is_early = ended.lived < AT_ONCE && !self.joined.contains(&ended.pid);
        let reason = || self.launch.logs.tail(&ended.name, 1).pop().unwrap_or_default();
        failed_by_itself && is_early && {
            let reason = reason();
            self.launch.supervisor.ended_at_once(&ended.name, &reason)
        }
    }
}
