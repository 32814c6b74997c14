//! Training in progress: what the coordinator, the tasks and the compute thread say to each other.

use std::time::Duration;

use polygram_collective::AbortHandle;
use polygram_domain::Step;
use polygram_domain::control::{MemberReport, Phase};
use polygram_faults::{Point, pass};
use polygram_member::{Inbox, MemberError, MemberEvent};
use polygram_process::Panicked;
use polygram_proto::control::Reporter;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::checkpoints::CheckpointProgress;
use crate::error::WorkerError;
use crate::stop_request::StopRequest;

/// Another part of this process may take so long to say why it has ended.
const ROOT_CAUSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A worker's parts at work.
pub struct Training {
    /// Input, rows, uploads.
    pub tasks: JoinSet<Result<(), WorkerError>>,
    /// Ends the calls of every group of ranks.
    pub aborts: Vec<AbortHandle>,
    /// The request to stop, for the compute thread.
    pub stop: StopRequest,
    /// Progress of checkpoints, for the compute thread.
    pub checkpoints: watch::Sender<CheckpointProgress>,
    /// The compute thread's result.
    pub outcome: oneshot::Receiver<Result<Step, WorkerError>>,
}

impl Training {
    /// Follows the run until the coordinator says Exit, or the first failure.
    pub async fn follow(
        &mut self,
        reporter: &Reporter,
        inbox: &mut Inbox<'_, '_>,
    ) -> Result<(), WorkerError> {
        let mut finished = false;
        loop {
            tokio::select! {
                event = inbox.next() => match event? {
                    MemberEvent::Stop { reason } => {
                        tracing::info!(reason, "asked to commit and stop");
                        self.stop.set();
                    }
                    MemberEvent::Committed { step } => {
                        self.checkpoints.send_modify(|checkpoints| checkpoints.step = Some(step));
                    }
                    MemberEvent::PointSettled { step, kept } => {
                        self.checkpoints.send_modify(|checkpoints| {
                            checkpoints.step = Some(step);
                            checkpoints.point = if kept { Some(step) } else { checkpoints.point };
                        });
                    }
                    MemberEvent::Exit if finished => return Ok(()),
                    MemberEvent::Exit => return Err(MemberError::exit_too_early().into()),
                    MemberEvent::Start => {}
                },
                outcome = &mut self.outcome, if !finished => {
                    let step = outcome.map_err(|_closed| WorkerError::OtherSide("compute"))??;
                    reporter.progress().set(step, Phase::Finished);
                    if let Err(lost) = reporter.report(MemberReport::Finished { step }).await {
                        // The inbox says why the session is over.
                        tracing::debug!(%lost, "cannot report the last step");
                    }
                    pass(Point::WorkerFinished);
                    finished = true;
                }
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(ended) => ended?,
                    Err(error) => return Err(Panicked::of_task("a task of this worker", error).into()),
                },
            }
        }
    }

    /// Ends all parts. A failure that only says "the other side has ended" gives way to that other side's own.
    pub async fn end(mut self, result: Result<(), WorkerError>) -> Result<(), WorkerError> {
        let result = match result {
            Ok(()) => Ok(()),
            Err(failure) => {
                let reason = failure.to_string();
                self.aborts.iter().for_each(|group| group.abort(reason.clone()));
                Err(self.root_cause(failure).await)
            }
        };
        self.tasks.shutdown().await;
        result
    }

    /// What `failure` is a consequence of, if some task of this process knows better.
    async fn root_cause(&mut self, failure: WorkerError) -> WorkerError {
        if !matches!(failure, WorkerError::OtherSide(_)) {
            return failure;
        }
        let better = async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended {
                    Ok(Ok(()) | Err(WorkerError::OtherSide(_))) => {}
                    Ok(Err(error)) => return Some(error),
                    Err(error) => return Some(Panicked::of_task("a task of this worker", error).into()),
                }
            }
            if self.outcome.is_terminated() {
                // Its failure is the one that is explained here.
                return None;
            }
            match (&mut self.outcome).await {
                Ok(Err(error)) => Some(error),
                _ => None,
            }
        };
        tokio::time::timeout(ROOT_CAUSE_TIMEOUT, better).await.ok().flatten().unwrap_or(failure)
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::Step;

    use super::*;

    fn training(task: Result<(), WorkerError>) -> (Training, oneshot::Sender<Result<Step, WorkerError>>) {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { task });
        let (checkpoints, _) = watch::channel(CheckpointProgress { step: None, point: None });
        let (sender, outcome) = oneshot::channel();
        (Training { tasks, aborts: Vec::new(), stop: StopRequest::default(), checkpoints, outcome }, sender)
    }

    fn resume(text: &str) -> WorkerError {
        WorkerError::Resume(text.into())
    }

    #[tokio::test]
    async fn the_failure_of_another_part_takes_the_place_of_its_consequence() {
        // A task, and compute.
        let (of_task, _compute) = training(Err(resume("of a task")));
        let (of_compute, compute) = training(Ok(()));
        compute.send(Err(resume("of compute"))).unwrap();
        for (training, text) in [(of_task, "of a task"), (of_compute, "of compute")] {
            let error = training.end(Err(WorkerError::OtherSide("desk"))).await.unwrap_err();
            assert!(error.to_string().ends_with(text), "{error}");
        }
        let (training, _compute) = training(Err(resume("of a task")));
        let error = training.end(Err(resume("its own"))).await.unwrap_err();
        assert!(error.to_string().ends_with("its own"), "{error}");
    }

    /// Nobody knows better than compute, which has been heard: with a failure, or without a word.
    #[tokio::test]
    async fn compute_is_not_asked_twice() {
        for sent in [Some(Err(WorkerError::OtherSide("gradient"))), None] {
            let (mut training, compute) = training(Ok(()));
            match sent {
                Some(outcome) => compute.send(outcome).unwrap(),
                None => drop(compute),
            }
            let heard = (&mut training.outcome).await;
            let failure = heard.map_or(WorkerError::OtherSide("compute"), |outcome| outcome.unwrap_err());
            let error = training.end(Err(failure)).await.unwrap_err();
            assert!(matches!(error, WorkerError::OtherSide(_)), "{error}");
        }
    }
}
