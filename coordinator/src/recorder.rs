//! The one task that writes to the store: metrics, status, commits.
//!
//! Orders are carried out one after the other, so metrics of a step are in the store before its checkpoint is
//! committed. What fails is told to the driver, which ends the run.

use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::{
    AttemptRecord, CheckpointError, Committed, ConfigHash, EvaluationRecord, Manifest, ManifestHeader,
    MetricsLine, MetricsRecord, Part, RecoveryLine, RunStore, Term,
};
use polygram_domain::{RunSpec, Step};
use polygram_faults::{Point, pass};
use polygram_proto::control::{Evaluation, RunStatus, StepMetrics};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::core::Event;
use crate::driver::Input;
use crate::opening::unix_ms;

/// Metrics and status are written this often.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// What the recorder is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Keep a line of metrics.
    Keep(MetricsLine),
    /// Keep a line of the story of losses.
    Tell(RecoveryLine),
    /// Assemble and commit these parts.
    Commit { step: Step, parts: Vec<Part> },
}

/// The recorder's side of the store.
pub(crate) struct Recorder {
    pub(crate) store: RunStore,
    pub(crate) spec: Arc<RunSpec>,
    pub(crate) config: ConfigHash,
    pub(crate) term: Term,
    /// State version this attempt started from.
    pub(crate) resumed_from: u64,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) status: watch::Receiver<Arc<RunStatus>>,
    pub(crate) driver: mpsc::Sender<Input>,
}

impl Recorder {
    /// Works until the orders end, then writes what is left. A failure to write is told to the driver once and ends
    /// the recording of metrics and status; commits go on to answer.
    pub(crate) async fn run(mut self) {
        let opened = RecoveryLine::Opened {
            at_unix_ms: unix_ms(),
            pid: std::process::id(),
            resumed_from: Step(self.resumed_from),
        };
        let mut journal = Journal {
            attempt: self.term.0,
            metrics: Pages::default(),
            story: Pages { next: 0, lines: vec![opened] },
            broken: false,
        };
        let mut beat = tokio::time::interval(FLUSH_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Keep(line)) => journal.metrics.lines.push(line),
                    Some(Order::Tell(line)) => journal.story.lines.push(line),
                    Some(Order::Commit { step, parts }) => {
                        self.flush(&mut journal).await;
                        let result = self.commit(step, &parts).await.map_err(|e| e.to_string());
                        self.tell(Event::CommitDone { step, result }).await;
                    }
                    None => break,
                },
                _instant = beat.tick() => self.flush(&mut journal).await,
            }
        }
        self.flush(&mut journal).await;
    }

    async fn flush(&mut self, journal: &mut Journal) {
        if journal.broken {
            return;
        }
        if let Err(error) = self.try_flush(journal).await {
            journal.broken = true;
            tracing::error!(%error, "cannot record");
            self.tell(Event::StoreFailed { message: format!("the run cannot be recorded: {error}") }).await;
        }
    }

    async fn try_flush(&mut self, journal: &mut Journal) -> Result<(), CheckpointError> {
        let Journal { attempt, metrics, story, .. } = journal;
        if !story.lines.is_empty() {
            self.store.append_recovery(*attempt, story.next, &story.lines).await?;
            story.turn();
        }
        if !metrics.lines.is_empty() {
            if metrics.next == 0 {
                let begins = AttemptRecord { attempt: *attempt, resumed_from: self.resumed_from };
                metrics.lines.insert(0, MetricsLine::Attempt(begins));
            }
            pass(Point::CoordinatorBeforeFlush);
            self.store.append_metrics(*attempt, metrics.next, &metrics.lines).await?;
            pass(Point::CoordinatorAfterFlush);
            metrics.turn();
        }
        // The driver's end drops the sender; its last value is still here to be written.
        if self.status.has_changed().unwrap_or(true) {
            self.store.check_term(self.term).await?;
            let status = Arc::clone(&self.status.borrow_and_update());
            self.store.put_status(&*status).await?;
        }
        Ok(())
    }

    async fn commit(&self, step: Step, parts: &[Part]) -> Result<(), CheckpointError> {
        self.store.check_term(self.term).await?;
        let header = ManifestHeader { step, config: self.config.clone(), created_unix_ms: unix_ms() };
        let manifest = Manifest::assemble(&self.spec, header, parts)?;
        pass(Point::CoordinatorBeforeManifest);
        match self.store.commit(&manifest).await? {
            Committed::Now => {}
            Committed::Before => tracing::warn!(step = step.0, "this very checkpoint was committed before"),
        }
        pass(Point::CoordinatorAfterManifest);
        // The checkpoint exists; old ones that stay are space, not truth.
        match self.store.retain(self.spec.checkpoint.keep as usize).await {
            Ok(retained) => {
                tracing::debug!(step = step.0, bytes = manifest.bytes(), ?retained, "checkpoint kept");
            }
            Err(error) => tracing::error!(step = step.0, %error, "cannot remove old checkpoints"),
        }
        pass(Point::CoordinatorAfterRetention);
        Ok(())
    }

    async fn tell(&self, event: Event) {
        // The driver outlives the recorder's orders; once it is gone nobody acts on an event any more.
        if self.driver.send(Input::Happened(event)).await.is_err() {
            tracing::debug!("the driver is gone");
        }
    }
}

/// What is not written yet.
struct Journal {
    attempt: u64,
    metrics: Pages<MetricsLine>,
    story: Pages<RecoveryLine>,
    broken: bool,
}

/// Lines of one role, and the number of the object that they go to.
struct Pages<T> {
    next: u64,
    lines: Vec<T>,
}

impl<T> Default for Pages<T> {
    fn default() -> Pages<T> {
        Pages { next: 0, lines: Vec::new() }
    }
}

impl<T> Pages<T> {
    /// The lines are written.
    fn turn(&mut self) {
        self.next += 1;
        self.lines.clear();
    }
}

/// An update as it is kept: numbered by the state version it reached.
pub(crate) fn metrics_line(m: &StepMetrics) -> MetricsLine {
    MetricsLine::Step(MetricsRecord {
        step: m.step.next().0,
        loss: m.loss,
        grad_norm: m.grad_norm,
        lr: m.lr,
        tokens: m.tokens,
        seconds: m.seconds,
        data_wait_seconds: Some(m.data_wait_seconds),
        embedding_wait_seconds: Some(m.embedding_wait_seconds),
    })
}

/// An evaluation as it is kept. Nobody measures its duration yet, which NaN says.
pub(crate) fn evaluation_line(e: &Evaluation) -> MetricsLine {
    let Evaluation { step, loss, tokens } = *e;
    MetricsLine::Evaluation(EvaluationRecord { step: step.0, loss, tokens })
}
