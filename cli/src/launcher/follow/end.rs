//! How a followed run ends: with its coordinator's last word, without one, or killed on request.

use std::time::Duration;

use polygram_domain::Step;
use polygram_proto::control::{ControlError, Reason, RunState, RunStatus};
use tokio::time::Instant;

use super::{BLAME_WINDOW, Ending, Final, Follower, VERDICT_GRACE};
use crate::exit::{Failure, Outcome};
use crate::launcher::COORDINATOR;
use crate::units::counted;

impl Follower<'_, '_, '_> {
    /// The watch is over: the coordinator's last word counts; without one, the first death.
    pub(super) async fn end(mut self, error: Option<ControlError>) -> Outcome<Ending> {
        self.printer.end_line();
        let seconds = self.launch.elapsed_seconds();
        match self.status.take().filter(|status| status.state.is_over()) {
            Some(status) if status.state == RunState::Failed => Err(self.failed(&status)),
            Some(status) => {
                let (goodput, mean_loss) = (self.line.goodput(seconds), self.line.mean_loss());
                let steps = self.line.into_steps();
                Ok(Ending::Over(Box::new(Final { status, seconds, goodput, mean_loss, steps })))
            }
            None => Err(self.lost(error).await),
        }
    }

    /// The coordinator said why.
    fn failed(&self, status: &RunStatus) -> Failure {
        if let (true, Some((ended, _))) = (self.told, &self.death) {
            // Before the first step its statuses mean what ours do.
            let failure = if self.furthest.is_none() {
                self.launch.refusal_of(ended)
            } else {
                self.launch.failure_of(ended)
            };
            return self.with_way_back(failure);
        }
        let run = &status.run;
        let mut message = format!("run {run} failed: {}", status.message);
        let culprit = status.culprit.as_ref().map(|culprit| culprit.member.to_string());
        if let Some(ended) = self.ends.iter().rev().find(|ended| culprit.as_ref() == Some(&ended.name)) {
            message.push_str(&format!("\n  the process {}", ended.how()));
        }
        for consequence in &status.consequences {
            message.push_str(&format!("\n  then {consequence}"));
        }
        if let Some(culprit) = culprit {
            message.push_str(&self.launch.tail_of(&culprit));
        }
        if status.reason == Reason::TakenOver {
            return Failure::failed(message).hint(format!(
                "`polygram status {run}` tells how it goes on there; the same command with --take-over would take it back"
            ));
        }
        self.with_way_back(Failure::failed(message))
    }

    /// Nobody said why: the first process that died is named.
    pub(super) async fn lost(&mut self, error: Option<ControlError>) -> Failure {
        self.printer.end_line();
        self.blame_first().await;
        let failure = match (&self.death, error) {
            (Some((ended, _)), _) => self.launch.failure_of(ended),
            (None, Some(error)) => Failure::failed("the coordinator was lost").because(error),
            (None, None) => Failure::failed("the coordinator ended its watch without a last word"),
        };
        self.with_way_back(failure)
    }

    /// Finds the death that broke the watch. A stream breaks a moment before its dead process can be waited for, and
    /// members end soon after their coordinator, which is then the one to name.
    async fn blame_first(&mut self) {
        let mut due = Instant::now() + if self.death.is_none() { VERDICT_GRACE } else { BLAME_WINDOW };
        while self.death.as_ref().is_none_or(|(ended, _)| ended.name != COORDINATOR) {
            match tokio::time::timeout_at(due, self.launch.children.next_exit()).await {
                Ok(ended) if self.death.is_none() || ended.name == COORDINATOR => {
                    self.death = Some((ended, due));
                    due = Instant::now() + BLAME_WINDOW;
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Ends everything at once, and records it. A run that is committed as far as it has come is stopped or complete as any
    /// other.
    pub(super) async fn kill(mut self) -> Outcome<Ending> {
        self.printer.say("killing every process of the run");
        let coordinator = self.launch.children.pid_of(COORDINATOR);
        self.launch.children.wind_down(Duration::ZERO).await;
        self.printer.end_line();
        // The coordinator may have committed without having said so.
        let committed = self.launch.newest_commit().await.or(self.line.last_commit());
        let Some(status) = self.status.take() else {
            return Err(Failure::stopped("killed on request before the first step: nothing was trained")
                .hint("the same command starts it again"));
        };
        let done = self.line.newest().map(|metrics| metrics.step.0.saturating_add(1));
        let status = killed(status, done, committed);
        let is_recorded = match coordinator {
            Some(coordinator) => self.launch.record_status(&status, coordinator).await,
            None => false,
        };
        if !is_recorded {
            self.printer
                .warn("`polygram status` does not know that the run was killed: its last record is older");
        }
        if done.is_some() && status.last_commit.is_none_or(|committed| committed < status.step) {
            return Err(way_back(Failure::failed(status.message), committed));
        }
        let seconds = self.launch.elapsed_seconds();
        let (goodput, mean_loss) = (self.line.goodput(seconds), self.line.mean_loss());
        let steps = self.line.into_steps();
        Ok(Ending::Over(Box::new(Final { status, seconds, goodput, mean_loss, steps })))
    }

    fn with_way_back(&self, failure: Failure) -> Failure {
        way_back(failure, self.line.last_commit())
    }
}

/// `failure`, with where the same command goes on.
fn way_back(failure: Failure, committed: Option<u64>) -> Failure {
    match committed {
        Some(step) => {
            failure.hint(format!("the run is committed at step {step}; the same command continues there"))
        }
        None => failure.hint("nothing is committed yet; the same command starts from the beginning"),
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
    RunStatus {
        state,
        reason,
        message,
        since_unix_ms: polygram_process::unix_ms(),
        step,
        last_commit: committed.map(Step),
        ..status
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::Generation;
    use polygram_proto::control::RowsStatus;

    use super::*;

    fn status(step: u64) -> RunStatus {
        RunStatus {
            state: RunState::Running,
            reason: Reason::Training,
            message: "training".into(),
            since_unix_ms: 0,
            run: "tiny".into(),
            generation: Generation::of_attempt(1),
            attempt: 1,
            step: Step(step),
            total_steps: 60,
            resume_step: Step(0),
            members: Vec::new(),
            last_commit: None,
            last_point: None,
            last_metrics: None,
            evaluations: Vec::new(),
            culprit: None,
            consequences: Vec::new(),
            rows: RowsStatus::default(),
            restarts: 0,
            last_rollback: None,
            set_aside: Vec::new(),
        }
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
            assert!(recorded.since_unix_ms > 1_700_000_000_000);
        }
    }
}
