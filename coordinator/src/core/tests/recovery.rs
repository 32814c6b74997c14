//! Losses after which the run is rolled back, and those after which it is not.

use super::*;

fn recovering() -> Run {
    let mut settings = settings();
    settings.recovery.max_restarts = 10;
    let mut run = Run::new(settings);
    run.start();
    run
}

impl Run {
    fn told(&mut self, step: u64) {
        self.report(W0, MemberReport::Metrics(metrics(step, 1.0)));
    }
}

#[test]
fn a_loss_sends_everybody_back_to_the_newest_commit() {
    let mut run = recovering();
    run.commit(20);
    run.told(24);
    let before = run.state.generation();
    let actions = run.ended(S1);
    assert_eq!(run.state.run_state(), RunState::Recovering);
    assert!(
        run.message().starts_with("rolling back to step 20, restart 1 of 10: shard 1"),
        "{}",
        run.message()
    );
    assert_eq!(run.state.generation(), before.next());
    let told: Vec<_> = directives(&actions);
    assert_eq!(told.len(), 3, "all that are left");
    for directive in told {
        let Directive::Abort(Abort { kind: AbortKind::Rejoin { generation }, culprit, .. }) = directive
        else {
            panic!("{directive:?}")
        };
        assert_eq!((*generation, culprit.as_ref().unwrap().member), (before.next(), S1));
    }
    for who in ALL {
        run.join(who).unwrap();
    }
    let mut assigned = Vec::new();
    for who in ALL {
        assigned.extend(run.attend(who).unwrap());
    }
    let resumed = assigned.iter().find_map(|action| match action {
        Action::Direct { directive: Directive::Assign(assignment), .. } => Some(assignment.resume_step),
        _ => None,
    });
    assert_eq!(resumed, Some(Step(20)));
    assert!(assigned.contains(&Action::Record(Record::ResumedAt(Step(20)))));
    for who in ALL {
        run.ready(who);
    }
    let status = run.state.status(run.now);
    assert_eq!((status.state, status.restarts, status.resume_step), (RunState::Running, 1, Step(20)));
    assert_eq!((status.culprit, status.last_rollback.unwrap().culprit.member), (None, S1));
}

#[test]
fn a_commit_under_way_is_the_place_to_go_back_to() {
    let mut run = recovering();
    for who in ALL {
        run.upload(who, 20).0.unwrap();
    }
    run.ended(W1);
    for who in ALL {
        run.join(who).unwrap();
        run.attend(who).unwrap();
    }
    assert_eq!(run.state.run_state(), RunState::Recovering);
    assert!(run.message().contains("waiting for the commit of step 20"), "{}", run.message());
    run.apply(Event::CommitDone { step: Step(20), result: Ok(()) });
    assert_eq!((run.state.run_state(), run.state.resume_step()), (RunState::Restoring, Step(20)));
}

#[test]
fn a_loss_behind_the_last_commit_does_not_repeat_it() {
    let mut run = recovering();
    for who in ALL {
        run.upload(who, 60).0.unwrap();
    }
    run.ended(S0);
    run.apply(Event::CommitDone { step: Step(60), result: Ok(()) });
    assert_eq!(run.state.run_state(), RunState::Completed);
    assert_eq!(run.culprit(), None);
}

#[test]
fn the_former_generation_is_refused_by_name() {
    let mut run = recovering();
    let (member, generation) = (run.id(W1), run.state.generation());
    run.ended(S1);
    let (answer, _) =
        run.call(|ticket| Event::Upload { ticket, member, generation, step: Step(20), uploaded: WRITTEN });
    assert!(
        matches!(&answer, Ok(Reply::Later(why)) if why.contains("the part of worker 1 is of generation 3.0"))
    );
    let (answer, _) = run.call(|ticket| Event::Attend { ticket, member, generation });
    assert!(matches!(&answer, Ok(Reply::Later(why)) if why.contains("join again")), "{answer:?}");
    let before = run.state.status(run.now);
    run.apply(Event::StreamEnded { member, message: "late".into() });
    let report = MemberReport::Finished { step: Step(60) };
    run.apply(Event::Report(Envelope { member, generation, report }));
    assert_eq!(run.state.status(run.now), before);
    // Its last words are kept as what they are.
    let failure = Failure {
        message: "shard 1 is gone".into(),
        step: Step(3),
        phase: Phase::Lookup,
        suspect: None,
        roll_back: false,
        damaged: None,
        kind: FailureKind::Program,
    };
    run.apply(Event::Report(Envelope { member, generation, report: MemberReport::Failed(failure) }));
    assert_eq!(run.state.status(run.now).consequences, ["worker 1: shard 1 is gone"]);
}

#[test]
fn a_successor_waits_for_the_end_of_the_one_before_it() {
    let mut run = recovering();
    let request = JoinRequest { incarnation: Incarnation(99), ..run.request(W0) };
    let (answer, _) = run.call(|ticket| Event::Join { ticket, request: request.clone() });
    assert!(matches!(&answer, Ok(Reply::Later(why)) if why.contains("taken by pid")), "{answer:?}");
    run.ended(W0);
    let (answer, _) = run.call(|ticket| Event::Join { ticket, request });
    assert!(matches!(answer, Ok(Reply::Admitted { .. })), "{answer:?}");
}

