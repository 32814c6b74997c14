//! Does what the decider of a launch orders, and tells it what happens: processes, signals, the coordinator's watch, the
//! clock. It decides nothing.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use polygram_domain::control::{RunStatus, StopMode, WatchEvent};
use polygram_proto::control::{ControlError, OperatorClient, Token, WatchStream};
use tokio::time::{Interval, MissedTickBehavior};

use super::decider::{Decider, Setup};
use super::display::Display;
use super::ended::{COORDINATOR, Ended};
use super::launch::Launch;
use super::messages::{Action, Ending, Event, Exit};
use super::wait::sleep_until;
use crate::exit::{Failure, Outcome};
use crate::printer::Printer;

/// How often the decider hears that time has passed.
const TICK: Duration = Duration::from_millis(500);
/// How often the coordinator's announcement is looked for; files give no notice.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(20);
/// While there is no announcement, the coordinator's last log line is shown this often, if it is a new one.
const ANNOUNCE_QUIET: Duration = Duration::from_secs(2);

/// Drives one launch.
pub(super) struct Driver<'l, 'c, 'p> {
    launch: &'l mut Launch<'c>,
    printer: &'p mut Printer,
    decider: Decider,
    display: Display,
    opening: Option<Opening>,
    connecting: Option<Pending<Line>>,
    line: Option<Line>,
    stopping: Option<Pending<()>>,
    asking: Option<Pending<RunStatus>>,
    outcome: Option<Outcome<Ending>>,
}

/// A coordinator that was started and has not announced itself.
struct Opening {
    quiet_until: Instant,
    said: String,
}

/// A call on its way; it ends with its deadline at the latest.
type Pending<T> = Pin<Box<dyn Future<Output = Result<T, ControlError>>>>;

/// The line to the coordinator.
struct Line {
    client: OperatorClient,
    watch: WatchStream,
}

impl Line {
    fn connect(address: SocketAddr, token: Token) -> Pending<Line> {
        Box::pin(async move {
            let mut client = OperatorClient::connect(&address.to_string(), Some(&token)).await?;
            let watch = client.watch().await?;
            Ok(Line { client, watch })
        })
    }

    fn stop(&self, mode: StopMode, reason: String) -> Pending<()> {
        let mut client = self.client.clone();
        Box::pin(async move { client.stop(mode, &reason).await.map(|_answer| ()) })
    }

    fn status(&self) -> Pending<RunStatus> {
        let mut client = self.client.clone();
        Box::pin(async move { client.status().await })
    }
}

/// What wakes the driver.
enum Woken {
    Watch(Result<Option<WatchEvent>, ControlError>),
    Exit(Ended),
    Signal,
    Connected(Result<Line, ControlError>),
    Stopped(Result<(), ControlError>),
    Status(Result<RunStatus, ControlError>),
    Announcement,
    Tick,
}

impl<'l, 'c, 'p> Driver<'l, 'c, 'p> {
    /// A driver of `launch`, which is about `setup`.
    pub(super) fn new(setup: Setup, launch: &'l mut Launch<'c>, printer: &'p mut Printer) -> Self {
        let now = Instant::now();
        Driver {
            display: Display::new(setup.last_step, now),
            decider: Decider::new(setup, now),
            launch,
            printer,
            opening: None,
            connecting: None,
            line: None,
            stopping: None,
            asking: None,
            outcome: None,
        }
    }

