//! What a status says of a run whose next step does not come.

use super::*;

fn heartbeat(run: &mut Run, who: MemberRef, phase: Phase) {
    let heartbeat = Heartbeat { step: Step(1), phase, restored_bytes: 0, store_wait: None };
    run.report(who, MemberReport::Heartbeat(heartbeat));
}

fn waiting_for(run: &Run) -> Option<String> {
    run.state.status(run.now).stall.map(|stall| stall.waiting_for)
}

#[test]
fn a_step_that_takes_longer_than_its_like_is_a_stall_and_the_slowest_worker_is_named() {
    let mut run = Run::new(settings());
    run.pass(60_000, &[]);
    assert_eq!(waiting_for(&run), None, "no step is due");
    run.start();
    run.report(W0, MemberReport::Metrics(StepMetrics { seconds: 2.0, ..metrics(0, 1.0) }));
    run.pass(5_500, &[]);
    assert_eq!(waiting_for(&run), None, "three times 2 s are not over");
    run.pass(500, &[]);
    let stall = run.state.status(run.now).stall.unwrap();
    assert_eq!(stall.no_step_ms, 6_000);
    for (first, second, named) in [
        (Phase::Reducing, Phase::Computing, "worker 1 (computing at step 1)"),
        (Phase::Evaluating, Phase::Lookup, "worker 0 (evaluating at step 1)"),
        (Phase::Lookup, Phase::Lookup, "worker 0 (lookup at step 1)"),
    ] {
        heartbeat(&mut run, W0, first);
        heartbeat(&mut run, W1, second);
        assert_eq!(waiting_for(&run).as_deref(), Some(named));
    }
    run.report(W0, MemberReport::Metrics(metrics(1, 1.0)));
    assert_eq!(waiting_for(&run), None, "a step came");
}

#[test]
fn a_silent_member_a_named_link_and_the_store_come_first() {
    let mut run = Run::running();
    run.pass(3_500, &[S1]);
    assert_eq!(waiting_for(&run).as_deref(), Some("shard 1 (starting at step 0), silent for 3.5 s"));
    run.fail(W1, "worker 1 hears nothing from shard 0 for 3.0 s", Some(S0));
    let link = "shard 0, reported by worker 1: worker 1 hears nothing from shard 0 for 3.0 s";
    assert_eq!(waiting_for(&run).as_deref(), Some(link));
    run.apply(Event::StoreWait { sentence: Some("the store has no room".into()) });
    assert_eq!(waiting_for(&run).as_deref(), Some("the store: the store has no room"));
}

#[test]
fn a_run_that_recovers_waits_for_its_members_or_its_pause() {
    let mut settings = settings();
    settings.recovery.max_restarts = 9;
    let mut run = Run::new(settings);
    run.start();
    run.pass(3_000, &[]);
    run.ended(W1);
    assert_eq!(waiting_for(&run).as_deref(), Some("worker 0, worker 1, shard 0, shard 1 to join"));
    run.join(W0).unwrap();
    run.join(S1).unwrap();
    assert_eq!(waiting_for(&run).as_deref(), Some("worker 1, shard 0 to join"));
    run.join(W1).unwrap();
    run.join(S0).unwrap();
    let streams = "worker 0, worker 1, shard 0, shard 1 to open a stream";
    assert_eq!(waiting_for(&run).as_deref(), Some(streams));
    for who in ALL {
        run.attend(who).unwrap();
    }
    run.ready(W0);
    assert_eq!(waiting_for(&run).as_deref(), Some("worker 1, shard 0, shard 1 to be ready"));
    // Two more losses without a step between them: the next one has a pause.
    for _ in 0..2 {
        run.ended(S0);
        for who in ALL {
            run.join(who).unwrap();
        }
        for who in ALL {
            run.attend(who).unwrap_or_default();
        }
    }
    let text = waiting_for(&run).unwrap();
    assert!(text.starts_with("the pause after the last loss: shard 0"), "{text}");
}

#[test]
fn a_run_that_is_over_waits_for_nothing() {
    let mut run = Run::running();
    run.pass(9_000, &[]);
    assert!(waiting_for(&run).is_some());
    run.ended(W0);
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert_eq!(waiting_for(&run), None);
}
