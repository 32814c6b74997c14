//! A store that does not take what it is given, and one that another coordinator has claimed.

use polygram_checkpoint::FailureLine;

use super::*;

fn recovering() -> Run {
    let recovery = RecoverySpec { max_restarts: 10, ..settings().recovery };
    let mut run = Run::new(Settings { recovery, ..settings() });
    run.start();
    run
}

fn failure(kind: FailureKind, message: &str) -> MemberReport {
    MemberReport::Failed(Failure {
        message: message.into(),
        step: Step(7),
        phase: Phase::Uploading,
        suspect: None,
        roll_back: false,
        damaged: None,
        kind,
    })
}

fn waiting(sentence: Option<&str>) -> MemberReport {
    MemberReport::Heartbeat(Heartbeat {
        step: Step(7),
        phase: Phase::Uploading,
        restored_bytes: 0,
        store_wait: sentence.map(str::to_owned),
    })
}

#[test]
fn a_store_that_a_person_has_to_mend_ends_the_run_without_a_restart() {
    for who in [W1, S0] {
        let mut run = recovering();
        run.commit(10);
        run.report(who, failure(FailureKind::StoreUnusable, "cannot write x: the disk is full"));
        let status = run.state.status(run.now);
        assert_eq!((status.state, status.reason), (RunState::Failed, Reason::StoreFailed));
        assert_eq!((status.restarts, status.last_commit), (0, Some(Step(10))));
        for words in ["the disk is full", "mend it, and the same command continues"] {
            assert!(status.message.contains(words), "{}", status.message);
        }
        // The others' failures are its consequences.
        run.report(W0, failure(FailureKind::StoreUnusable, "cannot write y"));
        assert_eq!(run.culprit(), Some(who));
    }
}

#[test]
fn surroundings_that_fail_twice_at_a_step_are_no_fault_of_the_program() {
    let mut run = recovering();
    for _ in 0..2 {
        run.report(W1, failure(FailureKind::Store, "cannot read x: no answer within 30 s"));
        assert_eq!(run.state.run_state(), RunState::Recovering, "{}", run.message());
        run.now = run.now.after(120_000);
        run.start();
    }
    let mut run = recovering();
    run.report(W1, failure(FailureKind::Program, "index out of bounds"));
    run.start();
    run.report(W1, failure(FailureKind::Program, "index out of bounds"));
    assert!(run.message().contains("came at step 7 before"), "{}", run.message());
}

#[test]
fn a_recovery_point_that_the_store_refuses_is_gone_on_without() {
    let settings = Settings {
        resume: Some(Resume::at_point(Step(15))),
        committed: Some(Step(10)),
        recovery: RecoverySpec { max_restarts: 10, ..settings().recovery },
        ..settings()
    };
    let mut run = Run::new(settings);
    for who in ALL {
        run.join(who).unwrap();
    }
    for who in ALL {
        run.attend(who).unwrap();
    }
    run.report(S1, failure(FailureKind::StoreUnusable, "permission denied"));
    run.resolved(Ok(RollbackResolution::PointQuarantined));
    run.start();
    assert_eq!((run.state.run_state(), run.state.resume_step()), (RunState::Running, Step(10)));
}

#[test]
fn a_wait_for_the_store_is_shown_while_it_lasts() {
    let mut run = Run::running();
    let sentence = "the store has no room: waiting";
    let actions = run.report(W1, waiting(Some(sentence)));
    let status = run.state.status(run.now);
    assert_eq!((status.reason, status.message), (Reason::StoreTrouble, format!("{sentence} (worker 1)")));
    assert!(actions.contains(&Action::StatusChanged));
    run.report(S0, waiting(Some(sentence)));
    assert_eq!(run.message(), format!("{sentence} (worker 1 and 1 other)"));
    // Steps go on meanwhile, and the last commit is waited for.
    run.report(W0, MemberReport::Metrics(metrics(0, 1.0)));
    run.finish(60);
    assert_eq!(run.state.status(run.now).reason, Reason::StoreTrouble);
    run.report(S0, waiting(None));
    run.report(W1, waiting(None));
    assert_eq!(run.state.status(run.now).reason, Reason::FinalCommit);
}

#[test]
fn the_coordinators_own_wait_is_shown_too() {
    let mut run = recovering();
    let wait = |sentence: Option<&str>| Event::StoreWait { sentence: sentence.map(str::to_owned) };
    run.apply(wait(Some("the store is read-only")));
    assert_eq!(run.message(), "the store is read-only");
    // Members who are missing are the better reason.
    run.ended(W0);
    assert_eq!(run.state.status(run.now).reason, Reason::WaitingForMembers);
    run.apply(wait(None));
    run.start();
    assert_eq!(run.state.status(run.now).reason, Reason::Training);
}

#[test]
fn a_stop_while_the_store_is_full_ends_within_its_grace() {
    let mut run = Run::new(Settings { stop_grace_ms: Some(4_000), ..settings() });
    run.start();
    run.commit(10);
    run.report(W1, waiting(Some("the store has no room")));
    run.call(|ticket| Event::Stop { ticket, mode: StopMode::Commit, reason: "asked".into() }).0.unwrap();
    for _ in 0..10 {
        run.now = run.now.after(500);
        for who in ALL {
            run.report(who, waiting((who == W1).then_some("the store has no room")));
        }
        run.apply(Event::Tick);
    }
    assert_eq!(run.state.run_state(), RunState::Stopped);
    assert!(run.message().contains("4.0 s (run.stop_grace_seconds)"), "{}", run.message());
}

#[test]
fn a_run_that_is_taken_over_says_so() {
    let mut run = recovering();
    run.apply(Event::TakenOver { message: "the run was taken over by the coordinator on host b".into() });
    let status = run.state.status(run.now);
    assert_eq!((status.state, status.reason), (RunState::Failed, Reason::TakenOver));
    // What failed for it is not the reason.
    run.apply(Event::CommitDone { step: Step(10), result: Err("fenced".into()) });
    assert!(run.message().contains("on host b"));
}

#[test]
fn a_complete_run_that_is_opened_again_records_its_end() {
    for (resume, state) in [(60, "completed"), (30, "stopped")] {
        let settings = Settings { resume: Some(Resume::at(Step(resume))), last_step: resume, ..settings() };
        let mut run = Run::new(settings);
        let mut actions = run.apply(Event::Tick);
        actions.extend(run.apply(Event::Tick));
        let ended: Vec<&str> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Record(Record::Failure(FailureLine::Ended { state, .. })) => Some(state.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(ended, [state]);
        let end_at = actions.iter().position(|action| matches!(action, Action::End(_)));
        let record_at = actions.iter().position(|action| matches!(action, Action::Record(_)));
        assert!(record_at < end_at, "{actions:?}");
    }
}

#[test]
fn the_culprits_step_is_the_one_that_the_run_has_reached() {
    for who in [W1, S0] {
        let mut run = Run::running();
        for step in 0..25 {
            run.report(W0, MemberReport::Metrics(metrics(step, 1.0)));
        }
        // No heartbeat came since step 0.
        run.ended(who);
        assert_eq!(run.state.status(run.now).culprit.unwrap().step, Step(25));
    }
    // One that fails while it restores has applied nothing.
    let mut run = Run::new(Settings { resume: Some(Resume::at(Step(20))), ..settings() });
    run.join(W1).unwrap();
    run.attend(W1).unwrap();
    run.ended(W1);
    assert_eq!(run.state.status(run.now).culprit.unwrap().step, Step(0));
}
