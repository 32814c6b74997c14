//! Past a damaged checkpoint: what a member cannot believe of it is looked at before anything follows.
//!
//! The member's word ends the generation; the store then says ([`Action::Examine`]) whether the checkpoint is at fault,
//! and has set it aside, or is sound, so that the member is lost like any other. No generation is assigned before that. A
//! coordinator that dies meanwhile has a successor that finds the checkpoint set aside, or hears the same word again. Every
//! checkpoint that is set aside leaves one less, and where none would be left the run fails: it never begins afresh.

use std::collections::VecDeque;

use polygram_checkpoint::{FailureLine, RollbackCause};
use polygram_domain::Step;
use polygram_domain::spikes::PolicyState;
use polygram_proto::control::{
    CheckpointPlace, Culprit, DamagedCheckpoint, Failure, MemberRef, Reason, RunState,
};

use super::event::{Action, Level, Record};
use super::settings::Resume;
use super::state::{State, Turn};

/// What the coordinator found of a checkpoint that a member could not believe.
#[derive(Clone, Debug, PartialEq)]
pub enum Examined {
    /// It is what was written.
    Sound,
    /// It is not. It is set aside, and the run goes on from an older one.
    SetAside(FellBack),
}

/// Damaged checkpoints, and what there is instead of them.
#[derive(Clone, Debug, PartialEq)]
pub struct FellBack {
    /// Those that were set aside, newest first, and what is wrong with each: one sentence that names the object.
    pub fallen: Vec<(Step, String)>,
    /// Updates applied in the older checkpoint.
    pub to: Step,
    /// What the run remembers and leaves out from there.
    pub policy: PolicyState,
}

/// What the run knows of damaged checkpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Damage {
    /// The checkpoint that is being looked at.
    inquiry: Option<Inquiry>,
    /// Checkpoints that this attempt has set aside, a sentence each.
    pub(super) set_aside: Vec<String>,
}

/// A checkpoint that is being looked at.
#[derive(Clone, Debug)]
struct Inquiry {
    /// What members could not believe of it, each object once; the first is being looked at.
    claims: VecDeque<(MemberRef, DamagedCheckpoint)>,
    /// Whose loss it is if all is sound; `None` where the generation had ended for another reason.
    blamed: Option<Blamed>,
}

#[derive(Clone, Debug)]
struct Blamed {
    culprit: Culprit,
    host: String,
}

impl State {
    /// The same run, of whose checkpoints some were set aside when it was opened.
    pub fn with_set_aside(mut self, fallen: &[(Step, String)], to: Step) -> State {
        self.damage.set_aside = fallen.iter().map(|(step, reason)| sentence(*step, reason, to)).collect();
        self
    }

    /// Whether members are restoring this very checkpoint.
    pub(super) fn restores(&self, place: CheckpointPlace) -> bool {
        let resumed = self.resume.as_ref().map(|resume| CheckpointPlace::commit(resume.step));
        self.run == RunState::Restoring && resumed == Some(place)
    }

    /// Whether a checkpoint is being looked at.
    pub(super) fn is_examining(&self) -> bool {
        self.damage.inquiry.is_some()
    }
}

/// What is said of a checkpoint that was set aside. The reason names the object.
fn sentence(step: Step, reason: &str, to: Step) -> String {
    let place = CheckpointPlace::commit(step);
    format!("{place} is damaged and was set aside: {reason}; going on from step {to}")
}

