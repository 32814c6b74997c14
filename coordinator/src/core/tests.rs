//! The state machine, case by case.

use std::net::SocketAddr;

use polygram_domain::{Generation, SCHEMA_VERSION, Step, Topology};
use polygram_proto::control::{
    Abort, Assignment, Directive, Envelope, Evaluation, Failure, Heartbeat, Incarnation, JoinRequest,
    MemberId, MemberRef, MemberReport, Phase, Reason, Role, RunState, StepMetrics, StopMode,
};

use super::{Action, Event, Outcome, Record, Reply, Resume, Settings, State, Ticket, Time, Timeouts, apply};

const W0: MemberRef = MemberRef { role: Role::Worker, index: 0 };
const W1: MemberRef = MemberRef { role: Role::Worker, index: 1 };
const S0: MemberRef = MemberRef { role: Role::Shard, index: 0 };
const S1: MemberRef = MemberRef { role: Role::Shard, index: 1 };
const ALL: [MemberRef; 4] = [W0, W1, S0, S1];

/// A run of two workers and two shards, driven by hand.
struct Run {
    state: State,
    now: Time,
    tickets: u64,
}

fn settings() -> Settings {
    Settings {
        run: "case".into(),
        topology: Topology { workers: 2, expert_parallel: 1, shards: 2 },
        total_steps: 60,
        last_step: 60,
        resume: None,
        attempt: 3,
        timeouts: Timeouts::of(10.0),
    }
}

impl Run {
    fn new(settings: Settings) -> Run {
        Run { state: State::new(settings, Time(5_000)), now: Time(5_000), tickets: 0 }
    }

    fn running() -> Run {
        let mut run = Run::new(settings());
        run.start();
        run
    }

    fn start(&mut self) {
        for who in ALL {
            self.join(who).unwrap();
        }
        for who in ALL {
            self.attend(who).unwrap();
        }
        for who in ALL {
            self.ready(who);
        }
        assert_eq!(self.state.run_state(), RunState::Running);
    }

    fn apply(&mut self, event: Event) -> Vec<Action> {
        apply(&mut self.state, event, self.now)
    }

    fn call(&mut self, event: impl FnOnce(Ticket) -> Event) -> (Result<Reply, String>, Vec<Action>) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let actions = self.apply(event(ticket));
        let answer = actions.iter().find_map(|action| match action {
            Action::Reply { ticket: to, answer } if *to == ticket => Some(answer.clone()),
            _ => None,
        });
        (answer.expect("every call is answered at once"), actions)
    }

    fn request(&self, member: MemberRef) -> JoinRequest {
        JoinRequest {
            schema_version: SCHEMA_VERSION,
            member,
            incarnation: Incarnation(u64::from(member.index) + 1),
            pid: 40 + member.index,
            host: "box".into(),
            data_address: address(member),
        }
    }

    fn join(&mut self, member: MemberRef) -> Result<Reply, String> {
        let request = self.request(member);
        self.call(|ticket| Event::Join { ticket, request }).0
    }

    fn id(&self, member: MemberRef) -> MemberId {
        self.state.members[&member].id
    }

    fn attend(&mut self, member: MemberRef) -> Result<Vec<Action>, String> {
        let member = self.id(member);
        let (answer, actions) = self.call(|ticket| Event::Attend { ticket, member });
        answer.map(|_| actions)
    }

    fn report(&mut self, member: MemberRef, report: MemberReport) -> Vec<Action> {
        let (member, generation) = (self.id(member), self.state.generation());
        self.apply(Event::Report(Envelope { member, generation, report }))
    }

    fn ready(&mut self, member: MemberRef) -> Vec<Action> {
        let assignment = self.state.assignment.expect("assigned");
        self.report(member, MemberReport::Ready { assignment })
    }

    fn upload(&mut self, member: MemberRef, step: u64) -> (Result<Reply, String>, Vec<Action>) {
        let (member, generation) = (self.id(member), self.state.generation());
        self.call(|ticket| Event::Upload { ticket, member, generation, step: Step(step) })
    }

    fn ended(&mut self, member: MemberRef) -> Vec<Action> {
        let member = self.id(member);
        self.apply(Event::StreamEnded { member, message: "connection reset".into() })
    }

    fn fail(&mut self, member: MemberRef, message: &str, suspect: Option<MemberRef>) -> Vec<Action> {
        let failure = Failure { message: message.into(), step: Step(7), phase: Phase::Computing, suspect };
        self.report(member, MemberReport::Failed(failure))
    }

    /// Time passes in heartbeats: everybody but `silent` says that it lives.
    fn pass(&mut self, millis: u64, silent: &[MemberRef]) -> Vec<Action> {
        let mut actions = Vec::new();
        let until = self.now.after(millis);
        while self.now < until {
            self.now = self.now.after(500).min(until);
            for who in ALL {
                if !silent.contains(&who) && self.state.members.contains_key(&who) {
                    let heartbeat = Heartbeat { step: Step(0), phase: Phase::Computing };
                    actions.extend(self.report(who, MemberReport::Heartbeat(heartbeat)));
                }
            }
            actions.extend(self.apply(Event::Tick));
        }
        actions
    }

    fn commit(&mut self, step: u64) -> Vec<Action> {
        for who in ALL {
            self.upload(who, step).0.unwrap();
        }
        self.apply(Event::CommitDone { step: Step(step), result: Ok(()) })
    }

    fn finish(&mut self, step: u64) -> Vec<Action> {
        self.report(W0, MemberReport::Finished { step: Step(step) });
        self.report(W1, MemberReport::Finished { step: Step(step) })
    }

    fn message(&self) -> &str {
        self.state.message()
    }

    fn culprit(&self) -> Option<MemberRef> {
        self.state.status(self.now).culprit.map(|c| c.member)
    }
}

