//! The state as others see it.

use polygram_domain::Step;
use polygram_domain::control::{MemberStatus, RunStatus};

use super::event::Time;
use super::membership::Stream;
use super::state::State;

impl State {
    /// The run at `now`.
    pub fn status(&self, now: Time) -> RunStatus {
        let lifecycle = &self.lifecycle;
        let (settings, reported, rollback) = (&self.settings, &self.reported, &self.rollback);
        RunStatus {
            state: lifecycle.run(),
            reason: lifecycle.reason(),
            message: lifecycle.message().to_owned(),
            since_unix_ms: lifecycle.since().0,
            run: settings.run.clone(),
            generation: self.generation(),
            attempt: settings.attempt,
            step: self.step(),
            total_steps: settings.total_steps,
            resume_step: self.resume_step(),
            members: self
                .membership
                .iter()
                .map(|m| MemberStatus {
                    role: m.who.role,
                    index: m.who.index,
                    pid: m.pid,
                    host: m.host.clone(),
                    phase: m.phase,
                    step: m.step,
                    address: m.address.to_string(),
                    last_heard_ms: now.since(m.heard),
                    alive: m.stream != Stream::Ended,
                    shard: reported.counts().shard(m.who).cloned(),
                })
                .collect(),
            last_commit: self.checkpoints.committed(),
            last_point: self.checkpoints.point(),
            last_metrics: reported.metrics().or(settings.earlier.metrics),
            evaluations: reported.evaluations().cloned().collect(),
            culprit: self.culprit().cloned(),
            consequences: self.root_cause.secondary().to_vec(),
            rows: reported.counts().status(settings),
            restarts: self.budget.restarts(),
            last_rollback: rollback.last().cloned(),
            set_aside: rollback.quarantined().to_vec(),
            stall: self.stall(now),
        }
    }

    /// Updates applied so far, as far as anybody has reported.
    pub fn step(&self) -> Step {
        let workers = self.membership.workers().map(|m| m.step).max().unwrap_or_default();
        self.reached().max(workers).max(self.resume_step()).max(self.last_commit().unwrap_or_default())
    }
}
