//! The invariants, seen from outside.

use std::collections::{BTreeMap, BTreeSet};

use polygram_domain::Step;
use polygram_proto::control::{
    AssignmentHash, Culprit, Directive, Envelope, MemberId, MemberReport, RunState,
};

use crate::core::{Action, Event, Outcome, Reply, State, Ticket, Time};

/// The invariants, from what was delivered and what was ordered.
#[derive(Default)]
pub(super) struct Checker {
    pub(super) asked: BTreeSet<Ticket>,
    pub(super) answered: BTreeSet<Ticket>,
    pub(super) assigned: BTreeMap<MemberId, AssignmentHash>,
    pub(super) ready: BTreeSet<MemberId>,
    pub(super) started: BTreeSet<MemberId>,
    pub(super) open: BTreeSet<MemberId>,
    pub(super) parts: BTreeMap<Step, BTreeSet<MemberId>>,
    pub(super) committing: Option<Step>,
    pub(super) committed: Option<Step>,
    pub(super) over: Option<(RunState, Time)>,
    pub(super) culprit: Option<Culprit>,
    pub(super) ended: Option<Outcome>,
}

impl Checker {
    /// Notes what is delivered.
    pub(super) fn before(&mut self, event: &Event) {
        match event {
            Event::Join { ticket, .. } | Event::Attend { ticket, .. } | Event::Stop { ticket, .. } => {
                self.asked.insert(*ticket);
            }
            Event::Upload { ticket, member, step, .. } => {
                self.asked.insert(*ticket);
                self.parts.entry(*step).or_default().insert(*member);
            }
            Event::Report(Envelope { member, report: MemberReport::Ready { assignment }, .. })
                if self.assigned.get(member) == Some(assignment) && self.open.contains(member) =>
            {
                self.ready.insert(*member);
            }
            Event::StreamEnded { member, .. } => {
                self.open.remove(member);
            }
            Event::CommitDone { step, result } if self.committing == Some(*step) => {
                self.committing = None;
                if result.is_ok() {
                    self.committed = Some(*step);
                }
            }
            _ => {}
        }
    }

    /// Judges one order.
    pub(super) fn after(&mut self, action: &Action, attending: Option<MemberId>, state: &State) {
        let members = state.settings().member_count();
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
                assert!(opening || self.open.contains(member), "a directive on a stream that is not open");
                match directive {
                    Directive::Assign(assignment) => {
                        assert_eq!(assignment.generation, state.generation(), "one active generation");
                        assert_eq!(assignment.workers.len() + assignment.shards.len(), members);
                        let before = self.assigned.insert(*member, assignment.hash());
                        assert_eq!(before, None, "one assignment a generation");
                        let hashes: BTreeSet<[u8; 32]> = self.assigned.values().map(|h| h.0).collect();
                        assert_eq!(hashes.len(), 1, "one table for all");
                    }
                    Directive::Start => {
                        assert_eq!(self.ready.len(), members, "no start before all are ready");
                        assert!(self.started.insert(*member), "one start");
                    }
                    Directive::Committed { step } => assert_eq!(self.committed, Some(*step)),
                    Directive::Stop { .. } => assert!(self.started.contains(member)),
                    Directive::Abort(_) | Directive::Exit => {}
                }
            }
            Action::Commit { step } => {
                assert_eq!(self.parts[step].len(), members, "no commit without all parts");
                assert_eq!(self.committing, None, "one commit at a time");
                assert!(self.committed.is_none_or(|before| before < *step), "commits ascend");
                self.committing = Some(*step);
            }
            Action::End(outcome) => self.ended = Some(*outcome),
            Action::DropParts { .. } | Action::Record(_) | Action::StatusChanged | Action::Log(..) => {}
        }
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
        let culprit = &state.culprit;
        assert!(self.culprit.is_none() || self.culprit == *culprit, "the culprit is the culprit for good");
        self.culprit.clone_from(culprit);
        let bad = run == RunState::Failed;
        assert!(self.ended.is_none_or(|outcome| (outcome == Outcome::Bad) == bad));
    }
}
