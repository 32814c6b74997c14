//! What the tasks of a run's coordinator send each other: inputs of the driver, and orders to the recorder.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use polygram_checkpoint::{FailureLine, MetricsLine, Part};
use polygram_domain::control::{
    Directive, Envelope, Evaluation, MemberId, RunStatus, StepMetrics, StopMode, WatchEvent,
};
use polygram_domain::{Generation, Step};
use polygram_proto::control::{JoinRequest, Joined};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::core::{Event, RollbackId, RollbackRequest};
use crate::upload::ReadUpload;

/// Why a call is not granted, one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// For good.
    No(String),
    /// Another try may succeed.
    Later(String),
}

/// A call's answer.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, Refusal>>;
/// What a member says; the error is the end, and how it came.
pub(crate) type Reports = Pin<Box<dyn Stream<Item = Result<Envelope, String>> + Send>>;

/// What reaches the driver.
pub(crate) enum Input {
    /// From inside: readers and recorder.
    Happened(Event),
    Join {
        request: JoinRequest,
        answer: Answer<Joined>,
    },
    Attend {
        member: MemberId,
        generation: Generation,
        reports: Reports,
        answer: Answer<mpsc::Receiver<Directive>>,
    },
    Upload {
        report: ReadUpload,
        answer: Answer<()>,
    },
    Stop {
        mode: StopMode,
        reason: String,
        answer: Answer<String>,
    },
    Status {
        answer: oneshot::Sender<RunStatus>,
    },
    WaitingMetrics {
        answer: oneshot::Sender<Vec<MetricsLine>>,
    },
    Watch {
        answer: oneshot::Sender<(RunStatus, broadcast::Receiver<WatchEvent>)>,
    },
}

/// What the recorder is to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Keep a step's metrics, and its line of the ledger.
    Step(StepMetrics),
    /// Answer with the metrics that are not in the store yet.
    Waiting(oneshot::Sender<Vec<MetricsLine>>),
    /// Keep an evaluation.
    Evaluation(Evaluation),
    /// The run resumes from a state version: what was recorded of later ones is done again.
    ResumeAt(Step),
    /// Keep a line of the failure log.
    Failure(FailureLine),
    /// Decide what a rollback depends on.
    ResolveRollback { id: RollbackId, request: RollbackRequest },
    /// Assemble and commit these parts.
    Commit { step: Step, parts: Vec<Arc<Part>> },
    /// Assemble and keep these parts as a recovery point.
    KeepPoint { step: Step, parts: Vec<Arc<Part>> },
}
