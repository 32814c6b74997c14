//! Why a membership ended, and what follows: the one place that decides which failures join again.
//!
//! What always holds: [`MemberFailure::disposition`] is a pure function of origin, cause and the coordinator's reply, the
//! same for every role.

use polygram_domain::control::{DamagedCheckpoint, Failure, MemberRef, Phase};
use polygram_domain::{FailureKind, Step};

/// Where a failure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureOrigin {
    /// This process, its configuration, its data or its environment.
    Own,
    /// Another member failed or cannot be reached; `None` where it is not known which.
    Peer(Option<MemberRef>),
    /// This member and that one computed different values: either may be wrong.
    Disputed(MemberRef),
    /// The coordinator ended the membership, or is lost.
    Coordinator,
    /// A person or the pool wants this member to leave.
    Operator,
}

/// What ended a membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// A program or its environment failed.
    Fault(FailureKind),
    /// A checkpoint was not restored because its objects are not what was written.
    DamagedCheckpoint(DamagedCheckpoint),
    /// Nothing failed: the run is to go back from a loss spike.
    RollbackRequest,
    /// The run is over, or this member is wanted elsewhere.
    RunEnded,
    /// The run resumes with another generation of members.
    RunRestarts,
    /// The session with the coordinator is lost.
    SessionLost,
    /// The coordinator does not want this member.
    Refused,
}

/// The end of a membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFailure {
    /// Where it comes from.
    pub origin: FailureOrigin,
    /// What it is.
    pub cause: FailureCause,
    /// One sentence.
    pub message: String,
}

/// What the coordinator said to a failure report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReply {
    /// The run goes on with another generation.
    RunContinues,
    /// The run is over.
    RunOver,
    /// It did not say.
    Unknown,
}

/// What a member does after a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It joins the run again.
    Rejoin,
    /// It leaves the run; the process is fit for another run.
    LeaveRun,
    /// It exits: a new process is the better start.
    ExitProcess,
}

impl MemberFailure {
    /// A failure of this process.
    pub fn own(kind: FailureKind, message: String) -> MemberFailure {
        MemberFailure { origin: FailureOrigin::Own, cause: FailureCause::Fault(kind), message }
    }

    /// A failure that follows from another member's.
    pub fn of_peer(peer: Option<MemberRef>, kind: FailureKind, message: String) -> MemberFailure {
        MemberFailure { origin: FailureOrigin::Peer(peer), cause: FailureCause::Fault(kind), message }
    }

    /// What the member does next.
    pub fn disposition(&self, reply: FailureReply) -> Disposition {
        match (&self.cause, self.origin) {
            (FailureCause::RunRestarts | FailureCause::SessionLost, _) => Disposition::Rejoin,
            (FailureCause::RunEnded | FailureCause::Refused, _) => Disposition::LeaveRun,
            (FailureCause::DamagedCheckpoint(_) | FailureCause::RollbackRequest, _)
            | (FailureCause::Fault(_), FailureOrigin::Peer(_)) => match reply {
                FailureReply::RunContinues | FailureReply::Unknown => Disposition::Rejoin,
                FailureReply::RunOver => Disposition::LeaveRun,
            },
            (FailureCause::Fault(_), _) => Disposition::ExitProcess,
        }
    }

    /// Whether the coordinator has to learn of it. What it caused itself, it knows.
    pub fn is_reported(&self) -> bool {
        match self.cause {
            FailureCause::Fault(_) | FailureCause::DamagedCheckpoint(_) | FailureCause::RollbackRequest => {
                true
            }
            FailureCause::RunEnded
            | FailureCause::RunRestarts
            | FailureCause::SessionLost
            | FailureCause::Refused => false,
        }
    }

    /// Whether the member left because the run or the pool wanted it.
    pub fn is_in_order(&self) -> bool {
        self.cause == FailureCause::RunEnded
    }

