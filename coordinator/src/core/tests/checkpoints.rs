//! Parts, commits, the end of a run, and its metrics.

use super::*;

#[test]
fn a_step_is_committed_with_every_part_and_only_once() {
    let mut run = Run::running();
    for who in [W0, W1, S1, S1, W0] {
        let (answer, actions) = run.upload(who, 20);
        answer.unwrap();
        assert!(!actions.iter().any(|a| matches!(a, Action::Commit { .. })));
    }
    assert_eq!(run.message(), "training; waiting for 1 of 2 shards to report their part of step 20: shard 0");
    let (_, actions) = run.upload(S0, 20);
    assert!(actions.contains(&Action::Commit { step: Step(20) }));
    assert_eq!(run.message(), "training; committing step 20");
    // Said again while the commit is under way, and after it.
    assert!(!run.upload(S0, 20).1.contains(&Action::Commit { step: Step(20) }));
    let actions = run.apply(Event::CommitDone { step: Step(20), result: Ok(()) });
    assert_eq!(directives(&actions), vec![&Directive::Committed { step: Step(20) }; 4]);
    assert!(actions.contains(&Action::Record(Record::Committed(Step(20)))));
    run.upload(W0, 20).0.unwrap();
    assert_eq!(run.state.last_commit(), Some(Step(20)));
}

#[test]
fn commits_ascend_and_a_later_step_overtakes() {
    let mut run = Run::running();
    for who in [W0, W1, S0] {
        run.upload(who, 20).0.unwrap();
    }
    for who in ALL {
        run.upload(who, 40).0.unwrap();
    }
    run.upload(S1, 20).0.unwrap();
    run.apply(Event::CommitDone { step: Step(40), result: Ok(()) });
    assert_eq!(run.state.last_commit(), Some(Step(40)));
    assert!(run.apply(Event::CommitDone { step: Step(20), result: Ok(()) }).len() == 1, "a line in the log");
    assert_eq!(run.state.last_commit(), Some(Step(40)));
}

#[test]
fn parts_that_cannot_be_are_refused() {
    let mut run = Run::running();
    assert!(run.upload(W0, 61).0.unwrap_err().contains("61"));
    let (member, generation) = (run.id(W0), Generation::of_attempt(2));
    let (answer, _) =
        run.call(|ticket| Event::Upload { ticket, member, generation, step: Step(20), uploaded: WRITTEN });
    assert!(
        matches!(answer, Ok(Reply::Later(why)) if why.contains("of generation 2.0, the active one is 3.0"))
    );
    let (member, generation) = (MemberId(900), Generation::of_attempt(3));
    let (answer, _) =
        run.call(|ticket| Event::Upload { ticket, member, generation, step: Step(20), uploaded: WRITTEN });
    assert!(answer.is_err());
    for step in 1..=8 {
        run.upload(W0, step).0.unwrap();
    }
    assert!(run.upload(W0, 9).0.unwrap_err().contains("too far ahead"));
}

#[test]
fn a_commit_that_fails_fails_the_run_with_its_reason() {
    let mut run = Run::running();
    for who in ALL {
        run.upload(who, 20).0.unwrap();
    }
    let result = Err("tensor lm_head.weight is missing".to_owned());
    let actions = run.apply(Event::CommitDone { step: Step(20), result });
    assert_eq!(run.message(), "step 20 could not be committed: tensor lm_head.weight is missing");
    assert_eq!(directives(&actions).len(), 4);
    assert_eq!(run.culprit(), None);
    assert_eq!(run.state.last_commit(), None);
}

