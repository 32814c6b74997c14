//! What members are told.

use std::net::SocketAddr;

use polygram_domain::control::{Abort, AbortKind, Assignment, Culprit, Directive};
use polygram_domain::spikes::LeftOut;
use polygram_domain::{CheckpointKind, Generation, Step};

use super::{address, kind, malformed, phase, phase_number, present};
use crate::control::error::Malformed;
use crate::control::wire;

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
                resume_from_point: a.resume_kind == CheckpointKind::Point,
                left_out: a.left_out.ranges().as_flattened().to_vec(),
                ways_back: a.ways_back,
            }),
            Directive::Start => Wire::Start(wire::Start {}),
            Directive::Stop { reason } => Wire::Stop(wire::Halt { reason }),
            Directive::Committed { step } => Wire::Committed(wire::Committed { step: step.0 }),
            Directive::PointSettled { step, kept } => Wire::Point(wire::PointSettled { step: step.0, kept }),
            Directive::Abort(Abort { reason, culprit, kind }) => Wire::Abort(wire::Abort {
                reason,
                culprit: culprit.map(Into::into),
                rejoin_generation: match kind {
                    AbortKind::End => None,
                    AbortKind::Rejoin { generation } => Some(generation.0),
                },
            }),
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
                resume_kind: kind(a.resume_from_point),
                left_out: left_out(&a.left_out)?,
                ways_back: a.ways_back,
            }),
            Wire::Start(_) => Directive::Start,
            Wire::Stop(stop) => Directive::Stop { reason: stop.reason },
            Wire::Committed(c) => Directive::Committed { step: Step(c.step) },
            Wire::Point(p) => Directive::PointSettled { step: Step(p.step), kept: p.kept },
            Wire::Abort(a) => Directive::Abort(Abort {
                reason: a.reason,
                culprit: a.culprit.map(Culprit::try_from).transpose()?,
                kind: a.rejoin_generation.map_or(AbortKind::End, |generation| AbortKind::Rejoin {
                    generation: Generation(generation),
                }),
            }),
            Wire::Exit(_) => Directive::Exit,
        })
    }
}

/// Ranges by their first and last + 1, ascending and apart.
fn left_out(bounds: &[u64]) -> Result<LeftOut, Malformed> {
    let (ranges, rest) = bounds.as_chunks::<2>();
    if !rest.is_empty() || bounds.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(malformed("Assignment", "left_out is not ranges, ascending and apart"));
    }
    let mut left_out = LeftOut::default();
    ranges.iter().for_each(|[start, end]| left_out.add(*start..*end));
    Ok(left_out)
}
