//! Past damaged checkpoints.

use polygram_checkpoint::FailureLine;
use polygram_domain::FailureKind;
use polygram_domain::control::{CheckpointPlace, DamagedCheckpoint};
use polygram_domain::spikes::PolicyState;

use super::super::{Level, RollbackRequest, RollbackResolution, RollbackTarget};
use super::*;

const AT: CheckpointPlace = CheckpointPlace { step: Step(40) };

/// Everybody restores the checkpoint of step 40.
fn restoring(max_restarts: u32) -> Run {
    let mut settings = Settings { resume: Some(Resume::at(AT.step)), ..settings() };
    settings.recovery.max_restarts = max_restarts;
    let mut run = Run::new(settings);
    run.assign();
    assert_eq!(run.state.run_state(), RunState::Restoring);
    run
}

fn claim(key: &str) -> DamagedCheckpoint {
    DamagedCheckpoint { place: AT, key: key.into(), reason: format!("{key} is damaged") }
}

fn failure(damaged: DamagedCheckpoint) -> Failure {
    Failure {
        message: format!("the checkpoint was not restored: {}", damaged.reason),
        step: Step(40),
        phase: Phase::Restoring,
        suspect: None,
        roll_back: false,
        damaged: Some(damaged),
        kind: FailureKind::Program,
    }
}

impl Run {
    fn assign(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for who in ALL {
            self.join(who).unwrap();
        }
        for who in ALL {
            actions.extend(self.attend(who).unwrap());
        }
        actions
    }

    fn report_damage(&mut self, who: MemberRef, key: &str) -> Vec<Action> {
        self.report(who, MemberReport::Failed(failure(claim(key))))
    }

    fn falls_back(&mut self, to: u64) -> Vec<Action> {
        let mut policy = PolicyState { ways_back: vec![7], ..PolicyState::default() };
        policy.left_out.add(400..416);
        let quarantined = vec![(AT.step, "object x is damaged".to_owned())];
        let target = RollbackTarget { to: Some(Step(to)), policy, quarantined };
        self.resolved(Ok(RollbackResolution::Target(target)))
    }
}

fn verifies(actions: &[Action]) -> Vec<&str> {
    let asked = actions.iter().filter_map(|action| match action {
        Action::ResolveRollback { request: RollbackRequest::DamagedCheckpoint(claim), .. } => {
            Some(claim.key.as_str())
        }
        _ => None,
    });
    asked.collect()
}

fn assignments(actions: &[Action]) -> Vec<&Assignment> {
    let assigned = directives(actions).into_iter().filter_map(|directive| match directive {
        Directive::Assign(assignment) => Some(assignment),
        _ => None,
    });
    assigned.collect()
}

/// Recovery or not: nobody is lost, so nothing is counted.
#[test]
fn a_damaged_checkpoint_is_gone_past() {
    for max_restarts in [0, 10] {
        let mut run = restoring(max_restarts);
        let before = run.state.generation();
        let actions = run.report_damage(S1, "x");
        assert_eq!(verifies(&actions), ["x"]);
        assert_eq!((run.state.run_state(), run.state.generation()), (RunState::Recovering, before.next()));
        assert!(
            directives(&actions).iter().all(|directive| matches!(
                directive,
                Directive::Abort(Abort { kind: AbortKind::Rejoin { .. }, culprit: None, .. })
            )),
            "nobody is to blame: {actions:?}"
        );
        assert!(assignments(&run.assign()).is_empty(), "not before the store was looked at");
        assert!(run.message().contains("verifying the checkpoint of step 40"), "{}", run.message());
        assert_eq!(run.state.status(run.now).reason, Reason::Examining);

        let actions = run.falls_back(30);
        let loud =
            |action: &Action| matches!(action, Action::Log(Level::Error, line) if line.contains("object x"));
        assert!(actions.iter().any(loud), "{actions:?}");
        assert!(actions.iter().any(|action| matches!(
            action,
            Action::Record(Record::Failure(FailureLine::CheckpointQuarantined {
                step: Step(40),
                to: Step(30),
                ..
            }))
        )));
        assert!(actions.contains(&Action::Record(Record::ResumedAt(Step(30)))));
        let assigned = assignments(&actions);
        assert_eq!(assigned.len(), 4);
        assert_eq!(assigned[0].resume_step, Step(30));
        assert_eq!(assigned[0].resume_manifest.as_deref(), Some("ckpt/commit/000000000030.json"));
        assert_eq!(
            (assigned[0].left_out.ranges(), &assigned[0].ways_back[..]),
            (&[[400, 416]][..], &[7][..])
        );
        for who in ALL {
            run.ready(who);
        }
        let status = run.state.status(run.now);
        assert_eq!(
            (status.state, status.restarts, status.last_commit),
            (RunState::Running, 0, Some(Step(30)))
        );
        assert!(status.set_aside[0].contains("step 40") && status.set_aside[0].contains("object x"));
        // The same step is committed again.
        run.report(W0, MemberReport::Metrics(metrics(39, 1.0)));
        run.commit(40);
        assert_eq!(run.state.last_commit(), Some(Step(40)));
    }
}

#[test]
fn a_member_that_reads_wrongly_is_lost_like_any_other() {
    let mut run = restoring(10);
    run.report_damage(W1, "x");
    run.assign();
    let before = run.state.generation();
    let actions = run.resolved(Ok(RollbackResolution::Sound));
    assert_eq!(run.state.generation(), before.next(), "those who have joined meanwhile join again");
    assert!(!directives(&actions).is_empty());
    let status = run.state.status(run.now);
    assert_eq!((status.restarts, status.last_commit), (1, Some(AT.step)));
    let culprit = status.culprit.unwrap();
    assert!(culprit.member == W1 && culprit.message.contains("read here, it is sound"), "{culprit:?}");
    let assigned = run.assign();
    assert_eq!(assignments(&assigned)[0].resume_step, AT.step);
    // Again: it is no accident.
    run.report_damage(W1, "x");
    run.resolved(Ok(RollbackResolution::Sound));
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert!(run.message().contains("this failure came at step 40 before"), "{}", run.message());
}

