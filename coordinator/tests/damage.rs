//! A member that cannot believe a checkpoint, before a real coordinator with a real store.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use common::{Lead, Member, complete, shard, started, tiny, train_to};
use futures::future::join_all;
use polygram_checkpoint::FailureLine;
use polygram_coordinator::OpeningError;
use polygram_coordinator::core::Outcome;
use polygram_domain::Step;
use polygram_domain::control::{Abort, AbortKind, CheckpointPlace, DamagedCheckpoint, Directive, RunState};
use polygram_member::FailureCause;

/// A stopped run with commits at 1 and 2.
async fn two_commits(folder: &std::path::Path) {
    for (from, to) in [(0, 1), (1, 2)] {
        let stop = format!("training.stop_at_step={to}");
        let lead = Lead::start(folder, tiny(&[&stop, "checkpoint.keep=3"])).await.unwrap();
        train_to(lead, from, to).await;
    }
}

/// The member could not believe `key` of the checkpoint of step 2.
fn disbelieve(member: &Member, key: &str) {
    let (place, reason) = (CheckpointPlace::commit(Step(2)), format!("{key} is damaged"));
    member.report_damage(DamagedCheckpoint { place, key: key.into(), reason });
}

/// Everybody is assigned; shard 1 then cannot believe `key`, and all join again.
async fn all_but_restored(lead: &Lead, key: &str) -> Vec<Member> {
    let mut members = lead.members().await;
    for member in &mut members {
        let Directive::Assign(assignment) = member.directive().await else { panic!("no assignment") };
        assert_eq!(assignment.resume_step, Step(2));
    }
    disbelieve(&members[2], key);
    let failure = members[2].failed().await;
    assert!(matches!(failure.cause, FailureCause::DamagedCheckpoint(_)), "{failure:?}");
    for member in &mut members[..2] {
        let Directive::Abort(Abort { kind: AbortKind::Rejoin { .. }, .. }) = member.directive().await else {
            panic!("{} is not told to join again", member.who)
        };
    }
    for member in &mut members {
        member.rejoined().await;
    }
    members
}

/// A row object of the checkpoint of step 2, and where it lies.
async fn row_object(lead: &Lead) -> (String, std::path::PathBuf) {
    let manifest = lead.store().read_manifest(Step(2)).await.unwrap();
    let key = manifest.objects.iter().map(|entry| &entry.key).find(|key| key.ends_with(".rows")).unwrap();
    let place = std::path::Path::new(&lead.root).join("runs/tiny").join(key);
    (key.clone(), place)
}

fn flip(place: &std::path::Path) {
    let mut bytes = std::fs::read(place).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(place, bytes).unwrap();
}

#[tokio::test]
async fn a_damaged_checkpoint_is_set_aside_and_its_steps_are_done_again() {
    let folder = tempfile::tempdir().unwrap();
    two_commits(folder.path()).await;
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let (store, (key, place)) = (lead.store(), row_object(&lead).await);
    flip(&place);
    let mut members = all_but_restored(&lead, &key).await;
    let assignment = started(&mut members).await;
    assert_eq!(assignment.resume_step, Step(1));
    assert_eq!(store.committed_steps().await.unwrap(), [Step(1)]);
    assert_eq!(store.quarantined_as_damaged(&[]).await.unwrap()[0].step, Step(2));
    let ended = complete(lead, members, 1..4, |_| 1.0).await;
    assert_eq!((ended.outcome, ended.status.state), (Outcome::Good, RunState::Completed));
    assert!(ended.status.set_aside[0].contains(&key), "{:?}", ended.status.set_aside);
    let metrics = store.read_metrics().await.unwrap();
    assert_eq!(metrics.steps.iter().map(|s| s.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let (chain, faults) = store.verify_ledger().await.unwrap();
    assert!(faults.0.is_empty(), "{faults:?}");
    assert_eq!(chain.entries().map(|entry| entry.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let told = store.read_failure_log().await.unwrap().into_iter().flat_map(|chapter| chapter.lines);
    let fell_back: Vec<FailureLine> =
        told.filter(|line| matches!(line, FailureLine::CheckpointQuarantined { .. })).collect();
    let [FailureLine::CheckpointQuarantined { step, reason, to, .. }] = &fell_back[..] else {
        panic!("{fell_back:?}")
    };
    assert!((*step, *to) == (Step(2), Step(1)) && reason.contains(&key), "{fell_back:?}");
}

/// The coordinator believes what it reads itself.
#[tokio::test]
async fn a_sound_checkpoint_stays_whatever_a_member_says() {
    let folder = tempfile::tempdir().unwrap();
    two_commits(folder.path()).await;
    let lead = Lead::start(folder.path(), tiny(&["recovery.max_restarts=5"])).await.unwrap();
    let (store, (key, _)) = (lead.store(), row_object(&lead).await);
    let mut members = all_but_restored(&lead, &key).await;
    // Those who join before the look is over are told to join again.
    for assignment in join_all(members.iter_mut().map(Member::until_started)).await {
        assert_eq!(assignment.resume_step, Step(2));
    }
    assert_eq!(store.committed_steps().await.unwrap(), [Step(1), Step(2)]);
    let ended = complete(lead, members, 2..4, |_| 1.0).await;
    assert_eq!((ended.status.state, ended.status.restarts), (RunState::Completed, 1));
    let last = ended.status.last_rollback.unwrap();
    assert!(last.culprit.member == shard(1) && last.culprit.message.contains("sound"), "{last:?}");
    assert!(ended.status.set_aside.is_empty());
}

#[tokio::test]
async fn a_run_without_any_sound_checkpoint_fails_and_never_begins_afresh() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&["training.stop_at_step=2"])).await.unwrap();
    train_to(lead, 0, 2).await;
    let lead = Lead::start(folder.path(), tiny(&["recovery.max_restarts=5"])).await.unwrap();
    let (store, (key, place)) = (lead.store(), row_object(&lead).await);
    flip(&place);
    all_but_restored_and_failed(&lead, &key).await;
    let ended = lead.ended().await;
    assert_eq!((ended.outcome, ended.status.state), (Outcome::Bad, RunState::Failed));
    let message = ended.status.message;
    assert!(message.contains("none of them verifies") && message.contains(&key), "{message}");
    assert_eq!(store.committed_steps().await.unwrap(), [Step(2)], "it stays where it is");
    // Set aside by hand, it is missed all the same.
    store
        .quarantine(Step(2), &polygram_checkpoint::QuarantineReason::Unusable("for the test".into()))
        .await
        .unwrap();
    let refused = Lead::start(folder.path(), tiny(&[])).await.err().unwrap();
    assert!(matches!(refused, OpeningError::AllDamaged { count: 1, .. }), "{refused}");
}

async fn all_but_restored_and_failed(lead: &Lead, key: &str) {
    let mut members = lead.members().await;
    for member in &mut members {
        assert!(matches!(member.directive().await, Directive::Assign(_)));
    }
    disbelieve(&members[2], key);
    for member in members {
        assert!(member.left().await.is_err());
    }
}
