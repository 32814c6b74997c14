//! The runtime of members before a real coordinator, with scripted roles.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use common::{Lead, WORKER, complete, shard, started, tiny};
use polygram_coordinator::core::Outcome;
use polygram_domain::control::{AbortKind, Directive};
use polygram_domain::{FailureKind, Step};
use polygram_member::{Disposition, FailureCause, FailureReply, MemberFailure};

/// The coordinator is lost just as Ready is sent: the membership ends like any other, its listener is free, and the member
/// joins again.
#[tokio::test]
async fn a_lost_ready_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut members = lead.members().await;
    for member in &mut members {
        assert!(matches!(member.directive().await, Directive::Assign(_)));
        member.ready_when_lost();
    }
    let address = lead.announcement.address;
    lead.ended.abort();
    assert!(lead.ended.await.is_err());
    for member in &mut members {
        let failure = member.failed().await;
        assert_eq!(failure.cause, FailureCause::SessionLost, "{failure:?}");
    }
    let lead = Lead::start_at(address, folder.path(), tiny(&[])).await.unwrap();
    for member in &mut members {
        // Its role listens at the same address again.
        member.rejoined().await;
    }
    assert_eq!(started(&mut members).await.resume_step, Step(0));
    assert_eq!(complete(lead, members, 0..4, |_| 1.0).await.outcome, Outcome::Good);
}

/// A failure that follows from another member's: the member joins again where the run continues.
#[tokio::test]
async fn a_member_that_a_peer_has_failed_joins_again() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&["recovery.max_restarts=5"])).await.unwrap();
    let mut members = lead.members().await;
    let first = started(&mut members).await.generation;
    let text = "shard 1 closed the connection".to_owned();
    let failure = MemberFailure::of_peer(Some(shard(1)), FailureKind::Reset, text);
    assert_eq!(failure.disposition(FailureReply::RunContinues), Disposition::Rejoin);
    members[0].fail(failure.clone());
    assert_eq!(members[0].failed().await, failure);
    drop(members.pop());
    let Directive::Abort(abort) = members[1].directive().await else { panic!("no abort") };
    assert_eq!(abort.kind, AbortKind::Rejoin { generation: first.next() });
    assert_eq!(abort.culprit.unwrap().member, shard(1), "the peer is to blame");
    for member in &mut members {
        member.rejoined().await;
    }
    members.push(lead.join(shard(1)).await.unwrap());
    assert_eq!(started(&mut members).await.generation, first.next());
    assert_eq!(members[0].who, WORKER);
    assert_eq!(complete(lead, members, 0..4, |_| 1.0).await.outcome, Outcome::Good);
}
