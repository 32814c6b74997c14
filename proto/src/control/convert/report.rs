//! What members report.

use polygram_domain::control::{
    AssignmentHash, DamagedCheckpoint, Envelope, Evaluation, Failure, Fingerprint, Heartbeat, MemberId,
    MemberRef, MemberReport, PhaseSeconds, StepMetrics, StepProof,
};
use polygram_domain::{FailureKind, Generation, Step, StepOutcome, held_out};

use super::{malformed, phase, phase_number, present, text};
use crate::control::error::Malformed;
use crate::control::wire;

impl From<FailureKind> for wire::FailureKind {
    fn from(kind: FailureKind) -> wire::FailureKind {
        match kind {
            FailureKind::Program => wire::FailureKind::Program,
            FailureKind::Connect => wire::FailureKind::Connect,
            FailureKind::Timeout => wire::FailureKind::Timeout,
            FailureKind::Reset => wire::FailureKind::Reset,
            FailureKind::Store => wire::FailureKind::Store,
            FailureKind::StoreUnusable => wire::FailureKind::StoreUnusable,
            FailureKind::Signal => wire::FailureKind::Signal,
        }
    }
}

fn failure_kind(number: i32) -> Result<FailureKind, Malformed> {
    let known = FailureKind::ALL.into_iter().find(|kind| wire::FailureKind::from(*kind) as i32 == number);
    known.ok_or_else(|| Malformed { message: "Failed", what: format!("unknown failure kind {number}") })
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
            peak_resident_bytes: m.peak_resident_bytes,
            optimizer_bytes: m.optimizer_bytes,
            boundary_seconds: m.boundary_seconds,
            commit_under_way: m.commit_under_way,
            snapshot_bytes: m.snapshot_bytes,
            phases: Some(m.phases.into()),
            proof: Some(m.proof.into()),
        }
    }
}

impl TryFrom<wire::StepMetrics> for StepMetrics {
    type Error = Malformed;

    fn try_from(m: wire::StepMetrics) -> Result<StepMetrics, Malformed> {
        Ok(StepMetrics {
            step: Step(m.step),
            loss: m.loss,
            grad_norm: m.grad_norm,
            lr: m.lr,
            tokens: m.tokens,
            seconds: m.seconds,
            data_wait_seconds: m.data_wait_seconds,
            embedding_wait_seconds: m.embedding_wait_seconds,
            resident_bytes: m.resident_bytes,
            peak_resident_bytes: m.peak_resident_bytes,
            optimizer_bytes: m.optimizer_bytes,
            boundary_seconds: m.boundary_seconds,
            commit_under_way: m.commit_under_way,
            snapshot_bytes: m.snapshot_bytes,
            phases: m.phases.map(PhaseSeconds::from).unwrap_or_default(),
            proof: present("StepMetrics", "proof", m.proof)?.try_into()?,
        })
    }
}

impl From<StepProof> for wire::StepProof {
    fn from(p: StepProof) -> wire::StepProof {
        let outcome = match p.outcome {
            StepOutcome::Applied => wire::StepOutcome::Applied,
            StepOutcome::SkippedNonfinite => wire::StepOutcome::SkippedNonfinite,
            StepOutcome::SkippedLossSpike => wire::StepOutcome::SkippedLossSpike,
            StepOutcome::SkippedNormSpike => wire::StepOutcome::SkippedNormSpike,
        };
        wire::StepProof {
            first_sample: p.first_sample,
            samples: p.samples,
            outcome: outcome.into(),
            rows: p.rows.0,
            dense: p.dense.0,
        }
    }
}

impl TryFrom<wire::StepProof> for StepProof {
    type Error = Malformed;

    fn try_from(p: wire::StepProof) -> Result<StepProof, Malformed> {
        let outcome = match wire::StepOutcome::try_from(p.outcome) {
            Ok(wire::StepOutcome::Applied) => StepOutcome::Applied,
            Ok(wire::StepOutcome::SkippedNonfinite) => StepOutcome::SkippedNonfinite,
            Ok(wire::StepOutcome::SkippedLossSpike) => StepOutcome::SkippedLossSpike,
            Ok(wire::StepOutcome::SkippedNormSpike) => StepOutcome::SkippedNormSpike,
            Ok(wire::StepOutcome::Unspecified) | Err(_) => {
                return Err(malformed("StepProof", format!("there is no outcome number {}", p.outcome)));
            }
        };
        Ok(StepProof {
            first_sample: p.first_sample,
            samples: p.samples,
            outcome,
            rows: Fingerprint(p.rows),
            dense: Fingerprint(p.dense),
        })
    }
}

