//! The state as others see it.

use polygram_domain::Step;
use polygram_proto::control::{MemberRef, MemberStatus, Phase, Reason, RunState, RunStatus, Stall};

use super::event::Time;
use super::state::{Attendance, Member, State};

/// A step that takes so many times as long as the one before is a stall.
const STALLED_STEPS: f64 = 3.0;
/// A shorter wait is none: what members last said of themselves may be older.
const STALLED_HEARTBEATS: u64 = 3;
/// Members named before the rest is only counted.
const NAMED: usize = 4;

impl State {
    /// The run at `now`.
    pub fn status(&self, now: Time) -> RunStatus {
        RunStatus {
            state: self.run,
            reason: self.reason,
            message: self.message.clone(),
            since_unix_ms: self.since.0,
            run: self.settings.run.clone(),
            generation: self.generation(),
            attempt: self.settings.attempt,
            step: self.step(),
            total_steps: self.settings.total_steps,
            resume_step: self.resume_step(),
            members: self
                .members
                .values()
                .map(|m| MemberStatus {
                    role: m.who.role,
                    index: m.who.index,
                    pid: m.pid,
                    host: m.host.clone(),
                    phase: m.phase,
                    step: m.step,
                    address: m.address.to_string(),
                    last_heard_ms: now.since(m.heard),
                    alive: m.attendance != Attendance::Ended,
                    shard: self.counts.shard(m.who).cloned(),
                })
                .collect(),
            last_commit: self.checkpoints.committed,
            last_point: self.checkpoints.point,
            last_metrics: self.metrics.or(self.settings.earlier.metrics),
            evaluations: self.evaluations.values().cloned().collect(),
            culprit: self.culprit.clone(),
            consequences: self.consequences.clone(),
            rows: self.counts.status(&self.settings),
            restarts: self.recovery.restarts,
            last_rollback: self.recovery.last.clone(),
            set_aside: self.damage.set_aside.clone(),
            stall: self.stall(now),
        }
    }

    /// How long no step came, and what is waited for, where that is longer than steps take.
    fn stall(&self, now: Time) -> Option<Stall> {
        let no_step_ms = now.since(self.stepped?);
        let metrics = self.metrics.or(self.settings.earlier.metrics);
        let usual_ms = metrics.map_or(0.0, |metrics| metrics.seconds * 1000.0 * STALLED_STEPS) as u64;
        let shortest_ms = self.settings.timeouts.heartbeat_ms * STALLED_HEARTBEATS;
        let is_stalled = !self.is_over() && no_step_ms >= usual_ms.max(shortest_ms);
        is_stalled.then(|| Stall { no_step_ms, waiting_for: self.waited_for(now) })
    }

    /// What the run waits for, the end of a sentence.
    fn waited_for(&self, now: Time) -> String {
        let last_loss =
            || self.recovery.last.as_ref().map_or(String::new(), |last| format!(": {}", last.culprit));
        match (self.reason, self.run) {
            (Reason::StoreTrouble, _) => format!("the store: {}", self.message),
            (Reason::BackingOff, _) => format!("the pause after the last loss{}", last_loss()),
            (Reason::WaitingForCommit, _) => "the checkpoint that is being written".to_owned(),
            (Reason::Examining, _) => "the check of a checkpoint that may be damaged".to_owned(),
            (_, RunState::Running) => self.waited_for_in_step(now),
            (_, RunState::Restoring) => self.named("to be ready", |member| member.ready),
            (_, RunState::Rendezvous) => {
                self.named("to open a stream", |member| member.attendance == Attendance::Open)
            }
            _ => self.named("to join", |_| true),
        }
    }

    /// The slots that have no member, or one that is not `done`.
    fn named(&self, verb: &str, done: impl Fn(&Member) -> bool) -> String {
        let missing: Vec<MemberRef> =
            self.slots().filter(|slot| !self.members.get(slot).is_some_and(&done)).collect();
        let names: Vec<String> = missing.iter().take(NAMED).map(MemberRef::to_string).collect();
        let rest = missing.len().saturating_sub(NAMED);
        let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        format!("{}{rest} {verb}", names.join(", "))
    }

    /// The member that holds up a step: one that a peer reports or that is silent; else the last one of those that do not
    /// wait for others themselves.
    fn waited_for_in_step(&self, now: Time) -> String {
        if let Some(suspicion) = &self.suspicion {
            let (suspect, reporter) = (suspicion.suspect, suspicion.reporter);
            return format!("{suspect}, reported by {reporter}: {}", suspicion.failure.message);
        }
        let doing = |member: &Member| format!("{} ({} at step {})", member.who, member.phase, member.step);
        let silence_ms = self.settings.timeouts.heartbeat_ms * STALLED_HEARTBEATS;
        let silent = self.members.values().filter(|member| now.since(member.heard) >= silence_ms);
        if let Some(member) = silent.min_by_key(|member| (member.heard, member.who)) {
            let seconds = now.since(member.heard) as f64 / 1000.0;
            return format!("{}, silent for {seconds:.1} s", doing(member));
        }
        let slowest = self.workers().min_by_key(|member| (member.step, waits(member.phase), member.who));
        slowest.map_or("its workers".to_owned(), doing)
    }

    /// Updates applied so far, as far as anybody said.
    fn step(&self) -> Step {
        let reported = self.metrics.map_or(Step(0), |metrics| metrics.step.next());
        let workers = self.workers().map(|m| m.step).max().unwrap_or_default();
        self.resume_step().max(reported).max(workers).max(self.checkpoints.committed.unwrap_or_default())
    }
}

/// Whether a worker in this phase waits for others.
fn waits(phase: Phase) -> bool {
    matches!(phase, Phase::Lookup | Phase::Exchanging | Phase::Reducing | Phase::Pushing | Phase::Ready)
}
