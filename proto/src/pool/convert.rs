//! Between the generated types and ours. What comes in is checked here, once.

use crate::control::Malformed;
use crate::control::convert::{malformed, present, text};
use crate::pool::types::{
    JobId, JobState, JobStatus, MemberWord, Offering, Placement, PoolMemberId, PoolMemberStatus, PoolWord,
    Seat, Submission,
};
use crate::pool::wire;
use polygram_domain::control::{MemberRef, Role};

impl From<Role> for wire::Role {
    fn from(role: Role) -> wire::Role {
        match role {
            Role::Worker => wire::Role::Worker,
            Role::Shard => wire::Role::Shard,
        }
    }
}

fn role(message: &'static str, number: i32) -> Result<Role, Malformed> {
    match wire::Role::try_from(number) {
        Ok(wire::Role::Worker) => Ok(Role::Worker),
        Ok(wire::Role::Shard) => Ok(Role::Shard),
        Ok(wire::Role::Unspecified) | Err(_) => Err(malformed(message, format!("role {number} is unknown"))),
    }
}

impl From<Seat> for wire::Seat {
    fn from(seat: Seat) -> wire::Seat {
        let Seat { job, session, slot } = seat;
        wire::Seat { job: job.0, session, role: wire::Role::from(slot.role).into(), index: slot.index }
    }
}

impl TryFrom<wire::Seat> for Seat {
    type Error = Malformed;

    fn try_from(seat: wire::Seat) -> Result<Seat, Malformed> {
        let slot = MemberRef { role: role("Seat", seat.role)?, index: seat.index };
        Ok(Seat { job: JobId(seat.job), session: seat.session, slot })
    }
}

impl From<MemberWord> for wire::MemberWord {
    fn from(word: MemberWord) -> wire::MemberWord {
        use wire::member_word::Word;
        let word = match word {
            MemberWord::Offering(Offering { member, role, pid, host, seat }) => {
                Word::Offering(wire::Offering {
                    schema_version: polygram_domain::SCHEMA_VERSION,
                    incarnation: member.0,
                    role: wire::Role::from(role).into(),
                    pid,
                    host,
                    seat: seat.map(Into::into),
                })
            }
            MemberWord::Released { seat, failure } => {
                Word::Released(wire::Released { seat: Some(seat.into()), failure })
            }
            MemberWord::Alive => Word::Alive(wire::Alive {}),
        };
        wire::MemberWord { word: Some(word) }
    }
}

impl TryFrom<wire::MemberWord> for MemberWord {
    type Error = Malformed;

    fn try_from(word: wire::MemberWord) -> Result<MemberWord, Malformed> {
        use wire::member_word::Word;
        Ok(match present("MemberWord", "word", word.word)? {
            Word::Offering(offering) => {
                let (theirs, ours) = (offering.schema_version, polygram_domain::SCHEMA_VERSION);
                if theirs != ours {
                    let what = format!(
                        "the member speaks schema version {theirs}, the pool speaks version {ours}; use the same build \
                         everywhere"
                    );
                    return Err(malformed("Offering", what));
                }
                MemberWord::Offering(Offering {
                    member: PoolMemberId(offering.incarnation),
                    role: role("Offering", offering.role)?,
                    pid: offering.pid,
                    host: text(offering.host),
                    seat: offering.seat.map(Seat::try_from).transpose()?,
                })
            }
            Word::Released(released) => MemberWord::Released {
                seat: present("Released", "seat", released.seat)?.try_into()?,
                failure: released.failure.map(text),
            },
            Word::Alive(wire::Alive {}) => MemberWord::Alive,
        })
    }
}

impl From<PoolWord> for wire::PoolWord {
    fn from(word: PoolWord) -> wire::PoolWord {
        use wire::pool_word::Word;
        let word = match word {
            PoolWord::Place(Placement { seat, run, address }) => {
                Word::Place(wire::Placement { seat: Some(seat.into()), run, address })
            }
            PoolWord::Withdraw(seat) => Word::Withdraw(seat.into()),
        };
        wire::PoolWord { word: Some(word) }
    }
}

impl TryFrom<wire::PoolWord> for PoolWord {
    type Error = Malformed;

    fn try_from(word: wire::PoolWord) -> Result<PoolWord, Malformed> {
        use wire::pool_word::Word;
        Ok(match present("PoolWord", "word", word.word)? {
            Word::Place(wire::Placement { seat, run, address }) => {
                let seat = present("Placement", "seat", seat)?.try_into()?;
                PoolWord::Place(Placement { seat, run, address })
            }
            Word::Withdraw(seat) => PoolWord::Withdraw(seat.try_into()?),
        })
    }
}

impl From<Submission> for wire::SubmitRequest {
    fn from(submission: Submission) -> wire::SubmitRequest {
        let Submission { config_toml, priority, preemptible } = submission;
        wire::SubmitRequest { config_toml, priority, preemptible }
    }
}

