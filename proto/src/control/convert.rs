//! Between the generated types and ours. What comes in is checked here, once.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_domain::{Generation, Step};

use crate::control::assignment::{Abort, Assignment, AssignmentHash, Culprit, Directive};
use crate::control::error::Malformed;
use crate::control::joining::{JoinRequest, Joined, UploadReport};
use crate::control::membership::{Incarnation, MemberId, MemberRef, Phase, Role};
use crate::control::operator::StopMode;
use crate::control::report::{Envelope, Evaluation, Failure, Heartbeat, MemberReport, StepMetrics};
use crate::control::status::{MemberStatus, Reason, RunState, RunStatus, WatchEvent};
use crate::control::wire;

fn malformed(message: &'static str, what: impl Into<String>) -> Malformed {
    Malformed { message, what: what.into() }
}

fn present<T>(message: &'static str, field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or_else(|| malformed(message, format!("{field} is missing")))
}

fn address(message: &'static str, text: &str) -> Result<SocketAddr, Malformed> {
    text.parse().map_err(|_| malformed(message, format!("{text:?} is not an address of the form ip:port")))
}

/// Longest free text that is kept; a member cannot make the coordinator hold more.
const TEXT_LIMIT: usize = 4096;

fn text(value: String) -> String {
    if value.len() <= TEXT_LIMIT {
        return value;
    }
    let end = (0..=TEXT_LIMIT).rev().find(|&at| value.is_char_boundary(at)).unwrap_or(0);
    format!("{}…", &value[..end])
}

impl From<Role> for wire::Role {
    fn from(role: Role) -> wire::Role {
        match role {
            Role::Worker => wire::Role::Worker,
            Role::Shard => wire::Role::Shard,
        }
    }
}

impl From<MemberRef> for wire::Member {
    fn from(member: MemberRef) -> wire::Member {
        wire::Member { role: wire::Role::from(member.role).into(), index: member.index }
    }
}

impl TryFrom<wire::Member> for MemberRef {
    type Error = Malformed;

    fn try_from(member: wire::Member) -> Result<MemberRef, Malformed> {
        let role = match wire::Role::try_from(member.role) {
            Ok(wire::Role::Worker) => Role::Worker,
            Ok(wire::Role::Shard) => Role::Shard,
            Ok(wire::Role::Unspecified) | Err(_) => {
                return Err(malformed("Member", format!("role {} is unknown", member.role)));
            }
        };
        Ok(MemberRef { role, index: member.index })
    }
}

/// The schema numbers phases in our order, from 1.
fn phase_number(phase: Phase) -> i32 {
    phase as i32 + 1
}

fn phase(message: &'static str, number: i32) -> Result<Phase, Malformed> {
    usize::try_from(number)
        .ok()
        .and_then(|n| Phase::ALL.get(n.checked_sub(1)?))
        .copied()
        .ok_or_else(|| malformed(message, format!("phase {number} is unknown")))
}

impl From<&JoinRequest> for wire::JoinRequest {
    fn from(request: &JoinRequest) -> wire::JoinRequest {
        wire::JoinRequest {
            schema_version: request.schema_version,
            member: Some(request.member.into()),
            incarnation: request.incarnation.0,
            pid: request.pid,
            host: request.host.clone(),
            data_address: request.data_address.to_string(),
        }
    }
}

impl TryFrom<wire::JoinRequest> for JoinRequest {
    type Error = Malformed;

    fn try_from(request: wire::JoinRequest) -> Result<JoinRequest, Malformed> {
        Ok(JoinRequest {
            schema_version: request.schema_version,
            member: present("JoinRequest", "member", request.member)?.try_into()?,
            incarnation: Incarnation(request.incarnation),
            pid: request.pid,
            host: text(request.host),
            data_address: address("JoinRequest", &request.data_address)?,
        })
    }
}

impl From<Joined> for wire::JoinReply {
    fn from(joined: Joined) -> wire::JoinReply {
        wire::JoinReply {
            member_id: joined.member.0,
            generation: joined.generation.0,
            config_toml: joined.config_toml,
            root: joined.root,
            heartbeat_interval_ms: joined.heartbeat_interval.as_millis() as u64,
            failure_detection_ms: joined.failure_detection.as_millis() as u64,
            attempt: joined.attempt,
        }
    }
}

impl TryFrom<wire::JoinReply> for Joined {
    type Error = Malformed;

