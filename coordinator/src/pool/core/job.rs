//! A job: what is kept of it, and what it holds while it is at work.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use polygram_domain::RunSpec;
use polygram_domain::control::{MemberRef, Role};
use polygram_domain::run_spec::ElasticitySpec;
use polygram_proto::pool::{JobId, JobState, PoolMemberId, Seat};

use crate::core::Time;

/// No job waits for members for a shorter time: they leave a run a moment before it says that it is over.
const LEAST_PATIENCE_MS: u64 = 1000;

/// Members that a run needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Needs {
    /// Workers it wants.
    pub workers: u32,
    /// Shards.
    pub shards: u32,
    /// With how few workers it goes on, and how long it waits before.
    pub elasticity: ElasticitySpec,
    /// Updates of the whole run.
    pub total_steps: u64,
    /// Its own failure detection.
    pub detection_ms: u64,
}

impl Needs {
    /// Those of `spec`.
    pub fn of(spec: &RunSpec) -> Needs {
        Needs {
            workers: spec.topology.workers,
            shards: spec.topology.shards,
            elasticity: spec.elasticity.clone(),
            total_steps: spec.training.steps,
            detection_ms: (spec.failure_detection_seconds * 1000.0) as u64,
        }
    }

    /// The most workers that it may have out of `offered`.
    pub(super) fn workers_within(&self, offered: usize) -> Option<u32> {
        self.elasticity.workers_within(self.workers, u32::try_from(offered).unwrap_or(u32::MAX))
    }

    pub(super) fn wait_ms(&self) -> u64 {
        ((self.elasticity.wait_for_members_seconds * 1000.0) as u64).max(LEAST_PATIENCE_MS)
    }

    pub(super) fn resize_ms(&self) -> u64 {
        (self.elasticity.resize_seconds * 1000.0) as u64
    }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Updates applied.
    pub step: u64,
    /// Newest committed step.
    pub last_commit: Option<u64>,
}

/// What is kept of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    /// Its number.
    pub job: JobId,
    /// Its run.
    pub run: String,
    /// Jobs of higher priority go first.
    pub priority: i32,
    /// Whether it may be asked to wait.
    pub preemptible: bool,
    /// Where it is in its life.
    pub state: JobState,
    /// Why, for people.
    pub reason: String,
    /// When it came.
    pub submitted: Time,
    /// When it first had its members.
    pub started: Option<Time>,
    /// When it was over.
    pub ended: Option<Time>,
    /// Sessions so far.
    pub sessions: u32,
    /// Workers that it was given; 0 while it is queued.
    pub workers: u32,
    /// Until then it waits for all the workers it wants, where it may do with fewer.
    pub patient_until: Time,
    /// Somebody cancelled it, and its session has not ended yet.
    pub is_cancelled: bool,
    /// How far its run had come when its newest session ended.
    pub progress: Option<Progress>,
}

/// A job of the pool.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) record: JobRecord,
    pub(super) needs: Needs,
    pub(super) config_toml: Arc<str>,
    /// Present while it is starting or running.
    pub(super) active: Option<Active>,
}

/// A job at work: one session of its run, and who sits where.
#[derive(Clone, Debug)]
pub(super) struct Active {
    pub(super) stage: Stage,
    pub(super) workers: u32,
    pub(super) seats: BTreeMap<MemberRef, Option<PoolMemberId>>,
    /// Slots in which nobody has joined the run, and since when it waits for them.
    pub(super) awaited: BTreeMap<MemberRef, Time>,
    /// Since when some seat is vacant.
    pub(super) vacant_since: Option<Time>,
    /// When it was given this number of workers.
    pub(super) since: Time,
}

/// Where a session is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// To be opened.
    Due,
    /// Being opened.
    Opening,
    /// Its coordinator listens.
    Open(SocketAddr),
    /// On its way out.
    Closing { purpose: Purpose, since: Time, is_aborted: bool },
}

/// What follows a session that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// What the run says.
    Over,
    /// Nothing: it was cancelled.
    Cancel,
    /// The job waits for its turn again.
    Requeue(String),
    /// Another session with so many workers.
    Resize(u32),
    /// The next coordinator goes on with it.
    Shutdown,
}

impl Job {
    pub(super) fn id(&self) -> JobId {
        self.record.job
    }

    /// The seat of `slot` in the newest session.
    pub(super) fn seat(&self, slot: MemberRef) -> Seat {
        Seat { job: self.record.job, session: self.record.sessions, slot }
    }

    /// Jobs go in this order: priority, then submission.
    pub(super) fn order(&self) -> (i64, JobId) {
        (-i64::from(self.record.priority), self.record.job)
    }
}

impl Active {
    /// A session that is to be opened, all its seats vacant.
    pub(super) fn new(workers: u32, shards: u32, now: Time) -> Active {
        let slots = |role, count| (0..count).map(move |index| (MemberRef { role, index }, None));
        Active {
            stage: Stage::Due,
            workers,
            seats: slots(Role::Worker, workers).chain(slots(Role::Shard, shards)).collect(),
            awaited: BTreeMap::new(),
            vacant_since: Some(now),
            since: now,
        }
    }

    /// Whether members may be given to it.
    pub(super) fn takes_members(&self) -> bool {
        !matches!(self.stage, Stage::Closing { .. })
    }

    pub(super) fn vacant(&self, role: Role) -> usize {
        self.seats.iter().filter(|(slot, member)| slot.role == role && member.is_none()).count()
    }

    pub(super) fn filled(&self, role: Role) -> usize {
        self.seats.iter().filter(|(slot, member)| slot.role == role && member.is_some()).count()
    }
}
