//! Joining, attending, the table and the start.

use super::*;

#[test]
fn waiting_reasons_are_plain_words() {
    let mut run = Run::new(settings());
    assert_eq!(run.state.run_state(), RunState::Pending);
    assert_eq!(
        run.message(),
        "waiting for 2 of 2 workers: worker 0, worker 1 and 2 of 2 shards: shard 0, shard 1"
    );
    for (who, words) in [
        (W1, "waiting for 1 of 2 workers: worker 0 and 2 of 2 shards: shard 0, shard 1"),
        (W0, "waiting for 2 of 2 shards: shard 0, shard 1"),
        (S0, "waiting for 1 of 2 shards: shard 1"),
    ] {
        run.join(who).unwrap();
        assert_eq!(run.state.run_state(), RunState::Admitting);
        assert_eq!(run.message(), words);
    }
    run.join(S1).unwrap();
    assert_eq!(run.state.run_state(), RunState::Rendezvous);
    for who in [W0, W1, S1] {
        run.attend(who).unwrap();
    }
    assert_eq!(run.message(), "waiting for 1 of 2 shards to attend: shard 0");
    run.attend(S0).unwrap();
    assert_eq!(run.state.run_state(), RunState::Restoring);
    for who in [S0, S1, W1] {
        run.ready(who);
    }
    assert_eq!(run.message(), "waiting for 1 of 2 workers to be ready: worker 0");
    run.ready(W0);
    assert_eq!(run.message(), "training from step 0 to step 60");
}

#[test]
fn everybody_gets_the_same_table_and_one_start() {
    let mut settings = settings();
    settings.resume = Some(Resume::at(Step(20)));
    settings.committed = Some(Step(20));
    let mut run = Run::new(settings);
    for who in ALL {
        run.join(who).unwrap();
    }
    let mut actions = Vec::new();
    for who in ALL {
        actions = run.attend(who).unwrap();
    }
    let expected = Assignment {
        generation: Generation::of_attempt(3),
        workers: vec![address(W0), address(W1)],
        shards: vec![address(S0), address(S1)],
        resume_step: Step(20),
        resume_manifest: Some("ckpt/commit/000000000020.json".into()),
        resume_kind: CheckpointKind::Commit,
        left_out: Default::default(),
        ways_back: Vec::new(),
    };
    assert_eq!(directives(&actions), vec![&Directive::Assign(expected); 4]);
    // Said twice counts once.
    for who in [W0, W0, W0, W0, W1, S0] {
        assert!(directives(&run.ready(who)).is_empty());
    }
    assert_eq!(directives(&run.ready(S1)), vec![&Directive::Start; 4]);
    assert!(directives(&run.ready(S1)).is_empty());
}

#[test]
fn the_wrong_ones_are_refused_in_one_sentence() {
    let mut run = Run::new(settings());
    let mut refused = |request: JoinRequest| {
        let answer = run.call(|ticket| Event::Join { ticket, request }).0;
        answer.unwrap_err()
    };
    let request = |member| Run::new(settings()).request(member);
    let other_schema = JoinRequest { schema_version: 9, ..request(S1) };
    let sentence = refused(other_schema);
    assert!(sentence.contains('9') && sentence.contains(&SCHEMA_VERSION.to_string()), "{sentence}");
    let far = MemberRef { role: Role::Shard, index: 2 };
    assert!(refused(request(far)).contains("topology.shards is 2"));
    let far = MemberRef { role: Role::Worker, index: u32::MAX };
    assert!(refused(request(far)).contains("topology.workers is 2"));

    run.join(W0).unwrap();
    let twin = JoinRequest { incarnation: Incarnation(99), ..run.request(W0) };
    let sentence = run.call(|ticket| Event::Join { ticket, request: twin }).0.unwrap_err();
    assert!(sentence.contains("worker 0 is taken by pid 40"), "{sentence}");
    assert_eq!(run.state.membership.len(), 1);
}

#[test]
fn joining_again_with_one_incarnation_is_one_admission() {
    let mut run = Run::new(settings());
    let first = run.join(W0).unwrap();
    assert_eq!(run.join(W0).unwrap(), first);
    run.attend(W0).unwrap();
    assert_eq!(run.join(W0).unwrap(), first);
    assert!(run.attend(W0).unwrap_err().contains("attends already"));
    let member = MemberId(77);
    let (answer, _) =
        run.call(|ticket| Event::Attend { ticket, member, generation: Generation::of_attempt(3) });
    assert!(answer.unwrap_err().contains("join first"));
}

#[test]
fn nobody_enters_a_run_that_is_over() {
    let mut run = Run::running();
    run.ended(S1);
    let (answer, _) = {
        let request = run.request(S1);
        run.call(|ticket| Event::Join { ticket, request })
    };
    assert!(answer.unwrap_err().contains("the run is over: shard 1"));
    assert!(run.upload(W0, 20).0.unwrap_err().contains("failed"));
}

#[test]
fn a_member_that_never_attends_is_found() {
    let mut run = Run::new(settings());
    run.join(S0).unwrap();
    run.pass(10_500, &[S0]);
    assert_eq!(run.culprit(), Some(S0));
    assert!(run.message().contains("never attended"), "{}", run.message());
}

#[test]
fn strangers_and_the_past_change_nothing() {
    let mut run = Run::running();
    let before = run.state.status(run.now);
    let failure = Failure {
        message: "x".into(),
        step: Step(0),
        phase: Phase::Starting,
        suspect: None,
        roll_back: false,
        damaged: None,
        kind: FailureKind::Program,
    };
    let member = run.id(W0);
    let report = MemberReport::Failed(failure);
    for (member, generation) in [
        (member, Generation::of_attempt(2)),
        (member, Generation::of_attempt(4)),
        (MemberId(50), Generation::of_attempt(3)),
    ] {
        run.apply(Event::Report(Envelope { member, generation, report: report.clone() }));
    }
    run.apply(Event::StreamEnded { member: MemberId(50), message: "gone".into() });
    assert_eq!(run.state.status(run.now), before);
}

#[test]
fn a_run_that_is_done_is_over_from_the_start() {
    for (step, last_step, state) in [(60, 60, RunState::Completed), (30, 30, RunState::Stopped)] {
        let resume = Some(Resume::at(Step(step)));
        let mut run = Run::new(Settings { resume, last_step, ..settings() });
        assert_eq!(run.state.run_state(), state);
        assert!(run.join(W0).unwrap_err().contains("nothing is left to do"));
        let mut run = Run::new(Settings { last_step, ..run.state.settings().clone() });
        assert_eq!(end(&run.apply(Event::Tick)), Some(Outcome::Good));
    }
}
