//! The nouns of a pool.

use std::fmt;

use serde::{Deserialize, Serialize};

use polygram_domain::control::{MemberRef, Role};

/// A job of a pool, numbered from 1 in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One start of one process of the pool, drawn at random by the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolMemberId(pub u64);

/// A place in one session of a job: in the time from one opening of its run to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seat {
    /// The job.
    pub job: JobId,
    /// Which session of it, from 1.
    pub session: u32,
    /// Rank or shard index.
    pub slot: MemberRef,
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of job {}", self.slot, self.job)
    }
}

/// What a member is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offering {
    /// This start of this process.
    pub member: PoolMemberId,
    /// What it can be.
    pub role: Role,
    /// Its process.
    pub pid: u32,
    /// Its machine, for people.
    pub host: String,
    /// Where it works right now.
    pub seat: Option<Seat>,
}

/// What a member says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberWord {
    /// Here it is.
    Offering(Offering),
    /// It has left this seat.
    Released {
        /// The seat.
        seat: Seat,
        /// Why, where it did not leave in good order.
        failure: Option<String>,
    },
    /// It lives.
    Alive,
}

/// Where a member is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The seat.
    pub seat: Seat,
    /// The run's name.
    pub run: String,
    /// The run's coordinator, `ip:port`; it takes the pool's token.
    pub address: String,
}

/// What a member is told. Each word takes the place of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolWord {
    /// Work there.
    Place(Placement),
    /// Leave this seat and wait.
    Withdraw(Seat),
}

/// A run file that joins the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The effective run file, TOML.
    pub config_toml: String,
    /// Jobs of higher priority go first.
    pub priority: i32,
    /// Whether a job of higher priority may have it commit, stop and wait.
    pub preemptible: bool,
}

macro_rules! job_states {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// Where a job is in its life.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum JobState { $($(#[$doc])* $name),* }

        impl JobState {
            /// Every state, in the order of a job's life.
            pub const ALL: &'static [JobState] = &[$(JobState::$name),*];

            /// The state as one word.
            pub fn as_str(self) -> &'static str {
                match self { $(JobState::$name => $text),* }
            }
        }
    };
}

job_states! {
    /// It waits for its turn, and holds no member.
    Queued = "queued",
    /// It has its members, or had them; its run is being opened and joined.
    Starting = "starting",
    /// Its run is at work.
    Running = "running",
    /// All steps are done and committed.
    Completed = "completed",
    /// It reached `training.stop_at_step`, committed.
    Stopped = "stopped",
    /// Its run failed.
    Failed = "failed",
    /// Somebody cancelled it.
    Cancelled = "cancelled",
}

impl JobState {
    /// Whether nothing will happen any more.
    pub fn is_over(self) -> bool {
        matches!(self, JobState::Completed | JobState::Stopped | JobState::Failed | JobState::Cancelled)
    }

    /// The state of this name.
    pub fn named(name: &str) -> Option<JobState> {
        JobState::ALL.iter().copied().find(|state| state.as_str() == name)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A job as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its number.
    pub job: JobId,
    /// Its run.
    pub run: String,
    /// Jobs of higher priority go first.
    pub priority: i32,
    /// Whether it may be asked to wait for one of higher priority.
    pub preemptible: bool,
    /// Where it is in its life.
    pub state: JobState,
    /// Why, for people.
    pub reason: String,
    /// Milliseconds since 1970.
    pub submitted_unix_ms: u64,
    /// When it first got its members.
    pub started_unix_ms: Option<u64>,
    /// When it was over.
    pub ended_unix_ms: Option<u64>,
    /// How often its run was opened.
    pub sessions: u32,
    /// Workers it has now; 0 while it is queued.
    pub workers: u32,
    /// Workers it wants.
    pub wanted_workers: u32,
    /// Shards it needs.
    pub shards: u32,
    /// Updates applied, as far as its run has said.
    pub step: Option<u64>,
    /// Updates of the whole run.
    pub total_steps: u64,
    /// Newest committed step, as far as its run has said.
    pub last_commit: Option<u64>,
}

/// A member as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMemberStatus {
    /// What it can be.
    pub role: Role,
    /// Its process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// Where it is placed; `None`: it is a spare.
    pub seat: Option<Seat>,
    /// Whether it is still on its way out of that seat.
    pub leaving: bool,
    /// Since it last said something.
    pub last_heard_ms: u64,
}
