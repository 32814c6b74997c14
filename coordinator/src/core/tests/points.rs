//! Recovery points: kept, given up, resumed from, discarded.

use super::super::{RollbackRequest, RollbackResolution, RollbackTarget};
use super::*;

const PART: Uploaded = Uploaded::Part(CheckpointKind::Point);

impl Run {
    fn said(
        &mut self,
        member: MemberRef,
        step: u64,
        uploaded: Uploaded,
    ) -> (Result<Reply, String>, Vec<Action>) {
        if member == W0 {
            self.report(W0, MemberReport::Metrics(metrics(step - 1, 1.0)));
        }
        let (member, generation) = (self.id(member), self.state.generation());
        self.call(|ticket| Event::Upload { ticket, member, generation, step: Step(step), uploaded })
    }

    fn all_said(&mut self, step: u64, uploaded: &Uploaded) -> Vec<Action> {
        ALL.map(|who| self.said(who, step, uploaded.clone()).1).concat()
    }

    fn point(&mut self, step: u64) -> Vec<Action> {
        assert!(self.all_said(step, &PART).contains(&Action::KeepPoint { step: Step(step) }));
        self.apply(Event::PointDone { step: Step(step), result: Ok(()) })
    }

    /// What a new generation is told to go on from.
    fn rejoin(&mut self) -> (Step, Option<Step>) {
        for who in ALL {
            self.join(who).unwrap();
        }
        let actions = ALL.map(|who| self.attend(who).unwrap()).concat();
        let assigned = directives(&actions).into_iter().find_map(|directive| match directive {
            Directive::Assign(assignment) => Some((assignment.resume_step, assignment.resume_point())),
            _ => None,
        });
        assigned.expect("everybody is here")
    }
}

fn quarantined_point(action: &Action) -> Option<(Step, &str)> {
    match action {
        Action::ResolveRollback { request: RollbackRequest::UnrestorablePoint { step, why }, .. } => {
            Some((*step, why))
        }
        _ => None,
    }
}

fn recovering() -> Run {
    let mut settings = settings();
    settings.recovery.max_restarts = 9;
    let mut run = Run::new(settings);
    run.start();
    run
}

#[test]
fn a_loss_goes_back_to_the_newest_of_commit_and_recovery_point() {
    let mut run = recovering();
    run.commit(20);
    let actions = run.point(24);
    assert_eq!(directives(&actions), vec![&Directive::PointSettled { step: Step(24), kept: true }; 4]);
    let status = run.state.status(run.now);
    assert_eq!((status.last_commit, status.last_point), (Some(Step(20)), Some(Step(24))));
    run.ended(S1);
    assert!(run.message().contains("rolling back to step 24"), "{}", run.message());
    assert_eq!(run.rejoin(), (Step(24), Some(Step(24))));
    for who in ALL {
        run.ready(who);
    }
    // A commit behind it takes its place.
    run.commit(40);
    assert_eq!(run.state.status(run.now).last_point, None);
    run.ended(W1);
    assert_eq!(run.rejoin(), (Step(40), None));
}

#[test]
fn a_recovery_point_that_cannot_be_written_costs_nothing() {
    let mut run = recovering();
    for who in [W0, W1, S0] {
        run.said(who, 4, PART).0.unwrap();
    }
    let (answer, actions) = run.said(S1, 4, Uploaded::NotWritten("no space left".into()));
    assert_eq!(answer, Ok(Reply::PartNoted));
    assert_eq!(directives(&actions), vec![&Directive::PointSettled { step: Step(4), kept: false }; 4]);
    let warned =
        |action: &Action| matches!(action, Action::Log(_, line) if line.contains("shard 1: no space left"));
    assert!(actions.iter().any(warned), "{actions:?}");
    assert_eq!(run.state.run_state(), RunState::Running);
    // Said again it is noted, and that is all.
    assert!(directives(&run.said(S1, 4, Uploaded::NotWritten("no space left".into())).1).is_empty());
    // The coordinator may fail over one as well.
    run.all_said(6, &PART);
    let actions = run.apply(Event::PointDone { step: Step(6), result: Err("no space left".into()) });
    assert_eq!(directives(&actions), vec![&Directive::PointSettled { step: Step(6), kept: false }; 4]);
    run.point(8);
    run.ended(W1);
    assert_eq!(run.rejoin(), (Step(8), Some(Step(8))));
}

#[test]
fn parts_of_one_step_are_of_one_kind() {
    let mut run = recovering();
    run.said(W0, 4, PART).0.unwrap();
    let refusal = run.said(W1, 4, WRITTEN).0.unwrap_err();
    assert!(refusal.contains("worker 1") && refusal.contains("recovery point"), "{refusal}");
}

#[test]
fn commits_and_recovery_points_are_made_one_after_the_other() {
    let mut run = recovering();
    assert!(run.all_said(4, &PART).contains(&Action::KeepPoint { step: Step(4) }));
    assert!(!run.all_said(20, &WRITTEN).contains(&Action::Commit { step: Step(20) }));
    let actions = run.apply(Event::PointDone { step: Step(4), result: Ok(()) });
    assert!(actions.contains(&Action::Commit { step: Step(20) }));
    // A generation does not begin before either has ended.
    run.ended(W1);
    for who in ALL {
        run.join(who).unwrap();
        run.attend(who).unwrap();
    }
    assert_eq!(run.state.run_state(), RunState::Recovering);
    run.apply(Event::CommitDone { step: Step(20), result: Ok(()) });
    assert_eq!((run.state.run_state(), run.state.resume_step()), (RunState::Restoring, Step(20)));
}

