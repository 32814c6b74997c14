//! Going back to the last commit or recovery point: when a lost member costs a generation, and when it costs the run.
//!
//! A loss ends the generation. Its members are forgotten and told to join again, what they had reported for commits that
//! had not begun is dropped, and a new generation is admitted at once. It is assigned once the commit under way has
//! ended, so that its resume point is known.

use std::collections::{BTreeMap, BTreeSet};

use polygram_checkpoint::{CulpritRecord, FailureLine, LossRecord, RollbackCause};
use polygram_domain::{Generation, Step, words};
use polygram_proto::control::{
    Abort, AbortKind, Culprit, Directive, MemberId, MemberRef, MemberReport, Reason, Role, Rollback, RunState,
};

use super::counts::Counts;
use super::event::{Action, Level, Record, Time};
use super::state::{State, Turn};

/// No back-off is longer.
const LONGEST_BACKOFF_MS: u64 = 60_000;

/// What the run remembers over its generations.
#[derive(Clone, Debug, Default)]
pub(super) struct Recovery {
    /// Generations that were ended by a loss and followed by another.
    pub(super) restarts: u32,
    /// Why the last one was.
    pub(super) last: Option<Rollback>,
    /// What the last generation ended for, if it was not a loss: the beginning of a sentence.
    pub(super) cause: Option<String>,
    /// The same, by type.
    pub(super) rollback_cause: RollbackCause,
    /// The furthest state version that was ever reported.
    furthest: Step,
    /// The same when the last loss was judged.
    furthest_at_loss: Step,
    /// Losses in a row between which the run came no further.
    fruitless: u32,
    /// Losses in a row that the environment caused, and between which the run came no further. They cost time, and one of
    /// the run's restarts each, but they are no sign that the program fails again.
    outages: u32,
    /// Failures that members told themselves since the run last came further.
    told: BTreeSet<Told>,
    /// The next generation is not assigned before this.
    not_before: Option<Time>,
    /// When the last loss was judged, until the run is where it was then.
    lost_at: Option<Time>,
    /// The members of the generation before this one.
    former: Option<(Generation, BTreeMap<MemberId, MemberRef>)>,
    hosts: BTreeMap<String, Host>,
    hosts_seen: BTreeSet<String>,
}

/// A failure by which it is known again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    role: Role,
    /// Its words without their numbers: ports and ranks differ from one time to the next.
    words: String,
    step: Step,
}

#[derive(Clone, Copy, Debug, Default)]
struct Host {
    /// Losses by its members since the run last came further.
    losses: u32,
    until: Option<Time>,
}

impl Recovery {
    /// The slot of a member of the generation before the active one.
    pub(super) fn former(&self, generation: Generation, member: MemberId) -> Option<MemberRef> {
        let (former, members) = self.former.as_ref()?;
        members.get(&member).copied().filter(|_| *former == generation)
    }
}

impl State {
    /// Whether the run goes back after a loss at all.
    pub(super) fn recovers(&self) -> bool {
        self.settings.recovery.max_restarts > 0
    }

    /// Why members of `host` have to wait. A run that has one host alone keeps it.
    pub(super) fn quarantine(&mut self, host: &str, now: Time) -> Option<String> {
        if !self.recovery.hosts_seen.contains(host) {
            self.recovery.hosts_seen.insert(host.to_owned());
        }
        let Host { losses, until } = *self.recovery.hosts.get(host)?;
        let until = until.filter(|until| now < *until && self.recovery.hosts_seen.len() > 1)?;
        let seconds = until.since(now) as f64 / 1000.0;
        Some(format!(
            "host {host} is kept out for {seconds:.0} s: {} in a row of its members",
            words::counted(losses.into(), "loss")
        ))
    }

