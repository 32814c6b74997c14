//! Members that live and hang, event by event.

use std::collections::BTreeSet;
use std::sync::Arc;

use polygram_domain::control::{MemberRef, Role};
use polygram_domain::run_spec::ElasticitySpec;
use polygram_proto::pool::{JobId, JobState, Offering, PoolMemberId, Seat};

use super::event::Admission;
use super::{Action, Event, Needs, Rules, State, apply};
use crate::core::{Ticket, Time};

const JOB: JobId = JobId(1);
const WORKER: MemberRef = MemberRef { role: Role::Worker, index: 0 };
const SHARD: MemberRef = MemberRef { role: Role::Shard, index: 0 };
/// The pool's silence and the run's failure detection.
const PATIENCE: u64 = 10_000 + 3_000;

struct Pool {
    state: State,
    now: u64,
}

impl Pool {
    /// A job of one worker and one shard has its members, and its run is open. Worker 2 is a spare.
    fn at_work() -> Pool {
        let mut pool = Pool { state: State::new(Rules::of(10_000), Vec::new(), Time(0)), now: 0 };
        for (member, role) in [(1, Role::Worker), (2, Role::Worker), (9, Role::Shard)] {
            pool.offer(member, role, None);
        }
        let elasticity =
            ElasticitySpec { min_workers: 1, wait_for_members_seconds: 60.0, resize_seconds: 300.0 };
        let needs = Needs { workers: 1, shards: 1, elasticity, total_steps: 9, detection_ms: 3_000 };
        let (run, config_toml) = ("r".to_owned(), Arc::from("a run file"));
        let admission = Admission { run, priority: 0, preemptible: false, needs, config_toml };
        pool.apply(Event::Submit { ticket: Ticket(1), admission });
        let address = "127.0.0.1:1".parse().unwrap();
        let placed = pool.apply(Event::Opened { job: JOB, session: 1, address });
        let told = |action: &Action| match action {
            Action::Place { member, placement } => Some((member.0, placement.seat.slot)),
            _ => None,
        };
        let told: Vec<_> = placed.iter().filter_map(told).collect();
        assert_eq!(told, [(1, WORKER), (9, SHARD)]);
        pool
    }

    fn apply(&mut self, event: Event) -> Vec<Action> {
        apply(&mut self.state, event, Time(self.now))
    }

    fn offer(&mut self, member: u64, role: Role, seat: Option<Seat>) -> Vec<Action> {
        let (pid, host) = (member as u32, "here".to_owned());
        self.apply(Event::Offered(Offering { member: PoolMemberId(member), role, pid, host, seat }))
    }

    /// The run waits for these.
    fn awaits(&mut self, slots: &[MemberRef]) {
        let slots: BTreeSet<MemberRef> = slots.iter().copied().collect();
        self.apply(Event::Awaited { job: JOB, session: 1, slots });
    }

    /// Time passes, second by second, and all members say that they live. Answers what was placed and withdrawn.
    fn pass(&mut self, millis: u64) -> Vec<(u64, Option<Seat>)> {
        let (mut words, end) = (Vec::new(), self.now + millis);
        while self.now < end {
            self.now = (self.now + 1000).min(end);
            for member in [1, 2, 9] {
                self.apply(Event::Alive { member: PoolMemberId(member) });
            }
            for action in self.apply(Event::Tick) {
                match action {
                    Action::Place { member, placement } => words.push((member.0, Some(placement.seat))),
                    Action::Withdraw { member, .. } => words.push((member.0, None)),
                    _ => {}
                }
            }
        }
        words
    }

    fn job(&self) -> (JobState, u32) {
        let job = &self.state.job_statuses()[0];
        (job.state, job.sessions)
    }
}

const SEAT: Seat = Seat { job: JOB, session: 1, slot: WORKER };

