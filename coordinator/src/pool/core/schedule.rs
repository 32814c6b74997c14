//! Who gets which members: vacant seats of jobs at work first, then whole gangs for those in line, then growth.
//!
//! The line is strict: priority, then submission. A job behind another starts only where the one before it needs more
//! members than the pool has at all, so that it cannot start whatever ends. Nothing here knows how long a job will take,
//! so no other way of overtaking could be shown to delay nobody.

use polygram_domain::control::{MemberRef, Role};
use polygram_domain::words;
use polygram_proto::pool::{JobId, JobState, PoolMemberId};

use super::event::Action;
use super::job::{Active, Job, Purpose, Stage};
use super::state::{Place, Turn};

/// What the line says of a job in it.
enum Verdict {
    /// It starts with so many workers.
    Start(u32),
    /// It waits, and everybody behind it.
    Wait,
    /// The pool is too small for it as it is.
    TooLarge,
}

impl Turn<'_> {
    /// Goes as far as the state allows; called after every event.
    pub(super) fn schedule(&mut self) {
        self.settle_cancelled();
        self.hurry();
        if self.state.interrupts > 0 {
            return self.leave();
        }
        if self.now >= self.state.seats_wait_until {
            self.fill();
        }
        self.watch_vacancies();
        let line_is_empty = self.now >= self.state.seats_wait_until && self.start_gangs();
        if line_is_empty {
            self.grow();
        }
        self.open_due();
    }

    fn leave(&mut self) {
        if self.open_jobs().next().is_none() || self.state.interrupts > 2 {
            self.actions.push(Action::Exit);
        }
    }

    fn in_order(&self, filter: impl Fn(&Job) -> bool) -> Vec<JobId> {
        let mut jobs: Vec<&Job> = self.state.jobs.values().filter(|job| filter(job)).collect();
        jobs.sort_unstable_by_key(|job| job.order());
        jobs.into_iter().map(Job::id).collect()
    }

    /// Gives spares to jobs that lost a member.
    fn fill(&mut self) {
        for id in self.in_order(|job| job.active.as_ref().is_some_and(Active::takes_members)) {
            let Some(active) = self.active(id) else { continue };
            let vacant = active.seats.iter().filter(|(_, member)| member.is_none());
            let vacant: Vec<MemberRef> = vacant.map(|(slot, _)| *slot).collect();
            for slot in vacant {
                if let Some(member) = self.spare_for(id, slot) {
                    self.seat(id, slot, member);
                    self.tell(member);
                }
            }
        }
    }

    /// The spare that has waited for the longest id; one that has just left this very seat waits a moment.
    fn spare_for(&self, id: JobId, slot: MemberRef) -> Option<PoolMemberId> {
        let seat = self.state.jobs.get(&id)?.seat(slot);
        let retry_ms = self.state.rules.retry_ms;
        let is_spare = |place: Place| match place {
            Place::Idle { left: Some((left, at)) } => {
                let is_same = (left.job, left.session) == (seat.job, seat.session);
                !is_same || self.now.since(at) >= retry_ms
            }
            Place::Idle { left: None } => true,
            _ => false,
        };
        let mut spares = self.state.members.iter();
        spares.find(|(_, member)| member.role == slot.role && is_spare(member.place)).map(|(id, _)| *id)
    }

    fn seat(&mut self, id: JobId, slot: MemberRef, member: PoolMemberId) {
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        let seat = job.seat(slot);
        if let (Some(active), Some(known)) = (&mut job.active, self.state.members.get_mut(&member)) {
            active.seats.insert(slot, Some(member));
            (known.place, known.told) = (Place::Placed(seat), None);
        }
    }

    /// Jobs whose vacant seats nobody takes go on with fewer workers, or give their members back.
    fn watch_vacancies(&mut self) {
        let now = self.now;
        for id in self.in_order(|job| job.active.as_ref().is_some_and(Active::takes_members)) {
            let coming = [Role::Worker, Role::Shard].map(|role| self.state.coming(role));
            let Some(job) = self.state.jobs.get_mut(&id) else { continue };
            let Some(active) = &mut job.active else { continue };
            let vacant = [Role::Worker, Role::Shard].map(|role| active.vacant(role));
            if vacant == [0, 0] {
                active.vacant_since = None;
                continue;
            }
            let since = *active.vacant_since.get_or_insert(now);
            let is_open = matches!(active.stage, Stage::Open(_));
            if !is_open || now.since(since) < job.needs.wait_ms() || now < self.state.seats_wait_until {
                continue;
            }
            if vacant[0] <= coming[0] && vacant[1] <= coming[1] {
                // They are on their way out of other seats.
                continue;
            }
            let fewer = job.needs.workers_within(active.filled(Role::Worker) + coming[0]);
            let waited = now.since(since) as f64 / 1000.0;
            let [workers, shards] = [(vacant[0], "worker"), (vacant[1], "shard")]
                .map(|(count, role)| words::counted(count as u64, role));
            let why = format!("missing for {waited:.0} s: {workers} and {shards}");
            match fewer.filter(|fewer| *fewer < active.workers && vacant[1] <= coming[1]) {
                Some(fewer) => {
                    let reason = format!("{why}: it goes on with {}", words::counted(fewer.into(), "worker"));
                    self.close(id, Purpose::Resize(fewer), reason);
                }
                None => {
                    let reason = format!("{why}: it gives its members back and waits for its turn");
                    self.close(id, Purpose::Requeue(why), reason);
                }
            }
        }
    }

    /// Starts jobs from the head of the line. True where nobody is left waiting for members that the pool has.
    fn start_gangs(&mut self) -> bool {
        for id in self.in_order(|job| job.record.state == JobState::Queued) {
            let Some(job) = self.state.jobs.get(&id) else { continue };
            match self.verdict(job) {
                Verdict::Start(workers) => self.start(id, workers),
                Verdict::TooLarge => {}
                Verdict::Wait => {
                    self.preempt_for(id);
                    return false;
                }
            }
        }
        true
    }

    fn verdict(&self, job: &Job) -> Verdict {
        let needs = &job.needs;
        let (workers, shards) = (self.state.idle(Role::Worker), self.state.idle(Role::Shard));
        let is_patient = self.now < job.record.patient_until;
        let within = |offered: usize| {
            needs.workers_within(offered).filter(|workers| *workers == needs.workers || !is_patient)
        };
        if let Some(workers) = within(workers).filter(|_| needs.shards as usize <= shards) {
            return Verdict::Start(workers);
        }
        let fits = needs.workers_within(self.state.present(Role::Worker)).is_some()
            && needs.shards as usize <= self.state.present(Role::Shard);
        if fits { Verdict::Wait } else { Verdict::TooLarge }
    }

    /// Gives a job all its members at once.
    fn start(&mut self, id: JobId, workers: u32) {
        let now = self.now;
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        let active = Active::new(workers, job.needs.shards, now);
        let slots: Vec<MemberRef> = active.seats.keys().copied().collect();
        job.active = Some(active);
        job.record.workers = workers;
        job.record.started.get_or_insert(now);
        for slot in slots {
            // The number of its next session is none that anybody has left, so every spare will do.
            if let Some(member) = self.any_spare(slot.role) {
                self.seat(id, slot, member);
            }
        }
        self.enter(
            id,
            JobState::Starting,
            format!("it has its members, {} among them", words::counted(workers.into(), "worker")),
        );
    }

    fn any_spare(&self, role: Role) -> Option<PoolMemberId> {
        let mut members = self.state.members.iter();
        members
            .find(|(_, member)| member.role == role && matches!(member.place, Place::Idle { .. }))
            .map(|(id, _)| *id)
    }

    /// Asks jobs of lower priority that allow it to stop, the last in order first, where that makes room.
    fn preempt_for(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let (priority, shards) = (job.record.priority, job.needs.shards as usize);
        let is_leaving = |job: &&Job| {
            job.active.as_ref().is_some_and(|active| match &active.stage {
                Stage::Closing { purpose, .. } => !matches!(purpose, Purpose::Resize(_)),
                _ => false,
            })
        };
        let of = |job: &Job| {
            let filled = |role| job.active.as_ref().map_or(0, |active| active.filled(role));
            [filled(Role::Worker), filled(Role::Shard)]
        };
        let add = |a: [usize; 2], b: [usize; 2]| [a[0] + b[0], a[1] + b[1]];
        let coming = [Role::Worker, Role::Shard].map(|role| self.state.coming(role));
        let mut room = self.state.jobs.values().filter(is_leaving).map(of).fold(coming, add);
        let enough = |room: [usize; 2], wanted: usize| room[0] >= wanted && room[1] >= shards;
        let gives_way = |job: &Job| {
            job.record.preemptible
                && job.record.priority < priority
                && job.active.as_ref().is_some_and(|active| matches!(active.stage, Stage::Open(_)))
        };
        let mut victims = self.in_order(gives_way);
        victims.reverse();
        let all = victims.iter().filter_map(|id| self.state.jobs.get(id)).map(of).fold(room, add);
        let Some(wanted) = job.needs.workers_within(all[0]).filter(|_| all[1] >= shards) else { return };
        let mut chosen = Vec::new();
        for victim in victims {
            if enough(room, wanted as usize) {
                break;
            }
            room = self.state.jobs.get(&victim).map(of).map_or(room, |seats| add(room, seats));
            chosen.push(victim);
        }
        for victim in chosen {
            let why = format!("it makes way for job {id} of priority {priority}");
            self.state.tallies.preemptions += 1;
            self.close(victim, Purpose::Requeue(why.clone()), why);
        }
    }

    /// Gives more workers to a job that has fewer than it wants, at a commit.
    fn grow(&mut self) {
        let now = self.now;
        let idle = self.state.idle(Role::Worker);
        let grows = |job: &Job| {
            job.record.state == JobState::Running
                && job.active.as_ref().is_some_and(|active| {
                    matches!(active.stage, Stage::Open(_))
                        && active.workers < job.needs.workers
                        && active.vacant_since.is_none()
                        && now.since(active.since) >= job.needs.resize_ms()
                })
        };
        for id in self.in_order(grows) {
            let Some(job) = self.state.jobs.get(&id) else { continue };
            let Some(now_workers) = job.active.as_ref().map(|active| active.workers) else { continue };
            let more = job.needs.workers_within(now_workers as usize + idle);
            if let Some(more) = more.filter(|more| *more > now_workers) {
                let why = format!(
                    "it goes on with {} instead of {now_workers}",
                    words::counted(more.into(), "worker")
                );
                return self.close(id, Purpose::Resize(more), why);
            }
        }
    }

    fn open_due(&mut self) {
        for id in self.in_order(|job| job.active.as_ref().is_some_and(|active| active.stage == Stage::Due)) {
            let Some(job) = self.state.jobs.get_mut(&id) else { continue };
            job.record.sessions += 1;
            let session = job.record.sessions;
            let Some(active) = &mut job.active else { continue };
            active.stage = Stage::Opening;
            let (workers, config_toml) = (active.workers, job.config_toml.clone());
            for (slot, member) in &active.seats {
                if let Some(known) = member.and_then(|member| self.state.members.get_mut(&member)) {
                    known.place = Place::Placed(polygram_proto::pool::Seat { job: id, session, slot: *slot });
                    known.told = None;
                }
            }
            self.keep(id);
            self.actions.push(Action::Open { job: id, session, workers, config_toml });
        }
    }
}