    /// Why the run cannot go back after this loss.
    fn gives_up(&self, reason: Reason, culprit: &Culprit) -> Option<String> {
        let (policy, recovery) = (&self.settings.recovery, &self.recovery);
        if reason == Reason::StoreFailed {
            return Some(
                "starting members again does not mend the store; mend it, and the same command continues"
                    .into(),
            );
        }
        let told = Told::of(reason, culprit);
        if told.is_some_and(|told| recovery.told.contains(&told)) {
            return Some(format!(
                "this failure came at step {} before, so it would come again; mend its cause, and the same command \
                 continues",
                culprit.step
            ));
        }
        if recovery.restarts >= policy.max_restarts {
            return Some(format!("recovery.max_restarts = {} is used up", policy.max_restarts));
        }
        if recovery.fruitless > policy.max_fruitless_restarts {
            return Some(format!(
                "{} in a row came no further than step {} (recovery.max_fruitless_restarts)",
                words::counted(policy.max_fruitless_restarts.into(), "restart"),
                recovery.furthest_at_loss
            ));
        }
        None
    }
}

impl Told {
    /// A failure in words of the member's own. Deaths and silence look alike whatever caused them.
    fn of(reason: Reason, culprit: &Culprit) -> Option<Told> {
        let is_told = matches!(reason, Reason::MemberFailed | Reason::ProtocolBroken);
        is_told.then(|| Told {
            role: culprit.member.role,
            words: culprit.message.chars().filter(|c| !c.is_ascii_digit()).collect(),
            step: culprit.step,
        })
    }
}