impl From<PhaseSeconds> for wire::PhaseSeconds {
    fn from(p: PhaseSeconds) -> wire::PhaseSeconds {
        let PhaseSeconds { lookup, computing, pushing, reducing, updating } = p;
        wire::PhaseSeconds { lookup, computing, pushing, reducing, updating }
    }
}

impl From<wire::PhaseSeconds> for PhaseSeconds {
    fn from(p: wire::PhaseSeconds) -> PhaseSeconds {
        let wire::PhaseSeconds { lookup, computing, pushing, reducing, updating } = p;
        PhaseSeconds { lookup, computing, pushing, reducing, updating }
    }
}

impl From<Evaluation> for wire::Evaluation {
    fn from(e: Evaluation) -> wire::Evaluation {
        wire::Evaluation { step: e.step.0, loss: e.loss, tokens: e.tokens, set: e.set }
    }
}

impl TryFrom<wire::Evaluation> for Evaluation {
    type Error = Malformed;

    fn try_from(e: wire::Evaluation) -> Result<Evaluation, Malformed> {
        held_out::check_name(&e.set).map_err(|problem| malformed("Evaluation", problem))?;
        Ok(Evaluation { step: Step(e.step), set: e.set, loss: e.loss, tokens: e.tokens })
    }
}

impl From<Envelope> for wire::MemberReport {
    fn from(envelope: Envelope) -> wire::MemberReport {
        use wire::member_report::Report;
        let report = match envelope.report {
            MemberReport::Heartbeat(Heartbeat { step, phase, restored_bytes, store_wait }) => {
                Report::Heartbeat(wire::Heartbeat {
                    step: step.0,
                    phase: phase_number(phase),
                    restored_bytes,
                    store_wait,
                })
            }
            MemberReport::Ready { assignment } => {
                Report::Ready(wire::Ready { assignment_hash: assignment.0.to_vec() })
            }
            MemberReport::Metrics(metrics) => Report::Metrics(metrics.into()),
            MemberReport::Evaluation(evaluation) => Report::Evaluation(evaluation.into()),
            MemberReport::Failed(Failure { message, step, phase, suspect, roll_back, damaged, kind }) => {
                Report::Failed(wire::Failed {
                    message,
                    step: step.0,
                    phase: phase_number(phase),
                    suspect: suspect.map(Into::into),
                    roll_back,
                    damaged: damaged.map(Into::into),
                    kind: wire::FailureKind::from(kind) as i32,
                })
            }
            MemberReport::Finished { step } => Report::Finished(wire::Finished { step: step.0 }),
            MemberReport::Shard(report) => Report::Shard((*report).into()),
            MemberReport::Input(report) => Report::Input((*report).into()),
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
            Report::Heartbeat(h) => MemberReport::Heartbeat(Heartbeat {
                step: Step(h.step),
                phase: phase("Heartbeat", h.phase)?,
                restored_bytes: h.restored_bytes,
                store_wait: h.store_wait.map(text),
            }),
            Report::Ready(r) => {
                let bytes: [u8; 32] = r.assignment_hash.try_into().map_err(|hash: Vec<u8>| {
                    malformed("Ready", format!("the hash has {} bytes, not 32", hash.len()))
                })?;
                MemberReport::Ready { assignment: AssignmentHash(bytes) }
            }
            Report::Metrics(m) => MemberReport::Metrics(m.try_into()?),
            Report::Evaluation(e) => MemberReport::Evaluation(e.try_into()?),
            Report::Failed(f) => MemberReport::Failed(Failure {
                message: text(f.message),
                step: Step(f.step),
                phase: phase("Failed", f.phase)?,
                suspect: f.suspect.map(MemberRef::try_from).transpose()?,
                roll_back: f.roll_back,
                damaged: f.damaged.map(DamagedCheckpoint::try_from).transpose()?,
                kind: failure_kind(f.kind)?,
            }),
            Report::Finished(f) => MemberReport::Finished { step: Step(f.step) },
            Report::Shard(report) => MemberReport::Shard(Box::new(report.try_into()?)),
            Report::Input(report) => MemberReport::Input(Box::new(report.try_into()?)),
        };
        Ok(Envelope {
            member: MemberId(message.member_id),
            generation: Generation(message.generation),
            report,
        })
    }
}
