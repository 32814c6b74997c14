//! Where the run is in its life and why, the operator's request to stop it, and its end. Written here alone.

use polygram_domain::control::{Reason, RunState};

use super::event::Time;

/// The life of the run.
#[derive(Clone, Debug)]
pub(super) struct Lifecycle {
    run: RunState,
    reason: Reason,
    message: String,
    since: Time,
    /// Why the coordinator waits for the store, while it does.
    store_wait: Option<String>,
    stop: Option<StopRequest>,
    ending: Option<Ending>,
}

/// The run is to stop with a commit.
#[derive(Clone, Debug)]
struct StopRequest {
    reason: String,
    /// The commit is not waited for any longer than this.
    until: Option<Time>,
}

/// The run is over; members leave.
#[derive(Clone, Copy, Debug)]
struct Ending {
    until: Time,
    is_done: bool,
    /// Whether the failure log has the end.
    is_recorded: bool,
}

impl Lifecycle {
    /// A run nobody has joined yet.
    pub(super) fn new(now: Time, message: String) -> Lifecycle {
        Lifecycle {
            run: RunState::Pending,
            reason: Reason::WaitingForMembers,
            message,
            since: now,
            store_wait: None,
            stop: None,
            ending: None,
        }
    }

    /// A run that was over when it was opened.
    pub(super) fn over(now: Time, (run, reason, message): (RunState, Reason, String)) -> Lifecycle {
        let ending = Some(Ending { until: now, is_done: false, is_recorded: false });
        Lifecycle { run, reason, ending, ..Lifecycle::new(now, message) }
    }

    pub(super) fn run(&self) -> RunState {
        self.run
    }

    pub(super) fn reason(&self) -> Reason {
        self.reason
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// When the run entered its state.
    pub(super) fn since(&self) -> Time {
        self.since
    }

    pub(super) fn is_over(&self) -> bool {
        self.run.is_over()
    }

    /// Enters `run` for `reason`; false where nothing of the three changes.
    pub(super) fn enter(&mut self, now: Time, (run, reason, message): (RunState, Reason, String)) -> bool {
        if self.run == run && self.reason == reason && self.message == message {
            return false;
        }
        if self.run != run {
            self.since = now;
        }
        (self.run, self.reason, self.message) = (run, reason, message);
        true
    }

    pub(super) fn set_store_wait(&mut self, sentence: Option<String>) {
        self.store_wait = sentence;
    }

    pub(super) fn store_wait(&self) -> Option<&str> {
        self.store_wait.as_deref()
    }

    pub(super) fn request_stop(&mut self, reason: String, until: Option<Time>) {
        self.stop = Some(StopRequest { reason, until });
    }

    /// Why the run is to stop.
    pub(super) fn stop_reason(&self) -> Option<&str> {
        self.stop.as_ref().map(|stop| stop.reason.as_str())
    }

    /// The same, once its commit is not waited for any longer.
    pub(super) fn overdue_stop(&self, now: Time) -> Option<&str> {
        let stop = self.stop.as_ref()?;
        stop.until.is_some_and(|until| until <= now).then_some(stop.reason.as_str())
    }

    /// The run ends; members have until then to leave.
    pub(super) fn end(&mut self, until: Time) {
        self.ending = Some(Ending { until, is_done: false, is_recorded: true });
    }

    /// Whether the run ends and is not to wait for anybody from now on.
    pub(super) fn hurry_end(&mut self, now: Time) -> bool {
        self.ending.as_mut().map(|ending| ending.until = now).is_some()
    }

    /// Whether an end is still to be recorded; asked once.
    pub(super) fn take_unrecorded_end(&mut self) -> bool {
        self.ending.as_mut().is_some_and(|ending| !std::mem::replace(&mut ending.is_recorded, true))
    }

    /// Whether the process is to end now; answered with true once.
    pub(super) fn take_end(&mut self, now: Time, waits: bool) -> bool {
        let Some(ending) = &mut self.ending else { return false };
        if ending.is_done || waits && now < ending.until {
            return false;
        }
        ending.is_done = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_entered_once_and_dated_once() {
        let mut life = Lifecycle::new(Time(1), "waiting".into());
        let running = |message: &str| (RunState::Running, Reason::Training, message.to_owned());
        assert!(life.enter(Time(5), running("a")));
        assert!(!life.enter(Time(6), running("a")));
        assert!(life.enter(Time(7), running("b")));
        assert_eq!((life.since(), life.message()), (Time(5), "b"));
    }

    #[test]
    fn the_end_comes_once_when_nobody_is_waited_for_or_time_is_up() {
        for (waits, at, ends) in
            [(false, 0, true), (true, 0, false), (true, 99, false), (true, 100, true), (false, 100, true)]
        {
            let mut life = Lifecycle::new(Time(0), String::new());
            assert!(!life.take_end(Time(at), waits), "it is not over");
            life.end(Time(100));
            assert_eq!(life.take_end(Time(at), waits), ends, "{waits}, {at}");
            assert_eq!(life.take_end(Time(1000), false), !ends, "once");
        }
        let mut life = Lifecycle::new(Time(0), String::new());
        assert!(!life.hurry_end(Time(3)));
        life.end(Time(100));
        assert!(!life.take_unrecorded_end(), "whoever ends it records it");
        assert!(life.hurry_end(Time(3)) && life.take_end(Time(3), true));
    }

    #[test]
    fn a_run_that_was_over_records_its_end_once() {
        let mut life = Lifecycle::over(Time(4), (RunState::Completed, Reason::AllStepsDone, "done".into()));
        assert!(life.is_over() && life.take_unrecorded_end() && !life.take_unrecorded_end());
    }

    #[test]
    fn a_stop_without_a_grace_is_never_overdue() {
        let mut life = Lifecycle::new(Time(0), String::new());
        assert_eq!(life.stop_reason(), None);
        life.request_stop("asked".into(), None);
        assert_eq!((life.stop_reason(), life.overdue_stop(Time(u64::MAX))), (Some("asked"), None));
        life.request_stop("asked".into(), Some(Time(10)));
        assert_eq!((life.overdue_stop(Time(9)), life.overdue_stop(Time(10))), (None, Some("asked")));
    }
}