#[test]
fn a_member_that_does_not_join_loses_its_seat_to_a_spare() {
    let mut pool = Pool::at_work();
    pool.awaits(&[WORKER, SHARD]);
    pool.pass(4_000);
    pool.awaits(&[WORKER]);
    assert_eq!(pool.pass(PATIENCE - 4_000), [], "it has this long");
    assert_eq!(pool.pass(1_000), [(1, None), (2, Some(SEAT))]);
    assert_eq!(pool.state.tallies.seats_taken_back, 1);
    // The spare has its own time, and joins.
    assert_eq!(pool.pass(PATIENCE), []);
    pool.awaits(&[]);
    assert_eq!(pool.pass(10 * PATIENCE), []);
    assert_eq!(pool.job(), (JobState::Starting, 1));

    // It lives, but nobody counts on it until it has left, on whichever stream.
    assert_eq!((pool.state.present(Role::Worker), pool.state.coming(Role::Worker)), (1, 0));
    let told = pool.offer(1, Role::Worker, Some(SEAT));
    assert!(matches!(&told[..], [Action::Withdraw { member: PoolMemberId(1), seat: SEAT }]), "{told:?}");
    assert_eq!((pool.state.present(Role::Worker), pool.state.coming(Role::Worker)), (1, 0));
    pool.apply(Event::Released { member: PoolMemberId(1), seat: SEAT, failure: None });
    assert_eq!((pool.state.present(Role::Worker), pool.state.idle(Role::Worker)), (2, 1));
}

#[test]
fn a_member_that_joined_keeps_its_seat_as_long_as_it_is_there() {
    let mut pool = Pool::at_work();
    pool.awaits(&[WORKER, SHARD]);
    pool.pass(2_000);
    pool.awaits(&[]);
    assert_eq!(pool.pass(10 * PATIENCE), []);
    // The run goes back, and it does not come back.
    pool.awaits(&[WORKER, SHARD]);
    pool.awaits(&[WORKER]);
    assert_eq!(pool.pass(PATIENCE), []);
    assert_eq!(pool.pass(1_000), [(1, None), (2, Some(SEAT))]);
}

#[test]
fn where_there_is_no_spare_the_job_goes_on_as_after_any_loss() {
    let mut pool = Pool::at_work();
    pool.apply(Event::Gone { member: PoolMemberId(2), message: "it left".into() });
    pool.awaits(&[WORKER]);
    assert_eq!(pool.pass(PATIENCE + 1_000), [(1, None)]);
    // It waits for a while and then for its turn: the one that hangs is nobody whom it could wait for.
    pool.pass(61_000);
    let end = super::SessionEnd::Stopped("asked".into());
    pool.apply(Event::SessionEnded { job: JOB, session: 1, end });
    assert_eq!(pool.job(), (JobState::Queued, 1));
}

#[test]
fn a_coordinator_that_stood_still_takes_no_seat_back() {
    let mut pool = Pool::at_work();
    pool.awaits(&[WORKER]);
    pool.pass(PATIENCE - 1_000);
    pool.now += 60_000;
    assert_eq!(pool.pass(2_000), [], "nobody could join meanwhile");
    assert_eq!(pool.pass(1_000), [(1, None), (2, Some(SEAT))]);
}

/// Whatever ends a session, how far its run came is said afterwards, and kept with the job.
#[test]
fn a_job_whose_session_ended_says_how_far_it_came() {
    let progress = super::Progress { step: 127, last_commit: Some(120) };
    for end in [
        super::SessionEnd::Completed("done".into()),
        super::SessionEnd::Failed("lost".into()),
        super::SessionEnd::Stopped("asked".into()),
    ] {
        let mut pool = Pool::at_work();
        let known = |pool: &Pool| {
            let job = &pool.state.job_statuses()[0];
            (job.step, job.last_commit)
        };
        assert_eq!(known(&pool), (None, None));
        pool.apply(Event::Progressed { job: JOB, progress });
        let actions = pool.apply(Event::SessionEnded { job: JOB, session: 1, end });
        assert_eq!(known(&pool), (Some(127), Some(120)));
        let is_kept = |action: &Action| matches!(action, Action::Save { record, .. } if record.progress == Some(progress));
        assert!(actions.iter().any(is_kept), "{actions:?}");
    }
}
