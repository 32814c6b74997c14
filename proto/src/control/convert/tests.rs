//! Everything survives the wire; nonsense is refused by name.

use polygram_domain::control::{
    Abort, AbortKind, Assignment, AssignmentHash, CheckpointPlace, Culprit, DamagedCheckpoint, Directive,
    Envelope, Evaluation, Failure, Fingerprint, Heartbeat, MemberId, MemberReport, PhaseSeconds, RunState,
    RunStatus, Stall, StepMetrics, StepProof,
};
use polygram_domain::spikes::LeftOut;
use polygram_domain::{FailureKind, Generation, Step, StepOutcome};

use super::status::state;
use super::*;
use crate::control::joining::{JoinRequest, Joined, Upload, UploadReport};

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
        peak_resident_bytes: 1 << 31,
        optimizer_bytes: 1 << 29,
        boundary_seconds: 0.125,
        commit_under_way: true,
        snapshot_bytes: 1 << 28,
        phases: PhaseSeconds {
            lookup: 0.01,
            computing: 0.2,
            pushing: 0.02,
            reducing: 0.003,
            updating: 0.004,
        },
        proof: StepProof {
            first_sample: 1 << 40,
            samples: 16,
            outcome: StepOutcome::SkippedNormSpike,
            rows: Fingerprint(u64::MAX - 5),
            dense: Fingerprint(1 << 63),
        },
    }
}

#[test]
fn every_outcome_survives_the_wire_and_no_other_number_is_one() {
    for outcome in StepOutcome::ALL {
        let proof = StepProof { outcome, ..metrics(1.0).proof };
        assert_eq!(StepProof::try_from(wire::StepProof::from(proof)).unwrap(), proof);
    }
    for number in [0, 9, -1] {
        let wrong = wire::StepProof { outcome: number, ..metrics(1.0).proof.into() };
        assert!(StepProof::try_from(wrong).unwrap_err().to_string().contains(&number.to_string()));
    }
    let bare = wire::StepMetrics { proof: None, ..metrics(1.0).into() };
    assert!(StepMetrics::try_from(bare).unwrap_err().to_string().contains("proof"));
}

#[test]
fn reports_survive_the_wire() {
    let reports = [
        MemberReport::Heartbeat(Heartbeat {
            step: Step(9),
            phase: Phase::Leaving,
            restored_bytes: 1 << 40,
            store_wait: Some("the store has no room".into()),
        }),
        MemberReport::Ready { assignment: AssignmentHash([7; 32]) },
        MemberReport::Metrics(metrics(f64::INFINITY)),
        MemberReport::Evaluation(Evaluation { step: Step(4), set: "wiki".into(), loss: 2.5, tokens: 64 }),
        MemberReport::Failed(Failure {
            message: "out of rows".into(),
            step: Step(2),
            phase: Phase::Lookup,
            suspect: Some(MemberRef { role: Role::Shard, index: 1 }),
            roll_back: true,
            damaged: Some(DamagedCheckpoint {
                place: CheckpointPlace::commit(Step(40)),
                key: "ckpt/data/ab/x.rows".into(),
                reason: "its CRC-32C is another".into(),
            }),
            kind: FailureKind::Timeout,
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
fn parts_survive_the_wire() {
    let part = |kind| Upload::Part { kind, json: "{}".into() };
    let not_written = Upload::NotWritten { reason: "no space left".into() };
    for upload in [part(CheckpointKind::Commit), part(CheckpointKind::Point), not_written] {
        let report = UploadReport { member: MemberId(3), generation: Generation(7), step: Step(20), upload };
        let wire = wire::ReportUploadRequest::from(report.clone());
        assert_eq!(UploadReport::from(wire), report);
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
            resume_kind: CheckpointKind::Commit,
            left_out: {
                let mut left_out = LeftOut::default();
                left_out.add(4..8);
                left_out.add(12..16);
                left_out
            },
            ways_back: vec![9, 3],
        }),
        Directive::Start,
        Directive::Stop { reason: "operator".into() },
        Directive::Committed { step: Step(20) },
        Directive::PointSettled { step: Step(24), kept: true },
        Directive::PointSettled { step: Step(26), kept: false },
        Directive::Abort(Abort {
            reason: "worker 0 failed".into(),
            culprit: Some(culprit.clone()),
            kind: AbortKind::End,
        }),
        Directive::Abort(Abort {
            reason: "worker 0 failed".into(),
            culprit: Some(culprit),
            kind: AbortKind::Rejoin { generation: Generation(7) },
        }),
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
    let beyond = Phase::ALL.len() as i32 + 1;
    for number in [i32::MIN, -1, 0, beyond, i32::MAX] {
        assert!(phase("Heartbeat", number).is_err());
        assert!(state(number).is_err());
    }
    let short = wire::Ready { assignment_hash: vec![1; 31] };
    let report = wire::member_report::Report::Ready(short);
    let message = wire::MemberReport { report: Some(report), ..Default::default() };
    assert!(Envelope::try_from(message).unwrap_err().to_string().contains("31 bytes"));
    assert!(Envelope::try_from(wire::MemberReport::default()).is_err());
    let nowhere = wire::DamagedCheckpoint { key: "x".into(), ..Default::default() };
    assert!(DamagedCheckpoint::try_from(nowhere).unwrap_err().to_string().contains("place is missing"));
    assert!(Directive::try_from(wire::Directive::default()).is_err());
    let zero = wire::JoinReply { failure_detection_ms: 1000, ..Default::default() };
    assert!(Joined::try_from(zero).is_err());
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let long = "é".repeat(TEXT_LIMIT);
    assert!(text(long).len() <= TEXT_LIMIT + '…'.len_utf8());
}

#[test]
fn what_a_stalled_run_waits_for_survives_the_wire() {
    let stall = Stall { no_step_ms: 12_345, waiting_for: "worker 1, silent for 11.4 s".into() };
    assert_eq!(stall.to_string(), "no step for 12.3 s, waiting for worker 1, silent for 11.4 s");
    for stall in [None, Some(stall)] {
        let status = RunStatus { stall, ..RunStatus::of("tiny", 9) };
        let message = wire::StatusReply::from(status.clone());
        assert_eq!(RunStatus::try_from(message).unwrap(), status);
    }
}