impl From<wire::SubmitRequest> for Submission {
    fn from(request: wire::SubmitRequest) -> Submission {
        let wire::SubmitRequest { config_toml, priority, preemptible } = request;
        Submission { config_toml, priority, preemptible }
    }
}

/// The schema numbers states in our order, from 1.
fn state_number(state: JobState) -> i32 {
    state as i32 + 1
}

fn state(number: i32) -> Result<JobState, Malformed> {
    usize::try_from(number)
        .ok()
        .and_then(|n| JobState::ALL.get(n.checked_sub(1)?))
        .copied()
        .ok_or_else(|| malformed("Job", format!("state {number} is unknown")))
}

impl From<JobStatus> for wire::Job {
    fn from(job: JobStatus) -> wire::Job {
        wire::Job {
            job: job.job.0,
            run: job.run,
            priority: job.priority,
            preemptible: job.preemptible,
            state: state_number(job.state),
            reason: job.reason,
            submitted_unix_ms: job.submitted_unix_ms,
            started_unix_ms: job.started_unix_ms,
            ended_unix_ms: job.ended_unix_ms,
            sessions: job.sessions,
            workers: job.workers,
            wanted_workers: job.wanted_workers,
            shards: job.shards,
            step: job.step,
            total_steps: job.total_steps,
            last_commit: job.last_commit,
        }
    }
}

impl TryFrom<wire::Job> for JobStatus {
    type Error = Malformed;

    fn try_from(job: wire::Job) -> Result<JobStatus, Malformed> {
        Ok(JobStatus {
            job: JobId(job.job),
            run: job.run,
            priority: job.priority,
            preemptible: job.preemptible,
            state: state(job.state)?,
            reason: job.reason,
            submitted_unix_ms: job.submitted_unix_ms,
            started_unix_ms: job.started_unix_ms,
            ended_unix_ms: job.ended_unix_ms,
            sessions: job.sessions,
            workers: job.workers,
            wanted_workers: job.wanted_workers,
            shards: job.shards,
            step: job.step,
            total_steps: job.total_steps,
            last_commit: job.last_commit,
        })
    }
}

impl From<PoolMemberStatus> for wire::PoolMember {
    fn from(member: PoolMemberStatus) -> wire::PoolMember {
        wire::PoolMember {
            role: wire::Role::from(member.role).into(),
            pid: member.pid,
            host: member.host,
            seat: member.seat.map(Into::into),
            leaving: member.leaving,
            last_heard_ms: member.last_heard_ms,
        }
    }
}

impl TryFrom<wire::PoolMember> for PoolMemberStatus {
    type Error = Malformed;

    fn try_from(member: wire::PoolMember) -> Result<PoolMemberStatus, Malformed> {
        Ok(PoolMemberStatus {
            role: role("PoolMember", member.role)?,
            pid: member.pid,
            host: member.host,
            seat: member.seat.map(Seat::try_from).transpose()?,
            leaving: member.leaving,
            last_heard_ms: member.last_heard_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_wire() {
        let slot = MemberRef { role: Role::Shard, index: 3 };
        let seat = Seat { job: JobId(7), session: 2, slot };
        let offering = Offering {
            member: PoolMemberId(u64::MAX),
            role: Role::Worker,
            pid: 4,
            host: "h".into(),
            seat: Some(seat),
        };
        let words = [
            MemberWord::Offering(offering.clone()),
            MemberWord::Offering(Offering { seat: None, ..offering }),
            MemberWord::Released { seat, failure: Some("lost".into()) },
            MemberWord::Alive,
        ];
        for word in words {
            assert_eq!(MemberWord::try_from(wire::MemberWord::from(word.clone())).unwrap(), word);
        }
        let place = PoolWord::Place(Placement { seat, run: "r".into(), address: "127.0.0.1:1".into() });
        for word in [place, PoolWord::Withdraw(seat)] {
            assert_eq!(PoolWord::try_from(wire::PoolWord::from(word.clone())).unwrap(), word);
        }
        for known in JobState::ALL.iter().copied() {
            assert_eq!(state(state_number(known)).unwrap(), known);
            assert_eq!(JobState::named(known.as_str()), Some(known));
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        assert!(MemberWord::try_from(wire::MemberWord { word: None }).is_err());
        let seat = wire::Seat { job: 1, session: 1, role: 9, index: 0 };
        assert!(Seat::try_from(seat).unwrap_err().to_string().contains("role 9"));
        let word = wire::member_word::Word::Offering(wire::Offering::default());
        let error = MemberWord::try_from(wire::MemberWord { word: Some(word) }).unwrap_err().to_string();
        assert!(error.contains("schema version"), "{error}");
        assert!(state(0).is_err() && state(99).is_err() && state(-1).is_err());
    }
}
