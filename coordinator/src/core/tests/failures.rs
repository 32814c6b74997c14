//! Who is to blame.

use super::*;

#[test]
fn a_lost_member_ends_the_run_by_name() {
    let mut run = Run::running();
    run.report(
        S1,
        MemberReport::Heartbeat(Heartbeat {
            step: Step(12),
            phase: Phase::Serving,
            restored_bytes: 0,
            store_wait: None,
        }),
    );
    let actions = run.ended(S1);
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert_eq!(run.message(), "shard 1 (pid 41) at step 12 while serving: connection reset");
    let aborts = directives(&actions);
    assert_eq!(aborts.len(), 3, "everybody who is left aborts");
    for abort in aborts {
        let Directive::Abort(Abort { reason, culprit, kind: AbortKind::End }) = abort else {
            panic!("{abort:?}")
        };
        assert_eq!(reason, run.message());
        assert_eq!(culprit.as_ref().map(|c| (c.member, c.pid, c.step)), Some((S1, 41, Step(12))));
    }
    // The rest leaves, failing: consequences, in order, and then the end.
    run.fail(W1, "shard 1 closed the connection", Some(S1));
    for who in [W0, S0] {
        assert_eq!(end(&run.ended(who)), None);
    }
    assert_eq!(end(&run.ended(W1)), Some(Outcome::Bad));
    let status = run.state.status(run.now);
    assert_eq!(status.culprit.map(|c| c.member), Some(S1));
    assert_eq!(status.consequences, ["worker 1: shard 1 closed the connection"]);
}

#[test]
fn members_that_do_not_leave_are_not_waited_for_long() {
    let mut run = Run::running();
    run.ended(S1);
    assert_eq!(end(&run.pass(9_500, &[])), None);
    assert_eq!(end(&run.pass(1_000, &[])), Some(Outcome::Bad));
    assert_eq!(end(&run.pass(60_000, &[])), None, "the end comes once");
}

#[test]
fn a_reported_failure_ends_the_run_at_once() {
    let mut run = Run::running();
    let actions = run.fail(W1, "loss is not finite", None);
    assert_eq!(run.message(), "worker 1 (pid 41) at step 7 while computing: loss is not finite");
    assert_eq!(run.state.status(run.now).reason, Reason::MemberFailed);
    assert_eq!(directives(&actions).len(), 4);
}

#[test]
fn a_witness_is_not_the_culprit() {
    let mut run = Run::running();
    run.fail(W0, "shard 1 reset the connection", Some(S1));
    assert_eq!(run.state.run_state(), RunState::Running, "the verdict waits for the suspect");
    run.fail(W1, "rank 0 left the collective", Some(W0));
    run.ended(S1);
    assert_eq!(run.culprit(), Some(S1));
    let consequences = run.state.status(run.now).consequences;
    assert_eq!(consequences.len(), 2, "{consequences:?}");
}

#[test]
fn suspicion_is_handed_on_to_the_first_cause() {
    let mut run = Run::running();
    run.fail(W1, "rank 0 left the collective", Some(W0));
    run.fail(W0, "shard 0 reset the connection", Some(S0));
    run.pass(500, &[]);
    run.fail(S0, "record arena is full", None);
    assert_eq!(run.culprit(), Some(S0));
}

/// Worker 1 hears nothing from shard 0 and closes its connections; worker 0 notices that, and reports it first.
#[test]
fn a_cut_link_is_named_whoever_reports_first() {
    let cut = "worker 1 hears nothing from shard 0 for 10.0 s";
    let closed = "rank 0 lost rank 1: it closed the connection";
    // How long after worker 0 worker 1 reports, and whether both are heard before the run is judged.
    for (late_ms, is_heard) in [(0, true), (1_000, true), (3_500, true), (6_000, false)] {
        let mut run = Run::running();
        run.fail_with((W0, Some(W1)), closed, FailureKind::Reset);
        run.pass(late_ms, &[]);
        if is_heard {
            assert_eq!(run.state.run_state(), RunState::Running, "{late_ms}");
            run.fail_with((W1, Some(S0)), cut, FailureKind::Timeout);
            run.pass(2_000, &[]);
        }
        let status = run.state.status(run.now);
        assert_eq!((status.state, status.reason), (RunState::Failed, Reason::EnvironmentFailed));
        let culprit = status.culprit.unwrap();
        let (who, message, secondary) = match is_heard {
            true => (W1, cut, vec![format!("worker 0: {closed}")]),
            false => (W0, closed, Vec::new()),
        };
        assert!(culprit.member == who && culprit.message.starts_with(message), "{late_ms}: {culprit:?}");
        assert_eq!(status.consequences, secondary, "{late_ms}");
    }
}

#[test]
fn a_suspect_that_lives_on_leaves_the_witness_to_blame() {
    let mut run = Run::running();
    run.fail(W0, "shard 1 sent nonsense", Some(S1));
    run.pass(3_000, &[]);
    assert_eq!(run.culprit(), Some(W0));
    assert!(run.message().contains("shard 1 sent nonsense (it blames shard 1)"), "{}", run.message());
}

#[test]
fn silence_is_measured_and_the_longest_silent_is_to_blame() {
    let mut run = Run::running();
    run.pass(2_000, &[S0]);
    run.pass(7_900, &[S0, W1]);
    assert_eq!(run.state.run_state(), RunState::Running);
    run.pass(1_000, &[S0, W1]);
    assert_eq!(run.culprit(), Some(S0));
    assert_eq!(run.state.status(run.now).reason, Reason::MemberSilent);
    assert!(run.message().contains("no sign of life for 10."), "{}", run.message());
}

#[test]
fn the_coordinators_own_pause_is_nobodys_silence() {
    let mut run = Run::running();
    run.pass(1_000, &[]);
    run.now = run.now.after(300_000);
    run.apply(Event::Tick);
    assert_eq!(run.state.run_state(), RunState::Running);
    run.pass(8_000, &[W1]);
    assert_eq!(run.state.run_state(), RunState::Running);
    run.pass(3_000, &[W1]);
    assert_eq!(run.culprit(), Some(W1));
}

#[test]
fn protocol_breakers_are_named() {
    type Breach = fn(&mut Run);
    let cases: [(&str, MemberRef, Breach); 4] = [
        ("only workers do", S0, |run| {
            run.report(S0, MemberReport::Finished { step: Step(60) });
        }),
        ("finished at step 41, but worker 0 finished at step 40", W1, |run| {
            run.report(W0, MemberReport::Finished { step: Step(40) });
            run.report(W1, MemberReport::Finished { step: Step(41) });
        }),
        ("finished at step 99", W0, |run| {
            run.report(W0, MemberReport::Finished { step: Step(99) });
        }),
        ("acknowledged assignment", W1, |run| {
            let other = polygram_domain::control::AssignmentHash([9; 32]);
            run.report(W1, MemberReport::Ready { assignment: other });
        }),
    ];
    for (words, culprit, breach) in cases {
        let mut run = Run::running();
        breach(&mut run);
        assert_eq!(run.culprit(), Some(culprit), "{words}");
        assert!(run.message().contains(words), "{}", run.message());
        assert_eq!(run.state.status(run.now).reason, Reason::ProtocolBroken);
    }
}

#[test]
fn a_store_that_fails_fails_the_run() {
    let mut run = Run::running();
    run.apply(Event::StoreFailed { message: "the run cannot be recorded: disk full".into() });
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert_eq!(run.state.status(run.now).reason, Reason::StoreFailed);
}
