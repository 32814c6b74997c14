//! What each event does in each phase, as a table; and what the table cannot show.

use polygram_domain::Step;
use polygram_domain::control::{StepMetrics, WatchEvent};
use polygram_proto::control::Announcement;

use super::*;
use crate::exit::Failure;
use crate::launcher::messages::Exit;
use polygram_domain::control::{Reason, RunState};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus as ProcessStatus;

const LEADER: u32 = 10;
const SHARD: u32 = 11;
const WORKER: u32 = 12;

/// A decider, the actions of its last event, and the time.
struct Launch {
    decider: Decider,
    now: Instant,
    actions: Vec<Action>,
    next_pid: u32,
}

fn ended(name: &str, pid: u32, status: i32) -> Event {
    let status = ProcessStatus::from_raw(status);
    let ended = Ended { name: name.into(), pid, status, lived: Duration::from_secs(60) };
    Event::Exited(Exit { ended, last_line: "error: x".into(), announcement: None })
}

fn announcement(state: RunState) -> Announcement {
    Announcement {
        address: ([127, 0, 0, 1], 4000).into(),
        pid: LEADER,
        run: "tiny".into(),
        attempt: 1,
        state,
        message: "x".into(),
        resume_step: 0,
    }
}

fn status(state: RunState, reason: Reason) -> Event {
    let status = RunStatus { state, reason, message: "x".into(), ..RunStatus::of("tiny", 60) };
    Event::Watched(WatchEvent::Status(Box::new(status)))
}

fn metrics(step: u64) -> Event {
    Event::Watched(WatchEvent::Metrics(StepMetrics {
        step: Step(step),
        seconds: 0.1,
        ..StepMetrics::default()
    }))
}

fn committed(step: u64) -> Event {
    Event::Watched(WatchEvent::Committed { step: Step(step) })
}

fn lost() -> ControlError {
    ControlError::Lost { address: "127.0.0.1:4000".into(), message: "reset".into() }
}

impl Launch {
    fn new(max_restarts: u32) -> Launch {
        let recovery = RecoverySpec {
            max_restarts,
            max_fruitless_restarts: 2,
            backoff_seconds: 1.0,
            quarantine_after: 3,
            quarantine_seconds: 1.0,
        };
        let setup = Setup {
            run: "tiny".into(),
            members: vec!["shard 0".into(), "worker 0".into()],
            detection: Duration::from_secs(4),
            last_step: 60,
            kept_steps: 0,
            claim: Claim::TakeOver,
            recovery,
        };
        let now = Instant::now();
        Launch { decider: Decider::new(setup, now), now, actions: Vec::new(), next_pid: LEADER }
    }

    /// Tells an event; processes that are to be started are.
    fn tell(&mut self, event: Event) -> &mut Launch {
        let mut actions = self.decider.apply(event, self.now);
        let starts: Vec<String> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Open { .. } => Some(COORDINATOR.to_owned()),
                Action::Start(name) => Some(name.clone()),
                _ => None,
            })
            .collect();
        for name in starts {
            let pid = self.next_pid;
            self.next_pid += 1;
            actions.extend(self.decider.apply(Event::Started { name, pid }, self.now));
        }
        self.actions = actions;
        self
    }

    fn after(&mut self, millis: u64) -> &mut Launch {
        self.now += Duration::from_millis(millis);
        self
    }

    fn tick_after(&mut self, millis: u64) -> &mut Launch {
        self.after(millis).tell(Event::Tick)
    }

    /// A launch whose run is being watched after a first step.
    fn following(max_restarts: u32) -> Launch {
        let mut launch = Launch::new(max_restarts);
        launch.tell(Event::Tick).tell(Event::Announced(announcement(RunState::Pending)));
        launch.tell(Event::Connected).tell(status(RunState::Running, Reason::Training)).tell(metrics(0));
        launch
    }

    /// What was ordered, in short.
    fn orders(&self) -> Vec<String> {
        self.actions.iter().map(short).collect()
    }
}

fn short(action: &Action) -> String {
    let pids = |pids: &[u32]| pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    match action {
        Action::Say(text) | Action::SayState(text) => format!("say \"{text}\""),
        Action::Warn(text) => format!("warn \"{text}\""),
        Action::Open { listen, claim } => format!("open port {} {claim:?}", listen.port()),
        Action::Connect(address) => format!("connect {}", address.port()),
        Action::Start(name) => format!("start {name}"),
        Action::RequestStop { mode, .. } => format!("request {mode:?}"),
        Action::Terminate(of) => format!("terminate {}", pids(of)),
        Action::Kill(of) => format!("kill {}", pids(of)),
        Action::AskWhatIsWaitedFor => "ask what is waited for".into(),
        Action::ReadNewestCommit => "read newest commit".into(),
        Action::Record { status, coordinator } => format!("record {} of {coordinator}", status.state),
        Action::Conclude(conclusion) => format!("conclude {}", conclusion.exit_status().code()),
        Action::Return => "return".into(),
    }
}

