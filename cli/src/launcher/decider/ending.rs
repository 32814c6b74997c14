//! How a launch ends: with its coordinator's last word, without one, or killed on request; and that no process is left.

use std::time::{Duration, Instant};

use polygram_domain::Step;
use polygram_domain::control::{Reason, RunState, RunStatus};
use polygram_proto::control::ControlError;

use super::{Clearing, Death, Decider, IDLE_PATIENCE, Phase, REPORT_PATIENCE};
use crate::exit::{ExitStatus, Failure};
use crate::launcher::ended::Ended;
use crate::launcher::messages::{Action, Cause, Conclusion, Ending, Failed, Final};
use crate::launcher::progress::ProgressLine;
use crate::units::counted;

/// Within this time deaths count as one event.
const BLAME_WINDOW: Duration = Duration::from_millis(300);
/// How long processes may take to end by themselves once the run is over.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// The same when the run was lost.
const LOST_PATIENCE: Duration = Duration::from_millis(500);

impl Decider {
    /// The watch is over: the coordinator's last word counts; without one, the first death.
    pub(super) fn end(&mut self, error: Option<ControlError>, now: Instant) {
        match self.status.take() {
            Some(status) if status.state == RunState::Failed => self.run_failed(status, now),
            Some(status) if status.state.is_over() => self.conclude_over(*status, now),
            status => {
                self.status = status;
                self.find_cause(error, now);
            }
        }
    }

    /// The coordinator said why.
    fn run_failed(&mut self, status: Box<RunStatus>, now: Instant) {
        if let (true, Some(Death { ended, .. })) = (self.asked_to_abort, &self.death) {
            let (ended, exit) = (ended.clone(), self.status_of(ended));
            return self.fail_committed(Cause::Process(ended), exit, now);
        }
        let culprit = status.culprit.as_ref().map(|culprit| culprit.member.to_string());
        let culprit = self.ends.iter().rev().find(|ended| culprit.as_ref() == Some(&ended.name)).cloned();
        if status.reason == Reason::TakenOver {
            let hint = format!(
                "`polygram status {}` tells how it goes on there; the same command with --take-over would take it back",
                status.run
            );
            let cause = Cause::Run { status, culprit };
            let failed = Failed { cause, status: ExitStatus::Failed, hint: Some(hint) };
            return self.conclude(Conclusion::Failed(failed), now);
        }
        self.fail_committed(Cause::Run { status, culprit }, ExitStatus::Failed, now);
    }

    /// Nobody said why: finds the death that broke the watch. A stream breaks a moment before its dead process can be waited
    /// for, and members end soon after their coordinator, which is then the one to name.
    pub(super) fn find_cause(&mut self, error: Option<ControlError>, now: Instant) {
        let patience = if self.death.is_none() { REPORT_PATIENCE } else { BLAME_WINDOW };
        self.phase = Phase::FindingCause { until: now + patience, error };
        if self.death.as_ref().is_some_and(|death| death.ended.is_coordinator()) {
            self.cause_found(now);
        }
    }

    /// A process ended while the cause is looked for.
    pub(super) fn explained_by(&mut self, ended: Ended, now: Instant) {
        let is_coordinator = ended.is_coordinator();
        if self.death.is_some() && !is_coordinator {
            return;
        }
        self.death = Some(Death { ended, due: now });
        if is_coordinator {
            self.cause_found(now);
        } else if let Phase::FindingCause { until, .. } = &mut self.phase {
            *until = now + BLAME_WINDOW;
        }
    }

    /// The first process that died is named.
    pub(super) fn cause_found(&mut self, now: Instant) {
        let Phase::FindingCause { error, .. } = &mut self.phase else { return };
        let cause = match (self.death.take(), error.take()) {
            (Some(Death { ended, .. }), _) => Cause::Process(ended),
            (None, Some(error)) => Cause::CoordinatorLost(error),
            (None, None) => {
                Cause::Own(Failure::failed("the coordinator ended its watch without a last word"))
            }
        };
        self.fail_committed(cause, ExitStatus::Failed, now);
    }

    /// Ends everything at once, and records it. A run that is committed as far as it has come is stopped or complete as any
    /// other.
    pub(super) fn kill(&mut self) {
        self.say("killing every process of the run");
        self.phase = Phase::Killing;
        self.kill_everybody();
    }

