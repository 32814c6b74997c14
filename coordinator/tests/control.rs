//! The control plane over real sockets and a real store.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use common::{
    Lead, ScriptedError, WORKER, complete, leave, of_commit, shard, started, tiny, token, train_to,
};
use polygram_coordinator::OpeningError;
use polygram_coordinator::core::Outcome;
use polygram_domain::control::{
    AbortKind, Directive, Evaluation, MemberReport, Reason, RunState, RunStatus, StopMode, WatchEvent,
};
use polygram_domain::{SCHEMA_VERSION, Step};
use polygram_member::{FailureCause, MemberError};
use polygram_proto::control::{ControlError, MemberSession, OperatorClient, Token};

/// A member whose run was aborted leaves it for that reason.
async fn leaves_the_run(member: common::Member) {
    let error = member.left().await.unwrap_err();
    assert!(matches!(error, ScriptedError::Member(MemberError::RunEnded(_))), "{error}");
}

#[tokio::test]
async fn a_run_completes_and_is_found_complete() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut operator = OperatorClient::connect(&lead.address(), None).await.unwrap();
    let status = operator.status().await.unwrap();
    assert_eq!((status.state, status.run.as_str(), status.attempt), (RunState::Pending, "tiny", 1));
    assert!(
        status.message.contains("waiting for 1 of 1 worker: worker 0 and 2 of 2 shards"),
        "{}",
        status.message
    );
    let mut watch = operator.watch().await.unwrap();

    let mut members = lead.members().await;
    let assignment = started(&mut members).await;
    assert_eq!((assignment.workers.len(), assignment.shards.len()), (1, 2));
    assert_eq!((assignment.resume_step, assignment.resume_manifest), (Step(0), None));
    let losses = [4.0, f64::NAN, 3.0, f64::INFINITY];
    for (step, loss) in losses.into_iter().enumerate() {
        members[0].metrics(step as u64, loss).await;
    }
    let evaluation = Evaluation { step: Step(4), set: "held_out".into(), loss: 2.5, tokens: 64 };
    members[0].reporter.report(MemberReport::Evaluation(evaluation.clone())).await.unwrap();
    for member in &members {
        member.upload(&lead, 4).await;
    }
    for member in &mut members {
        assert_eq!(member.directive().await, Directive::Committed { step: Step(4) });
    }
    // Said again, it is still true.
    members[1].upload(&lead, 4).await;
    members[0].finish(4).await;
    leave(members).await;
    let store = lead.store();
    let ended = lead.ended().await;
    assert_eq!(ended.outcome, Outcome::Good);
    assert_eq!(ended.status.state, RunState::Completed);
    assert_eq!(ended.status.last_commit, Some(Step(4)));

    let mut seen = Vec::new();
    let last = loop {
        match watch.next().await.unwrap() {
            Some(WatchEvent::Status(status)) => seen.push(*status),
            Some(WatchEvent::Metrics(m)) => assert_eq!(m.loss.to_bits(), losses[m.step.index()].to_bits()),
            Some(WatchEvent::Evaluation(e)) => assert_eq!(e, evaluation),
            Some(WatchEvent::Committed { step }) => assert_eq!(step, Step(4)),
            None => break seen.last().unwrap().state,
        }
    };
    assert_eq!(last, RunState::Completed);

    let metrics = store.read_metrics().await.unwrap();
    assert_eq!(metrics.steps.iter().map(|s| s.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for (record, loss) in metrics.steps.iter().zip(losses) {
        assert_eq!(record.loss.to_bits(), loss.to_bits());
    }
    assert_eq!(metrics.evaluations.len(), 1);
    let stored: RunStatus = store.read_status().await.unwrap().unwrap();
    assert_eq!(stored.state, RunState::Completed);
    assert_eq!(stored.evaluations, std::slice::from_ref(&evaluation));
    assert_eq!(store.committed_steps().await.unwrap(), [Step(4)]);

    // Again: nothing is left to do, and the coordinator says so and ends by itself.
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    assert_eq!((lead.announcement.state, lead.announcement.attempt), (RunState::Completed, 2));
    assert!(lead.announcement.message.contains("nothing is left to do"));
    let ended = lead.ended().await;
    assert_eq!(ended.outcome, Outcome::Good);
    assert_eq!(ended.status.evaluations, [evaluation], "an attempt that does nothing forgets nothing");
}

#[tokio::test]
async fn a_run_is_stopped_resumed_and_completed() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut members = lead.members().await;
    started(&mut members).await;
    members[0].metrics(0, 4.0).await;
    lead.interrupts.send("SIGINT".into()).await.unwrap();
    for member in &mut members {
        assert_eq!(member.directive().await, Directive::Stop { reason: "SIGINT".into() });
    }
    for member in &members {
        member.upload(&lead, 1).await;
    }
    members[0].finish(1).await;
    leave(members).await;
    let ended = lead.ended().await;
    assert_eq!((ended.outcome, ended.status.state), (Outcome::Good, RunState::Stopped));
    assert_eq!(ended.status.message, "stopped at step 1 of 4, committed: SIGINT");

    let lead = Lead::start(folder.path(), tiny(&["training.stop_at_step=3"])).await.unwrap();
    assert_eq!(lead.announcement.resume_step, 1);
    let ended = train_to(lead, 1, 3).await;
    assert_eq!((ended.status.state, ended.status.reason), (RunState::Stopped, Reason::StopAtStep));

    // A longer run on the same state is welcome.
    let lead = Lead::start(folder.path(), tiny(&["training.steps=6", "training.lr=1e-4"])).await.unwrap();
    let store = lead.store();
    let ended = train_to(lead, 3, 6).await;
    assert_eq!(ended.status.state, RunState::Completed);
    let metrics = store.read_metrics().await.unwrap();
    assert_eq!(metrics.steps.iter().map(|s| s.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(metrics.attempts.iter().map(|a| a.resumed_from).collect::<Vec<_>>(), [0, 1, 3]);
}

#[tokio::test]
async fn a_manifest_key_leads_to_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&["training.stop_at_step=2"])).await.unwrap();
    train_to(lead, 0, 2).await;
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut members = lead.members().await;
    let assignment = started(&mut members).await;
    assert_eq!(assignment.resume_manifest, Some(polygram_checkpoint::keys::manifest(Step(2))));
    assert!(lead.store().read_manifest(assignment.resume_step).await.is_ok());
}

