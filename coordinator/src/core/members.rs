//! Joining, attending and reporting.

use polygram_domain::{Generation, SCHEMA_VERSION, Step};
use polygram_proto::control::{
    AssignmentHash, Envelope, Evaluation, Heartbeat, JoinRequest, MemberId, MemberRef, MemberReport, Phase,
    Reason, Role, RunState,
};

use super::event::{Action, Level, Record, Reply, Ticket};
use super::state::{Attendance, Member, Turn};

impl Turn<'_> {
    pub(super) fn join(&mut self, ticket: Ticket, request: JoinRequest) {
        let answer = self.admit(request);
        if let Err(refusal) | Ok(Reply::Later(refusal)) = &answer {
            self.log(Level::Warn, format!("refused a member: {refusal}"));
        }
        self.reply(ticket, answer);
    }

    fn admit(&mut self, request: JoinRequest) -> Result<Reply, String> {
        let JoinRequest { schema_version, member: who, incarnation, pid, host, data_address } = request;
        if schema_version != SCHEMA_VERSION {
            return Err(format!(
                "{who} speaks schema version {schema_version}, the run speaks version {SCHEMA_VERSION}; use the \
                 same build everywhere"
            ));
        }
        if self.state.is_over() {
            return Err(format!("the run is over: {}", self.state.message));
        }
        let (count, key) = match who.role {
            Role::Worker => (self.state.settings.topology.workers, "workers"),
            Role::Shard => (self.state.settings.topology.shards, "shards"),
        };
        if who.index >= count {
            return Err(format!("{who} is out of range: topology.{key} is {count}, counted from 0"));
        }
        let generation = self.state.generation();
        if let Some(holder) = self.state.members.get_mut(&who) {
            if holder.incarnation == incarnation && holder.attendance != Attendance::Ended {
                // The first answer was lost on its way.
                holder.heard = self.now;
                return Ok(Reply::Admitted { member: holder.id, generation });
            }
            let heard = self.now.since(holder.heard) as f64 / 1000.0;
            let taken =
                format!("{who} is taken by pid {} on {}, heard {heard:.1} s ago", holder.pid, holder.host);
            // Where runs recover, another process in the slot is most often the successor of a dead one.
            return if self.state.recovers() { Ok(Reply::Later(taken)) } else { Err(taken) };
        }
        if let Some(refusal) = self.state.quarantine(&host, self.now) {
            return Ok(Reply::Later(refusal));
        }
        self.state.admissions += 1;
        let id = MemberId(self.state.admissions);
        self.log(Level::Info, format!("{who} joined (pid {pid} on {host}, data at {data_address})"));
        self.state.members.insert(
            who,
            Member {
                id,
                who,
                incarnation,
                pid,
                host,
                address: data_address,
                attendance: Attendance::Expected,
                ready: false,
                heard: self.now,
                step: Step(0),
                phase: Phase::Starting,
                restored_bytes: 0,
                store_wait: None,
                finished: None,
                failed: false,
            },
        );
        if self.state.run == RunState::Recovering {
            // Whoever starts members again sees who is back.
            self.actions.push(Action::StatusChanged);
        }
        Ok(Reply::Admitted { member: id, generation })
    }

    pub(super) fn attend(&mut self, ticket: Ticket, member: MemberId, generation: Generation) {
        let active = self.state.generation;
        let over = self.state.is_over().then(|| format!("the run is over: {}", self.state.message));
        let now = self.now;
        let answer = match (over, self.member(member)) {
            (Some(over), _) => Err(over),
            (None, _) if generation != active => Ok(Reply::Later(format!(
                "admission {} is of generation {generation}, the active one is {active}; join again",
                member.0
            ))),
            (None, None) => Err(format!("admission {} is not of this generation; join first", member.0)),
            (None, Some(m)) => match m.attendance {
                Attendance::Expected => {
                    m.attendance = Attendance::Open;
                    m.heard = now;
                    Ok(Reply::Attending)
                }
                Attendance::Open => Err(format!("{} attends already", m.who)),
                Attendance::Ended => Err(format!("the stream of {} has ended", m.who)),
            },
        };
        self.reply(ticket, answer);
    }

    pub(super) fn report(&mut self, envelope: Envelope) {
        let Envelope { member, generation, report } = envelope;
        if generation != self.state.generation() {
            if let Some(who) = self.state.recovery.former(generation, member) {
                return self.late_word(who, report);
            }
            let active = self.state.generation();
            self.log(Level::Warn, format!("ignored a report of generation {generation}, active is {active}"));
            return;
        }
        let now = self.now;
        let Some(m) = self.member(member) else {
            self.log(Level::Warn, format!("ignored a report of unknown admission {}", member.0));
            return;
        };
        if m.attendance != Attendance::Open {
            return;
        }
        m.heard = now;
        let who = m.who;
        match report {
            MemberReport::Heartbeat(Heartbeat { step, phase, restored_bytes, store_wait }) => {
                m.step = m.step.max(step);
                m.phase = phase;
                m.restored_bytes = restored_bytes;
                m.store_wait = store_wait;
            }
            MemberReport::Ready { assignment } => self.ready(who, assignment),
            MemberReport::Metrics(metrics) => {
                let newest = self.state.metrics.map(|newest| newest.step);
                let is_next = newest.is_none_or(|newest| metrics.step > newest)
                    && metrics.step >= self.state.resume_step();
                if self.speaks_for_the_run(who) && is_next {
                    self.state.metrics = Some(metrics);
                    self.state.stepped = Some(now);
                    self.actions.push(Action::Record(Record::Metrics(metrics)));
                    self.tell_skip(&metrics);
                    self.note_progress(metrics.step.next());
                    self.next_commit();
                }
            }
            MemberReport::Evaluation(evaluation) => {
                if self.speaks_for_the_run(who) {
                    self.evaluated(evaluation);
                }
            }
            MemberReport::Failed(failure) => self.member_failed(who, failure),
            MemberReport::Finished { step } => self.finished(who, step),
            MemberReport::Shard(report) => self.shard_counts(who, *report),
            MemberReport::Input(report) => self.input_counts(who, *report),
        }
    }

    /// Keeps an evaluation of one of the run's held-out sets, once.
    fn evaluated(&mut self, evaluation: Evaluation) {
        if !self.state.settings.held_out_sets.contains(&evaluation.set) {
            let line =
                format!("ignored an evaluation of {:?}, which is no held-out set of the run", evaluation.set);
            return self.log(Level::Warn, line);
        }
        let newest = self.state.evaluations.get(&evaluation.set).map(|newest| newest.step);
        if newest != Some(evaluation.step) {
            self.state.evaluations.insert(evaluation.set.clone(), evaluation.clone());
            self.actions.push(Action::Record(Record::Evaluation(evaluation)));
        }
    }

    /// Whether metrics of `who` count: rank 0's, while steps are done.
    fn speaks_for_the_run(&mut self, who: MemberRef) -> bool {
        let speaks = who.role == Role::Worker && who.index == 0 && self.state.run == RunState::Running;
        if !speaks {
            self.log(Level::Warn, format!("ignored metrics of {who} while {}", self.state.run));
        }
        speaks
    }

    fn ready(&mut self, who: MemberRef, hash: AssignmentHash) {
        match self.state.assignment {
            Some(assigned) if assigned == hash => {
                if let Some(m) = self.state.members.get_mut(&who) {
                    m.ready = true;
                }
            }
            Some(assigned) => {
                let message = format!("acknowledged assignment {hash}, but was given {assigned}");
                self.member_fails(who, Reason::ProtocolBroken, message);
            }
            None => {
                let message = format!("acknowledged assignment {hash} before there was one");
                self.member_fails(who, Reason::ProtocolBroken, message);
            }
        }
    }

    fn finished(&mut self, who: MemberRef, step: Step) {
        if self.state.is_over() {
            return;
        }
        let total = self.state.settings.total_steps;
        let first = self.state.workers().find_map(|m| m.finished.map(|at| (m.who, at)));
        let message = if who.role == Role::Shard {
            Some("reported Finished, which only workers do".to_owned())
        } else if self.state.run != RunState::Running {
            Some(format!("reported Finished while the run was {}", self.state.run))
        } else if step.0 > total || step < self.state.resume_step() {
            Some(format!("finished at step {step}, which is not between the resumed step and {total}"))
        } else {
            first
                .filter(|(_, at)| *at != step)
                .map(|(other, at)| format!("finished at step {step}, but {other} finished at step {at}"))
        };
        if let Some(message) = message {
            return self.member_fails(who, Reason::ProtocolBroken, message);
        }
        if let Some(m) = self.state.members.get_mut(&who) {
            m.finished = Some(step);
            m.step = m.step.max(step);
            m.phase = Phase::Finished;
        }
    }

    pub(super) fn stream_ended(&mut self, member: MemberId, message: String) {
        let Some(m) = self.member(member) else { return };
        if m.attendance != Attendance::Open {
            return;
        }
        m.attendance = Attendance::Ended;
        let (who, excused) = (m.who, m.finished.is_some() || m.failed);
        if self.state.is_over() {
            self.log(Level::Info, format!("{who} left"));
        } else if !excused {
            self.member_fails(who, Reason::MemberLost, message);
        }
    }

    fn member(&mut self, id: MemberId) -> Option<&mut Member> {
        self.state.members.values_mut().find(|m| m.id == id)
    }
}
