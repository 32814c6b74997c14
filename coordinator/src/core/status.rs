//! The state as others see it.

use polygram_domain::Step;
use polygram_proto::control::{MemberStatus, RunStatus};

use super::event::Time;
use super::state::{Attendance, State};

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
        }
    }

    /// Updates applied so far, as far as anybody said.
    pub fn step(&self) -> Step {
        let reported = self.metrics.map_or(Step(0), |metrics| metrics.step.next());
        let workers = self.workers().map(|m| m.step).max().unwrap_or_default();
        self.resume_step().max(reported).max(workers).max(self.checkpoints.committed.unwrap_or_default())
    }
}
