//! The rollback of a run: why its last generation ended, what the store still has to decide, and what the next generation
//! resumes with. Written here alone.
//!
//! Whatever the cause, a rollback begins with the end of the generation ([`Rollback::begin`]), waits for the store where it
//! has to decide ([`Rollback::next_request`], [`Rollback::resolve`]), and is over once the run is as far as it was. A
//! coordinator that dies meanwhile has decided nothing, or has left the decision in the store for its successor.

use std::collections::VecDeque;

use polygram_checkpoint::RollbackCause;
use polygram_domain::Step;
use polygram_domain::control::{CheckpointPlace, DamagedCheckpoint, MemberRef, Rollback as LastRollback};
use polygram_domain::spikes::PolicyState;

use super::event::{RollbackId, RollbackRequest, RollbackTarget, Time};
use super::root_cause::Loss;

/// Why a generation ends before the run does.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    /// A member is lost.
    MemberLost(Loss),
    /// Workers found a spike after `at` updates.
    Spike { at: Step, cause: String },
    /// A member reports that the checkpoint is damaged; its loss, if the checkpoint is sound.
    DamagedCheckpoint { reporter: MemberRef, damaged: DamagedCheckpoint, loss: Loss },
}

/// What the run remembers of rollbacks.
#[derive(Clone, Debug, Default)]
pub(super) struct Rollback {
    /// Why the last generation ended, for the failure log.
    cause: RollbackCause,
    /// The same for people, where it was no loss.
    sentence: Option<String>,
    /// The last loss that the run was rolled back for.
    last: Option<LastRollback>,
    /// What the store has to decide, one after the other; the first may have been asked for.
    pending: VecDeque<Pending>,
    /// Of the newest request.
    id: RollbackId,
    is_asked: bool,
    /// The loss that there is if all checkpoints that were reported damaged are sound.
    loss_if_sound: Option<Loss>,
    /// The next generation is not assigned before this.
    not_before: Option<Time>,
    /// When the last generation ended, until the run is where it was then.
    lost_at: Option<Time>,
    /// As of the newest decision.
    policy: PolicyState,
    /// Checkpoints that this attempt has quarantined, a sentence each.
    quarantined: Vec<String>,
}

#[derive(Clone, Debug)]
struct Pending {
    request: RollbackRequest,
    /// Who reported it.
    reporter: Option<MemberRef>,
}

/// What is said of a checkpoint that was quarantined. The reason names the object.
fn quarantined(step: Step, reason: &str, to: Step) -> String {
    let place = CheckpointPlace::commit(step);
    format!("{place} is damaged and was set aside: {reason}; going on from step {to}")
}

impl Rollback {
    pub(super) fn new(policy: PolicyState) -> Rollback {
        Rollback { policy, ..Rollback::default() }
    }

    /// The generation ends at `now`, and no other is assigned before `not_before`.
    pub(super) fn begin(&mut self, cause: Cause, now: Time, not_before: Option<Time>) {
        (self.lost_at, self.not_before) = (Some(now), not_before);
        match cause {
            Cause::MemberLost(Loss { reason, culprit, .. }) => {
                (self.cause, self.sentence) = (RollbackCause::MemberLost, None);
                self.last = Some(LastRollback { reason, culprit });
            }
            Cause::Spike { at, cause } => {
                self.sentence = Some(format!("rolling back from a spike: {cause}"));
                self.push(RollbackRequest::Spike { at, cause }, None);
            }
            Cause::DamagedCheckpoint { reporter, damaged, loss } => {
                (self.sentence, self.loss_if_sound) = (None, Some(loss));
                self.report_damage(reporter, damaged);
            }
        }
    }

    /// A member reports a damaged checkpoint. False where that object is being verified already.
    pub(super) fn report_damage(&mut self, reporter: MemberRef, damaged: DamagedCheckpoint) -> bool {
        let is_known = self.pending.iter().any(|pending| match &pending.request {
            RollbackRequest::DamagedCheckpoint(known) => known.key == damaged.key,
            _ => false,
        });
        if !is_known {
            self.cause = RollbackCause::DamagedCheckpoint;
            self.push(RollbackRequest::DamagedCheckpoint(damaged), Some(reporter));
        }
        !is_known
    }

    /// A recovery point cannot be restored: nobody is to resume from it again.
    pub(super) fn quarantine_point(&mut self, step: Step, why: String) {
        self.push(RollbackRequest::UnrestorablePoint { step, why }, None);
    }

