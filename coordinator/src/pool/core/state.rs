//! The state of a pool, and one turn of changing it.

use std::collections::BTreeMap;
use std::sync::Arc;

use polygram_domain::control::Role;
use polygram_domain::words;
use polygram_proto::pool::{JobId, JobState, JobStatus, PoolMemberId, PoolMemberStatus, Seat};

use super::event::{Action, Reply};
use super::job::{Active, Job, JobRecord, Needs};
use crate::core::{Level, Ticket, Time};

/// Time limits of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A member silent for so long is gone.
    pub silence_ms: u64,
    /// A coordinator that was started again waits so long for the members of its jobs before it gives their seats away.
    pub return_ms: u64,
    /// A session that was asked to commit and stop is aborted after this.
    pub closing_ms: u64,
    /// A member that left a seat is not given the same one before this.
    pub retry_ms: u64,
}

impl Rules {
    /// The limits for members that are silent for `silence_ms`.
    pub fn of(silence_ms: u64) -> Rules {
        Rules { silence_ms, return_ms: 5_000, closing_ms: 600_000, retry_ms: 1_000 }
    }
}

/// A pool, as far as its coordinator knows it. Changed only by [`super::apply`].
#[derive(Clone, Debug)]
pub struct State {
    pub(super) rules: Rules,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) members: BTreeMap<PoolMemberId, Member>,
    /// Before this, seats wait for those who sat there when the coordinator before this one died.
    pub(super) seats_wait_until: Time,
    pub(super) interrupts: u32,
    pub(super) last_tick: Time,
    pub(super) tallies: Tallies,
}

/// What happened since this coordinator began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    /// Seats that were taken back from members that did not join.
    pub seats_taken_back: u64,
    /// Sessions that were ended for a job of higher priority.
    pub preemptions: u64,
    /// Members that were lost at work.
    pub members_lost: u64,
}

/// A process that offers itself.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) role: Role,
    pub(super) pid: u32,
    pub(super) host: String,
    pub(super) place: Place,
    /// When it was told of that place, if it was.
    pub(super) told: Option<Time>,
    /// It does not do what it was told: nobody counts on it until it has left its seat.
    pub(super) hangs: bool,
    pub(super) heard: Time,
}

/// Where a member is, as far as the pool decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: a spare. It has left this seat at this time.
    Idle { left: Option<(Seat, Time)> },
    /// In a seat.
    Placed(Seat),
    /// On its way out of a seat that is not its any more.
    Leaving(Seat),
}

impl State {
    /// A pool without members whose jobs are `kept`. Sessions that were open are opened again.
    pub fn new(rules: Rules, kept: Vec<(JobRecord, Needs, Arc<str>)>, now: Time) -> State {
        let mut jobs = BTreeMap::new();
        let mut seats_wait_until = Time(0);
        for (record, needs, config_toml) in kept {
            let is_active = matches!(record.state, JobState::Starting | JobState::Running);
            let active = is_active.then(|| {
                seats_wait_until = now.after(rules.return_ms);
                Active::new(record.workers, needs.shards, now)
            });
            jobs.insert(record.job, Job { record, needs, config_toml, active });
        }
        let members = BTreeMap::new();
        State {
            rules,
            jobs,
            members,
            seats_wait_until,
            interrupts: 0,
            last_tick: now,
            tallies: Tallies::default(),
        }
    }

    /// What is to be kept, by job.
    pub fn records(&self) -> impl Iterator<Item = &JobRecord> {
        self.jobs.values().map(|job| &job.record)
    }

    /// What happened since this coordinator began.
    pub fn tallies(&self) -> Tallies {
        self.tallies
    }