#[test]
fn the_same_failure_at_the_same_step_ends_the_run() {
    let mut run = recovering();
    run.told(6);
    run.fail(W1, "rank 1 at port 4711: not finite", None);
    assert_eq!(run.state.run_state(), RunState::Recovering);
    run.start();
    run.told(6);
    run.fail(W0, "rank 0 at port 4712: not finite", None);
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert!(run.message().contains("this failure came at step 7 before"), "{}", run.message());
}

/// A cut link is no bug of the program: the run tries again, ever more slowly, and goes on where it heals.
#[test]
fn a_failing_environment_is_tried_again_at_the_same_step() {
    let mut run = recovering();
    run.told(6);
    for outage in 0..8 {
        run.fail_with((W1, None), "worker 1 hears nothing from shard 0 for 3.0 s", FailureKind::Timeout);
        assert_eq!(run.state.run_state(), RunState::Recovering, "outage {outage}: {}", run.message());
        assert_eq!(run.state.status(run.now).last_rollback.unwrap().reason, Reason::EnvironmentFailed);
        run.apply(Event::Tick);
        let waits = run.message().contains("pausing");
        assert_eq!(waits, outage > 0, "outage {outage}: {}", run.message());
        run.now = run.now.after(120_000);
        run.start();
        run.told(6);
    }
    // A failure of the program's own is one all the same.
    run.fail(W1, "not finite", None);
    run.now = run.now.after(120_000);
    run.start();
    run.told(6);
    run.fail(W1, "not finite", None);
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert!(run.message().contains("this failure came at step 7 before"), "{}", run.message());
}

/// The same while a commit is restored: the commit is not looked at, and the run waits for its environment.
#[test]
fn a_commit_stays_where_the_environment_fails_while_it_is_restored() {
    for kind in [FailureKind::Connect, FailureKind::Timeout, FailureKind::Reset, FailureKind::Store] {
        let mut run = recovering();
        run.commit(20);
        run.ended(S1);
        for outage in 0..6 {
            run.now = run.now.after(120_000);
            for who in ALL {
                run.join(who).unwrap();
                run.attend(who).unwrap();
            }
            assert_eq!((run.state.run_state(), run.state.resume_step()), (RunState::Restoring, Step(20)));
            let actions = run.fail_with((S1, None), "x", kind);
            let looks = actions.iter().any(|action| matches!(action, Action::ResolveRollback { .. }));
            assert!(!looks, "{kind:?}: {actions:?}");
            let status = run.state.status(run.now);
            assert_eq!(status.state, RunState::Recovering, "{kind:?}, outage {outage}: {}", run.message());
            assert_eq!(status.last_rollback.unwrap().reason, Reason::EnvironmentFailed);
            assert!(status.set_aside.is_empty() && status.last_commit == Some(Step(20)));
        }
    }
}

/// A process that is told to end twice at the same step has not failed twice.
#[test]
fn a_signal_is_no_failure_of_the_program() {
    let mut run = recovering();
    for _ in 0..3 {
        run.fail_with((W1, None), "ended by a signal", FailureKind::Signal);
        assert_eq!(run.state.run_state(), RunState::Recovering, "{}", run.message());
        run.now = run.now.after(120_000);
        run.start();
    }
}

#[test]
fn restarts_without_progress_slow_down_and_end() {
    let mut run = recovering();
    for restart in 0..3 {
        run.ended(W0);
        assert_eq!(run.state.run_state(), RunState::Recovering, "restart {restart}");
        if restart < 2 {
            run.start();
        }
    }
    for who in ALL {
        run.join(who).unwrap();
    }
    assert!(run.message().contains("2 restarts came no further, pausing 1.0 s"), "{}", run.message());
    run.pass(1_000, &ALL);
    assert_eq!(run.state.run_state(), RunState::Rendezvous);
    for who in ALL {
        run.attend(who).unwrap();
    }
    run.ended(W0);
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert!(run.message().contains("2 restarts in a row came no further than step 0"), "{}", run.message());
}

#[test]
fn progress_forgives_and_the_number_of_restarts_counts() {
    let mut run = recovering();
    for restart in 0..10 {
        run.told(restart);
        run.ended(W0);
        run.start();
    }
    run.told(20);
    run.ended(W0);
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert!(
        run.message().contains("recovery.max_restarts = 10 is used up (10 restarts so far)"),
        "{}",
        run.message()
    );
}

#[test]
fn a_host_that_fails_again_and_again_is_kept_out_where_there_is_another() {
    let join = |run: &mut Run, who: MemberRef, host: &str| {
        let request = JoinRequest { host: host.into(), ..run.request(who) };
        run.call(|ticket| Event::Join { ticket, request }).0
    };
    for (other, refused) in [("good", true), ("bad", false)] {
        let mut settings = settings();
        settings.recovery.max_restarts = 10;
        let mut run = Run::new(settings);
        for _ in 0..2 {
            join(&mut run, W1, other).unwrap();
            join(&mut run, W0, "bad").unwrap();
            run.attend(W0).unwrap();
            run.ended(W0);
        }
        let answer = join(&mut run, W0, "bad");
        let is_refused = matches!(&answer, Ok(Reply::Later(why)) if why.contains("host bad is kept out"));
        assert_eq!(is_refused, refused, "{answer:?}");
    }
}

#[test]
fn a_stop_is_not_held_up_by_a_recovery() {
    let mut run = recovering();
    run.commit(20);
    run.ended(W0);
    run.apply(Event::Interrupt { reason: "SIGTERM".into() });
    assert_eq!(run.state.run_state(), RunState::Stopped);
    assert_eq!(run.message(), "stopped while recovering: SIGTERM; the newest committed step is 20");
}