impl Turn<'_> {
    /// A member cannot restore the checkpoint of this generation.
    pub(super) fn disbelieves(&mut self, who: MemberRef, failure: Failure, damaged: DamagedCheckpoint) {
        let Some(member) = self.state.members.get(&who) else { return };
        let culprit = Culprit {
            member: who,
            pid: member.pid,
            phase: failure.phase,
            step: member.step.max(failure.step),
            message: failure.message.clone(),
        };
        let blamed = Some(Blamed { culprit, host: member.host.clone() });
        let suspicion = self.state.suspicion.take();
        // Nobody is to blame yet.
        self.state.culprit = None;
        self.note_cause(who, &damaged);
        self.end_generation(failure.message, None);
        if let Some(suspicion) = suspicion {
            self.consequence(suspicion.reporter, &suspicion.failure.message);
        }
        self.inquire(Inquiry { claims: VecDeque::from([(who, damaged)]), blamed });
    }

    /// A member of the former generation could not restore its checkpoint either.
    pub(super) fn disbelieved(&mut self, who: MemberRef, damaged: DamagedCheckpoint) {
        if self.state.last_commit() != Some(damaged.place.step) {
            return;
        }
        match &mut self.state.damage.inquiry {
            Some(inquiry) => {
                if inquiry.claims.iter().all(|(_, known)| known.key != damaged.key) {
                    inquiry.claims.push_back((who, damaged));
                }
            }
            None => {
                self.note_cause(who, &damaged);
                self.inquire(Inquiry { claims: VecDeque::from([(who, damaged)]), blamed: None });
            }
        }
    }

    fn note_cause(&mut self, who: MemberRef, damaged: &DamagedCheckpoint) {
        let DamagedCheckpoint { place, reason, .. } = damaged;
        self.log(Level::Warn, format!("{who} cannot restore {place}: {reason}; looking at it"));
        let recovery = &mut self.state.recovery;
        recovery.cause = Some(format!("looking at {place}, which {who} cannot restore: {reason}"));
        recovery.rollback_cause = RollbackCause::DamagedCheckpoint;
    }

    fn inquire(&mut self, inquiry: Inquiry) {
        if let Some((_, damaged)) = inquiry.claims.front() {
            self.actions.push(Action::Examine(damaged.clone()));
        }
        self.state.damage.inquiry = Some(inquiry);
    }

    /// The checkpoint was looked at.
    pub(super) fn examined(&mut self, place: CheckpointPlace, result: Result<Examined, String>) {
        let is_asked =
            |inquiry: &mut Inquiry| inquiry.claims.front().is_some_and(|(_, damaged)| damaged.place == place);
        let Some(inquiry) = self.state.damage.inquiry.take_if(is_asked) else {
            return self.log(Level::Warn, format!("{place} was looked at, which nobody had asked for"));
        };
        match result {
            Err(message) => {
                self.fail(Reason::StoreFailed, format!("{place} cannot be gone on from: {message}"));
            }
            Ok(Examined::Sound) => self.found_sound(place, inquiry),
            Ok(Examined::SetAside(fell_back)) => self.fell_back(fell_back),
        }
    }

    fn found_sound(&mut self, place: CheckpointPlace, mut inquiry: Inquiry) {
        if let Some((who, damaged)) = inquiry.claims.pop_front() {
            let key = damaged.key;
            self.log(Level::Warn, format!("{who} could not believe {key} of {place}, which is sound here"));
        }
        if self.state.is_over() {
            return;
        }
        if !inquiry.claims.is_empty() {
            return self.inquire(inquiry);
        }
        self.state.recovery.cause = None;
        self.state.recovery.rollback_cause = RollbackCause::MemberLost;
        if let Some(Blamed { mut culprit, host }) = inquiry.blamed {
            culprit.message.push_str("; read here, it is sound: the way from the store to its host is not");
            self.lose(Reason::MemberFailed, culprit, Some(host));
        }
    }

    fn fell_back(&mut self, FellBack { fallen, to, policy }: FellBack) {
        for (step, reason) in &fallen {
            let told = sentence(*step, reason, to);
            self.log(Level::Error, told.clone());
            self.state.damage.set_aside.push(told);
            let (at_unix_ms, step, reason) = (self.now.0, *step, reason.clone());
            let line = FailureLine::CheckpointQuarantined { at_unix_ms, step, reason, to };
            self.actions.push(Action::Record(Record::Recovery(line)));
        }
        self.actions.push(Action::StatusChanged);
        if self.state.is_over() {
            return;
        }
        let reason = fallen.into_iter().next().map_or_else(String::new, |(_, reason)| reason);
        self.state.recovery.cause = Some(format!("going back to step {to}: {reason}"));
        self.state.policy.state = policy;
        self.state.checkpoints.committed = Some(to);
        self.state.resume = Some(Resume::at(to));
    }
}