fn address(member: MemberRef) -> SocketAddr {
    let port = 1000 + 100 * u16::from(member.role == Role::Shard) + member.index as u16;
    ([127, 0, 0, 1], port).into()
}

fn directives(actions: &[Action]) -> Vec<&Directive> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Direct { directive, .. } => Some(directive),
            _ => None,
        })
        .collect()
}

fn end(actions: &[Action]) -> Option<Outcome> {
    actions.iter().find_map(|action| match action {
        Action::End(outcome) => Some(*outcome),
        _ => None,
    })
}

fn metrics(step: u64, loss: f64) -> StepMetrics {
    StepMetrics {
        step: Step(step),
        loss,
        grad_norm: 1.0,
        lr: 1e-3,
        tokens: 256,
        seconds: 0.5,
        data_wait_seconds: 0.0,
        embedding_wait_seconds: 0.0,
        resident_bytes: 1,
    }
}

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
    settings.resume = Some(Resume { step: Step(20), manifest: "ckpt/commit/20.json".into() });
    let mut run = Run::new(settings);
    for who in ALL {
        run.join(who).unwrap();
    }
    let mut actions = Vec::new();
    for who in ALL {
        actions = run.attend(who).unwrap();
    }
    let expected = Assignment {
        generation: Generation(3),
        workers: vec![address(W0), address(W1)],
        shards: vec![address(S0), address(S1)],
        resume_step: Step(20),
        resume_manifest: Some("ckpt/commit/20.json".into()),
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
    assert_eq!(run.state.members.len(), 1);
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
    let (answer, _) = run.call(|ticket| Event::Attend { ticket, member });
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
fn a_lost_member_ends_the_run_by_name() {
    let mut run = Run::running();
    run.report(S1, MemberReport::Heartbeat(Heartbeat { step: Step(12), phase: Phase::Serving }));
    let actions = run.ended(S1);
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert_eq!(run.message(), "shard 1 (pid 41) at step 12 while serving: connection reset");
    let aborts = directives(&actions);
    assert_eq!(aborts.len(), 3, "everybody who is left aborts");
    for abort in aborts {
        let Directive::Abort(Abort { reason, culprit }) = abort else { panic!("{abort:?}") };
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
fn a_member_that_never_attends_is_found() {
    let mut run = Run::new(settings());
    run.join(S0).unwrap();
    run.pass(10_500, &[S0]);
    assert_eq!(run.culprit(), Some(S0));
    assert!(run.message().contains("never attended"), "{}", run.message());
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
    let (member, generation) = (run.id(W0), Generation(2));
    let (answer, _) = run.call(|ticket| Event::Upload { ticket, member, generation, step: Step(20) });
    assert!(answer.unwrap_err().contains("generation 2"));
    let (member, generation) = (MemberId(900), Generation(3));
    let (answer, _) = run.call(|ticket| Event::Upload { ticket, member, generation, step: Step(20) });
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
            let other = polygram_proto::control::AssignmentHash([9; 32]);
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
fn strangers_and_the_past_change_nothing() {
    let mut run = Run::running();
    let before = run.state.status(run.now);
    let failure = Failure { message: "x".into(), step: Step(0), phase: Phase::Starting, suspect: None };
    let member = run.id(W0);
    let report = MemberReport::Failed(failure);
    for (member, generation) in
        [(member, Generation(2)), (member, Generation(4)), (MemberId(50), Generation(3))]
    {
        run.apply(Event::Report(Envelope { member, generation, report: report.clone() }));
    }
    run.apply(Event::StreamEnded { member: MemberId(50), message: "gone".into() });
    assert_eq!(run.state.status(run.now), before);
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
    let evaluation = Evaluation { step: Step(2), loss: 3.0, tokens: 64 };
    assert_eq!(recorded(run.report(W0, MemberReport::Evaluation(evaluation))), 1);
    assert_eq!(recorded(run.report(W0, MemberReport::Evaluation(evaluation))), 0);
    let status = run.state.status(run.now);
    assert_eq!(status.step, Step(2));
    assert_eq!(status.last_metrics.map(|m| m.loss), Some(2.5));
    assert_eq!(status.last_evaluation, Some(evaluation));
}

#[test]
fn a_run_that_is_done_is_over_from_the_start() {
    for (step, last_step, state) in [(60, 60, RunState::Completed), (30, 30, RunState::Stopped)] {
        let resume = Some(Resume { step: Step(step), manifest: "m".into() });
        let mut run = Run::new(Settings { resume, last_step, ..settings() });
        assert_eq!(run.state.run_state(), state);
        assert!(run.join(W0).unwrap_err().contains("nothing is left to do"));
        let mut run = Run::new(Settings { last_step, ..run.state.settings().clone() });
        assert_eq!(end(&run.apply(Event::Tick)), Some(Outcome::Good));
    }
}

#[test]
fn a_store_that_fails_fails_the_run() {
    let mut run = Run::running();
    run.apply(Event::StoreFailed { message: "the run cannot be recorded: disk full".into() });
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert_eq!(run.state.status(run.now).reason, Reason::StoreFailed);
}