    fn push(&mut self, request: RollbackRequest, reporter: Option<MemberRef>) {
        self.pending.push_back(Pending { request, reporter });
    }

    /// What is to be asked of the store now: one request at a time.
    pub(super) fn next_request(&mut self) -> Option<(RollbackId, RollbackRequest)> {
        let next = self.pending.front().filter(|_| !self.is_asked)?;
        self.is_asked = true;
        self.id = RollbackId(self.id.0 + 1);
        Some((self.id, next.request.clone()))
    }

    /// The request that the store has answered, and who reported it; `None` for an answer to no request of this rollback.
    pub(super) fn resolve(&mut self, id: RollbackId) -> Option<(RollbackRequest, Option<MemberRef>)> {
        if !self.is_asked || id != self.id {
            return None;
        }
        self.is_asked = false;
        let Pending { request, reporter } = self.pending.pop_front()?;
        Some((request, reporter))
    }

    /// The checkpoint is sound. The loss that there is once no other is to be verified.
    pub(super) fn found_sound(&mut self) -> Option<Loss> {
        let is_damage = |pending: &Pending| matches!(pending.request, RollbackRequest::DamagedCheckpoint(_));
        if self.pending.iter().any(is_damage) {
            return None;
        }
        (self.cause, self.sentence) = (RollbackCause::MemberLost, None);
        self.loss_if_sound.take()
    }

    /// The store has decided what the run resumes from. Answers what is to be said of each quarantined checkpoint.
    pub(super) fn set_target(&mut self, request: &RollbackRequest, target: RollbackTarget) -> Vec<String> {
        let RollbackTarget { to, policy, quarantined: damaged } = target;
        let to = to.unwrap_or_default();
        if let RollbackRequest::Spike { .. } = request {
            self.cause = RollbackCause::Spike { left_out: policy.left_out.ranges().to_vec() };
        } else if let Some((_, reason)) = damaged.first() {
            self.cause = RollbackCause::DamagedCheckpoint;
            self.sentence = Some(format!("rolling back to step {to}: {reason}"));
        }
        self.policy = policy;
        self.loss_if_sound = None;
        // What was reported of other checkpoints is of a past that is given up.
        self.pending.retain(|pending| matches!(pending.request, RollbackRequest::UnrestorablePoint { .. }));
        self.quarantine(&damaged, to)
    }

    /// Keeps what is to be said of quarantined checkpoints.
    pub(super) fn quarantine(&mut self, damaged: &[(Step, String)], to: Step) -> Vec<String> {
        let sentences: Vec<String> =
            damaged.iter().map(|(step, reason)| quarantined(*step, reason, to)).collect();
        self.quarantined.extend(sentences.iter().cloned());
        sentences
    }

    /// What the store is deciding, and who reported it.
    pub(super) fn awaited(&self) -> Option<(&RollbackRequest, Option<MemberRef>)> {
        self.pending.front().map(|pending| (&pending.request, pending.reporter))
    }

    pub(super) fn cause(&self) -> &RollbackCause {
        &self.cause
    }

    /// Why the run is rolled back, where it was no loss.
    pub(super) fn sentence(&self) -> Option<&str> {
        self.sentence.as_deref()
    }

    /// The last loss that the run was rolled back for.
    pub(super) fn last(&self) -> Option<&LastRollback> {
        self.last.as_ref()
    }

    pub(super) fn policy(&self) -> &PolicyState {
        &self.policy
    }

    pub(super) fn quarantined(&self) -> &[String] {
        &self.quarantined
    }

    /// When the last generation ended, while the run is not where it was then.
    pub(super) fn lost_at(&self) -> Option<Time> {
        self.lost_at
    }

    /// Until when the run pauses before the next generation, if it does at `now`.
    pub(super) fn pause_until(&self, now: Time) -> Option<Time> {
        self.not_before.filter(|until| now < *until)
    }

