//! The operator ends the run.

use super::*;

#[test]
fn stopped_at_the_step_that_was_asked_for() {
    let mut run = Run::new(Settings { last_step: 30, ..settings() });
    run.start();
    run.commit(30);
    run.finish(30);
    assert_eq!(run.state.run_state(), RunState::Stopped);
    assert_eq!(run.state.status(run.now).reason, Reason::StopAtStep);
}

#[test]
fn a_stop_commits_first() {
    let mut run = Run::running();
    let stop = |mode, reason: &str| {
        let reason = reason.to_owned();
        move |ticket| Event::Stop { ticket, mode, reason }
    };
    let (_, actions) = run.call(stop(StopMode::Commit, "enough"));
    assert_eq!(directives(&actions), vec![&Directive::Stop { reason: "enough".into() }; 4]);
    assert_eq!(run.state.status(run.now).reason, Reason::Stopping);
    let (answer, actions) = run.call(stop(StopMode::Commit, "enough"));
    assert_eq!(answer, Ok(Reply::Stopping("the run is stopping already".into())));
    assert!(directives(&actions).is_empty());
    run.commit(13);
    run.finish(13);
    assert_eq!(run.state.run_state(), RunState::Stopped);
    assert_eq!(run.message(), "stopped at step 13 of 60, committed: enough");
}

#[test]
fn a_stop_that_meets_the_end_completes_the_run() {
    let mut run = Run::running();
    run.apply(Event::Interrupt { reason: "SIGTERM".into() });
    run.commit(60);
    run.finish(60);
    assert_eq!(run.state.run_state(), RunState::Completed);
}

#[test]
fn the_second_interrupt_aborts_and_the_third_does_not_wait() {
    let mut run = Run::running();
    run.commit(20);
    run.apply(Event::Interrupt { reason: "SIGINT".into() });
    assert_eq!(run.state.run_state(), RunState::Running);
    let actions = run.apply(Event::Interrupt { reason: "SIGINT".into() });
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert_eq!(run.message(), "aborted: SIGINT for the second time; the newest committed step is 20");
    assert_eq!(directives(&actions).len(), 4);
    assert_eq!(end(&actions), None);
    assert_eq!(end(&run.apply(Event::Interrupt { reason: "SIGINT".into() })), Some(Outcome::Bad));
}

#[test]
fn a_stop_before_the_start_ends_at_once() {
    for members in 0..4 {
        let mut run = Run::new(settings());
        for who in &ALL[..members] {
            run.join(*who).unwrap();
            run.attend(*who).unwrap();
        }
        let actions = run.apply(Event::Interrupt { reason: "SIGINT".into() });
        assert_eq!(run.state.run_state(), RunState::Stopped);
        assert_eq!(directives(&actions), vec![&Directive::Exit; members]);
        assert_eq!(end(&actions), (members == 0).then_some(Outcome::Good));
    }
}

#[test]
fn a_stop_waits_for_its_commit_no_longer_than_it_may() {
    let mut run = Run::new(Settings { stop_grace_ms: Some(4_000), ..settings() });
    run.start();
    run.commit(20);
    run.apply(Event::Interrupt { reason: "SIGTERM".into() });
    run.pass(3_900, &[]);
    assert_eq!(run.state.run_state(), RunState::Running);
    let actions = run.pass(200, &[]);
    assert_eq!(run.state.run_state(), RunState::Stopped);
    assert!(run.message().contains("4.0 s (run.stop_grace_seconds)"), "{}", run.message());
    assert!(run.message().contains("goes on from step 20"), "{}", run.message());
    assert!(directives(&actions).iter().all(|directive| matches!(directive, Directive::Abort(_))));
    assert_eq!(directives(&actions).len(), 4);
}

#[test]
fn a_commit_within_the_grace_ends_the_run_as_ever() {
    let mut run = Run::new(Settings { stop_grace_ms: Some(4_000), ..settings() });
    run.start();
    run.apply(Event::Interrupt { reason: "SIGTERM".into() });
    run.pass(3_000, &[]);
    run.commit(13);
    run.finish(13);
    run.pass(3_000, &[]);
    assert_eq!(run.message(), "stopped at step 13 of 60, committed: SIGTERM");
}

#[test]
fn a_loss_while_stopping_ends_the_run_where_it_was_last_committed() {
    let mut run = Run::new(Settings {
        recovery: RecoverySpec { max_restarts: 5, ..settings().recovery },
        ..settings()
    });
    run.start();
    run.commit(20);
    run.apply(Event::Interrupt { reason: "SIGTERM".into() });
    run.ended(ALL[1]);
    assert_eq!(run.state.run_state(), RunState::Stopped, "{}", run.message());
    assert!(run.message().contains("goes on from step 20"), "{}", run.message());
}