fn phase(decider: &Decider) -> String {
    let text = format!("{:?}", decider.phase);
    text.split([' ', '(']).next().unwrap().to_owned()
}

/// A launch in a state, by name.
fn in_state(name: &str) -> Launch {
    let mut launch = match name {
        "opening" | "connecting" => Launch::new(9),
        "following without restarts" | "finding cause" => Launch::following(0),
        _ => Launch::following(9),
    };
    match name {
        "opening" => launch.tell(Event::Tick),
        "connecting" => launch.tell(Event::Tick).tell(Event::Announced(announcement(RunState::Pending))),
        "following" | "following without restarts" => &mut launch,
        "following a loss" => {
            let mut loss = RunStatus::of("tiny", 60);
            (loss.state, loss.reason) = (RunState::Recovering, Reason::WaitingForMembers);
            (loss.restarts, loss.message) = (1, "x".into());
            launch.tell(Event::Watched(WatchEvent::Status(Box::new(loss))))
        }
        "following a run that is over" => {
            launch.tell(committed(60)).tell(status(RunState::Completed, Reason::AllStepsDone))
        }
        "following a run that failed" => launch.tell(status(RunState::Failed, Reason::MemberFailed)),
        "stopping" => launch.tell(Event::Signal),
        "aborting" => {
            launch.tell(ended("worker 0", WORKER, 9)).tick_after(100);
            launch.tell(ended("worker 0", WORKER + 1, 9)).tick_after(200);
            launch.tell(ended("worker 0", WORKER + 2, 9))
        }
        "awaiting the coordinator's end" => launch.tell(Event::WatchEnded(Some(lost()))),
        "pausing" => launch.tell(Event::WatchEnded(Some(lost()))).tell(ended(COORDINATOR, LEADER, 9)),
        "opening again" => {
            launch.tell(Event::WatchEnded(Some(lost()))).tell(ended(COORDINATOR, LEADER, 9)).tick_after(100)
        }
        "finding cause" => launch.tell(Event::WatchEnded(Some(lost()))),
        "killing" => launch.tell(Event::Signal).tell(Event::Signal),
        "asking the store" | "recording" => {
            launch.tell(Event::Signal).tell(Event::Signal);
            for (name, pid) in [(COORDINATOR, LEADER), ("shard 0", SHARD), ("worker 0", WORKER)] {
                launch.tell(ended(name, pid, 9));
            }
            if name == "recording" {
                launch.tell(Event::NewestCommit(None));
            }
            &mut launch
        }
        "clearing away" => launch
            .tell(committed(60))
            .tell(status(RunState::Completed, Reason::AllStepsDone))
            .tell(Event::WatchEnded(None)),
        other => panic!("{other} is no state"),
    };
    launch
}

const STATES: [&str; 17] = [
    "opening",
    "connecting",
    "following",
    "following a loss",
    "following without restarts",
    "following a run that is over",
    "following a run that failed",
    "stopping",
    "aborting",
    "awaiting the coordinator's end",
    "pausing",
    "opening again",
    "finding cause",
    "killing",
    "asking the store",
    "recording",
    "clearing away",
];

type Tell = fn(&mut Launch) -> &mut Launch;

