//! What members report on their streams.

use polygram_checkpoint::FailureLine;
use polygram_domain::Step;
use polygram_domain::control::{
    AssignmentHash, Envelope, Evaluation, MemberRef, MemberReport, Reason, Role, RunState, StepMetrics,
};

use super::Turn;
use crate::core::event::{Action, Level, Record};
use crate::core::membership::Stream;
use crate::core::state::State;

impl Turn<'_> {
    pub(in crate::core) fn report(&mut self, envelope: Envelope) {
        let Envelope { member, generation, report } = envelope;
        let active = self.state.generation();
        if generation != active {
            if let Some(who) = self.state.membership.former(generation, member) {
                return self.stale_report(who, report);
            }
            let line = format!("ignored a report of generation {generation}, active is {active}");
            return self.log(Level::Warn, line);
        }
        let Some(m) = self.state.membership.by_id(member) else {
            return self.log(Level::Warn, format!("ignored a report of unknown admission {}", member.0));
        };
        if m.stream != Stream::Open {
            return;
        }
        let who = m.who;
        self.state.membership.heard(who, self.now);
        match report {
            MemberReport::Heartbeat(heartbeat) => self.state.membership.heartbeat(who, heartbeat),
            MemberReport::Ready { assignment } => self.ready(who, assignment),
            MemberReport::Metrics(metrics) => self.step_done(who, metrics),
            MemberReport::Evaluation(evaluation) => self.evaluated(who, evaluation),
            MemberReport::Failed(failure) => self.member_failed(who, failure),
            MemberReport::Finished { step } => self.finished(who, step),
            MemberReport::Shard(report) => {
                let State { reported, settings, .. } = &mut *self.state;
                if let Err(refusal) = reported.counts_mut().take_shard(who, *report, settings) {
                    self.log(Level::Warn, refusal);
                }
            }
            MemberReport::Input(report) => {
                let State { reported, settings, .. } = &mut *self.state;
                if let Err(refusal) = reported.counts_mut().take_input(who, *report, settings) {
                    self.log(Level::Warn, refusal);
                }
            }
        }
    }

    /// What a member of the former generation still reports: a failure of it is a secondary one.
    fn stale_report(&mut self, who: MemberRef, report: MemberReport) {
        if let MemberReport::Failed(failure) = report
            && self.state.run_state() == RunState::Recovering
            && !failure.roll_back
        {
            if let Some(damaged) = failure.damaged {
                self.late_damage_report(who, damaged);
            }
            self.secondary_failure(who, &failure.message);
        }
    }

    fn step_done(&mut self, who: MemberRef, metrics: StepMetrics) {
        let is_of_generation = metrics.step >= self.state.resume_step();
        let now = self.now;
        if !self.speaks_for_the_run(who)
            || !is_of_generation
            || !self.state.reported.take_metrics(metrics, now)
        {
            return;
        }
        self.actions.push(Action::Record(Record::Metrics(metrics)));
        self.record_skip(&metrics);
        self.record_progress(metrics.step.next());
        self.begin_next_checkpoint();
    }

    /// Records that a step was skipped, where it was.
    fn record_skip(&mut self, metrics: &StepMetrics) {
        let outcome = metrics.proof.outcome;
        if let Some(why) = outcome.reason() {
            let StepMetrics { step, loss, grad_norm, .. } = *metrics;
            let sentence = format!("step {step} was skipped: {why} (loss {loss}, gradient norm {grad_norm})");
            self.log(Level::Warn, sentence);
            let (at_unix_ms, generation) = (self.now.0, self.state.generation());
            self.record(FailureLine::StepSkipped { at_unix_ms, generation, step, outcome, loss, grad_norm });
        }
    }

    /// Keeps an evaluation of one of the run's held-out sets, once.
    fn evaluated(&mut self, who: MemberRef, evaluation: Evaluation) {
        if !self.speaks_for_the_run(who) {
            return;
        }
        if !self.state.settings.held_out_sets.contains(&evaluation.set) {
            let line =
                format!("ignored an evaluation of {:?}, which is no held-out set of the run", evaluation.set);
            return self.log(Level::Warn, line);
        }
        if self.state.reported.take_evaluation(&evaluation) {
            self.actions.push(Action::Record(Record::Evaluation(evaluation)));
        }
    }

    /// Whether metrics of `who` count: rank 0's, while steps are done.
    fn speaks_for_the_run(&mut self, who: MemberRef) -> bool {
        let run = self.state.run_state();
        let speaks = who.role == Role::Worker && who.index == 0 && run == RunState::Running;
        if !speaks {
            self.log(Level::Warn, format!("ignored metrics of {who} while {run}"));
        }
        speaks
    }

    fn ready(&mut self, who: MemberRef, hash: AssignmentHash) {
        let message = match self.state.membership.assignment() {
            Some(assigned) if assigned == hash => return self.state.membership.set_ready(who),
            Some(assigned) => format!("acknowledged assignment {hash}, but was given {assigned}"),
            None => format!("acknowledged assignment {hash} before there was one"),
        };
        self.member_fails(who, Reason::ProtocolBroken, message);
    }

    fn finished(&mut self, who: MemberRef, step: Step) {
        if self.state.is_over() {
            return;
        }
        let (run, total) = (self.state.run_state(), self.state.settings.total_steps);
        let first = self.state.membership.workers().find_map(|m| m.finished.map(|at| (m.who, at)));
        let message = if who.role == Role::Shard {
            Some("reported Finished, which only workers do".to_owned())
        } else if run != RunState::Running {
            Some(format!("reported Finished while the run was {run}"))
        } else if step.0 > total || step < self.state.resume_step() {
            Some(format!("finished at step {step}, which is not between the resumed step and {total}"))
        } else {
            first
                .filter(|(_, at)| *at != step)
                .map(|(other, at)| format!("finished at step {step}, but {other} finished at step {at}"))
        };
        match message {
            Some(message) => self.member_fails(who, Reason::ProtocolBroken, message),
            None => self.state.membership.set_finished(who, step),
        }
    }
}