    /// The jobs, oldest first. The progress of a run at work is not known here, but how far it came in earlier sessions.
    pub fn job_statuses(&self) -> Vec<JobStatus> {
        let status = |job: &Job| {
            let record = &job.record;
            JobStatus {
                job: record.job,
                run: record.run.clone(),
                priority: record.priority,
                preemptible: record.preemptible,
                state: record.state,
                reason: match record.state {
                    JobState::Queued => format!("{}; {}", record.reason, self.waiting(job)),
                    _ => record.reason.clone(),
                },
                submitted_unix_ms: record.submitted.0,
                started_unix_ms: record.started.map(|at| at.0),
                ended_unix_ms: record.ended.map(|at| at.0),
                sessions: record.sessions,
                workers: record.workers,
                wanted_workers: job.needs.workers,
                shards: job.needs.shards,
                step: record.progress.map(|progress| progress.step),
                total_steps: job.needs.total_steps,
                last_commit: record.progress.and_then(|progress| progress.last_commit),
            }
        };
        self.jobs.values().map(status).collect()
    }

    /// What a job in the line waits for.
    fn waiting(&self, job: &Job) -> String {
        let Needs { workers, shards, .. } = job.needs;
        let fewest = job.needs.elasticity.min_workers;
        let wanted = if fewest < workers { format!("{fewest} to {workers}") } else { workers.to_string() };
        let count = |of: fn(&State, Role) -> usize| [of(self, Role::Worker), of(self, Role::Shard)];
        let ([has_workers, has_shards], [idle_workers, idle_shards]) =
            (count(State::present), count(State::idle));
        let wanted = words::of_many(workers.into(), wanted, "worker");
        let needs = format!("it needs {wanted} and {}", words::counted(shards.into(), "shard"));
        if has_workers < fewest as usize || has_shards < shards as usize {
            format!("{needs}, the pool has {has_workers} and {has_shards}")
        } else {
            format!("{needs}, {idle_workers} and {idle_shards} are free")
        }
    }

    /// The members at `now`.
    pub fn member_statuses(&self, now: Time) -> Vec<PoolMemberStatus> {
        let status = |member: &Member| PoolMemberStatus {
            role: member.role,
            pid: member.pid,
            host: member.host.clone(),
            seat: match member.place {
                Place::Idle { .. } => None,
                Place::Placed(seat) | Place::Leaving(seat) => Some(seat),
            },
            leaving: matches!(member.place, Place::Leaving(_)),
            last_heard_ms: now.since(member.heard),
        };
        self.members.values().map(status).collect()
    }

    /// Members of `role`, wherever they are; not those that hang.
    pub(super) fn present(&self, role: Role) -> usize {
        self.members.values().filter(|member| member.role == role && !member.hangs).count()
    }

    pub(super) fn idle(&self, role: Role) -> usize {
        let idle = |member: &&Member| member.role == role && matches!(member.place, Place::Idle { .. });
        self.members.values().filter(idle).count()
    }

    /// Members of `role` that are idle or about to be.
    pub(super) fn coming(&self, role: Role) -> usize {
        let is_coming = |member: &Member| !matches!(member.place, Place::Placed(_)) && !member.hangs;
        let coming = |member: &&Member| member.role == role && is_coming(member);
        self.members.values().filter(coming).count()
    }
}

/// One event being applied.
pub(super) struct Turn<'a> {
    pub(super) state: &'a mut State,
    pub(super) now: Time,
    pub(super) actions: Vec<Action>,
}

impl Turn<'_> {
    pub(super) fn reply(&mut self, ticket: Ticket, answer: Result<Reply, String>) {
        self.actions.push(Action::Reply { ticket, answer });
    }

    pub(super) fn log(&mut self, level: Level, message: String) {
        self.actions.push(Action::Log(level, message));
    }

    /// Enters `state` for `reason`, and keeps it.
    pub(super) fn enter(&mut self, id: JobId, state: JobState, reason: impl Into<String>) {
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        let record = &mut job.record;
        record.state = state;
        record.reason = reason.into();
        if state.is_over() {
            record.ended = Some(self.now);
        }
        let level = if state == JobState::Failed { Level::Error } else { Level::Info };
        let line = format!("job {id} (run {}) {state}: {}", record.run, record.reason);
        self.keep(id);
        self.log(level, line);
    }

    /// Keeps a job as it is now.
    pub(super) fn keep(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let record = job.record.clone();
        let word = format!("{}: {}", record.state, record.reason);
        self.actions.push(Action::Save { record, word });
    }
}