const EVENTS: [(&str, Tell); 25] = [
    ("nothing for 200 ms", |l| l.tick_after(200)),
    ("nothing for 4 s", |l| l.tick_after(4_000)),
    ("nothing for 11 s", |l| l.tick_after(11_000)),
    ("nothing for 70 s", |l| l.tick_after(70_000)),
    ("announced", |l| l.tell(Event::Announced(announcement(RunState::Pending)))),
    ("announced as over", |l| l.tell(Event::Announced(announcement(RunState::Completed)))),
    ("announced unreadably", |l| l.tell(Event::Unreadable(Failure::failed("x")))),
    ("connected", |l| l.tell(Event::Connected)),
    ("not connected", |l| l.tell(Event::NotConnected(lost()))),
    ("a step", |l| l.tell(metrics(1))),
    ("a commit", |l| l.tell(committed(2))),
    ("the run is over", |l| l.tell(status(RunState::Completed, Reason::AllStepsDone))),
    ("the watch ends", |l| l.tell(Event::WatchEnded(None))),
    ("the watch breaks", |l| l.tell(Event::WatchEnded(Some(lost())))),
    ("the coordinator is killed", |l| l.tell(ended(COORDINATOR, LEADER, 9))),
    ("the coordinator ends with 2", |l| l.tell(ended(COORDINATOR, LEADER, 2 << 8))),
    ("a member is killed", |l| l.tell(ended("worker 0", WORKER, 9))),
    ("a member ends well", |l| l.tell(ended("worker 0", WORKER, 0))),
    ("a member cannot be started", |l| {
        let (name, failure) = ("worker 0".to_owned(), Failure::failed("no memory"));
        l.tell(Event::NotStarted { name, failure })
    }),
    ("a signal", |l| l.tell(Event::Signal)),
    ("two signals", |l| {
        l.tell(Event::Signal);
        let first = std::mem::take(&mut l.actions);
        l.tell(Event::Signal);
        l.actions.splice(0..0, first);
        l
    }),
    ("the stop is granted", |l| l.tell(Event::StopAnswered(Ok(())))),
    ("the stop is lost", |l| l.tell(Event::StopAnswered(Err(lost())))),
    ("the newest commit is 1", |l| l.tell(Event::NewestCommit(Some(1)))),
    ("recorded", |l| l.tell(Event::Recorded(true))),
];

/// The table in table.txt was written by this test and read by a person; where a decision changes on purpose, the test
/// prints the new one.
#[test]
fn every_event_in_every_state() {
    let mut table = String::new();
    for state in STATES {
        table.push_str(&format!("{state}\n"));
        let mut ignored = Vec::new();
        for (event, tell) in EVENTS {
            let mut launch = in_state(state);
            let before = phase(&launch.decider);
            launch.actions.clear();
            tell(&mut launch);
            let (orders, after) = (launch.orders(), phase(&launch.decider));
            let moved = if after == before { String::new() } else { format!(" => {after}") };
            match (orders.is_empty(), moved.is_empty()) {
                (true, true) => ignored.push(event),
                _ => table.push_str(&format!("  {event}: {}{moved}\n", orders.join("; "))),
            }
        }
        table.push_str(&format!("  nothing: {}\n\n", ignored.join(", ")));
    }
    let expected = include_str!("table.txt");
    assert!(table == expected, "the table is now:\n{table}");
}

#[test]
fn a_member_that_died_is_started_again_after_a_growing_pause_until_its_budget_is_used_up() {
    let mut launch = Launch::following(9);
    launch.tell(ended("worker 0", WORKER, 9));
    assert_eq!(launch.orders(), ["say \"worker 0 (pid 12) was killed by signal 9\""]);
    assert!(launch.tick_after(99).orders().is_empty());
    assert_eq!(launch.tick_after(1).orders(), ["start worker 0"]);
    launch.tell(ended("worker 0", 13, 9));
    assert!(launch.tick_after(199).orders().is_empty());
    assert_eq!(launch.tick_after(1).orders(), ["start worker 0"]);
    // A step is progress.
    launch.tell(metrics(1)).tell(ended("worker 0", 14, 9));
    assert_eq!(launch.tick_after(100).orders(), ["start worker 0"]);
    launch.tell(ended("worker 0", 15, 9)).tick_after(200);
    launch.tell(ended("worker 0", 16, 9));
    assert_eq!(launch.orders()[1..], ["request Abort"], "the third death in a row");
    assert_eq!(launch.tell(status(RunState::Failed, Reason::Aborted)).orders(), ["terminate 11"]);
    assert_eq!(launch.tell(Event::WatchEnded(None)).orders(), ["conclude 1", "terminate 11"]);
}

#[test]
fn a_coordinator_that_hangs_is_killed_and_started_where_it_listened() {
    let mut launch = Launch::following(9);
    launch.tell(Event::WatchEnded(Some(lost())));
    assert!(launch.tick_after(999).orders().is_empty());
    assert_eq!(
        launch.tick_after(1).orders(),
        ["say \"killing the coordinator (pid 10), which hangs\"", "kill 10"]
    );
    launch.tell(ended(COORDINATOR, LEADER, 9));
    assert_eq!(launch.orders(), ["say \"coordinator (pid 10) was killed by signal 9\""]);
    assert_eq!(launch.tick_after(100).orders(), ["open port 4000 IfVacant"]);
    launch.tell(Event::Announced(announcement(RunState::Pending)));
    assert_eq!(launch.orders()[1..], ["connect 4000"], "members are there already");
    assert!(launch.tell(Event::Connected).orders().is_empty());
}