    pub(super) fn kill_everybody(&mut self) {
        self.supervisor.retire();
        let everybody: Vec<u32> = self.living.keys().copied().collect();
        if !everybody.is_empty() {
            self.actions.push(Action::Kill(everybody));
        }
    }

    /// The store has said what is committed: the coordinator may have committed without having said so.
    pub(super) fn newest_commit(&mut self, committed: Option<u64>, now: Instant) {
        let Phase::Recording { status: None } = self.phase else { return };
        if let Some(step) = committed {
            self.line.committed(step);
        }
        let Some((status, coordinator)) = self.status.take().zip(self.coordinator) else {
            return self.end_unheard(committed, now);
        };
        let status = Box::new(killed(*status, self.steps_done(), self.line.last_commit()));
        self.actions.push(Action::Record { status: status.clone(), coordinator });
        self.phase = Phase::Recording { status: Some(status) };
    }

    /// Ends a launch that was killed before it heard a word of the run. What is committed may be of this launch all the same:
    /// a coordinator that was started again has done it unheard.
    fn end_unheard(&mut self, committed: Option<u64>, now: Instant) {
        let Some(step) = committed else {
            let failure = Failure::stopped("killed on request before the first step: nothing was trained");
            return self.fail_itself(failure.hint("the same command starts it again"), now);
        };
        if step < self.setup.last_step {
            let failure = Failure::stopped(format!("killed on request; the run is committed at step {step}"));
            return self.fail_itself(failure.hint("the same command continues there"), now);
        }
        let message = format!("step {step} is committed, and nothing is left to do; killed on request");
        let (state, reason) = (RunState::Completed, Reason::AllStepsDone);
        let of_run = RunStatus::of(&self.setup.run, self.setup.last_step);
        let (step, last_commit) = (Step(step), Some(Step(step)));
        self.conclude_over(RunStatus { state, reason, message, step, last_commit, ..of_run }, now);
    }

    pub(super) fn recorded(&mut self, is_recorded: bool, now: Instant) {
        let Phase::Recording { status, .. } = &mut self.phase else { return };
        let Some(status) = status.take() else { return };
        if !is_recorded {
            self.warn("`polygram status` does not know that the run was killed: its last record is older");
        }
        let is_committed = status.last_commit.is_some_and(|committed| committed >= status.step);
        if self.steps_done().is_some() && !is_committed {
            let cause = Cause::Own(Failure::failed(status.message));
            return self.fail_committed(cause, ExitStatus::Failed, now);
        }
        self.conclude_over(*status, now);
    }

    fn conclude_over(&mut self, status: RunStatus, now: Instant) {
        let seconds = self.seconds(now);
        let (goodput, mean_loss) = (self.line.goodput(seconds), self.line.mean_loss());
        let line = std::mem::replace(&mut self.line, ProgressLine::new(self.setup.last_step, 0));
        let last = Final { status, seconds, goodput, mean_loss, steps: line.into_steps() };
        self.conclude(Conclusion::Ended(Ending::Over(Box::new(last))), now);
    }

    /// The launch fails, and its cause says all there is to say.
    pub(super) fn fail(&mut self, cause: Cause, status: ExitStatus, now: Instant) {
        self.conclude(Conclusion::Failed(Failed { cause, status, hint: None }), now);
    }

    pub(super) fn fail_itself(&mut self, mut failure: Failure, now: Instant) {
        if failure.status == ExitStatus::Usage && self.has_begun() {
            // Processes were started before: status 2 (nothing was started) does not hold.
            failure.status = ExitStatus::Failed;
        }
        let status = failure.status;
        self.fail(Cause::Own(failure), status, now);
    }

    /// The launch fails, and the same command goes on from what is committed.
    fn fail_committed(&mut self, cause: Cause, status: ExitStatus, now: Instant) {
        let hint = Some(match self.line.last_commit() {
            Some(step) => format!("the run is committed at step {step}; the same command continues there"),
            None => "nothing is committed yet; the same command starts from the beginning".to_owned(),
        });
        self.conclude(Conclusion::Failed(Failed { cause, status, hint }), now);
    }