#[tokio::test]
async fn a_vanished_member_fails_the_run_for_everybody() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut members = lead.members().await;
    started(&mut members).await;
    // Gone without a word, as a killed process is.
    drop(members.pop());
    for mut member in members {
        let Directive::Abort(abort) = member.directive().await else { panic!("no abort") };
        let culprit = abort.culprit.unwrap();
        assert_eq!((culprit.member, culprit.pid), (shard(1), std::process::id()));
        assert!(abort.reason.contains("shard 1"), "{}", abort.reason);
        leaves_the_run(member).await;
    }
    let store = lead.store();
    let ended = lead.ended().await;
    assert_eq!((ended.outcome, ended.status.reason), (Outcome::Bad, Reason::MemberLost));
    let stored: RunStatus = store.read_status().await.unwrap().unwrap();
    assert_eq!(stored.state, RunState::Failed);
    assert_eq!(stored.culprit.unwrap().member, shard(1));
}

/// Over real sockets: one is lost, the others are told to join again, and what is left of the former generation is
/// refused by name.
#[tokio::test]
async fn a_run_goes_on_with_another_generation() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&["recovery.max_restarts=10"])).await.unwrap();
    let mut members = lead.members().await;
    let first = started(&mut members).await.generation;
    for step in 0..2 {
        members[0].metrics(step, 4.0).await;
    }
    for member in &members {
        member.upload(&lead, 2).await;
    }
    for member in &mut members {
        assert_eq!(member.directive().await, Directive::Committed { step: Step(2) });
    }
    members[0].metrics(2, 3.5).await;
    drop(members.pop());
    for member in &mut members {
        let Directive::Abort(abort) = member.directive().await else { panic!("no abort") };
        assert_eq!(abort.kind, AbortKind::Rejoin { generation: first.next() });
        assert_eq!(abort.culprit.unwrap().member, shard(1));
    }
    let part = serde_json::to_string(&members[0].write_part(&lead, 4).await).unwrap();
    let refused = members[0].reporter.report_upload(Step(4), of_commit(part)).await.unwrap_err();
    assert!(matches!(refused, ControlError::NotYet { .. }), "{refused}");
    assert!(refused.to_string().contains("the part of worker 0 is of generation 1.0"), "{refused}");
    // Those that are left join again by themselves.
    for member in &mut members {
        member.rejoined().await;
    }
    members.push(lead.join(shard(1)).await.unwrap());
    let assignment = started(&mut members).await;
    assert_eq!((assignment.generation, assignment.resume_step), (first.next(), Step(2)));
    let store = lead.store();
    let status = complete(lead, members, 2..4, |_| 3.0).await.status;
    assert_eq!((status.state, status.restarts, status.culprit), (RunState::Completed, 1, None));
    let metrics = store.read_metrics().await.unwrap();
    let recorded: Vec<_> = metrics.steps.iter().map(|m| (m.step, m.loss)).collect();
    assert_eq!(recorded, [(1, 4.0), (2, 4.0), (3, 3.0), (4, 3.0)]);
    let story = store.read_failure_log().await.unwrap();
    let kinds: Vec<_> =
        story[0].lines.iter().map(|line| serde_json::to_value(line).unwrap()["kind"].clone()).collect();
    assert_eq!(kinds, ["opened", "lost", "rolled_back", "started", "caught_up", "ended"]);
}

