//! The invariants, seen from outside.

use std::collections::{BTreeMap, BTreeSet};

use polygram_checkpoint::{ChainHash, ConfigHash};
use polygram_domain::control::{
    Abort, AbortKind, AssignmentHash, Culprit, Directive, Envelope, MemberId, MemberReport, RunState,
};
use polygram_domain::spikes::SpikeSpec;
use polygram_domain::{Generation, Step};

use crate::core::{Action, Event, Outcome, Record, Reply, RollbackId, RollbackRequest, State, Ticket, Time};
use crate::ledger::{Base, Ledger};

/// The invariants, from what was delivered and what was ordered.
#[derive(Default)]
pub(super) struct Checker {
    pub(super) asked: BTreeSet<Ticket>,
    pub(super) answered: BTreeSet<Ticket>,
    pub(super) assigned: BTreeMap<MemberId, AssignmentHash>,
    pub(super) ready: BTreeSet<MemberId>,
    pub(super) started: BTreeSet<MemberId>,
    pub(super) open: BTreeSet<MemberId>,
    /// Those of the generation before.
    open_before: BTreeSet<MemberId>,
    pub(super) parts: BTreeMap<Step, BTreeSet<MemberId>>,
    pub(super) committing: Option<Step>,
    pub(super) committed: Option<Step>,
    /// The recovery point that is being kept.
    pub(super) keeping: Option<Step>,
    /// The newest that is kept.
    pub(super) point: Option<Step>,
    /// Generations that were started from one.
    pub(super) resumed_from_points: u32,
    pub(super) over: Option<(RunState, Time)>,
    pub(super) culprit: Option<Culprit>,
    pub(super) ended: Option<Outcome>,
    /// The generation that the sets above speak of.
    pub(super) generation: Generation,
    /// Generations that were started.
    pub(super) generations_started: u32,
    /// What a reader of the metrics finds.
    pub(super) recorded: BTreeMap<Step, Generation>,
    /// The ledger, kept as the recorder keeps it; `None` where reports may be lost, for then a run fails in time.
    pub(super) ledger: Option<Ledger>,
    /// Whether the run may begin from nothing: it never had a checkpoint, or a rollback led behind all of them.
    pub(super) may_begin: bool,
    /// Checkpoints that were found damaged and not committed again.
    pub(super) known_damaged: BTreeSet<Step>,
    /// How often one was quarantined.
    pub(super) quarantined: u32,
    /// What the store was asked, and has not answered.
    asked_store: Option<RollbackId>,
    /// Spikes that this coordinator has asked a rollback from.
    spikes: BTreeSet<Step>,
    /// What commits have named of it.
    heads: BTreeMap<Step, ChainHash>,
}

impl Checker {
    /// Keeps a ledger from `step` on.
    pub(super) fn keep_ledger(&mut self, step: Step) {
        let base = self.base(step);
        self.ledger = Some(Ledger::new(1, base, (ConfigHash::of(""), SpikeSpec::off())));
    }

    fn base(&self, step: Step) -> Base {
        let head = self.heads.get(&step).copied().unwrap_or_else(ChainHash::genesis);
        Base { step, head, ..Base::genesis() }
    }

    /// Notes what is delivered.
    pub(super) fn before(&mut self, event: &Event, state: &State) {
        self.follow(state.generation());
        match event {
            Event::Join { ticket, .. } | Event::Attend { ticket, .. } | Event::Stop { ticket, .. } => {
                self.asked.insert(*ticket);
            }
            Event::Upload { ticket, member, generation, step, .. } => {
                self.asked.insert(*ticket);
                if *generation == self.generation {
                    self.parts.entry(*step).or_default().insert(*member);
                }
            }
            Event::Report(Envelope { member, generation, report: MemberReport::Ready { assignment } })
                if *generation == self.generation
                    && self.assigned.get(member) == Some(assignment)
                    && self.open.contains(member) =>
            {
                self.ready.insert(*member);
            }
            Event::RollbackResolved { id, .. } => {
                assert_eq!(self.asked_store.take(), Some(*id), "what was asked is answered");
            }
            Event::StreamEnded { member, .. } => {
                self.open.remove(member);
            }
            Event::CommitDone { step, result } if self.committing == Some(*step) => {
                self.committing = None;
                if result.is_ok() {
                    self.committed = Some(*step);
                    self.may_begin = false;
                }
            }
            Event::PointDone { step, result } if self.keeping == Some(*step) => {
                self.keeping = None;
                if result.is_ok() {
                    self.point = Some(*step);
                }
            }
            _ => {}
        }
    }

