//! Steps skipped, and ways back from spikes.

use polygram_checkpoint::{FailureLine, RollbackCause};
use polygram_domain::control::StepProof;
use polygram_domain::spikes::PolicyState;
use polygram_domain::{FailureKind, StepOutcome};

use super::super::{RollbackRequest, RollbackResolution, RollbackTarget};
use super::*;

impl Run {
    fn request_rollback(&mut self, member: MemberRef, step: u64) -> Vec<Action> {
        let message = format!("step {step}: loss 9 is a spike");
        let failure = Failure {
            message,
            step: Step(step),
            phase: Phase::Reducing,
            suspect: None,
            roll_back: true,
            damaged: None,
            kind: FailureKind::Program,
        };
        self.report(member, MemberReport::Failed(failure))
    }

    fn decided(&mut self, at: u64, to: Option<u64>) -> Vec<Action> {
        let mut policy = PolicyState { ways_back: vec![at], ..PolicyState::default() };
        policy.left_out.add(400..416);
        let target = RollbackTarget { to: to.map(Step), policy, quarantined: Vec::new() };
        self.resolved(Ok(RollbackResolution::Target(target)))
    }
}

fn spike(action: &Action) -> Option<Step> {
    match action {
        Action::ResolveRollback { request: RollbackRequest::Spike { at, .. }, .. } => Some(*at),
        _ => None,
    }
}

fn lines(actions: &[Action]) -> Vec<&FailureLine> {
    let lines = actions.iter().filter_map(|action| match action {
        Action::Record(Record::Failure(line)) => Some(line),
        _ => None,
    });
    lines.collect()
}

/// Both workers ask, the store is asked once, and the next generation waits for its word, then begins from it.
#[test]
fn a_spike_sends_everybody_back_behind_the_stores_decision() {
    let mut run = Run::running();
    run.commit(10);
    run.commit(20);
    let before = run.state.generation();
    let (member, generation) = (run.id(W1), before);
    let actions = run.request_rollback(W0, 25);
    assert!(actions.iter().any(|action| spike(action) == Some(Step(25))));
    assert!(
        matches!(lines(&actions)[..], [FailureLine::RollbackRequested { step: Step(25), member, cause, .. }]
            if member == "worker 0" && cause.contains("spike")),
        "{actions:?}"
    );
    assert_eq!((run.state.run_state(), run.state.generation()), (RunState::Recovering, before.next()));
    let failure = Failure {
        message: "step 25: loss 9 is a spike".into(),
        step: Step(25),
        phase: Phase::Reducing,
        suspect: None,
        roll_back: true,
        damaged: None,
        kind: FailureKind::Program,
    };
    let report = MemberReport::Failed(failure);
    let late = run.apply(Event::Report(Envelope { member, generation, report }));
    assert!(!late.iter().any(|action| spike(action).is_some()), "once: {late:?}");
    for who in ALL {
        run.join(who).unwrap();
        run.attend(who).unwrap();
    }
    assert_eq!(run.state.run_state(), RunState::Recovering);
    assert!(run.message().contains("spike at step 25"), "{}", run.message());
    let actions = run.decided(25, Some(10));
    let cause = RollbackCause::Spike { left_out: vec![[400, 416]] };
    assert!(
        lines(&actions)
            .iter()
            .any(|line| matches!(line, FailureLine::RolledBack { to: Step(10), cause: found, .. }
            if *found == cause)),
        "{actions:?}"
    );
    assert!(actions.contains(&Action::Record(Record::ResumedAt(Step(10)))));
    let assigned: Vec<_> = directives(&actions)
        .into_iter()
        .filter_map(|directive| match directive {
            Directive::Assign(assignment) => Some(assignment),
            _ => None,
        })
        .collect();
    assert_eq!(assigned.len(), 4);
    assert_eq!(assigned[0].resume_step, Step(10));
    assert_eq!(assigned[0].resume_manifest.as_deref(), Some("ckpt/commit/000000000010.json"));
    assert_eq!(assigned[0].left_out.ranges(), [[400, 416]]);
    assert_eq!(assigned[0].ways_back, [25]);
    for who in ALL {
        run.ready(who);
    }
    assert_eq!(run.state.run_state(), RunState::Running);
    assert_eq!(run.state.status(run.now).restarts, 0, "a spike is no loss");
    // A loss afterwards goes back to the commit that the store has left.
    run.commit(20);
    assert_eq!(run.state.last_commit(), Some(Step(20)));
}

#[test]
fn a_run_may_go_back_to_its_beginning() {
    let mut run = Run::running();
    run.request_rollback(W1, 3);
    run.decided(3, None);
    let mut actions = Vec::new();
    for who in ALL {
        run.join(who).unwrap();
    }
    for who in ALL {
        actions = run.attend(who).unwrap();
    }
    let resumes = directives(&actions).into_iter().find_map(|directive| match directive {
        Directive::Assign(assignment) => Some((assignment.resume_step, assignment.resume_manifest.clone())),
        _ => None,
    });
    assert_eq!(resumes, Some((Step(0), None)));
}

#[test]
fn a_store_that_cannot_decide_fails_the_run() {
    let mut run = Run::running();
    run.request_rollback(W0, 3);
    run.resolved(Err("disk full".into()));
    assert_eq!(run.state.run_state(), RunState::Failed);
    assert!(run.message().contains("disk full") && run.message().contains("step 3"), "{}", run.message());
}

#[test]
fn a_skipped_step_is_told() {
    let mut run = Run::running();
    let proof = StepProof { outcome: StepOutcome::SkippedLossSpike, ..StepProof::default() };
    let metrics = StepMetrics { proof, ..metrics(4, 99.0) };
    let actions = run.report(W0, MemberReport::Metrics(metrics));
    let skipped = lines(&actions);
    let [FailureLine::StepSkipped { step: Step(4), outcome, loss, .. }] = &skipped[..] else {
        panic!("{skipped:?}")
    };
    assert_eq!((*outcome, *loss), (StepOutcome::SkippedLossSpike, 99.0));
}
