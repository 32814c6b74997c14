//! Jobs come, are opened, and end.

use std::net::SocketAddr;

use polygram_domain::control::StopMode;
use polygram_domain::words;
use polygram_proto::pool::{JobId, JobState};

use super::event::{Action, Admission, Reply, SessionEnd};
use super::job::{Active, Job, JobRecord, Progress, Purpose, Stage};
use super::state::Turn;
use crate::core::{Level, Ticket, Time};

impl Turn<'_> {
    pub(super) fn submit(&mut self, ticket: Ticket, admission: Admission) {
        let Admission { run, priority, preemptible, needs, config_toml } = admission;
        let same = |job: &&Job| job.record.run == run && !job.record.state.is_over();
        if let Some(job) = self.state.jobs.values().find(same) {
            let (id, state) = (job.id(), job.record.state);
            let refusal =
                format!("run {run} is job {id} already, which is {state}; cancel that one, or name the run");
            return self.reply(ticket, Err(refusal));
        }
        let id = JobId(self.state.jobs.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        let record = JobRecord {
            job: id,
            run,
            priority,
            preemptible,
            state: JobState::Queued,
            reason: "submitted".into(),
            submitted: self.now,
            started: None,
            ended: None,
            sessions: 0,
            workers: 0,
            patient_until: self.now.after(needs.wait_ms()),
            is_cancelled: false,
            progress: None,
        };
        self.log(Level::Info, format!("job {id} (run {}, priority {priority}) submitted", record.run));
        self.actions.push(Action::Admit { record: record.clone(), config_toml: config_toml.clone() });
        self.state.jobs.insert(id, Job { record, needs, config_toml, active: None });
        self.reply(ticket, Ok(Reply::Submitted(id)));
    }

    pub(super) fn cancel(&mut self, ticket: Ticket, id: JobId) {
        let answer = self.try_cancel(id).map(Reply::Cancelling);
        self.reply(ticket, answer);
    }

    fn try_cancel(&mut self, id: JobId) -> Result<String, String> {
        let Some(job) = self.state.jobs.get_mut(&id) else { return Err(format!("there is no job {id}")) };
        let record = &mut job.record;
        if record.state.is_over() {
            return Err(format!("job {id} is over already: {}, {}", record.state, record.reason));
        }
        let why = format!("job {id} was cancelled");
        let Some(active) = job.active.as_mut().filter(|active| active.stage != Stage::Due) else {
            self.free_members(id);
            self.enter(id, JobState::Cancelled, "cancelled before its run was opened");
            return Ok("cancelled; it holds no member".into());
        };
        if record.is_cancelled {
            if let Stage::Closing { is_aborted, .. } = &mut active.stage {
                *is_aborted = true;
            }
            self.actions.push(Action::End { job: id, mode: StopMode::Abort, reason: format!("{why} twice") });
            return Ok("it stops at once; what is not committed is lost".into());
        }
        record.is_cancelled = true;
        record.reason = "cancelled; it commits at its next step boundary and stops".into();
        let is_ending = matches!(active.stage, Stage::Closing { .. });
        match &mut active.stage {
            Stage::Closing { purpose, .. } => *purpose = Purpose::Cancel,
            _ => self.close(id, Purpose::Cancel, why),
        }
        self.keep(id);
        Ok(if is_ending {
            "its session is ending already"
        } else {
            "it commits at its next step boundary and stops"
        }
        .into())
    }

    /// Asks a session to commit and stop, for a purpose.
    pub(super) fn close(&mut self, id: JobId, purpose: Purpose, reason: String) {
        let since = self.now;
        if let Some(active) = self.active(id) {
            active.stage = Stage::Closing { purpose, since, is_aborted: false };
            self.actions.push(Action::End { job: id, mode: StopMode::Commit, reason });
        }
    }

    pub(super) fn active(&mut self, id: JobId) -> Option<&mut Active> {
        self.state.jobs.get_mut(&id)?.active.as_mut()
    }

    /// The job's active session, if it is this one.
    pub(super) fn session(&mut self, id: JobId, session: u32) -> Option<&mut Active> {
        let job = self.state.jobs.get_mut(&id).filter(|job| job.record.sessions == session)?;
        job.active.as_mut()
    }

    pub(super) fn opened(&mut self, id: JobId, session: u32, address: SocketAddr) {
        let Some(active) = self.session(id, session) else { return };
        if active.stage != Stage::Opening {
            return;
        }
        active.stage = Stage::Open(address);
        let placed: Vec<_> = active.seats.values().flatten().copied().collect();
        for member in placed {
            self.tell(member);
        }
    }

    pub(super) fn run_started(&mut self, id: JobId, session: u32) {
        let Some(active) = self.session(id, session) else { return };
        let workers = active.workers;
        let starts = self
            .state
            .jobs
            .get(&id)
            .is_some_and(|job| job.record.state == JobState::Starting && !job.record.is_cancelled);
        if starts {
            self.enter(
                id,
                JobState::Running,
                format!("its run is at work with {}", words::counted(workers.into(), "worker")),
            );
        }
    }

    /// It is kept with what the end of the session changes.
    pub(super) fn progressed(&mut self, id: JobId, progress: Progress) {
        if let Some(job) = self.state.jobs.get_mut(&id) {
            job.record.progress = Some(progress);
        }
    }

    pub(super) fn run_over(&mut self, id: JobId, session: u32) {
        let since = self.now;
        if let Some(active) = self.session(id, session).filter(|active| active.takes_members()) {
            active.stage = Stage::Closing { purpose: Purpose::Over, since, is_aborted: false };
        }
    }

    pub(super) fn session_ended(&mut self, id: JobId, session: u32, end: SessionEnd) {
        let Some(active) = self.session(id, session) else { return };
        let purpose = match &active.stage {
            Stage::Closing { purpose, .. } => purpose.clone(),
            _ => Purpose::Over,
        };
        let workers = active.workers;
        self.recall_members(id);
        let message = end.message().to_owned();
        match (purpose, end) {
            (_, SessionEnd::Completed(_)) => self.finish(id, JobState::Completed, message),
            (_, SessionEnd::StoppedAtStep(_)) => self.finish(id, JobState::Stopped, message),
            (Purpose::Cancel, _) => self.finish(id, JobState::Cancelled, format!("cancelled; {message}")),
            (Purpose::Over, SessionEnd::Failed(_)) => self.finish(id, JobState::Failed, message),
            (Purpose::Requeue(why), _) => self.requeue(id, format!("{why}; {message}")),
            (Purpose::Resize(workers), _) => self.reopen(id, workers, message),
            // A member that was told to end had the run stop; the job goes on without it.
            (Purpose::Over, SessionEnd::Stopped(_)) | (Purpose::Shutdown, _) => {
                self.reopen(id, workers, message)
            }
        }
    }

    fn finish(&mut self, id: JobId, state: JobState, message: String) {
        if let Some(job) = self.state.jobs.get_mut(&id) {
            job.active = None;
        }
        self.enter(id, state, message);
    }

    /// The job waits for its turn again, and takes what it can get then.
    fn requeue(&mut self, id: JobId, why: String) {
        let now = self.now;
        if let Some(job) = self.state.jobs.get_mut(&id) {
            job.active = None;
            job.record.workers = 0;
            job.record.patient_until = now;
        }
        self.enter(id, JobState::Queued, why);
    }

    /// The job goes on with another session.
    fn reopen(&mut self, id: JobId, workers: u32, why: String) {
        let now = self.now;
        if let Some(job) = self.state.jobs.get_mut(&id) {
            job.active = Some(Active::new(workers, job.needs.shards, now));
            job.record.workers = workers;
        }
        self.enter(
            id,
            JobState::Starting,
            format!("goes on with {}; {why}", words::counted(workers.into(), "worker")),
        );
    }

    /// A session is over: whoever has a seat in it leaves.
    fn recall_members(&mut self, id: JobId) {
        let Some(active) = self.active(id) else { return };
        let seated: Vec<_> = active.seats.values_mut().filter_map(Option::take).collect();
        for member in seated {
            self.withdraw(member);
        }
    }

    /// Members of a session that was never opened are spares again at once, unless they still are in an older one.
    fn free_members(&mut self, id: JobId) {
        self.recall_members(id);
        if let Some(job) = self.state.jobs.get_mut(&id) {
            job.active = None;
        }
    }

    pub(super) fn interrupt(&mut self, reason: &str) {
        self.state.interrupts += 1;
        let nth = self.state.interrupts;
        self.log(
            Level::Info,
            format!(
                "{reason}: {}",
                match nth {
                    1 =>
                        "every run commits at its next step boundary and stops; the next coordinator goes on",
                    2 => "every run stops at once",
                    _ => "leaving",
                }
            ),
        );
        let open: Vec<JobId> = self.open_jobs().collect();
        for id in open {
            let reason = format!("the pool's coordinator ends ({reason})");
            let Some(active) = self.active(id) else { continue };
            match &mut active.stage {
                Stage::Closing { is_aborted, .. } if nth > 1 => {
                    *is_aborted = true;
                    self.actions.push(Action::End { job: id, mode: StopMode::Abort, reason });
                }
                Stage::Closing { .. } => {}
                _ => self.close(id, Purpose::Shutdown, reason),
            }
        }
    }

    /// Jobs with a session that is being opened, open or closing.
    pub(super) fn open_jobs(&self) -> impl Iterator<Item = JobId> + '_ {
        let is_open = |job: &&Job| job.active.as_ref().is_some_and(|active| active.stage != Stage::Due);
        self.state.jobs.values().filter(is_open).map(Job::id)
    }

    /// Jobs that were cancelled when the coordinator before this one died: no session of theirs is left.
    pub(super) fn settle_cancelled(&mut self) {
        let is_left = |job: &&Job| {
            job.record.is_cancelled && job.active.as_ref().is_some_and(|active| active.stage == Stage::Due)
        };
        let left: Vec<JobId> = self.state.jobs.values().filter(is_left).map(Job::id).collect();
        for id in left {
            self.free_members(id);
            self.enter(id, JobState::Cancelled, "cancelled; its newest commit stays");
        }
    }

    /// Sessions that take too long to commit and stop are aborted.
    pub(super) fn hurry(&mut self) {
        let (now, limit) = (self.now, self.state.rules.closing_ms);
        let late = |since: Time| now.since(since) > limit;
        let mut aborted = Vec::new();
        for job in self.state.jobs.values_mut() {
            if let Some(Stage::Closing { since, is_aborted: aborts @ false, .. }) =
                job.active.as_mut().map(|active| &mut active.stage)
                && late(*since)
            {
                *aborts = true;
                aborted.push(job.record.job);
            }
        }
        for id in aborted {
            let reason = format!("it did not commit and stop within {} s", limit / 1000);
            self.log(Level::Warn, format!("job {id}: {reason}"));
            self.actions.push(Action::End { job: id, mode: StopMode::Abort, reason });
        }
    }
}