    /// Judges one order.
    pub(super) fn after(&mut self, action: &Action, attending: Option<MemberId>, state: &State) {
        let members = state.settings().member_count();
        self.follow(state.generation());
        assert_eq!(self.ended, None, "nothing is done after the end: {action:?}");
        match action {
            Action::Reply { ticket, answer } => {
                assert!(self.asked.contains(ticket), "an answer to nobody");
                assert!(self.answered.insert(*ticket), "one answer a call");
                if let (Ok(Reply::Attending), Some(member)) = (answer, attending) {
                    self.open.insert(member);
                }
            }
            Action::Direct { member, directive } => {
                let opening = attending == Some(*member);
                let dismissed = matches!(directive, Directive::Abort(_)) && self.open_before.contains(member);
                assert!(
                    opening || dismissed || self.open.contains(member),
                    "a directive on a stream that is not open"
                );
                match directive {
                    Directive::Assign(assignment) => {
                        assert_eq!(assignment.generation, state.generation(), "one active generation");
                        assert_eq!(
                            (self.committing, self.keeping),
                            (None, None),
                            "no generation begins beside a commit"
                        );
                        assert_eq!(
                            assignment.resume_step,
                            self.newest(),
                            "a generation begins from the newest commit or recovery point"
                        );
                        assert_eq!(
                            assignment.resume_point(),
                            self.point.filter(|point| Some(*point) > self.committed),
                            "and says which of them it is"
                        );
                        assert!(
                            !self.known_damaged.contains(&assignment.resume_step),
                            "no generation begins from a checkpoint that is known to be damaged"
                        );
                        assert_eq!(self.asked_store, None, "nor while the store decides on one");
                        assert!(
                            assignment.resume_manifest.is_some() || self.may_begin,
                            "a run that has checkpoints never begins afresh"
                        );
                        assert_eq!(assignment.workers.len() + assignment.shards.len(), members);
                        let before = self.assigned.insert(*member, assignment.hash());
                        assert_eq!(before, None, "one assignment a generation");
                        let hashes: BTreeSet<[u8; 32]> = self.assigned.values().map(|h| h.0).collect();
                        assert_eq!(hashes.len(), 1, "one table for all");
                    }
                    Directive::Start => {
                        assert_eq!(self.ready.len(), members, "no start before all are ready");
                        assert!(self.started.insert(*member), "one start");
                        if self.started.len() == members {
                            self.generations_started += 1;
                            self.resumed_from_points += u32::from(self.point > self.committed);
                        }
                    }
                    Directive::Committed { step } => assert_eq!(self.committed, Some(*step)),
                    Directive::PointSettled { step, kept } => assert_eq!(*kept, self.point == Some(*step)),
                    Directive::Stop { .. } => assert!(self.started.contains(member)),
                    Directive::Abort(Abort { kind: AbortKind::Rejoin { generation }, .. }) => {
                        assert_eq!(*generation, state.generation(), "told to join the active generation");
                    }
                    Directive::Abort(_) | Directive::Exit => {}
                }
            }
            Action::Commit { step } => {
                assert_eq!(self.parts[step].len(), members, "no commit without all parts");
                assert_eq!((self.committing, self.keeping), (None, None), "one commit at a time");
                assert!(self.newest() < *step || self.committed.is_none(), "commits ascend");
                self.note_head(*step);
                self.committing = Some(*step);
            }
            Action::KeepPoint { step } => {
                assert_eq!(self.parts[step].len(), members, "no recovery point without all parts");
                assert_eq!((self.committing, self.keeping), (None, None), "one checkpoint at a time");
                assert!(self.newest() < *step, "recovery points ascend");
                self.note_head(*step);
                self.keeping = Some(*step);
            }
            Action::End(outcome) => self.ended = Some(*outcome),
            Action::Record(Record::Metrics(metrics)) => {
                let newest = self.recorded.last_key_value().map(|(step, _)| *step);
                assert!(newest.is_none_or(|newest| newest < metrics.step), "steps are recorded in order");
                self.recorded.insert(metrics.step, state.generation());
                if let Some(ledger) = &mut self.ledger {
                    ledger.add(metrics).expect("each step has one line");
                }
            }
            Action::Record(Record::ResumedAt(step)) => {
                self.recorded.split_off(step);
                let base = self.base(*step);
                if let Some(ledger) = &mut self.ledger {
                    ledger.go_back(base);
                }
            }
            Action::ResolveRollback { id, request } => {
                assert_eq!(self.asked_store, None, "one request at a time");
                self.asked_store = Some(*id);
                match request {
                    RollbackRequest::Spike { at, .. } => {
                        assert!(self.spikes.insert(*at), "the store is asked once for each spike");
                    }
                    RollbackRequest::UnrestorablePoint { step, .. } => {
                        assert_eq!(
                            self.point.take(),
                            Some(*step),
                            "the point that was resumed from is dropped"
                        );
                    }
                    RollbackRequest::DamagedCheckpoint(_) => {}
                }
            }
            Action::DropParts { .. } | Action::Record(_) | Action::StatusChanged | Action::Log(..) => {}
        }
    }

