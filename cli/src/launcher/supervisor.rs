//! Which processes are started again, and when. Pure: the caller tells the time and starts them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use polygram_domain::run_spec::RecoverySpec;

/// Before a process that died is started again; doubled with every death since the run last came further.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The pause never grows beyond this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A process that ends so soon after its start, before it has joined, has met something that was there at its start.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);
/// So many such ends in a row for the same reason: another start would end like them.
const MOST_ALIKE: u32 = 3;

/// What follows a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is started again after this pause.
    Again(Duration),
    /// It died too often while the run came no further.
    GiveUp,
}

/// What is known of the processes of a launch beyond their lives.
#[derive(Debug)]
pub(crate) struct Supervisor {
    /// Deaths of one process, while the run comes no further, that it is started again after; 0: none.
    most_deaths: u32,
    deaths: BTreeMap<String, u32>,
    /// Why a process last ended at once, and how often in a row.
    alike: BTreeMap<String, (String, u32)>,
    due: BTreeMap<String, Instant>,
}

impl Supervisor {
    /// For a run of this policy.
    pub(crate) fn new(policy: &RecoverySpec) -> Supervisor {
        let most_deaths = if policy.max_restarts == 0 { 0 } else { policy.max_fruitless_restarts };
        Supervisor { most_deaths, deaths: BTreeMap::new(), alike: BTreeMap::new(), due: BTreeMap::new() }
    }

    /// Whether anything is started again at all.
    pub(crate) fn restarts(&self) -> bool {
        self.most_deaths > 0
    }

    /// A process died.
    pub(crate) fn died(&mut self, name: &str) -> Verdict {
        let deaths = self.deaths.entry(name.to_owned()).or_insert(0);
        *deaths += 1;
        if *deaths > self.most_deaths {
            return Verdict::GiveUp;
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << (*deaths - 1).min(16));
        Verdict::Again(doubled.min(LONGEST_PAUSE))
    }

    /// A process ended at once, for `reason`. Whether it did so as often as not to be started again. Numbers (process ids,
    /// ports) make no reason another one.
    pub(crate) fn ended_at_once(&mut self, name: &str, reason: &str) -> bool {
        let reason: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
        let (last, times) = self.alike.entry(name.to_owned()).or_default();
        *times = if *last == reason { *times + 1 } else { 1 };
        *last = reason;
        *times >= MOST_ALIKE
    }

    /// A process is to be started again at `due`.
    pub(crate) fn schedule(&mut self, name: String, due: Instant) {
        self.due.insert(name, due);
    }

    /// The run came further than ever: deaths before are forgiven.
    pub(crate) fn forgive(&mut self) {
        self.deaths.clear();
        self.alike.clear();
    }

    /// Nothing is started any more.
    pub(crate) fn retire(&mut self) {
        self.due.clear();
    }

    /// When the next process is to be started again.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// A process that is to be started again by `now`, the longest due first.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<String> {
        let (name, _) = self.due.iter().filter(|(_, due)| **due <= now).min_by_key(|(_, due)| **due)?;
        let name = name.clone();
        self.due.remove(&name);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(max_restarts: u32) -> RecoverySpec {
        RecoverySpec {
            max_restarts,
            max_fruitless_restarts: 3,
            backoff_seconds: 1.0,
            quarantine_after: 3,
            quarantine_seconds: 1.0,
        }
    }

    #[test]
    fn pauses_grow_until_patience_is_over_or_the_run_came_further() {
        let mut supervisor = Supervisor::new(&policy(100));
        let pauses = |supervisor: &mut Supervisor| [(); 3].map(|()| supervisor.died("worker 0"));
        let grown = [100, 200, 400].map(|millis| Verdict::Again(Duration::from_millis(millis)));
        assert_eq!(pauses(&mut supervisor), grown);
        assert_eq!(supervisor.died("worker 0"), Verdict::GiveUp);
        assert_eq!(supervisor.died("shard 0"), grown[0], "another process is another count");
        supervisor.forgive();
        assert_eq!(pauses(&mut supervisor), grown);
    }

    #[test]
    fn a_process_that_ends_at_once_for_the_same_reason_is_given_up() {
        let mut supervisor = Supervisor::new(&policy(100));
        let mut ended = |reason| supervisor.ended_at_once("worker 0", reason);
        assert!(!ended("cannot listen on port 4001"));
        assert!(!ended("cannot listen on port 4002"));
        assert!(!ended("no token"), "another reason");
        assert!(!ended("cannot listen on port 4003") && !ended("cannot listen on port 4003"));
        assert!(ended("cannot listen on port 4004"));
        supervisor.forgive();
        assert!(!supervisor.ended_at_once("worker 0", "cannot listen on port 4004"));
        assert!(!supervisor.ended_at_once("worker 1", "cannot listen on port 4004"));
    }

    #[test]
    fn without_restarts_the_first_death_counts() {
        let mut supervisor = Supervisor::new(&policy(0));
        assert!(!supervisor.restarts());
        assert_eq!(supervisor.died("worker 0"), Verdict::GiveUp);
    }

    #[test]
    fn the_earliest_comes_first() {
        let mut supervisor = Supervisor::new(&policy(100));
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        assert_eq!((supervisor.next_due(), supervisor.take_due(now)), (None, None));
        supervisor.schedule("shard 0".into(), after(60));
        supervisor.schedule("worker 0".into(), after(20));
        assert_eq!((supervisor.next_due(), supervisor.take_due(after(19))), (Some(after(20)), None));
        assert_eq!(supervisor.take_due(after(60)).as_deref(), Some("worker 0"));
        assert_eq!(supervisor.take_due(after(60)).as_deref(), Some("shard 0"));
        supervisor.schedule("worker 0".into(), now);
        supervisor.retire();
        assert_eq!((supervisor.next_due(), supervisor.take_due(after(100))), (None, None));
    }
}
