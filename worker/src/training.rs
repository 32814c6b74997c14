//! Training in progress, watched from the session.

use std::time::Duration;

use polygram_collective::AbortHandle;
use polygram_domain::Step;
use polygram_faults::{Point, pass};
use polygram_process::Panicked;
use polygram_proto::control::{Directive, Directives, MemberReport, Phase, Reporter};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::checkpoints::CheckpointProgress;
use crate::error::WorkerError;
use crate::stop_request::StopRequest;
use polygram_process::StopSignals;

/// Another part of this process may take so long to say why it has ended.
const BETTER_WORD: Duration = Duration::from_secs(2);

/// A worker's parts at work.
pub struct Training {
    /// Input, rows, uploads.
    pub tasks: JoinSet<Result<(), WorkerError>>,
    /// Ends the calls of every group of ranks.
    pub aborts: Vec<AbortHandle>,
    /// The wish to stop, for the compute thread.
    pub stop: StopRequest,
    /// Progress of checkpoints, for the compute thread.
    pub checkpoints: watch::Sender<CheckpointProgress>,
    /// The compute thread's result.
    pub outcome: oneshot::Receiver<Result<Step, WorkerError>>,
}

impl Training {
    /// Follows directives and tasks until the coordinator says Exit. The first failure ends everything; a failure that
    /// only says "the other side has ended" gives way to that other side's own.
    pub async fn watch(
        mut self,
        reporter: &Reporter,
        directives: &mut Directives,
        signals: &mut StopSignals,
    ) -> Result<(), WorkerError> {
        let mut finished = false;
        let mut signalled = 0;
        let failure = loop {
            tokio::select! {
                directive = directives.next() => match directive {
                    Ok(Directive::Stop { reason }) => {
                        tracing::info!(reason, "asked to commit and stop");
                        self.stop.set();
                    }
                    Ok(Directive::Committed { step }) => {
                        self.checkpoints.send_modify(|checkpoints| checkpoints.step = Some(step));
                    }
                    Ok(Directive::PointSettled { step, kept }) => {
                        self.checkpoints.send_modify(|checkpoints| {
                            checkpoints.step = Some(step);
                            checkpoints.point = if kept { Some(step) } else { checkpoints.point };
                        });
                    }
                    Ok(Directive::Exit) if finished => {
                        self.tasks.shutdown().await;
                        return Ok(());
                    }
                    Ok(Directive::Exit) => break WorkerError::Aborted("told to exit before the last step".into()),
                    Ok(Directive::Abort(abort)) => break abort.into(),
                    Ok(Directive::Assign(_) | Directive::Start) => {}
                    Err(error) => break error.into(),
                },
                () = signals.at_least(signalled + 1) => {
                    signalled += 1;
                    if signalled > 1 {
                        tracing::warn!("signalled again: leaving at once, without a commit");
                        break WorkerError::Signalled;
                    }
                    tracing::info!("signalled: the run commits and stops at the next boundary; once more, and this \
                                    worker leaves at once");
                    self.stop.set();
                }
                outcome = &mut self.outcome, if !finished => match outcome {
                    Ok(Ok(step)) => {
                        reporter.progress().set(step, Phase::Finished);
                        reporter.report(MemberReport::Finished { step }).await?;
                        pass(Point::WorkerFinished);
                        finished = true;
                    }
                    Ok(Err(error)) => break error,
                    Err(_) => break WorkerError::OtherSide("compute"),
                },
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break error,
                    Err(error) => break Panicked::of_task("a task of this worker", error).into(),
                },
            }
        };
        let reason = failure.to_string();
        self.aborts.iter().for_each(|group| group.abort(reason.clone()));
        let cause = self.root_cause(failure).await;
        self.tasks.shutdown().await;
        Err(cause)
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
            match (&mut self.outcome).await {
                Ok(Err(error)) => Some(error),
                _ => None,
            }
        };
        tokio::time::timeout(BETTER_WORD, better).await.ok().flatten().unwrap_or(failure)
    }
}