    fn try_from(reply: wire::JoinReply) -> Result<Joined, Malformed> {
        if reply.heartbeat_interval_ms == 0 || reply.failure_detection_ms <= reply.heartbeat_interval_ms {
            return Err(malformed(
                "JoinReply",
                format!(
                    "a heartbeat every {} ms does not fit a failure detection of {} ms",
                    reply.heartbeat_interval_ms, reply.failure_detection_ms
                ),
            ));
        }
        Ok(Joined {
            member: MemberId(reply.member_id),
            generation: Generation(reply.generation),
            config_toml: reply.config_toml,
            root: reply.root,
            heartbeat_interval: Duration::from_millis(reply.heartbeat_interval_ms),
            failure_detection: Duration::from_millis(reply.failure_detection_ms),
            attempt: reply.attempt,
        })
    }
}

impl From<StepMetrics> for wire::StepMetrics {
    fn from(m: StepMetrics) -> wire::StepMetrics {
        wire::StepMetrics {
            step: m.step.0,
            loss: m.loss,
            grad_norm: m.grad_norm,
            lr: m.lr,
            tokens: m.tokens,
            seconds: m.seconds,
            data_wait_seconds: m.data_wait_seconds,
            embedding_wait_seconds: m.embedding_wait_seconds,
            resident_bytes: m.resident_bytes,
        }
    }
}

impl From<wire::StepMetrics> for StepMetrics {
    fn from(m: wire::StepMetrics) -> StepMetrics {
        StepMetrics {
            step: Step(m.step),
            loss: m.loss,
            grad_norm: m.grad_norm,
            lr: m.lr,
            tokens: m.tokens,
            seconds: m.seconds,
            data_wait_seconds: m.data_wait_seconds,
            embedding_wait_seconds: m.embedding_wait_seconds,
            resident_bytes: m.resident_bytes,
        }
    }
}

impl From<Evaluation> for wire::Evaluation {
    fn from(e: Evaluation) -> wire::Evaluation {
        wire::Evaluation { step: e.step.0, loss: e.loss, tokens: e.tokens }
    }
}

impl From<wire::Evaluation> for Evaluation {
    fn from(e: wire::Evaluation) -> Evaluation {
        Evaluation { step: Step(e.step), loss: e.loss, tokens: e.tokens }
    }
}

impl From<Envelope> for wire::MemberReport {
    fn from(envelope: Envelope) -> wire::MemberReport {
        use wire::member_report::Report;
        let report = match envelope.report {
            MemberReport::Heartbeat(Heartbeat { step, phase }) => {
                Report::Heartbeat(wire::Heartbeat { step: step.0, phase: phase_number(phase) })
            }
            MemberReport::Ready { assignment } => {
                Report::Ready(wire::Ready { assignment_hash: assignment.0.to_vec() })
            }
            MemberReport::Metrics(metrics) => Report::Metrics(metrics.into()),
            MemberReport::Evaluation(evaluation) => Report::Evaluation(evaluation.into()),
            MemberReport::Failed(Failure { message, step, phase, suspect }) => Report::Failed(wire::Failed {
                message,
                step: step.0,
                phase: phase_number(phase),
                suspect: suspect.map(Into::into),
            }),
            MemberReport::Finished { step } => Report::Finished(wire::Finished { step: step.0 }),
        };
        wire::MemberReport {
            member_id: envelope.member.0,
            generation: envelope.generation.0,
            report: Some(report),
        }
    }
}

impl TryFrom<wire::MemberReport> for Envelope {
    type Error = Malformed;

    fn try_from(message: wire::MemberReport) -> Result<Envelope, Malformed> {
        use wire::member_report::Report;
        let report = match present("MemberReport", "report", message.report)? {
            Report::Heartbeat(h) => {
                MemberReport::Heartbeat(Heartbeat { step: Step(h.step), phase: phase("Heartbeat", h.phase)? })
            }
            Report::Ready(r) => {
                let bytes: [u8; 32] = r.assignment_hash.try_into().map_err(|hash: Vec<u8>| {
                    malformed("Ready", format!("the hash has {} bytes, not 32", hash.len()))
                })?;
                MemberReport::Ready { assignment: AssignmentHash(bytes) }
            }
            Report::Metrics(m) => MemberReport::Metrics(m.into()),
            Report::Evaluation(e) => MemberReport::Evaluation(e.into()),
            Report::Failed(f) => MemberReport::Failed(Failure {
                message: text(f.message),
                step: Step(f.step),
                phase: phase("Failed", f.phase)?,
                suspect: f.suspect.map(MemberRef::try_from).transpose()?,
            }),
            Report::Finished(f) => MemberReport::Finished { step: Step(f.step) },
        };
        Ok(Envelope {
            member: MemberId(message.member_id),
            generation: Generation(message.generation),
            report,
        })
    }
}