    /// The report to the coordinator, from a member that had applied `step` updates and was in `phase`.
    pub(crate) fn report(&self, step: Step, phase: Phase) -> Failure {
        let suspect = match self.origin {
            FailureOrigin::Peer(peer) => peer,
            FailureOrigin::Disputed(peer) => Some(peer),
            FailureOrigin::Own | FailureOrigin::Coordinator | FailureOrigin::Operator => None,
        };
        let (kind, damaged) = match &self.cause {
            FailureCause::Fault(kind) => (*kind, None),
            FailureCause::DamagedCheckpoint(damaged) => (FailureKind::Program, Some(damaged.clone())),
            _ => (FailureKind::Program, None),
        };
        let roll_back = self.cause == FailureCause::RollbackRequest;
        Failure { message: self.message.clone(), step, phase, suspect, roll_back, damaged, kind }
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::Rank;
    use polygram_domain::control::CheckpointPlace;

    use super::*;

    fn damaged() -> FailureCause {
        let (key, reason) = ("ckpt/data/a.rows".to_owned(), "cut".to_owned());
        FailureCause::DamagedCheckpoint(DamagedCheckpoint {
            place: CheckpointPlace::commit(Step(3)),
            key,
            reason,
        })
    }

    /// (origin, cause, what follows when the run continues, is over, did not say)
    fn table() -> Vec<(FailureOrigin, FailureCause, [Disposition; 3])> {
        use Disposition::{ExitProcess, LeaveRun, Rejoin};
        use FailureOrigin::{Coordinator, Disputed, Operator, Own, Peer};
        let peer = MemberRef::worker(Rank(1));
        let fault = FailureCause::Fault;
        vec![
            (Own, fault(FailureKind::Program), [ExitProcess; 3]),
            (Own, fault(FailureKind::Store), [ExitProcess; 3]),
            (Peer(Some(peer)), fault(FailureKind::Reset), [Rejoin, LeaveRun, Rejoin]),
            (Peer(None), fault(FailureKind::Timeout), [Rejoin, LeaveRun, Rejoin]),
            (Disputed(peer), fault(FailureKind::Program), [ExitProcess; 3]),
            (Operator, fault(FailureKind::Signal), [ExitProcess; 3]),
            (Own, damaged(), [Rejoin, LeaveRun, Rejoin]),
            (Own, FailureCause::RollbackRequest, [Rejoin, LeaveRun, Rejoin]),
            (Coordinator, FailureCause::RunRestarts, [Rejoin; 3]),
            (Coordinator, FailureCause::SessionLost, [Rejoin; 3]),
            (Coordinator, FailureCause::RunEnded, [LeaveRun; 3]),
            (Operator, FailureCause::RunEnded, [LeaveRun; 3]),
            (Coordinator, FailureCause::Refused, [LeaveRun; 3]),
        ]
    }

    #[test]
    fn the_next_move_follows_from_origin_cause_and_reply() {
        let replies = [FailureReply::RunContinues, FailureReply::RunOver, FailureReply::Unknown];
        for (origin, cause, expected) in table() {
            let failure = MemberFailure { origin, cause, message: "m".into() };
            for (reply, expected) in replies.into_iter().zip(expected) {
                assert_eq!(failure.disposition(reply), expected, "{failure:?}, {reply:?}");
            }
            // What is not reported does not depend on a reply.
            assert!(failure.is_reported() || expected.windows(2).all(|two| two[0] == two[1]), "{failure:?}");
        }
    }

    #[test]
    fn a_report_names_suspect_damage_and_rollback() {
        let peer = MemberRef::worker(Rank(1));
        let of = |origin, cause| {
            let failure = MemberFailure { origin, cause, message: "m".into() };
            failure.report(Step(4), Phase::Computing)
        };
        let fault = FailureCause::Fault(FailureKind::Timeout);
        let report = of(FailureOrigin::Peer(Some(peer)), fault.clone());
        assert_eq!((report.suspect, report.kind), (Some(peer), FailureKind::Timeout));
        assert_eq!((report.step, report.phase, report.message.as_str()), (Step(4), Phase::Computing, "m"));
        assert_eq!(of(FailureOrigin::Disputed(peer), fault.clone()).suspect, Some(peer));
        assert_eq!(of(FailureOrigin::Own, fault).suspect, None);
        let report = of(FailureOrigin::Own, damaged());
        assert!(report.damaged.is_some() && !report.roll_back && report.kind == FailureKind::Program);
        let report = of(FailureOrigin::Own, FailureCause::RollbackRequest);
        assert!(report.damaged.is_none() && report.roll_back);
    }
}
