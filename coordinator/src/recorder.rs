//! The one task that writes to the store: metrics, the ledger, status, commits.
//!
//! Orders are carried out one after the other, so metrics and the ledger's line of a step are in the store before its
//! checkpoint is committed.
//!
//! A store that takes no records does not end the run: they wait in memory, and are tried again. Only a commit needs
//! them; it waits for the store for minutes, and its failure is told to the driver, which ends the run.

use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::renewal::TermObject;
use polygram_checkpoint::{
    AttemptRecord, CheckpointError, Committed, ConfigHash, EvaluationRecord, FailureLine, Manifest,
    ManifestHeader, MetricsLine, MetricsRecord, Part, RunStore, Term, WentBackRecord,
};
use polygram_domain::control::{Evaluation, RunStatus, StepMetrics};
use polygram_domain::spikes::PolicyState;
use polygram_domain::{CheckpointKind, RunSpec, Step};
use polygram_faults::{Point, pass};
use polygram_process::unix_ms;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::core::{Event, RollbackRequest, RollbackResolution, RollbackTarget};
use crate::ledger::{Base, Ledger, Named};
use crate::messages::{Input, Order};
use crate::opening_error::OpeningError;
use crate::pending_records::PendingRecords;
use crate::points::Points;
use crate::rollback::{self, Rules, Stores};

/// What no commit waits for is tried for so long before it waits in memory.
const BACKGROUND_RETRY_LIMIT: Duration = Duration::from_secs(5);

/// The recorder's side of the store.
pub(crate) struct Recorder {
    pub(crate) store: RunStore,
    pub(crate) spec: Arc<RunSpec>,
    pub(crate) config: ConfigHash,
    pub(crate) config_toml: String,
    pub(crate) term: Term,
    /// The record of the term.
    pub(crate) claim: TermObject,
    /// Where recovery points go.
    pub(crate) points: Option<Points>,
    /// What this attempt started from.
    pub(crate) base: Base,
    /// Checkpoints that were quarantined on the way to it, and what is wrong with each.
    pub(crate) quarantined: Vec<(Step, String)>,
    /// What the run leaves out, and its rollbacks.
    pub(crate) policy: PolicyState,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) status: watch::Receiver<Arc<RunStatus>>,
    pub(crate) driver: mpsc::Sender<Input>,
}