    /// The run is where it was. False where it had been before.
    pub(super) fn catch_up(&mut self) -> bool {
        self.lost_at.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::control::{Culprit, Phase, Reason, Role};

    use super::*;

    const W0: MemberRef = MemberRef { role: Role::Worker, index: 0 };

    fn loss() -> Loss {
        let culprit =
            Culprit { member: W0, pid: 1, phase: Phase::Restoring, step: Step(4), message: "x".into() };
        Loss { reason: Reason::MemberFailed, culprit, host: None, kind: None, suspect: None }
    }

    fn damaged(key: &str) -> DamagedCheckpoint {
        DamagedCheckpoint { place: CheckpointPlace::commit(Step(4)), key: key.into(), reason: "x".into() }
    }

    fn target(to: u64) -> RollbackTarget {
        let quarantined = vec![(Step(4), "object a is cut".to_owned())];
        RollbackTarget { to: Some(Step(to)), policy: PolicyState::default(), quarantined }
    }

    fn begin_damage(rollback: &mut Rollback) {
        let cause = Cause::DamagedCheckpoint { reporter: W0, damaged: damaged("a"), loss: loss() };
        rollback.begin(cause, Time(5), None);
    }

    #[test]
    fn the_store_is_asked_for_one_thing_at_a_time() {
        let mut rollback = Rollback::default();
        assert_eq!(rollback.next_request(), None);
        begin_damage(&mut rollback);
        rollback.quarantine_point(Step(6), "y".into());
        let (first, request) = rollback.next_request().unwrap();
        assert_eq!(request, RollbackRequest::DamagedCheckpoint(damaged("a")));
        assert_eq!(rollback.next_request(), None, "it is not answered yet");
        assert!(rollback.resolve(RollbackId(first.0 + 1)).is_none(), "an answer to nobody");
        assert_eq!(rollback.resolve(first).unwrap(), (request, Some(W0)));
        assert!(rollback.resolve(first).is_none(), "once");
        let (second, request) = rollback.next_request().unwrap();
        assert!(
            second > first && matches!(request, RollbackRequest::UnrestorablePoint { step: Step(6), .. })
        );
    }

    #[test]
    fn a_loss_is_counted_once_every_object_was_found_sound() {
        let mut rollback = Rollback::default();
        begin_damage(&mut rollback);
        assert!(!rollback.report_damage(W0, damaged("a")), "each object once");
        assert!(rollback.report_damage(W0, damaged("b")));
        for is_last in [false, true] {
            let (id, _) = rollback.next_request().unwrap();
            rollback.resolve(id).unwrap();
            assert_eq!(rollback.found_sound().is_some(), is_last);
        }
        assert_eq!((rollback.cause(), rollback.sentence()), (&RollbackCause::MemberLost, None));
        assert!(rollback.found_sound().is_none(), "once");
    }

    #[test]
    fn a_target_ends_what_was_asked_of_other_checkpoints_but_not_of_a_point() {
        let mut rollback = Rollback::default();
        begin_damage(&mut rollback);
        rollback.report_damage(W0, damaged("b"));
        rollback.quarantine_point(Step(6), "y".into());
        let (id, _) = rollback.next_request().unwrap();
        let (request, _) = rollback.resolve(id).unwrap();
        let said = rollback.set_target(&request, target(2));
        assert!(said[0].contains("step 4") && said[0].contains("object a") && said[0].ends_with("step 2"));
        assert_eq!(rollback.quarantined(), said);
        assert_eq!(rollback.cause(), &RollbackCause::DamagedCheckpoint);
        assert!(rollback.sentence().is_some_and(|sentence| sentence.contains("to step 2: object a is cut")));
        let (id, request) = rollback.next_request().unwrap();
        assert!(matches!(request, RollbackRequest::UnrestorablePoint { .. }));
        rollback.resolve(id).unwrap();
        assert!(rollback.awaited().is_none() && rollback.found_sound().is_none(), "nobody is to blame");
    }

    #[test]
    fn the_run_catches_up_once_and_pauses_until_its_time() {
        let mut rollback = Rollback::default();
        assert!(!rollback.catch_up());
        rollback.begin(Cause::MemberLost(loss()), Time(5), Some(Time(10)));
        assert_eq!((rollback.pause_until(Time(9)), rollback.pause_until(Time(10))), (Some(Time(10)), None));
        assert!(rollback.lost_at() == Some(Time(5)) && rollback.catch_up() && !rollback.catch_up());
        rollback.begin(Cause::Spike { at: Step(7), cause: "z".into() }, Time(20), None);
        assert_eq!(rollback.pause_until(Time(9)), None, "each rollback has a pause of its own");
        assert!(rollback.last().is_some(), "a spike is no loss");
    }
}