#[test]
fn a_run_that_does_not_recover_ends_with_a_member_that_reads_wrongly() {
    let mut run = restoring(0);
    run.report_damage(S0, "x");
    run.resolved(Ok(RollbackResolution::Sound));
    assert_eq!((run.state.run_state(), run.culprit()), (RunState::Failed, Some(S0)));
}

#[test]
fn several_members_may_report_several_objects() {
    let mut run = restoring(10);
    let (generation, others) = (run.state.generation(), [W1, S0, S1].map(|who| run.id(who)));
    run.report_damage(W0, "x");
    let late = |run: &mut Run, member: MemberId, key: &str| {
        let report = MemberReport::Failed(failure(claim(key)));
        run.apply(Event::Report(Envelope { member, generation, report }))
    };
    for (member, key) in others.into_iter().zip(["x", "y", "y"]) {
        assert!(verifies(&late(&mut run, member, key)).is_empty(), "one look at a time");
    }
    let actions = run.resolved(Ok(RollbackResolution::Sound));
    assert_eq!(verifies(&actions), ["y"], "each object once");
    run.assign();
    let actions = run.falls_back(20);
    assert_eq!(assignments(&actions)[0].resume_step, Step(20));
    assert_eq!(run.state.status(run.now).restarts, 0, "nobody was wrong in the end");
    // A word about the checkpoint that is gone asks for nothing.
    assert!(verifies(&late(&mut run, others[0], "z")).is_empty());
}

/// The generation ended for another reason, which a peer told first.
#[test]
fn a_late_word_is_looked_into_and_costs_nobody_twice() {
    let mut run = restoring(10);
    let (generation, shard) = (run.state.generation(), run.id(S0));
    run.ended(W1);
    let report = MemberReport::Failed(failure(claim("x")));
    let actions = run.apply(Event::Report(Envelope { member: shard, generation, report }));
    assert_eq!(verifies(&actions), ["x"]);
    run.assign();
    let actions = run.resolved(Ok(RollbackResolution::Sound));
    assert_eq!(assignments(&actions)[0].resume_step, AT.step);
    assert_eq!(run.state.status(run.now).restarts, 1, "the loss of worker 1 alone");
}

/// A link that is cut while the store looks at the checkpoint says nothing of the checkpoint, and ends no look.
#[test]
fn an_environment_that_fails_meanwhile_neither_damns_nor_clears_a_checkpoint() {
    for sound in [true, false] {
        let mut run = restoring(10);
        run.report_damage(S1, "x");
        run.assign();
        let actions = run.fail_with((W1, Some(S0)), "connection lost", FailureKind::Reset);
        assert!(verifies(&actions).is_empty(), "{actions:?}");
        let actions = run.pass(6_000, &[]);
        assert!(verifies(&actions).is_empty() && assignments(&actions).is_empty(), "{actions:?}");
        let status = run.state.status(run.now);
        assert_eq!((status.state, status.restarts), (RunState::Recovering, 1), "{}", status.message);
        assert_eq!(status.last_rollback.unwrap().reason, Reason::EnvironmentFailed);
        assert_eq!(status.reason, Reason::Examining);
        assert!(run.message().contains("verifying the checkpoint of step 40"), "{}", run.message());
        let to = if sound { 40 } else { 30 };
        if sound {
            run.resolved(Ok(RollbackResolution::Sound));
        } else {
            run.falls_back(30);
        }
        run.now = run.now.after(60_000);
        run.apply(Event::Tick);
        assert_eq!(assignments(&run.assign())[0].resume_step, Step(to));
    }
}

#[test]
fn without_another_checkpoint_the_run_fails() {
    let mut run = restoring(10);
    run.report_damage(S1, "x");
    run.resolved(Err("none of them verifies".into()));
    assert_eq!(run.state.run_state(), RunState::Failed);
    let message = run.message();
    assert!(message.contains("step 40") && message.contains("none of them verifies"), "{message}");
}

/// Only the checkpoint that is being restored can be reported damaged.
#[test]
fn other_words_of_damage_are_failures() {
    let mut run = restoring(10);
    let elsewhere = DamagedCheckpoint { place: CheckpointPlace::commit(Step(30)), ..claim("x") };
    let actions = run.report(S1, MemberReport::Failed(failure(elsewhere)));
    assert!(verifies(&actions).is_empty());
    assert_eq!(run.culprit(), Some(S1));
    let mut run = Run::running();
    let actions = run.report_damage(S1, "x");
    assert!(verifies(&actions).is_empty());
    assert_eq!(run.state.run_state(), RunState::Failed);
    let unasked = run.resolved(Ok(RollbackResolution::Sound));
    assert!(matches!(unasked[..], [Action::Log(Level::Warn, _)]), "{unasked:?}");
}

#[test]
fn a_stop_is_not_held_up_by_a_look() {
    let mut run = restoring(10);
    run.report_damage(S1, "x");
    run.apply(Event::Interrupt { reason: "SIGTERM".into() });
    assert_eq!(run.state.run_state(), RunState::Stopped);
    let actions = run.falls_back(30);
    assert_eq!(run.state.run_state(), RunState::Stopped);
    assert!(assignments(&actions).is_empty());
    assert!(run.state.status(run.now).set_aside[0].contains("object x"), "it is said all the same");
}