#[test]
fn completed_after_the_final_commit_and_not_before() {
    let mut run = Run::running();
    for who in [W0, W1, S0] {
        run.upload(who, 60).0.unwrap();
    }
    run.finish(60);
    assert_eq!(run.state.run_state(), RunState::Running);
    assert!(run.message().contains("shard 1"), "{}", run.message());
    run.upload(S1, 60).0.unwrap();
    assert_eq!(run.message(), "committing the last step, 60; all parts are here");
    let actions = run.apply(Event::CommitDone { step: Step(60), result: Ok(()) });
    assert_eq!(run.state.run_state(), RunState::Completed);
    assert_eq!(run.message(), "all 60 steps done and committed");
    let exits = directives(&actions).into_iter().filter(|d| **d == Directive::Exit).count();
    assert_eq!(exits, 4);
    for who in [W0, S0, W1] {
        assert_eq!(end(&run.ended(who)), None);
    }
    assert_eq!(end(&run.ended(S1)), Some(Outcome::Good));
}

#[test]
fn a_finished_worker_may_leave_early_if_its_part_is_here() {
    let mut run = Run::running();
    for who in [W0, W1, S0] {
        run.upload(who, 60).0.unwrap();
    }
    run.finish(60);
    run.ended(W0);
    assert_eq!(run.state.run_state(), RunState::Running);
    run.upload(S1, 60).0.unwrap();
    run.apply(Event::CommitDone { step: Step(60), result: Ok(()) });
    assert_eq!(run.state.run_state(), RunState::Completed);

    let mut run = Run::running();
    run.finish(60);
    run.ended(W0);
    assert_eq!(run.culprit(), Some(W0));
    assert!(run.message().contains("without reporting its part of step 60"), "{}", run.message());
}

#[test]
fn metrics_are_rank_zeros_in_order_and_once() {
    let mut run = Run::running();
    let recorded = |actions: Vec<Action>| actions.iter().filter(|a| matches!(a, Action::Record(_))).count();
    assert_eq!(recorded(run.report(W0, MemberReport::Metrics(metrics(0, f64::NAN)))), 1);
    assert_eq!(recorded(run.report(W0, MemberReport::Metrics(metrics(0, 1.0)))), 0);
    assert_eq!(recorded(run.report(W1, MemberReport::Metrics(metrics(1, 1.0)))), 0);
    assert_eq!(recorded(run.report(S0, MemberReport::Metrics(metrics(1, 1.0)))), 0);
    assert_eq!(recorded(run.report(W0, MemberReport::Metrics(metrics(1, 2.5)))), 1);
    let of = |set: &str| Evaluation { step: Step(2), set: set.into(), loss: 3.0, tokens: 64 };
    for set in ["wiki", "code"] {
        assert_eq!(recorded(run.report(W0, MemberReport::Evaluation(of(set)))), 1);
        assert_eq!(recorded(run.report(W0, MemberReport::Evaluation(of(set)))), 0);
    }
    assert_eq!(recorded(run.report(W0, MemberReport::Evaluation(of("other")))), 0, "no set of the run");
    let status = run.state.status(run.now);
    assert_eq!(status.step, Step(2));
    assert_eq!(status.last_metrics.map(|m| m.loss), Some(2.5));
    assert_eq!(status.evaluations, [of("code"), of("wiki")]);
}

/// Restoring says how far it is, but not with every heartbeat: each message is a status for everybody who watches.
#[test]
fn restoring_says_what_is_read_every_five_seconds() {
    let mut run = Run::new(settings());
    for who in ALL {
        run.join(who).unwrap();
    }
    for who in ALL {
        run.attend(who).unwrap();
    }
    let heartbeat = |restored_bytes| {
        MemberReport::Heartbeat(Heartbeat {
            step: Step(0),
            phase: Phase::Restoring,
            restored_bytes,
            store_wait: None,
        })
    };
    assert_eq!(run.state.run_state(), RunState::Restoring);
    run.report(W0, heartbeat(1 << 30));
    assert!(!run.message().contains("are read"), "{}", run.message());
    run.now.0 += 5_000;
    run.report(W1, heartbeat(1 << 29));
    assert!(run.message().ends_with("; 1.50 GiB of the checkpoint are read"), "{}", run.message());
    run.now.0 += 1_000;
    run.report(W1, heartbeat(1 << 30));
    assert!(run.message().contains("1.50 GiB"), "{}", run.message());
}