#[test]
fn a_new_coordinator_is_told_of_an_older_wish_to_stop() {
    let mut launch = in_state("stopping");
    launch.tell(Event::WatchEnded(Some(lost()))).tell(ended(COORDINATOR, LEADER, 9)).tick_after(100);
    launch.tell(Event::Announced(announcement(RunState::Pending))).tell(Event::Connected);
    assert_eq!(launch.orders(), ["request Commit"]);
}

#[test]
fn members_that_do_not_come_back_are_killed() {
    for (state, has_new_coordinator) in [(RunState::Recovering, false), (RunState::Admitting, true)] {
        let mut launch = in_state(if has_new_coordinator { "opening again" } else { "following a loss" });
        if has_new_coordinator {
            launch.tell(Event::Announced(announcement(RunState::Pending))).tell(Event::Connected);
        }
        launch.tell(status(state, Reason::WaitingForMembers));
        assert!(launch.tick_after(3_900).orders().is_empty());
        let orders = launch.tick_after(100).orders();
        let killed = |name, pid| format!("say \"killed {name} (pid {pid}), which did not come back\"");
        let expected =
            ["kill 11".into(), killed("shard 0", SHARD), "kill 12".into(), killed("worker 0", WORKER)];
        assert_eq!(orders, expected, "{state}");
    }
}

#[test]
fn whoever_started_has_time_to_end_and_the_others_do_not() {
    let mut launch = Launch::following(9);
    let mut over = RunStatus { state: RunState::Completed, ..RunStatus::of("tiny", 60) };
    over.members = vec![member(WORKER)];
    launch.tell(Event::Watched(WatchEvent::Status(Box::new(over))));
    assert_eq!(launch.orders(), ["terminate 11"], "the shard has not joined");
    assert_eq!(launch.tell(Event::WatchEnded(None)).orders(), ["conclude 0", "terminate 11"]);
    assert_eq!(launch.tick_after(1_000).orders(), ["kill 11"]);
    launch.tell(ended("shard 0", SHARD, 9)).tell(ended(COORDINATOR, LEADER, 0));
    let orders = launch.tick_after(3_000).orders();
    assert_eq!(orders, ["warn \"killed worker 0: still there after 4 s\"", "kill 12"]);
    assert_eq!(launch.tell(ended("worker 0", WORKER, 9)).orders(), ["return"]);
    assert!(launch.tick_after(60_000).orders().is_empty());
}

fn member(pid: u32) -> polygram_domain::control::MemberStatus {
    polygram_domain::control::MemberStatus {
        role: polygram_domain::control::Role::Worker,
        index: 0,
        pid,
        host: "box".into(),
        phase: polygram_domain::control::Phase::Finished,
        step: Step(60),
        address: "127.0.0.1:1".into(),
        last_heard_ms: 0,
        alive: true,
        shard: None,
    }
}

#[test]
fn a_start_that_was_ordered_before_the_end_is_taken_back() {
    let mut launch = Launch::new(9);
    launch.tell(Event::Tick);
    // The system refuses the first member; the second is started all the same.
    let now = launch.now;
    launch.decider.apply(Event::Announced(announcement(RunState::Pending)), now);
    let failure = Failure::failed("no memory");
    launch.tell(Event::NotStarted { name: "shard 0".into(), failure });
    assert_eq!(launch.orders(), ["conclude 1"]);
    launch.tell(ended(COORDINATOR, LEADER, 9));
    assert!(launch.orders().is_empty(), "one may still come");
    assert_eq!(launch.tell(Event::Started { name: "worker 0".into(), pid: 77 }).orders(), ["kill 77"]);
    assert_eq!(launch.tell(ended("worker 0", 77, 9)).orders(), ["return"]);
}

#[test]
fn a_missing_cause_is_looked_for_and_the_coordinator_named_first() {
    let mut launch = in_state("finding cause");
    launch.tell(ended("worker 0", WORKER, 9));
    assert!(launch.orders().is_empty(), "another death may explain it");
    launch.after(299).tell(ended(COORDINATOR, LEADER, 9));
    let Action::Conclude(conclusion) = &launch.actions[0] else { panic!("{:?}", launch.actions) };
    assert!(format!("{conclusion:?}").contains("coordinator"), "{conclusion:?}");
}