    fn note_head(&mut self, step: Step) {
        if let Some(ledger) = &self.ledger {
            let line = ledger.at(step).expect("a line of every step before its commit");
            self.heads.insert(step, line.head);
        }
    }

    /// What a generation goes on from that begins now.
    pub(super) fn newest(&self) -> Step {
        self.committed.max(self.point).unwrap_or_default()
    }

    /// Judges the state after all orders of an event.
    pub(super) fn settled(&mut self, state: &State, now: Time) {
        let run = state.run_state();
        if let Some((over, since)) = self.over {
            assert_eq!(run, over, "a state that is over is never left");
            let patience = state.settings().timeouts.leave_ms + 1000;
            assert!(self.ended.is_some() || now.since(since) <= patience, "the end comes in bounded time");
        } else if run.is_over() {
            self.over = Some((run, now));
        }
        self.follow(state.generation());
        let culprit = state.culprit();
        let settled = self.culprit.is_none()
            || self.culprit.as_ref() == culprit
            || state.run_state() != RunState::Failed && culprit.is_none();
        assert!(settled, "the culprit of a generation is its culprit for good");
        self.culprit = culprit.cloned();
        let bad = run == RunState::Failed;
        assert!(self.ended.is_none_or(|outcome| (outcome == Outcome::Bad) == bad));
    }

    /// Another generation: what is known of members is of an older one.
    fn follow(&mut self, generation: Generation) {
        if self.generation == generation {
            return;
        }
        assert!(self.generation < generation, "generations only grow");
        self.generation = generation;
        self.assigned.clear();
        self.ready.clear();
        self.started.clear();
        self.open_before = std::mem::take(&mut self.open);
        self.parts.clear();
        self.culprit = None;
    }

    /// Another coordinator leads from here. It finds the metrics of attempts before it up to its resume point.
    pub(super) fn succeeded(&mut self) {
        let newest = self.newest();
        self.spikes.clear();
        self.asked_store = None;
        self.recorded.split_off(&newest);
        if self.ledger.is_some() {
            self.keep_ledger(newest);
        }
    }
}
