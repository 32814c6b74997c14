//! What always holds of a launch, seen from outside: by what it was told and what it ordered.

use std::collections::{BTreeMap, BTreeSet};

use polygram_domain::control::WatchEvent;
use polygram_domain::run_spec::RecoverySpec;

use crate::launcher::ended::COORDINATOR;
use crate::launcher::messages::{Action, Conclusion, Event};

/// After the second request to stop the launch ends within so long: a cause may still be looked for.
const AT_ONCE: u64 = 7_000;
/// However a run stands, a launch that is told twice to stop has ended so long after the horizon.
const LONGEST: u64 = 60_000;

pub(super) struct Checker {
    /// Restarts of one process while the run comes no further.
    most_restarts: u32,
    restarts: BTreeMap<String, u32>,
    started: BTreeSet<String>,
    /// The furthest step that the launch was shown.
    pub(super) furthest: u64,
    /// The newest one, until it was told to kill everything: what is done after that is nobody's business any more.
    pub(super) reached: u64,
    pub(super) signals: Vec<u64>,
    /// Exit status, and when and how the launch was decided.
    pub(super) status: Option<u8>,
    pub(super) decided_at: u64,
    pub(super) conclusion: String,
    pub(super) has_returned: bool,
    /// What was printed.
    pub(super) said: Vec<String>,
}

impl Checker {
    pub(super) fn new(policy: &RecoverySpec) -> Checker {
        Checker {
            most_restarts: if policy.max_restarts == 0 { 0 } else { policy.max_fruitless_restarts },
            restarts: BTreeMap::new(),
            started: BTreeSet::new(),
            furthest: 0,
            reached: 0,
            signals: Vec::new(),
            status: None,
            decided_at: 0,
            conclusion: String::new(),
            has_returned: false,
            said: Vec::new(),
        }
    }

    pub(super) fn signalled(&mut self, now: u64) {
        self.signals.push(now);
    }

    pub(super) fn time_passed(&self, now: u64, horizon: u64) {
        if let Some(second) = self.signals.get(1) {
            assert!(now <= second + AT_ONCE, "a second signal ends the launch at once: {:#?}", self.said);
        }
        assert!(now < horizon + LONGEST, "the launch never ends: {:#?}", self.said);
    }

    /// Notes what the launch is told.
    pub(super) fn before(&mut self, event: &Event) {
        if let Event::Watched(WatchEvent::Metrics(metrics)) = event {
            let done = metrics.step.0 + 1;
            if self.signals.len() < 2 {
                self.reached = done;
            }
            if done > self.furthest {
                self.furthest = done;
                self.restarts.clear();
            }
        }
    }

    /// Judges one order.
    pub(super) fn ordered(&mut self, action: &Action, now: u64) {
        assert!(!self.has_returned, "nothing is done after the end: {action:?}");
        match action {
            Action::Open { .. } => self.starts(COORDINATOR),
            Action::Start(name) => self.starts(name),
            Action::Connect(_) | Action::RequestStop { .. } => assert_eq!(self.status, None, "{action:?}"),
            Action::Conclude(conclusion) => {
                assert_eq!(self.status, None, "a launch is decided once");
                self.status = Some(conclusion.exit_status().code());
                self.decided_at = now;
                self.conclusion = match &**conclusion {
                    Conclusion::Ended(ending) => format!("{ending:?}"),
                    Conclusion::Failed(failed) => format!("{failed:?}"),
                };
            }
            Action::Return => {
                assert!(self.status.is_some(), "it ends when it is decided");
                self.has_returned = true;
            }
            Action::Say(text) | Action::SayState(text) | Action::Warn(text) => {
                self.said.push(format!("{:>7.3} {text}", now as f64 / 1000.0));
            }
            _ => {}
        }
    }

    fn starts(&mut self, name: &str) {
        assert_eq!(self.status, None, "{name} is started though the launch is decided");
        if self.started.insert(name.to_owned()) {
            return;
        }
        let restarts = self.restarts.entry(name.to_owned()).or_default();
        *restarts += 1;
        let most = self.most_restarts;
        assert!(*restarts <= most, "{name} is started again beyond its budget of {most}: {:#?}", self.said);
    }
}