impl Turn<'_> {
    /// A member is lost: the run goes back, or ends.
    pub(super) fn lose(&mut self, reason: Reason, culprit: Culprit, host: Option<String>) {
        let sentence = culprit.to_string();
        self.count_loss(reason, host.as_deref());
        let (restarts, why) = (self.state.recovery.restarts, self.state.gives_up(reason, &culprit));
        let line = self.loss_line(reason, &culprit, host, why.clone());
        self.actions.push(Action::Record(Record::Recovery(line)));
        self.state.recovery.told.extend(Told::of(reason, &culprit));
        self.distrust_point(reason, &sentence);
        self.state.culprit = Some(culprit);
        match (why, &self.state.stop) {
            (_, _) if !self.state.recovers() => self.fail(reason, sentence),
            (_, Some(wish)) => {
                let wish = wish.clone();
                self.stop_uncommitted(&wish, &format!("lost meanwhile: {sentence}"));
            }
            (Some(why), None) => {
                let restarts = words::counted(restarts.into(), "restart");
                self.fail(reason, format!("{sentence}; {why} ({restarts} so far)"))
            }
            (None, None) => self.roll_back(reason, sentence),
        }
    }

    /// A member that fails over a recovery point while it restores it makes the run go on from its last commit instead.
    fn distrust_point(&mut self, reason: Reason, sentence: &str) {
        let Some(step) = self.state.checkpoints.point else { return };
        if self.state.restores_point() && reason == Reason::MemberFailed {
            self.state.checkpoints.point = None;
            let why = format!("it could not be restored: {sentence}");
            self.log(Level::Error, format!("recovery point {step} is not gone on from again: {why}"));
            self.actions.push(Action::DropPoint { step, why });
        }
    }

    fn count_loss(&mut self, reason: Reason, host: Option<&str>) {
        let is_outage = reason == Reason::EnvironmentFailed;
        let (policy, recovery) = (&self.state.settings.recovery, &mut self.state.recovery);
        if recovery.furthest > recovery.furthest_at_loss
            || recovery.lost_at.is_none() && recovery.restarts == 0
        {
            recovery.furthest_at_loss = recovery.furthest;
            recovery.fruitless = 0;
            recovery.outages = 0;
            recovery.told.clear();
            recovery.hosts.clear();
        } else if is_outage {
            recovery.outages += 1;
        } else {
            recovery.fruitless += 1;
        }
        // A link has two ends: who reports that it is cut is not to blame.
        let Some(host) = host.filter(|_| !is_outage) else { return };
        let host = recovery.hosts.entry(host.to_owned()).or_default();
        host.losses += 1;
        if host.losses >= policy.quarantine_after {
            host.until = Some(self.now.after((policy.quarantine_seconds * 1000.0) as u64));
        }
    }

    fn loss_line(
        &self,
        reason: Reason,
        culprit: &Culprit,
        host: Option<String>,
        gives_up: Option<String>,
    ) -> FailureLine {
        FailureLine::Lost(LossRecord {
            at_unix_ms: self.now.0,
            generation: self.state.generation,
            reason: reason.as_str().into(),
            state: self.state.run.as_str().into(),
            culprit: CulpritRecord {
                member: culprit.member.to_string(),
                pid: culprit.pid,
                host: host.unwrap_or_default(),
                phase: culprit.phase.as_str().into(),
                step: culprit.step,
                message: culprit.message.clone(),
            },
            reached: self.state.reached(),
            gives_up,
        })
    }

    /// A loss ends the generation.
    fn roll_back(&mut self, reason: Reason, sentence: String) {
        let recovery = &mut self.state.recovery;
        recovery.restarts += 1;
        recovery.cause = None;
        recovery.rollback_cause = RollbackCause::MemberLost;
        recovery.last = self.state.culprit.clone().map(|culprit| Rollback { reason, culprit });
        let not_before = self.backoff();
        self.end_generation(sentence, not_before);
    }

    /// Ends the generation: everybody is told to join the next one, which is not assigned before its time.
    pub(super) fn end_generation(&mut self, sentence: String, not_before: Option<Time>) {
        let state = &mut *self.state;
        let former = state.members.values().map(|m| (m.id, m.who)).collect();
        let next = state.generation.next();
        let abort = Abort {
            reason: sentence,
            culprit: state.culprit.clone(),
            kind: AbortKind::Rejoin { generation: next },
        };
        self.direct_all(&Directive::Abort(abort));
        let state = &mut *self.state;
        state.recovery.former = Some((state.generation, former));
        state.recovery.lost_at = Some(self.now);
        state.recovery.not_before = not_before;
        state.generation = next;
        state.members.clear();
        state.assignment = None;
        state.suspicion = None;
        state.consequences.clear();
        state.metrics = None;
        state.counts = Counts::default();
        state.checkpoints.parts.clear();
        state.checkpoints.complete.clear();
        state.checkpoints.given_up = None;
        // The parts of a commit under way have gone with their order.
        self.actions.push(Action::DropParts { before: Step(u64::MAX) });
        let message = self.waiting_to_recover();
        self.enter(RunState::Recovering, Reason::WaitingForMembers, message);
    }

    fn backoff(&self) -> Option<Time> {
        let Recovery { fruitless, outages, .. } = self.state.recovery;
        let doubled = fruitless.checked_sub(2).max(outages.checked_sub(1))?;
        let first = self.state.settings.recovery.backoff_seconds * 1000.0;
        let pause = (first * f64::from(doubled.min(16)).exp2()) as u64;
        Some(self.now.after(pause.min(LONGEST_BACKOFF_MS)))
    }

    /// One transition out of the wait between two generations.
    pub(super) fn advance_recovery(&mut self) -> bool {
        let waits = |what: String, turn: &Self| format!("{}; {what}", turn.going_back());
        if let Some(at) = self.state.undecided() {
            let message = format!("going back from the spike at step {at}: waiting for the store to decide");
            self.enter(RunState::Recovering, Reason::WaitingForCommit, message);
            return false;
        }
        if let Some(step) = self.state.checkpoints.keeping {
            let message = waits(format!("waiting for the recovery point of step {step}"), self);
            self.enter(RunState::Recovering, Reason::WaitingForCommit, message);
            return false;
        }
        if self.state.is_examining() {
            let message = self.going_back();
            self.enter(RunState::Recovering, Reason::Examining, message);
            return false;
        }
        if let Some(step) = self.state.checkpoints.committing {
            let message = waits(format!("waiting for the commit of step {step}"), self);
            self.enter(RunState::Recovering, Reason::WaitingForCommit, message);
            return false;
        }
        if let Some(step) = self.state.last_commit().filter(|step| step.0 >= self.state.settings.last_step) {
            // The loss came after the last commit had begun: nothing is left to do again.
            self.finish_at(step);
            return true;
        }
        if let Some(until) = self.state.recovery.not_before.filter(|until| self.now < *until) {
            let lost_at = self.state.recovery.lost_at.unwrap_or(self.now);
            let Recovery { fruitless, outages, .. } = self.state.recovery;
            let (count, pause) = (fruitless + outages, until.since(lost_at) as f64 / 1000.0);
            let message = waits(
                format!("{} came no further, pausing {pause:.1} s", words::counted(count.into(), "restart")),
                self,
            );
            self.enter(RunState::Recovering, Reason::BackingOff, message);
            return false;
        }
        if self.state.members.len() < self.state.settings.member_count() {
            let message = self.waiting_to_recover();
            self.enter(RunState::Recovering, Reason::WaitingForMembers, message);
            return false;
        }
        let message = self.waiting_for_attendance();
        self.enter(RunState::Rendezvous, Reason::WaitingForAttendance, message);
        true
    }

    fn going_back(&self) -> String {
        if let Some(cause) = &self.state.recovery.cause {
            return cause.clone();
        }
        let from =
            self.state.newest().map_or("the beginning".into(), |newest| format!("step {}", newest.step));
        let last = self.state.recovery.last.as_ref();
        let why = last.map_or("a member was lost".into(), |last| last.culprit.to_string());
        let (restart, most) = (self.state.recovery.restarts, self.state.settings.recovery.max_restarts);
        format!("going back to {from}, restart {restart} of {most}: {why}")
    }

    fn waiting_to_recover(&self) -> String {
        format!("{}; {}", self.going_back(), self.state.waiting_to_join())
    }

    /// Fixes what the generation begins from, just before it is assigned.
    pub(super) fn resume_from_newest(&mut self) {
        if self.state.recovery.lost_at.is_none() {
            return;
        }
        self.state.resume = self.state.newest();
        let step = self.state.resume_step();
        self.state.evaluations.retain(|_, evaluation| evaluation.step <= step);
        self.actions.push(Action::Record(Record::WentBack(step)));
        let (at_unix_ms, generation) = (self.now.0, self.state.generation);
        let cause = self.state.recovery.rollback_cause.clone();
        let line = FailureLine::RolledBack { at_unix_ms, generation, cause, to: step };
        self.actions.push(Action::Record(Record::Recovery(line)));
    }

    /// A generation starts; whoever ended the one before is history.
    pub(super) fn recovered(&mut self) {
        let Some(lost_at) = self.state.recovery.lost_at else { return };
        self.state.culprit = None;
        self.state.consequences.clear();
        let (at_unix_ms, generation) = (self.now.0, self.state.generation);
        let line = FailureLine::Started { at_unix_ms, generation };
        self.actions.push(Action::Record(Record::Recovery(line)));
        let seconds = self.now.since(lost_at) as f64 / 1000.0;
        let step = self.state.resume_step();
        self.log(
            Level::Info,
            format!("generation {generation} goes on from step {step}, {seconds:.2} s after the loss"),
        );
    }

    /// Notes that the run has reached `step`.
    pub(super) fn note_progress(&mut self, step: Step) {
        let recovery = &mut self.state.recovery;
        let was = recovery.furthest;
        recovery.furthest = recovery.furthest.max(step);
        if step >= was && recovery.lost_at.take().is_some() {
            let (at_unix_ms, generation) = (self.now.0, self.state.generation);
            let line = FailureLine::CaughtUp { at_unix_ms, generation, step };
            self.actions.push(Action::Record(Record::Recovery(line)));
        }
    }

    /// What a member of the former generation still said.
    pub(super) fn late_word(&mut self, who: MemberRef, report: MemberReport) {
        if let MemberReport::Failed(failure) = report
            && self.state.run == RunState::Recovering
            && !failure.roll_back
        {
            if let Some(damaged) = failure.damaged {
                self.disbelieved(who, damaged);
            }
            self.consequence(who, &failure.message);
        }
    }

    pub(super) fn tell_consequence(&mut self, who: MemberRef, message: &str) {
        let line = FailureLine::Consequence { at_unix_ms: self.now.0, sentence: format!("{who}: {message}") };
        self.actions.push(Action::Record(Record::Recovery(line)));
    }

    pub(super) fn tell_end(&mut self, run: RunState, message: &str) {
        let line = FailureLine::Ended {
            at_unix_ms: self.now.0,
            state: run.as_str().into(),
            message: message.to_owned(),
        };
        self.actions.push(Action::Record(Record::Recovery(line)));
    }
}

impl State {
    /// The state version that this generation has reached, as rank 0 said.
    pub(super) fn reached(&self) -> Step {
        self.metrics.map_or(self.resume_step(), |metrics| metrics.step.next())
    }
}
