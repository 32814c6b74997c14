//! Between the generated types and ours. What comes in is checked here, once.

use std::net::SocketAddr;

use polygram_domain::CheckpointKind;
use polygram_domain::control::{MemberRef, Phase, Role};

use crate::control::error::Malformed;
use crate::control::wire;

mod counts;
mod damage;
mod directive;
mod joining;
mod report;
mod status;
#[cfg(test)]
mod tests;

pub(crate) fn malformed(message: &'static str, what: impl Into<String>) -> Malformed {
    Malformed { message, what: what.into() }
}

pub(crate) fn present<T>(
    message: &'static str,
    field: &'static str,
    value: Option<T>,
) -> Result<T, Malformed> {
    value.ok_or_else(|| malformed(message, format!("{field} is missing")))
}

pub(super) fn address(message: &'static str, text: &str) -> Result<SocketAddr, Malformed> {
    text.parse().map_err(|_| malformed(message, format!("{text:?} is not an address of the form ip:port")))
}

/// What a checkpoint is for, of the flag that says it is a recovery point.
fn kind(is_point: bool) -> CheckpointKind {
    if is_point { CheckpointKind::Point } else { CheckpointKind::Commit }
}

/// Longest free text that is kept; a member cannot make the coordinator hold more.
pub(super) const TEXT_LIMIT: usize = 4096;

pub(crate) fn text(value: String) -> String {
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
pub(super) fn phase_number(phase: Phase) -> i32 {
    phase as i32 + 1
}

pub(super) fn phase(message: &'static str, number: i32) -> Result<Phase, Malformed> {
    usize::try_from(number)
        .ok()
        .and_then(|n| Phase::ALL.get(n.checked_sub(1)?))
        .copied()
        .ok_or_else(|| malformed(message, format!("phase {number} is unknown")))
}
