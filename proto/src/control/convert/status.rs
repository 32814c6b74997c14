//! What watchers and operators see and say.

use polygram_domain::control::{
    Culprit, MemberRef, MemberStatus, Reason, Rollback, RunState, RunStatus, Stall, StepMetrics, StopMode,
    WatchEvent,
};
use polygram_domain::{Generation, Step};

use super::{malformed, phase, phase_number, present};
use crate::control::error::Malformed;
use crate::control::wire;

/// The schema numbers states in our order, from 1.
pub(super) fn state(number: i32) -> Result<RunState, Malformed> {
    usize::try_from(number)
        .ok()
        .and_then(|n| RunState::ALL.get(n.checked_sub(1)?))
        .copied()
        .ok_or_else(|| malformed("StatusReply", format!("state {number} is unknown")))
}

fn reason(message: &'static str, word: &str) -> Result<Reason, Malformed> {
    let reason = Reason::ALL.iter().copied().find(|reason| reason.as_str() == word);
    reason.ok_or_else(|| malformed(message, format!("reason {word:?} is unknown")))
}

impl TryFrom<wire::Rollback> for Rollback {
    type Error = Malformed;

    fn try_from(rollback: wire::Rollback) -> Result<Rollback, Malformed> {
        Ok(Rollback {
            reason: reason("Rollback", &rollback.reason)?,
            culprit: present("Rollback", "culprit", rollback.culprit)?.try_into()?,
        })
    }
}

impl From<MemberStatus> for wire::MemberStatus {
    fn from(m: MemberStatus) -> wire::MemberStatus {
        wire::MemberStatus {
            member: Some(MemberRef { role: m.role, index: m.index }.into()),
            pid: m.pid,
            host: m.host,
            phase: phase_number(m.phase),
            step: m.step.0,
            address: m.address,
            last_heard_ms: m.last_heard_ms,
            alive: m.alive,
            shard: m.shard.map(Into::into),
        }
    }
}

impl TryFrom<wire::MemberStatus> for MemberStatus {
    type Error = Malformed;

    fn try_from(m: wire::MemberStatus) -> Result<MemberStatus, Malformed> {
        let member = MemberRef::try_from(present("MemberStatus", "member", m.member)?)?;
        Ok(MemberStatus {
            role: member.role,
            index: member.index,
            pid: m.pid,
            host: m.host,
            phase: phase("MemberStatus", m.phase)?,
            step: Step(m.step),
            address: m.address,
            last_heard_ms: m.last_heard_ms,
            alive: m.alive,
            shard: m.shard.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<RunStatus> for wire::StatusReply {
    fn from(s: RunStatus) -> wire::StatusReply {
        wire::StatusReply {
            state: s.state as i32 + 1,
            reason: s.reason.as_str().to_owned(),
            message: s.message,
            since_unix_ms: s.since_unix_ms,
            run: s.run,
            generation: s.generation.0,
            attempt: s.attempt,
            step: s.step.0,
            total_steps: s.total_steps,
            resume_step: s.resume_step.0,
            members: s.members.into_iter().map(Into::into).collect(),
            last_commit: s.last_commit.map(|step| step.0),
            last_point: s.last_point.map(|step| step.0),
            last_metrics: s.last_metrics.map(Into::into),
            evaluations: s.evaluations.into_iter().map(Into::into).collect(),
            culprit: s.culprit.map(Into::into),
            consequences: s.consequences,
            rows: Some(s.rows.into()),
            restarts: s.restarts,
            set_aside: s.set_aside,
            last_rollback: s.last_rollback.map(|rollback| wire::Rollback {
                reason: rollback.reason.as_str().to_owned(),
                culprit: Some(rollback.culprit.into()),
            }),
            stall: s.stall.map(|Stall { no_step_ms, waiting_for }| wire::Stall { no_step_ms, waiting_for }),
        }
    }
}

impl TryFrom<wire::StatusReply> for RunStatus {
    type Error = Malformed;

    fn try_from(s: wire::StatusReply) -> Result<RunStatus, Malformed> {
        Ok(RunStatus {
            state: state(s.state)?,
            reason: reason("StatusReply", &s.reason)?,
            message: s.message,
            since_unix_ms: s.since_unix_ms,
            run: s.run,
            generation: Generation(s.generation),
            attempt: s.attempt,
            step: Step(s.step),
            total_steps: s.total_steps,
            resume_step: Step(s.resume_step),
            members: s.members.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            last_commit: s.last_commit.map(Step),
            last_point: s.last_point.map(Step),
            last_metrics: s.last_metrics.map(StepMetrics::try_from).transpose()?,
            evaluations: s.evaluations.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            culprit: s.culprit.map(Culprit::try_from).transpose()?,
            consequences: s.consequences,
            rows: s.rows.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            restarts: s.restarts,
            set_aside: s.set_aside,
            last_rollback: s.last_rollback.map(TryInto::try_into).transpose()?,
            stall: s.stall.map(|wire::Stall { no_step_ms, waiting_for }| Stall { no_step_ms, waiting_for }),
        })
    }
}

impl From<WatchEvent> for wire::WatchEvent {
    fn from(event: WatchEvent) -> wire::WatchEvent {
        use wire::watch_event::Event;
        let event = match event {
            WatchEvent::Status(status) => Event::Status((*status).into()),
            WatchEvent::Metrics(metrics) => Event::Metrics(metrics.into()),
            WatchEvent::Evaluation(evaluation) => Event::Evaluation(evaluation.into()),
            WatchEvent::Committed { step } => Event::Committed(wire::Committed { step: step.0 }),
        };
        wire::WatchEvent { event: Some(event) }
    }
}

impl TryFrom<wire::WatchEvent> for WatchEvent {
    type Error = Malformed;

    fn try_from(message: wire::WatchEvent) -> Result<WatchEvent, Malformed> {
        use wire::watch_event::Event;
        Ok(match present("WatchEvent", "event", message.event)? {
            Event::Status(status) => WatchEvent::Status(Box::new(status.try_into()?)),
            Event::Metrics(metrics) => WatchEvent::Metrics(metrics.try_into()?),
            Event::Evaluation(evaluation) => WatchEvent::Evaluation(evaluation.try_into()?),
            Event::Committed(committed) => WatchEvent::Committed { step: Step(committed.step) },
        })
    }
}

impl From<StopMode> for wire::StopMode {
    fn from(mode: StopMode) -> wire::StopMode {
        match mode {
            StopMode::Commit => wire::StopMode::Commit,
            StopMode::Abort => wire::StopMode::Abort,
        }
    }
}

impl TryFrom<wire::StopMode> for StopMode {
    type Error = Malformed;

    fn try_from(mode: wire::StopMode) -> Result<StopMode, Malformed> {
        match mode {
            wire::StopMode::Commit => Ok(StopMode::Commit),
            wire::StopMode::Abort => Ok(StopMode::Abort),
            wire::StopMode::Unspecified => Err(malformed("StopRequest", "mode is missing")),
        }
    }
}