impl From<Culprit> for wire::Culprit {
    fn from(c: Culprit) -> wire::Culprit {
        wire::Culprit {
            member: Some(c.member.into()),
            pid: c.pid,
            phase: phase_number(c.phase),
            step: c.step.0,
            message: c.message,
        }
    }
}

impl TryFrom<wire::Culprit> for Culprit {
    type Error = Malformed;

    fn try_from(c: wire::Culprit) -> Result<Culprit, Malformed> {
        Ok(Culprit {
            member: present("Culprit", "member", c.member)?.try_into()?,
            pid: c.pid,
            phase: phase("Culprit", c.phase)?,
            step: Step(c.step),
            message: c.message,
        })
    }
}

impl From<Directive> for wire::Directive {
    fn from(directive: Directive) -> wire::Directive {
        use wire::directive::Directive as Wire;
        let strings = |addresses: &[SocketAddr]| addresses.iter().map(SocketAddr::to_string).collect();
        let directive = match directive {
            Directive::Assign(a) => Wire::Assign(wire::Assignment {
                generation: a.generation.0,
                workers: strings(&a.workers),
                shards: strings(&a.shards),
                resume_step: a.resume_step.0,
                resume_manifest: a.resume_manifest,
            }),
            Directive::Start => Wire::Start(wire::Start {}),
            Directive::Stop { reason } => Wire::Stop(wire::Halt { reason }),
            Directive::Committed { step } => Wire::Committed(wire::Committed { step: step.0 }),
            Directive::Abort(Abort { reason, culprit }) => {
                Wire::Abort(wire::Abort { reason, culprit: culprit.map(Into::into) })
            }
            Directive::Exit => Wire::Exit(wire::Exit {}),
        };
        wire::Directive { directive: Some(directive) }
    }
}

impl TryFrom<wire::Directive> for Directive {
    type Error = Malformed;

    fn try_from(message: wire::Directive) -> Result<Directive, Malformed> {
        use wire::directive::Directive as Wire;
        let addresses = |list: Vec<String>| -> Result<Vec<SocketAddr>, Malformed> {
            list.iter().map(|a| address("Assignment", a)).collect()
        };
        Ok(match present("Directive", "directive", message.directive)? {
            Wire::Assign(a) => Directive::Assign(Assignment {
                generation: Generation(a.generation),
                workers: addresses(a.workers)?,
                shards: addresses(a.shards)?,
                resume_step: Step(a.resume_step),
                resume_manifest: a.resume_manifest,
            }),
            Wire::Start(_) => Directive::Start,
            Wire::Stop(stop) => Directive::Stop { reason: stop.reason },
            Wire::Committed(c) => Directive::Committed { step: Step(c.step) },
            Wire::Abort(a) => Directive::Abort(Abort {
                reason: a.reason,
                culprit: a.culprit.map(Culprit::try_from).transpose()?,
            }),
            Wire::Exit(_) => Directive::Exit,
        })
    }
}

impl From<UploadReport> for wire::ReportUploadRequest {
    fn from(report: UploadReport) -> wire::ReportUploadRequest {
        wire::ReportUploadRequest {
            member_id: report.member.0,
            generation: report.generation.0,
            step: report.step.0,
            part_json: report.part_json,
        }
    }
}

impl From<wire::ReportUploadRequest> for UploadReport {
    fn from(request: wire::ReportUploadRequest) -> UploadReport {
        UploadReport {
            member: MemberId(request.member_id),
            generation: Generation(request.generation),
            step: Step(request.step),
            part_json: request.part_json,
        }
    }
}

/// The schema numbers states in our order, from 1.
fn state(number: i32) -> Result<RunState, Malformed> {
    usize::try_from(number)
        .ok()
        .and_then(|n| RunState::ALL.get(n.checked_sub(1)?))
        .copied()
        .ok_or_else(|| malformed("StatusReply", format!("state {number} is unknown")))
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
            last_metrics: s.last_metrics.map(Into::into),
            last_evaluation: s.last_evaluation.map(Into::into),
            culprit: s.culprit.map(Into::into),
            consequences: s.consequences,
        }
    }
}

impl TryFrom<wire::StatusReply> for RunStatus {
    type Error = Malformed;