    /// Runs the launch to its end. No process of it is left then.
    pub(super) async fn run(mut self) -> Outcome<Ending> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut events = VecDeque::from([Event::Tick]);
        loop {
            while let Some(event) = events.pop_front() {
                for action in self.decider.apply(event, Instant::now()) {
                    if let Action::Return = action {
                        self.launch.processes.print_warnings(self.printer);
                        let nothing = || Err(Failure::failed("the launch ended without a conclusion"));
                        return self.outcome.unwrap_or_else(nothing);
                    }
                    events.extend(self.act(action).await);
                }
            }
            self.show();
            let woken = self.wait(&mut ticks).await;
            events.extend(self.event_of(woken));
        }
    }

    /// Does one thing; some have an answer at once.
    async fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Say(text) => self.printer.say(text),
            Action::SayState(text) => {
                self.display.note(&text);
                self.printer.say(text);
            }
            Action::Warn(text) => self.printer.warn(text),
            Action::Open { listen, claim } => {
                self.opening =
                    Some(Opening { quiet_until: Instant::now() + ANNOUNCE_QUIET, said: String::new() });
                return Some(started(COORDINATOR.to_owned(), self.launch.open(listen, claim)));
            }
            Action::Start(name) => {
                let result = self.launch.start(&name);
                return Some(started(name, result));
            }
            Action::Connect(address) => {
                (self.line, self.stopping, self.asking) = (None, None, None);
                self.connecting = Some(Line::connect(address, self.launch.files.token().clone()));
            }
            Action::RequestStop { mode, reason } => {
                self.stopping = self.line.as_ref().map(|line| line.stop(mode, reason));
            }
            Action::AskWhatIsWaitedFor => self.asking = self.line.as_ref().map(Line::status),
            Action::Terminate(pids) => self.launch.processes.children.terminate_pids(&pids),
            Action::Kill(pids) => pids.iter().for_each(|pid| self.launch.processes.children.kill(*pid)),
            Action::ReadNewestCommit => return Some(Event::NewestCommit(self.launch.newest_commit().await)),
            Action::Record { status, coordinator } => {
                return Some(Event::Recorded(self.launch.record(*status, coordinator).await));
            }
            Action::Conclude(conclusion) => {
                self.printer.end_line();
                (self.opening, self.connecting, self.line) = (None, None, None);
                (self.stopping, self.asking) = (None, None);
                self.outcome = Some(self.launch.outcome(*conclusion));
            }
            // The loop of [`Driver::run`] ends with it.
            Action::Return => {}
        }
        None
    }

    /// Waits for the next thing to happen.
    async fn wait(&mut self, ticks: &mut Interval) -> Woken {
        let processes = &mut self.launch.processes;
        let wake_at = self.decider.wake_at();
        tokio::select! {
            result = watched(&mut self.line) => Woken::Watch(result),
            ended = processes.children.next_exit() => Woken::Exit(ended),
            () = self.launch.signals.next() => Woken::Signal,
            result = answered(&mut self.connecting) => Woken::Connected(result),
            result = answered(&mut self.stopping) => Woken::Stopped(result),
            result = answered(&mut self.asking) => Woken::Status(result),
            () = tokio::time::sleep(ANNOUNCE_INTERVAL), if self.opening.is_some() => Woken::Announcement,
            () = sleep_until(wake_at) => Woken::Tick,
            _ = ticks.tick() => Woken::Tick,
        }
    }

    /// What that means to the decider, if anything.
    fn event_of(&mut self, woken: Woken) -> Option<Event> {
        Some(match woken {
            Woken::Watch(Ok(Some(event))) => Event::Watched(event),
            Woken::Watch(ended) => {
                self.line = None;
                Event::WatchEnded(ended.err())
            }
            Woken::Exit(ended) => self.exit(ended),
            Woken::Signal => Event::Signal,
            Woken::Connected(result) => {
                self.connecting = None;
                match result {
                    Ok(line) => {
                        self.line = Some(line);
                        Event::Connected
                    }
                    Err(error) => Event::NotConnected(error),
                }
            }
            Woken::Stopped(result) => {
                self.stopping = None;
                Event::StopAnswered(result)
            }
            Woken::Status(result) => {
                self.asking = None;
                // One that does not answer is asked again.
                Event::StallAnswered(result.ok().and_then(|status| status.stall))
            }
            Woken::Announcement => return self.look_for_announcement(),
            Woken::Tick => Event::Tick,
        })
    }

    fn exit(&mut self, ended: Ended) -> Event {
        let last_line = self.launch.processes.logs.tail(&ended.name, 1).pop().unwrap_or_default();
        let mut announcement = None;
        if ended.is_coordinator() && self.opening.take().is_some() {
            // It may have announced that nothing is left to do, and ended. One that cannot be read says nothing.
            announcement = self.launch.announcement().ok().flatten();
        }
        Event::Exited(Exit { ended, last_line, announcement })
    }

    fn look_for_announcement(&mut self) -> Option<Event> {
        let opening = self.opening.as_mut()?;
        let event = match self.launch.announcement() {
            Ok(Some(announcement)) => Event::Announced(announcement),
            Err(error) => Event::Unreadable(
                Failure::failed("the coordinator announced itself unreadably").because(error),
            ),
            Ok(None) => {
                if opening.quiet_until <= Instant::now() {
                    opening.quiet_until = Instant::now() + ANNOUNCE_QUIET;
                    let doing = self.launch.processes.logs.tail(COORDINATOR, 1).pop();
                    let doing = doing.unwrap_or_else(|| "it is opening the run".into());
                    if doing != opening.said {
                        self.printer.say(format!("the coordinator does not listen yet: {doing}"));
                        opening.said = doing;
                    }
                }
                return None;
            }
        };
        self.opening = None;
        Some(event)
    }

    /// Writes the progress line, or why there is none yet.
    fn show(&mut self) {
        self.launch.processes.print_warnings(self.printer);
        let now = Instant::now();
        let Some(line) = self.decider.line(now, self.printer.width()).filter(|_| self.outcome.is_none())
        else {
            return;
        };
        if self.printer.is_live() {
            self.printer.live(&line);
        } else if self.display.is_due(&line, self.decider.steps_done(), now) {
            self.printer.say(&line);
        }
    }
}

fn started(name: String, result: Outcome<u32>) -> Event {
    match result {
        Ok(pid) => Event::Started { name, pid },
        Err(failure) => Event::NotStarted { name, failure },
    }
}

/// The next event of the watch; never resolves while there is none.
async fn watched(line: &mut Option<Line>) -> Result<Option<WatchEvent>, ControlError> {
    match line {
        Some(line) => line.watch.next().await,
        None => std::future::pending().await,
    }
}

/// The answer to a call; never resolves while there is none.
async fn answered<T>(call: &mut Option<Pending<T>>) -> Result<T, ControlError> {
    match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}