#[tokio::test]
async fn a_reported_failure_reaches_everybody_with_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut members = lead.members().await;
    started(&mut members).await;
    let failing = members.remove(0);
    failing.fail_at(2, "loss is NaN at cell 3");
    for mut member in members {
        let Directive::Abort(abort) = member.directive().await else { panic!("no abort") };
        assert!(
            abort.reason.contains("worker 0")
                && abort.reason.contains("at step 2 while computing: loss is NaN")
        );
        leaves_the_run(member).await;
    }
    let error = failing.left().await.unwrap_err();
    assert!(matches!(error, ScriptedError::Ordered(_)), "{error}");
    assert_eq!(lead.ended().await.outcome, Outcome::Bad);
}

#[tokio::test]
async fn a_checkpoint_with_a_hole_is_not_committed() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut members = lead.members().await;
    started(&mut members).await;
    for member in &members {
        let mut part = member.write_part(&lead, 4).await;
        if member.who == shard(1) {
            part.objects.pop();
        }
        let json = serde_json::to_string(&part).unwrap();
        if member.who == WORKER {
            for step in 0..4 {
                member.metrics(step, 1.0).await;
            }
        }
        member.reporter.report_upload(Step(4), of_commit(json)).await.unwrap();
    }
    for mut member in members {
        let Directive::Abort(abort) = member.beyond_commits().await else { panic!("no abort") };
        assert!(abort.reason.contains("step 4 could not be committed"), "{}", abort.reason);
        assert_eq!(abort.culprit, None);
        leaves_the_run(member).await;
    }
    let store = lead.store();
    assert_eq!(lead.ended().await.status.reason, Reason::CommitFailed);
    assert!(store.committed_steps().await.unwrap().is_empty());
}

#[tokio::test]
async fn parts_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut members = lead.members().await;
    started(&mut members).await;
    let reporter = &members[0].reporter;
    let refused = reporter.report_upload(Step(4), of_commit("{}".into())).await.unwrap_err();
    assert!(matches!(refused, ControlError::Refused { .. }), "{refused}");
    let part = members[0].write_part(&lead, 4).await;
    let json = serde_json::to_string(&part).unwrap();
    let refused = reporter.report_upload(Step(3), of_commit(json)).await.unwrap_err();
    assert!(refused.to_string().contains("a part of step 4 as one of step 3"), "{refused}");
    let status = OperatorClient::connect(&lead.address(), None).await.unwrap().status().await.unwrap();
    assert_eq!(status.state, RunState::Running);
}

#[tokio::test]
async fn the_door_opens_for_the_right_ones_only() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let join = async |change: &dyn Fn(&mut polygram_proto::control::JoinOptions)| {
        let mut options = lead.options(WORKER);
        change(&mut options);
        match MemberSession::join(options).await {
            Ok(_) => panic!("let in"),
            Err(error) => error,
        }
    };
    let wrong = Token::new("another-token-for-tests").unwrap();
    let error = join(&|o| o.token = wrong.clone()).await;
    assert!(matches!(error, ControlError::Unauthenticated { .. }), "{error}");
    let error = join(&|o| o.schema_version = 77).await.to_string();
    assert!(error.contains("77") && error.contains(&format!("version {SCHEMA_VERSION}")), "{error}");
    let error = join(&|o| o.member = shard(2)).await.to_string();
    assert!(error.contains("topology.shards is 2"), "{error}");

    let _first = lead.join(WORKER).await.unwrap();
    let error = join(&|_| ()).await.to_string();
    assert!(error.contains("worker 0 is taken by pid"), "{error}");

    let mut nobody = OperatorClient::connect(&lead.address(), None).await.unwrap();
    let error = nobody.stop(StopMode::Abort, "because").await.unwrap_err();
    assert!(matches!(error, ControlError::Unauthenticated { .. }), "{error}");
    assert_eq!(nobody.status().await.unwrap().state, RunState::Admitting);

    let mut operator = OperatorClient::connect(&lead.address(), Some(&token())).await.unwrap();
    let answer = operator.stop(StopMode::Commit, "because").await.unwrap();
    assert_eq!(answer, "stopped before the first step");
    let late = lead.options(shard(0));
    let error = MemberSession::join(late).await.err().unwrap().to_string();
    assert!(error.contains("the run is over"), "{error}");
}