    fn try_from(s: wire::StatusReply) -> Result<RunStatus, Malformed> {
        let reason = Reason::ALL.iter().copied().find(|reason| reason.as_str() == s.reason);
        Ok(RunStatus {
            state: state(s.state)?,
            reason: reason
                .ok_or_else(|| malformed("StatusReply", format!("reason {:?} is unknown", s.reason)))?,
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
            last_metrics: s.last_metrics.map(Into::into),
            last_evaluation: s.last_evaluation.map(Into::into),
            culprit: s.culprit.map(Culprit::try_from).transpose()?,
            consequences: s.consequences,
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
            Event::Metrics(metrics) => WatchEvent::Metrics(metrics.into()),
            Event::Evaluation(evaluation) => WatchEvent::Evaluation(evaluation.into()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(loss: f64) -> StepMetrics {
        StepMetrics {
            step: Step(3),
            loss,
            grad_norm: 0.5,
            lr: 1e-3,
            tokens: 256,
            seconds: 0.25,
            data_wait_seconds: 0.0,
            embedding_wait_seconds: 0.01,
            resident_bytes: 1 << 30,
        }
    }

    #[test]
    fn reports_survive_the_wire() {
        let reports = [
            MemberReport::Heartbeat(Heartbeat { step: Step(9), phase: Phase::Leaving }),
            MemberReport::Ready { assignment: AssignmentHash([7; 32]) },
            MemberReport::Metrics(metrics(f64::INFINITY)),
            MemberReport::Evaluation(Evaluation { step: Step(4), loss: 2.5, tokens: 64 }),
            MemberReport::Failed(Failure {
                message: "out of rows".into(),
                step: Step(2),
                phase: Phase::Lookup,
                suspect: Some(MemberRef { role: Role::Shard, index: 1 }),
            }),
            MemberReport::Finished { step: Step(60) },
        ];
        for report in reports {
            let envelope = Envelope { member: MemberId(5), generation: Generation(2), report };
            let back = Envelope::try_from(wire::MemberReport::from(envelope.clone())).unwrap();
            assert_eq!(back, envelope);
        }
    }

    #[test]
    fn directives_survive_the_wire() {
        let culprit = Culprit {
            member: MemberRef { role: Role::Worker, index: 0 },
            pid: 11,
            phase: Phase::Computing,
            step: Step(8),
            message: "loss is NaN".into(),
        };
        let directives = [
            Directive::Assign(Assignment {
                generation: Generation(1),
                workers: vec!["127.0.0.1:9".parse().unwrap()],
                shards: vec!["[::1]:10".parse().unwrap()],
                resume_step: Step(0),
                resume_manifest: None,
            }),
            Directive::Start,
            Directive::Stop { reason: "operator".into() },
            Directive::Committed { step: Step(20) },
            Directive::Abort(Abort { reason: "worker 0 failed".into(), culprit: Some(culprit) }),
            Directive::Exit,
        ];
        for directive in directives {
            assert_eq!(Directive::try_from(wire::Directive::from(directive.clone())).unwrap(), directive);
        }
    }

    #[test]
    fn every_phase_and_state_has_its_number() {
        for &p in Phase::ALL {
            assert_eq!(phase("test", phase_number(p)).unwrap(), p);
            let name = wire::Phase::try_from(phase_number(p)).unwrap().as_str_name().to_lowercase();
            assert_eq!(name, format!("phase_{p}"));
        }
        for &s in RunState::ALL {
            assert_eq!(state(s as i32 + 1).unwrap(), s);
            let name = wire::State::try_from(s as i32 + 1).unwrap().as_str_name().to_lowercase();
            assert_eq!(name, format!("state_{s}"));
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let no_member = wire::JoinRequest { data_address: "127.0.0.1:1".into(), ..Default::default() };
        assert!(JoinRequest::try_from(no_member).unwrap_err().to_string().contains("member is missing"));
        let role = wire::Member { role: 9, index: 0 };
        assert!(MemberRef::try_from(role).unwrap_err().to_string().contains("role 9"));
        let request = wire::JoinRequest {
            member: Some(wire::Member { role: 1, index: 0 }),
            data_address: "localhost".into(),
            ..Default::default()
        };
        assert!(JoinRequest::try_from(request).unwrap_err().to_string().contains("ip:port"));
        for number in [i32::MIN, -1, 0, 16, i32::MAX] {
            assert!(phase("Heartbeat", number).is_err());
            assert!(state(number).is_err());
        }
        let short = wire::Ready { assignment_hash: vec![1; 31] };
        let report = wire::member_report::Report::Ready(short);
        let message = wire::MemberReport { report: Some(report), ..Default::default() };
        assert!(Envelope::try_from(message).unwrap_err().to_string().contains("31 bytes"));
        assert!(Envelope::try_from(wire::MemberReport::default()).is_err());
        assert!(Directive::try_from(wire::Directive::default()).is_err());
        let zero = wire::JoinReply { failure_detection_ms: 1000, ..Default::default() };
        assert!(Joined::try_from(zero).is_err());
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let long = "é".repeat(TEXT_LIMIT);
        assert!(text(long).len() <= TEXT_LIMIT + '…'.len_utf8());
    }
}