#[test]
fn a_recovery_point_that_cannot_be_restored_is_not_gone_back_to_again() {
    let mut run = recovering();
    run.commit(20);
    run.point(24);
    run.ended(S1);
    assert_eq!(run.rejoin().0, Step(24));
    let actions = run.fail(W1, "ckpt/data/x is damaged", None);
    let dropped = actions
        .iter()
        .filter_map(quarantined_point)
        .any(|(step, why)| step == Step(24) && why.contains("damaged"));
    assert!(dropped, "{actions:?}");
    // The store is asked to quarantine it, and the next generation waits for the answer, whatever it is.
    for who in ALL {
        run.join(who).unwrap();
        run.attend(who).unwrap();
    }
    assert_eq!(run.state.run_state(), RunState::Recovering);
    assert!(run.message().contains("waiting for recovery point 24 to be quarantined"), "{}", run.message());
    run.resolved(Err("no space left".into()));
    assert_eq!((run.state.run_state(), run.state.resume_step()), (RunState::Restoring, Step(20)));
}

/// What blames a peer, and the peer lives on, is no fault of the point either.
#[test]
fn a_recovery_point_stays_where_a_peer_is_blamed() {
    let mut run = recovering();
    run.commit(20);
    run.point(24);
    run.ended(S1);
    assert_eq!(run.rejoin().0, Step(24));
    run.fail(W1, "shard 0 refused this worker", Some(S0));
    let actions = run.pass(3_000, &[]);
    assert_eq!(run.culprit(), Some(W1), "{}", run.message());
    assert!(actions.iter().find_map(quarantined_point).is_none(), "{actions:?}");
    assert_eq!(run.rejoin(), (Step(24), Some(Step(24))));
}

/// The place of recovery points may be gone for good, and the run does not need it.
#[test]
fn a_point_whose_store_does_not_answer_for_long_is_gone_without() {
    let mut run = recovering();
    run.commit(20);
    run.point(24);
    run.ended(S1);
    // The outages behind the first loss: as many as a program may fail, and one more.
    for outage in 1..=3 {
        run.now = run.now.after(60_000);
        run.apply(Event::Tick);
        assert_eq!(run.rejoin().0, Step(24), "{outage}");
        let actions = run.fail_with((W1, None), "no answer within 30 s", FailureKind::Store);
        assert_eq!(actions.iter().find_map(quarantined_point).is_some(), outage == 3, "{actions:?}");
    }
    run.resolved(Err("no answer within 5 s".into()));
    run.now = run.now.after(60_000);
    run.apply(Event::Tick);
    assert_eq!(run.rejoin(), (Step(20), None));
}

/// Neither a cut link, nor a store that does not answer, nor a process that is ended says anything of the point.
#[test]
fn a_recovery_point_stays_where_the_environment_fails_while_it_is_restored() {
    let fail = |kind: FailureKind| move |run: &mut Run| run.fail_with((W1, None), "x", kind);
    let kinds = FailureKind::ALL
        .into_iter()
        .filter(|kind| !matches!(kind, FailureKind::Program | FailureKind::StoreUnusable));
    type Lose = Box<dyn Fn(&mut Run) -> Vec<Action>>;
    let mut losses: Vec<(String, Lose)> = Vec::new();
    for kind in kinds {
        losses.push((format!("{kind:?}"), Box::new(fail(kind))));
    }
    losses.push(("SIGKILL".into(), Box::new(|run| run.ended(S0))));
    losses.push(("silence".into(), Box::new(|run| run.pass(12_000, &[S0]))));
    for (name, lose) in losses {
        let mut run = recovering();
        run.commit(20);
        run.point(24);
        run.ended(S1);
        assert_eq!(run.rejoin(), (Step(24), Some(Step(24))), "{name}");
        for _ in 0..2 {
            let actions = lose(&mut run);
            assert!(actions.iter().find_map(quarantined_point).is_none(), "{name}: {actions:?}");
            assert_eq!(run.state.run_state(), RunState::Recovering, "{name}: {}", run.message());
            run.now = run.now.after(60_000);
            run.apply(Event::Tick);
            assert_eq!(run.rejoin(), (Step(24), Some(Step(24))), "{name}");
        }
        for who in ALL {
            run.ready(who);
        }
        assert_eq!(run.state.run_state(), RunState::Running, "{name}");
    }
}

#[test]
fn a_way_back_from_a_spike_forgets_the_recovery_points_behind_it() {
    let mut run = recovering();
    run.commit(20);
    run.point(24);
    let message = "a spike".to_owned();
    let (step, phase) = (Step(26), Phase::Reducing);
    let failure = Failure {
        message,
        step,
        phase,
        suspect: None,
        roll_back: true,
        damaged: None,
        kind: FailureKind::Program,
    };
    run.report(W0, MemberReport::Failed(failure));
    let target = RollbackTarget { to: Some(Step(20)), policy: Default::default(), quarantined: Vec::new() };
    run.resolved(Ok(RollbackResolution::Target(target)));
    assert_eq!(run.rejoin(), (Step(20), None));
}