/// Below the runtime of members: nothing comes after the directive that ends a session.
#[tokio::test]
async fn a_session_is_closed_after_the_directive_that_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let (session, _joined) = MemberSession::join(lead.options(WORKER)).await.unwrap();
    let (_reporter, mut directives) = session.split();
    let mut operator = OperatorClient::connect(&lead.address(), Some(&token())).await.unwrap();
    operator.stop(StopMode::Abort, "because").await.unwrap();
    let last = tokio::time::timeout(common::PATIENCE, directives.next()).await.unwrap().unwrap();
    assert!(matches!(last, Directive::Abort(_) | Directive::Exit), "{last:?}");
    assert!(matches!(directives.next().await, Err(ControlError::Closed)));
    directives.leave().await.unwrap();
}

#[tokio::test]
async fn a_coordinator_that_is_gone_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut members = lead.members().await;
    started(&mut members).await;
    lead.ended.abort();
    for mut member in members {
        let failure = member.failed().await;
        assert_eq!(failure.cause, FailureCause::SessionLost, "{failure:?}");
        let report = MemberReport::Finished { step: Step(4) };
        let error = member.reporter.report(report).await.unwrap_err();
        assert!(matches!(error, ControlError::Lost { .. }), "{error}");
    }
}

#[tokio::test]
async fn nobody_home_is_one_clear_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut options =
        polygram_proto::control::JoinOptions::new(&*address, token(), WORKER, ([127, 0, 0, 1], 1).into());
    options.deadline = std::time::Duration::from_millis(600);
    let error = MemberSession::join(options).await.err().unwrap();
    assert!(matches!(&error, ControlError::Connect { attempts, .. } if *attempts > 1), "{error}");
    assert!(error.to_string().contains(&address), "{error}");
    assert!(OperatorClient::connect(&address, None).await.is_err());
}

#[tokio::test]
async fn one_run_has_one_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let error = Lead::start(folder.path(), tiny(&[])).await.err().unwrap();
    assert!(matches!(error, OpeningError::Led { .. }), "{error}");
    assert!(error.to_string().contains(&lead.address()), "{error}");
    lead.ended.abort();
    assert!(lead.ended.await.is_err());
    // The dead one's record does not hold its successor back.
    let next = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    assert_eq!(next.announcement.attempt, 2);
}

#[tokio::test]
async fn a_fenced_coordinator_commits_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    let mut members = lead.members().await;
    started(&mut members).await;
    let claim =
        polygram_checkpoint::CoordinatorAddress { address: "127.0.0.1:1".into(), pid: 1, started_unix_ms: 0 };
    lead.store().claim_term(&claim).await.unwrap();
    for member in &members {
        // Refused or noted: the fence may be seen first by the status writer.
        let part = serde_json::to_string(&member.write_part(&lead, 4).await).unwrap();
        let _either = member.reporter.report_upload(Step(4), of_commit(part)).await;
    }
    for mut member in members {
        let Directive::Abort(abort) = member.beyond_commits().await else { panic!("no abort") };
        assert!(abort.reason.contains("taken over by the coordinator"), "{}", abort.reason);
        leaves_the_run(member).await;
    }
    let store = lead.store();
    assert_eq!(lead.ended().await.outcome, Outcome::Bad);
    assert!(store.committed_steps().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_does_not_fit_the_checkpoint_is_refused_by_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&["training.stop_at_step=2"])).await.unwrap();
    let store = lead.store();
    train_to(lead, 0, 2).await;
    let before = store.latest_coordinator().await.unwrap();
    for (change, key) in [
        ("model.hidden_size=96", "model.hidden_size"),
        ("run.seed=8", "run.seed"),
        ("ngram.heads=1", "ngram.heads"),
    ] {
        let error = Lead::start(folder.path(), tiny(&[change])).await.err().unwrap();
        assert!(matches!(error, OpeningError::Incompatible { .. }), "{error}");
        assert!(error.is_of_configuration(), "{error}");
        assert!(error.to_string().contains(key), "{error}");
    }
    assert_eq!(store.latest_coordinator().await.unwrap(), before, "a refusal writes nothing");
}

#[tokio::test]
async fn checkpoints_that_do_not_verify_are_not_trained_over() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&["training.stop_at_step=2"])).await.unwrap();
    train_to(lead, 0, 2).await;
    let manifest = folder.path().join("runs/tiny").join(polygram_checkpoint::keys::manifest(Step(2)));
    std::fs::write(&manifest, "{}").unwrap();
    let error = Lead::start(folder.path(), tiny(&[])).await.err().unwrap();
    assert!(matches!(error, OpeningError::AllDamaged { count: 1, .. }), "{error}");
    assert!(!error.is_of_configuration(), "{error}");
    assert_eq!(std::fs::read_to_string(&manifest).unwrap(), "{}");
}
