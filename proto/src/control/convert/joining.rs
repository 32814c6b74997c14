//! Joining and reporting parts.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_domain::control::{Incarnation, MemberId};
use polygram_domain::{CheckpointKind, Generation, Step};

use super::{address, kind, malformed, present, text};
use crate::control::error::Malformed;
use crate::control::joining::{JoinRequest, Joined, Upload, UploadReport};
use crate::control::wire;

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
            data_address: reachable(address("JoinRequest", &request.data_address)?)?,
        })
    }
}

/// An address that peers are given must lead somewhere.
fn reachable(address: SocketAddr) -> Result<SocketAddr, Malformed> {
    if address.ip().is_unspecified() || address.port() == 0 {
        let what = format!(
            "peers would be given {address}, which leads nowhere; say by --advertise where they reach it"
        );
        return Err(malformed("JoinRequest", what));
    }
    Ok(address)
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

impl From<UploadReport> for wire::ReportUploadRequest {
    fn from(report: UploadReport) -> wire::ReportUploadRequest {
        let (kind, part_json, not_written) = match report.upload {
            Upload::Part { kind, json } => (kind, json, None),
            Upload::NotWritten { reason } => (CheckpointKind::Point, String::new(), Some(reason)),
        };
        wire::ReportUploadRequest {
            member_id: report.member.0,
            generation: report.generation.0,
            step: report.step.0,
            part_json,
            point: kind == CheckpointKind::Point,
            not_written,
        }
    }
}

impl From<wire::ReportUploadRequest> for UploadReport {
    fn from(request: wire::ReportUploadRequest) -> UploadReport {
        UploadReport {
            member: MemberId(request.member_id),
            generation: Generation(request.generation),
            step: Step(request.step),
            upload: match request.not_written {
                Some(reason) => Upload::NotWritten { reason: text(reason) },
                None => Upload::Part { kind: kind(request.point), json: request.part_json },
            },
        }
    }
}