impl Recorder {
    /// Works until the orders end, then writes what is left.
    pub(crate) async fn run(mut self) {
        let mut pending = self.pending_records();
        loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.take(&mut pending, order).await,
                    None => break,
                },
                () = tokio::time::sleep_until(pending.schedule.due()) => {
                    self.write_in_background(&mut pending).await;
                }
            }
        }
        let written = match self.write(&mut pending, &self.store.clone()).await {
            Ok(()) => pending.ledger.flush(&self.store).await,
            failed => failed,
        };
        match written {
            Ok(()) => pending.delete_replaced(&self.store).await,
            Err(error) => tracing::error!(%error, "the last records of the run are not written"),
        }
    }

    fn pending_records(&mut self) -> PendingRecords {
        let (at_unix_ms, to) = (unix_ms(), self.base.step);
        let begins = AttemptRecord { attempt: self.term.0, resumed_from: to.0 };
        let rules = (self.config.clone(), self.spec.spikes.clone());
        let mut pending = PendingRecords::new(begins, Ledger::new(self.term.0, self.base.clone(), rules));
        pending.push_failure_line(FailureLine::Opened {
            at_unix_ms,
            pid: std::process::id(),
            resumed_from: to,
        });
        for (step, reason) in std::mem::take(&mut self.quarantined) {
            pending.push_failure_line(FailureLine::CheckpointQuarantined { at_unix_ms, step, reason, to });
        }
        pending
    }

    async fn take(&mut self, pending: &mut PendingRecords, order: Order) {
        match order {
            Order::Step(metrics) => self.step(pending, &metrics).await,
            Order::Evaluation(evaluation) => pending.push_metrics(evaluation_line(&evaluation)),
            // The caller may be gone.
            Order::Waiting(answer) => drop(answer.send(pending.waiting_metrics().to_vec())),
            Order::ResumeAt(step) => self.resume_at(pending, step).await,
            Order::Failure(line) => pending.push_failure_line(line),
            Order::Commit { step, parts } => {
                let parts: Vec<Part> = parts.into_iter().map(Arc::unwrap_or_clone).collect();
                let result = self.commit(pending, step, &parts).await;
                if result.is_err() {
                    self.tell_if_fenced().await;
                }
                self.tell(Event::CommitDone { step, result }).await;
                pending.delete_replaced(&self.store).await;
            }
            Order::KeepPoint { step, parts } => {
                let parts: Vec<Part> = parts.into_iter().map(Arc::unwrap_or_clone).collect();
                let result = self.keep_point(pending, step, &parts).await;
                self.tell(Event::PointDone { step, result }).await;
            }
            Order::ResolveRollback { id, request } => {
                self.write_in_background(pending).await;
                let result = self.resolve_rollback(request).await.map_err(|error| error.to_string());
                if result.is_err() {
                    self.tell_if_fenced().await;
                }
                self.tell(Event::RollbackResolved { id, result }).await;
            }
        }
    }

    async fn resolve_rollback(
        &mut self,
        request: RollbackRequest,
    ) -> Result<RollbackResolution, OpeningError> {
        let stores = Stores { run: &self.store, points: self.points.as_ref(), term: self.term };
        let rules = Rules { spec: &self.spec, config: &self.config, policy: &self.policy };
        let resolution = rollback::resolve(stores, rules, request).await?;
        if let RollbackResolution::Target(RollbackTarget { policy, .. }) = &resolution {
            self.policy = policy.clone();
        }
        Ok(resolution)
    }

    async fn step(&self, pending: &mut PendingRecords, metrics: &StepMetrics) {
        pending.push_metrics(metrics_line(metrics));
        let added = pending.ledger.add(metrics);
        let kept = match added {
            // Nothing is dropped: the store has to take it now.
            Ok(()) if pending.is_full() => self.write_records(pending).await,
            added => added,
        };
        if let Err(why) = kept {
            self.tell_if_fenced().await;
            self.tell(Event::StoreFailed { message: format!("the run cannot be recorded: {why}") }).await;
        }
    }

    /// Writes everything but the status, and waits for the store as long as for a commit.
    async fn write_records(&self, pending: &mut PendingRecords) -> Result<(), String> {
        pending.write(&self.store).await.map_err(|error| error.to_string())?;
        pending.ledger.flush(&self.store).await.map_err(|error| error.to_string())
    }

    async fn resume_at(&self, pending: &mut PendingRecords, step: Step) {
        pending.push_metrics(MetricsLine::WentBack(WentBackRecord { step: step.0 }));
        match self.base_at(pending, step).await {
            Ok(base) => pending.ledger.go_back(base),
            Err(error) => {
                let message = format!("the ledger cannot be continued from step {step}: {error}");
                self.tell(Event::StoreFailed { message }).await;
            }
        }
    }

    /// What the ledger goes on from at `step`.
    async fn base_at(&self, pending: &PendingRecords, step: Step) -> Result<Base, CheckpointError> {
        match pending.ledger.named(&self.store, step).await? {
            Some(Named { head, memory, .. }) => {
                let is_imported = step == self.base.step && self.base.is_imported;
                Ok(Base { step, head, is_imported, memory })
            }
            None if step == Step(0) => Ok(Base::genesis()),
            None => Base::of(&self.store, &self.store.read_manifest(step).await?).await,
        }
    }

    /// Writes what is due. An outage of the store is reported once, and costs nothing before a commit is due.
    async fn write_in_background(&mut self, pending: &mut PendingRecords) {
        let written = self.write(pending, &self.store.clone().with_retry_limit(BACKGROUND_RETRY_LIMIT)).await;
        pending.schedule.flushed(Instant::now());
        match written {
            Ok(()) => {
                pending.outage.clear();
                pending.delete_replaced(&self.store).await;
            }
            Err(error) if error.is_of_store() => pending.outage.report_once(&error, self.store.waits()),
            Err(error @ CheckpointError::Fenced { .. }) => {
                self.tell(Event::TakenOver { message: error.to_string() }).await;
            }
            Err(error) => {
                let message = format!("the run cannot be recorded: {error}");
                self.tell(Event::StoreFailed { message }).await;
            }
        }
    }

    async fn write(&mut self, pending: &mut PendingRecords, store: &RunStore) -> Result<(), CheckpointError> {
        pending.write(store).await?;
        // The driver's end drops the sender; its last value is still here to be written.
        if self.status.has_changed().unwrap_or(true) {
            store.check_term(self.term).await?;
            let status = Arc::clone(&self.status.borrow_and_update());
            let put = store.put_status(&*status).await;
            if put.is_err() {
                self.status.mark_changed();
            }
            put?;
        }
        Ok(())
    }

    /// The manifest of a checkpoint, and the line of the ledger that it names. The lines of all steps before it are in the
    /// store before it exists.
    async fn assemble(
        &self,
        pending: &mut PendingRecords,
        (step, kind): (Step, CheckpointKind),
        parts: &[Part],
    ) -> Result<(Manifest, Named), String> {
        let store = |error: CheckpointError| error.to_string();
        pending.write(&self.store).await.map_err(store)?;
        let Some(named) = pending.ledger.named(&self.store, step).await.map_err(store)? else {
            return Err(format!("the ledger has no line of step {step}"));
        };
        self.store.check_term(self.term).await.map_err(store)?;
        pending.ledger.flush(&self.store).await.map_err(store)?;
        pass(Point::CoordinatorLedgerWritten);
        let (config, created_unix_ms) = (self.config.clone(), unix_ms());
        let policy = PolicyState { memory: named.memory.clone(), ..self.policy.clone() };
        let header = ManifestHeader { step, kind, config, ledger: Some(named.head), policy, created_unix_ms };
        let manifest = Manifest::assemble(&self.spec, header, parts).map_err(|error| error.to_string())?;
        Ok((manifest, named))
    }

    async fn commit(&self, pending: &mut PendingRecords, step: Step, parts: &[Part]) -> Result<(), String> {
        let (manifest, named) = self.assemble(pending, (step, CheckpointKind::Commit), parts).await?;
        self.store.renew(&self.config_toml, &self.claim).await.map_err(|error| error.to_string())?;
        pass(Point::CoordinatorBeforeManifest);
        match self.store.commit(&manifest).await.map_err(|error| error.to_string())? {
            Committed::Now => {}
            Committed::Before => tracing::warn!(step = step.0, "this very checkpoint was committed before"),
        }
        pass(Point::CoordinatorAfterManifest);
        pending.ledger.committed(named);
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

    async fn keep_point(
        &self,
        pending: &mut PendingRecords,
        step: Step,
        parts: &[Part],
    ) -> Result<(), String> {
        let Some(points) = &self.points else { return Err("the coordinator has no place for it".into()) };
        let (manifest, _) = self.assemble(pending, (step, CheckpointKind::Point), parts).await?;
        pass(Point::CoordinatorBeforeManifest);
        points.keep(&manifest).await.map_err(|error| error.to_string())?;
        pass(Point::CoordinatorAfterManifest);
        Ok(())
    }

    /// Tells the driver if another coordinator has claimed the run: that, and not what failed for it, is the reason then.
    async fn tell_if_fenced(&self) {
        let store = self.store.clone().with_retry_limit(BACKGROUND_RETRY_LIMIT);
        if let Err(error @ CheckpointError::Fenced { .. }) = store.check_term(self.term).await {
            self.tell(Event::TakenOver { message: error.to_string() }).await;
        }
    }

    async fn tell(&self, event: Event) {
        // The driver outlives the recorder's orders; once it is gone nobody acts on an event any more.
        if self.driver.send(Input::Happened(event)).await.is_err() {
            tracing::debug!("the driver is gone");
        }
    }
}

/// An update as it is kept: numbered by the state version it reached.
fn metrics_line(m: &StepMetrics) -> MetricsLine {
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

/// An evaluation as it is kept.
fn evaluation_line(e: &Evaluation) -> MetricsLine {
    let Evaluation { step, set, loss, tokens } = e.clone();
    MetricsLine::Evaluation(EvaluationRecord { step: step.0, set, loss, tokens })
}
