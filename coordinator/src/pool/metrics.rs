//! The pool in numbers: its members, its queue, and what it had to do about both.

use std::fmt;
use std::sync::Arc;

use polygram_domain::control::Role;
use polygram_process::unix_ms;
use polygram_proto::pool::{JobState, JobStatus, PoolMemberStatus};
use polygram_telemetry::{Histogram, Identity, Metrics, Page, Sample, Source, names};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::core::Tallies;
use super::messages::{Input, Numbers};
use crate::scrapes;

/// Upper bounds of waits in the queue.
const WAIT_SECONDS: [f64; 9] =
    [1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 4.0 * 3600.0, 24.0 * 3600.0, f64::INFINITY];

/// Answers scrapes on `listener` until it is dropped.
pub(super) async fn serve(listener: TcpListener, inbox: mpsc::Sender<Input>) {
    let identity = Identity { run: "pool".into(), role: polygram_telemetry::Role::Coordinator, index: None };
    let (sender, latest) = watch::channel(Numbers::default());
    let metrics = Metrics::new(&identity).with(Arc::new(PoolSource(latest)));
    scrapes::serve((listener, metrics), sender, inbox, |answer| Input::Numbers { answer }).await;
}

impl Numbers {
    /// How many members of `role` are idle, seated, and on their way out of a seat.
    fn places(&self, role: Role) -> [(&'static str, usize); 3] {
        let count = |of: fn(&PoolMemberStatus) -> bool| {
            self.members.iter().filter(|member| member.role == role && of(member)).count()
        };
        [
            ("idle", count(|member| member.seat.is_none())),
            ("seated", count(|member| member.seat.is_some() && !member.leaving)),
            ("leaving", count(|member| member.leaving)),
        ]
    }

    fn jobs_in(&self, state: JobState) -> impl Iterator<Item = &JobStatus> {
        self.jobs.iter().filter(move |job| job.state == state)
    }

    /// From submission to the first members, of every job that had some.
    fn waits(&self) -> Histogram {
        let mut histogram = Histogram { sum: 0.0, buckets: WAIT_SECONDS.map(|bound| (bound, 0)).into() };
        for job in &self.jobs {
            let Some(started) = job.started_unix_ms else { continue };
            let seconds = started.saturating_sub(job.submitted_unix_ms) as f64 / 1000.0;
            histogram.sum += seconds;
            if let Some((_, count)) = histogram.buckets.iter_mut().find(|(bound, _)| seconds <= *bound) {
                *count += 1;
            }
        }
        histogram
    }

    fn longest_wait_seconds(&self, now_unix_ms: u64) -> f64 {
        let never_started = self.jobs_in(JobState::Queued).filter(|job| job.started_unix_ms.is_none());
        let waits = never_started.map(|job| now_unix_ms.saturating_sub(job.submitted_unix_ms));
        waits.max().unwrap_or(0) as f64 / 1000.0
    }
}

#[derive(Debug)]
struct PoolSource(watch::Receiver<Numbers>);

impl Source for PoolSource {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let numbers = self.0.borrow().clone();
        let members = [Role::Worker, Role::Shard].into_iter().flat_map(|role| {
            let sample = move |(place, count)| Sample::of("member", role, count as f64).and("place", place);
            numbers.places(role).map(sample)
        });
        page.gauge(names::POOL_MEMBERS, members)?;
        let in_state = |state: &JobState| Sample::of("state", state, numbers.jobs_in(*state).count() as f64);
        page.gauge(names::POOL_JOBS, JobState::ALL.iter().map(in_state))?;
        page.histogram(names::POOL_QUEUE_WAIT_SECONDS, [Sample::plain(numbers.waits())])?;
        let longest = numbers.longest_wait_seconds(unix_ms());
        page.gauge(names::POOL_LONGEST_WAIT_SECONDS, [Sample::plain(longest)])?;
        let sessions: u64 = numbers.jobs.iter().map(|job| u64::from(job.sessions)).sum();
        let Tallies { preemptions, seats_taken_back, members_lost } = numbers.tallies;
        for (metric, count) in [
            (names::POOL_SESSIONS_TOTAL, sessions),
            (names::POOL_PREEMPTIONS_TOTAL, preemptions),
            (names::POOL_RESTARTS_TOTAL, numbers.restarts),
            (names::POOL_MEMBERS_LOST_TOTAL, members_lost),
            (names::POOL_SEATS_TAKEN_BACK_TOTAL, seats_taken_back),
        ] {
            page.counter(metric, [Sample::plain(count as f64)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use polygram_proto::pool::JobId;

    use super::*;

    fn job(state: JobState, submitted: u64, started: Option<u64>) -> JobStatus {
        JobStatus {
            job: JobId(1),
            run: "r".into(),
            priority: 0,
            preemptible: false,
            state,
            reason: String::new(),
            submitted_unix_ms: submitted,
            started_unix_ms: started,
            ended_unix_ms: None,
            sessions: 2,
            workers: 0,
            wanted_workers: 1,
            shards: 1,
            step: None,
            total_steps: 1,
            last_commit: None,
        }
    }

    #[test]
    fn waits_are_of_jobs_that_had_members() {
        let jobs = vec![
            job(JobState::Running, 1_000, Some(1_500)),
            job(JobState::Completed, 1_000, Some(31_000)),
            // It had members, and waits for its turn again.
            job(JobState::Queued, 1_000, Some(200_000_000)),
            job(JobState::Queued, 5_000, None),
            job(JobState::Queued, 7_000, None),
        ];
        let numbers = Numbers { jobs, ..Numbers::default() };
        let Histogram { sum, buckets } = numbers.waits();
        assert_eq!(sum, 0.5 + 30.0 + 199_999.0);
        let counts: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(numbers.longest_wait_seconds(25_000), 20.0);
        assert_eq!(numbers.jobs_in(JobState::Queued).count(), 3);
    }
}
