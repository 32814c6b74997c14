//! The invariants of a pool, as seen from outside after every event.

use std::collections::{BTreeMap, BTreeSet};

use polygram_domain::control::Role;
use polygram_proto::pool::{JobId, JobState, PoolMemberId, Seat};

use super::super::job::{Job, JobRecord};
use super::super::state::{Place, State};
use crate::core::Time;

/// What was so after the event before.
#[derive(Debug, Default)]
pub(super) struct Checker {
    states: BTreeMap<JobId, JobState>,
    /// Jobs that had a cancellation accepted.
    pub(super) cancelled: BTreeSet<JobId>,
    /// Jobs in the order in which they first got members.
    pub(super) starts: Vec<JobId>,
    pub(super) shrunk: u64,
    pub(super) grown: u64,
    pub(super) preempted: u64,
    pub(super) taken_back: u64,
    /// As the coordinator counts them, which begins anew with each.
    counted: u64,
}

impl Checker {
    /// Checks `state` against itself and against what is kept.
    pub(super) fn check(&mut self, state: &State, kept: &BTreeMap<JobId, JobRecord>, now: Time) {
        Checker::seats_have_one_member(state);
        Checker::nobody_is_waited_for_too_long(state, now);
        self.taken_back += state.tallies.seats_taken_back.saturating_sub(self.counted);
        self.counted = state.tallies.seats_taken_back;
        let records: BTreeMap<JobId, JobRecord> = state.records().map(|r| (r.job, r.clone())).collect();
        assert_eq!(&records, kept, "what is kept is not what is so");
        for job in state.jobs.values() {
            let id = job.id();
            let before = self.states.insert(id, job.record.state);
            self.step(state, job, before);
            let holds = job.active.is_some();
            let is_active = matches!(job.record.state, JobState::Starting | JobState::Running);
            assert_eq!(holds, is_active, "job {id} is {} and holds seats: {holds}", job.record.state);
            if job.record.state.is_over() {
                assert!(job.record.ended.is_some_and(|ended| ended <= now));
            }
        }
    }

    /// A member serves one job at a time, and a seat has one member of its role.
    fn seats_have_one_member(state: &State) {
        let mut seated: BTreeMap<PoolMemberId, Seat> = BTreeMap::new();
        for job in state.jobs.values() {
            for (slot, member) in job.active.iter().flat_map(|active| &active.seats) {
                let Some(member) = member else { continue };
                let seat = job.seat(*slot);
                assert_eq!(seated.insert(*member, seat), None, "a member has two seats");
                let known = state.members.get(member).expect("a seat is held by nobody");
                assert_eq!((known.role, known.place), (slot.role, Place::Placed(seat)), "seat {seat}");
            }
        }
        for (id, member) in &state.members {
            if let Place::Placed(seat) = member.place {
                assert_eq!(seated.get(id), Some(&seat), "a member is placed where it has no seat");
            }
        }
    }

    /// Neither to join nor to leave, by whoever is counted on. Time passes for the core every half second.
    fn nobody_is_waited_for_too_long(state: &State, now: Time) {
        for (id, member) in &state.members {
            let Some((since, seat, job)) = state.awaited_since(*id).filter(|_| !member.hangs) else {
                continue;
            };
            let waited = now.since(since);
            assert!(waited <= state.patience_ms(job) + 600, "{seat} is waited for since {waited} ms");
        }
    }

    fn step(&mut self, state: &State, job: &Job, before: Option<JobState>) {
        let (id, now) = (job.id(), job.record.state);
        let before = before.unwrap_or(JobState::Queued);
        if before.is_over() {
            assert_eq!(before, now, "job {id} left its end");
        }
        if before == JobState::Queued && now == JobState::Starting {
            self.gang_start(state, job);
        }
        if self.cancelled.contains(&id) && before != now {
            let ends = now.is_over() || matches!(now, JobState::Running);
            assert!(ends, "job {id} was cancelled, and is {now}");
        }
    }

    /// All seats or none, and nobody before it in the line could have had them.
    fn gang_start(&mut self, state: &State, job: &Job) {
        let active = job.active.as_ref().expect("a job that starts holds seats");
        assert_eq!(
            active.vacant(Role::Worker) + active.vacant(Role::Shard),
            0,
            "job {} got a part",
            job.id()
        );
        assert!(active.workers >= job.needs.elasticity.min_workers && active.workers <= job.needs.workers);
        if !self.starts.contains(&job.id()) {
            self.starts.push(job.id());
        }
        let fits = |other: &Job| {
            other.needs.elasticity.min_workers as usize <= state.present(Role::Worker)
                && other.needs.shards as usize <= state.present(Role::Shard)
        };
        let passed = state.jobs.values().find(|other| {
            other.record.state == JobState::Queued && other.order() < job.order() && fits(other)
        });
        assert!(passed.is_none(), "job {} overtook job {:?}", job.id(), passed.map(Job::id));
    }
}