    /// The launch is decided. Those on their way out have time to end; nobody tells the others any more, and what is not
    /// committed is lost already.
    pub(super) fn conclude(&mut self, conclusion: Conclusion, now: Instant) {
        self.supervisor.retire();
        self.actions.push(Action::Conclude(Box::new(conclusion)));
        let mut clearing = Clearing { unstarted_until: None, until: Some(now + LOST_PATIENCE) };
        if self.is_over {
            clearing.until = Some(now + self.end_patience());
            let unstarted = self.unstarted();
            if !unstarted.is_empty() {
                self.actions.push(Action::Terminate(unstarted));
                clearing.unstarted_until = Some(now + IDLE_PATIENCE);
            }
        }
        self.phase = Phase::ClearingAway(clearing);
    }

    fn end_patience(&self) -> Duration {
        self.setup.detection.min(END_PATIENCE)
    }

    /// Kills those whose time to end is over, and says which if they were on their way out.
    pub(super) fn clear_due(&mut self, clearing: Clearing, now: Instant) {
        let Clearing { mut unstarted_until, mut until } = clearing;
        if unstarted_until.is_some_and(|until| until <= now) {
            unstarted_until = None;
            self.actions.push(Action::Kill(self.unstarted()));
        }
        if until.is_some_and(|until| until <= now) {
            until = None;
            if self.is_over && !self.living.is_empty() {
                let names: Vec<&str> = self.living.values().map(String::as_str).collect();
                let (names, seconds) = (names.join(", "), self.end_patience().as_secs());
                self.warn(format!("killed {names}: still there after {seconds} s"));
            }
            self.kill_everybody();
        }
        self.phase = Phase::ClearingAway(Clearing { unstarted_until, until });
    }
}

/// What is to be recorded of a run whose processes were killed: `status` is the last that its coordinator has said, `done`
/// the steps applied when the launcher last heard of one in this launch, `committed` the newest commit.
fn killed(status: RunStatus, done: Option<u64>, committed: Option<u64>) -> RunStatus {
    let reached = done.unwrap_or(0).max(status.step.0).max(committed.unwrap_or(0));
    let total = status.total_steps;
    let lost = reached - committed.unwrap_or(0);
    let (state, reason, message) = match committed {
        Some(step) if step >= total => {
            let done = counted(total, "step");
            let message = format!("all {done} done and committed; killed on request");
            (RunState::Completed, Reason::AllStepsDone, message)
        }
        _ if done.is_none() => {
            let message = "killed on request before the first step".to_owned();
            (RunState::Stopped, Reason::StopRequested, message)
        }
        Some(_) if lost == 0 => {
            let message = format!("killed on request at step {reached} of {total}, committed");
            (RunState::Stopped, Reason::StopRequested, message)
        }
        _ => {
            let message = format!(
                "killed on request at step {reached} of {total}: {} since the last commit must be done again",
                counted(lost, "step")
            );
            (RunState::Stopped, Reason::StopRequested, message)
        }
    };
    let step = Step(reached);
    RunStatus { state, reason, message, step, last_commit: committed.map(Step), ..status }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(step: u64) -> RunStatus {
        RunStatus { state: RunState::Running, step: Step(step), ..RunStatus::of("tiny", 60) }
    }

    #[test]
    fn a_killed_run_is_recorded_where_it_was() {
        for (known, done, committed, state, step, words) in [
            (
                17,
                Some(19),
                Some(10),
                RunState::Stopped,
                19,
                "at step 19 of 60: 9 steps since the last commit",
            ),
            (17, Some(19), None, RunState::Stopped, 19, "19 steps since the last commit"),
            (19, Some(20), Some(20), RunState::Stopped, 20, "at step 20 of 60, committed"),
            (59, Some(60), Some(60), RunState::Completed, 60, "all 60 steps done and committed"),
            (10, None, Some(10), RunState::Stopped, 10, "before the first step"),
            (0, None, None, RunState::Stopped, 0, "before the first step"),
        ] {
            let recorded = killed(status(known), done, committed);
            assert_eq!((recorded.state, recorded.step), (state, Step(step)), "{words}");
            assert!(recorded.message.contains(words), "{}", recorded.message);
            assert_eq!(recorded.last_commit, committed.map(Step));
        }
    }
}
