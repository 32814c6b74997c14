//! Which processes are started again, and when. Pure but for its clock; [`super::Launch`] starts them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use polygram_domain::run_spec::RecoverySpec;
use tokio::time::Instant;

use super::siblings::Program;

/// Before a process that died is started again; doubled with every death since the run last came further.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The pause never grows beyond this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A process that ends so soon after its start, before it has joined, has met something that was there at its start.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);
/// So many such ends in a row for the same reason: another start would end like them.
const MOST_ALIKE: u32 = 3;

/// How a process is started.
#[derive(Debug)]
pub(crate) struct Start {
    /// The program.
    pub(crate) program: Program,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
}

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
    starts: BTreeMap<String, Start>,
    deaths: BTreeMap<String, u32>,
    /// Why a process last ended at once, and how often in a row.
    alike: BTreeMap<String, (String, u32)>,
    due: BTreeMap<String, Instant>,
}

impl Supervisor {
    /// For a run of this policy.
    pub(crate) fn new(policy: &RecoverySpec) -> Supervisor {
        let most_deaths = if policy.max_restarts == 0 { 0 } else { policy.max_fruitless_restarts };
        Supervisor {
            most_deaths,
            starts: BTreeMap::new(),
            deaths: BTreeMap::new(),
            alike: BTreeMap::new(),
            due: BTreeMap::new(),
        }
    }

    /// Whether anything is started again at all.
    pub(crate) fn restarts(&self) -> bool {
        self.most_deaths > 0
    }

    /// Remembers how a process was started.
    pub(crate) fn started(&mut self, name: String, start: Start) {
        self.starts.insert(name, start);
    }

    /// How the process called `name` is started.
    pub(crate) fn start_of(&self, name: &str) -> Option<&Start> {
        self.starts.get(name)
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

    /// The next process that is to be started again, when it is time; never resolves when there is none. Dropping the
    /// future loses nothing.
    pub(crate) async fn next_due(&mut self) -> String {
        let next = self.due.iter().min_by_key(|(_, due)| **due).map(|(name, due)| (name.clone(), *due));
        let Some((name, due)) = next else { return std::future::pending().await };
        tokio::time::sleep_until(due).await;
        self.due.remove(&name);
        name
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

    #[tokio::test]
    async fn the_earliest_comes_first() {
        let mut supervisor = Supervisor::new(&policy(100));
        let now = Instant::now();
        supervisor.schedule("shard 0".into(), now + Duration::from_millis(60));
        supervisor.schedule("worker 0".into(), now + Duration::from_millis(20));
        assert_eq!(supervisor.next_due().await, "worker 0");
        assert_eq!(supervisor.next_due().await, "shard 0");
        supervisor.schedule("worker 0".into(), now);
        supervisor.retire();
        let nothing = tokio::time::timeout(Duration::from_millis(50), supervisor.next_due()).await;
        assert!(nothing.is_err());
    }
}
