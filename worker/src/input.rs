//! From samples to cells with rows, ahead of compute.
//!
//! ```text
//! declare: tokens → row ids → unique → lookup sent        up to prefetch_steps ahead of the committed step
//!    │ bounded
//! fetch:   rows awaited in order
//!    │ bounded
//! compute: InputQueue::next
//! ```
//! Row ids depend on tokens only, so lookups run ahead without any staleness: the owner of a row holds it back while an
//! earlier step may still change it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polygram_data::{DataIdentity, Loader};
use polygram_domain::run_spec::{DataSpec, RunSpec};
use polygram_domain::spikes::LeftOut;
use polygram_domain::{Cell, CellBatch, Rank, Step};
use polygram_ngram::{Hasher, NgramError, UniqueRows, batch_ids};
use polygram_proto::bulk::{RowClient, RowError, UniqueIds};
use polygram_proto::control::Reporter;
use tokio::sync::{mpsc, watch};

use crate::compute::CellWork;
use crate::error::WorkerError;
use crate::input_counts::InputCounts;
use crate::row_desk::RowDesk;

/// A cell with its rows, and what compute waited for.
pub struct Arrival {
    /// The work.
    pub work: CellWork,
    /// Time that compute stood still for tokens.
    pub data_wait: Duration,
    /// Time that compute stood still for rows.
    pub embedding_wait: Duration,
}

/// A cell with its rows, on its way to compute.
struct ReadyCell {
    step: Step,
    cell: Cell,
    work: CellWork,
    /// Time that its rows kept this side waiting.
    rows_wait: Duration,
}

/// Everything that turns samples into cells of one rank.
#[derive(Clone)]
pub struct Cells {
    /// The run.
    pub spec: Arc<RunSpec>,
    /// This rank.
    pub rank: Rank,
    /// Samples.
    pub loader: Arc<Loader>,
    hasher: Arc<Hasher>,
    left_out: Arc<LeftOut>,
}

impl Cells {
    /// Opens the run's data for one rank.
    pub fn open(spec: Arc<RunSpec>, rank: Rank) -> Result<Cells, WorkerError> {
        let loader = Loader::of_run(&spec)?;
        check_identity(&spec, rank)?;
        let hasher = Hasher::new(&spec.model.ngram, spec.model.eos_token_id).map_err(WorkerError::Tables)?;
        let (loader, hasher) = (Arc::new(loader), Arc::new(hasher));
        Ok(Cells { rank, loader, hasher, left_out: Arc::default(), spec })
    }

    /// The same without some samples: whole steps of them, which later ones take the place of.
    pub fn leaving_out(self, left_out: LeftOut) -> Cells {
        Cells { left_out: Arc::new(left_out), ..self }
    }

    /// Unique row ids of a batch; none where the model has no tables.
    fn unique(&self, batch: &CellBatch) -> Result<UniqueRows, NgramError> {
        let tables = self.spec.tables();
        if tables.is_empty() {
            return Ok(UniqueRows::of(&[], tables.tables_per_site() as usize));
        }
        let ids_pc = batch_ids(&self.hasher, batch.tokens_bt(), batch.seq_len())?;
        Ok(UniqueRows::of(&ids_pc, tables.tables_per_site() as usize))
    }

    fn load(&self, step: Step, cell: Cell) -> Result<(CellBatch, UniqueRows), WorkerError> {
        let samples = self.spec.samples_per_step();
        let place = Step(self.left_out.sample_after(step.0 * samples) / samples);
        let batch = self.loader.cell(place, cell)?;
        let unique = self.unique(&batch).map_err(|source| WorkerError::Ngram { step, cell, source })?;
        Ok((batch, unique))
    }
}

/// Refuses files that do not hold the data that the run was started with.
fn check_identity(spec: &RunSpec, rank: Rank) -> Result<(), WorkerError> {
    let (DataSpec::Segments { train, .. }, Some(wanted)) = (&spec.data, &spec.train_identity) else {
        return Ok(());
    };
    let found = DataIdentity::of_path(train)?.to_string();
    if found == *wanted {
        return Ok(());
    }
    Err(WorkerError::OtherData { rank, path: train.clone(), found, wanted: wanted.clone() })
}

/// The ids as the wire wants them.
fn row_ids(unique: &UniqueRows) -> Arc<UniqueIds> {
    Arc::new(UniqueIds { offsets: unique.offsets.clone(), rows: unique.rows.clone() })
}

/// A declared cell whose rows are under way.
struct DeclaredCell {
    step: Step,
    cell: Cell,
    batch: CellBatch,
    unique: Arc<UniqueRows>,
    rows: Pin<Box<dyn Future<Output = Result<Vec<f32>, RowError>> + Send>>,
}

/// The compute thread's end.
pub struct InputQueue {
    ready: mpsc::Receiver<ReadyCell>,
    committed: watch::Sender<Step>,
    cells: Cells,
}

/// The queue and the two tasks that fill it, to be spawned by the caller.
pub fn input_queue(
    cells: Cells,
    client: RowClient,
    reporter: Reporter,
    start: Step,
) -> (InputQueue, impl Future<Output = Result<(), WorkerError>>, impl Future<Output = Result<(), WorkerError>>)
{
    let per_step = (cells.spec.training.cells / cells.spec.topology.workers) as usize;
    let ahead = per_step * (cells.spec.embedding.prefetch_steps as usize + 1);
    let (declared, to_fetch) = mpsc::channel(ahead);
    let (fetched, ready) = mpsc::channel(1);
    let (committed, commits) = watch::channel(start);
    let targets = cells.spec.tokens_per_step();
    let counts = InputCounts::new(Arc::clone(&cells.hasher), reporter, start);
    let queue = InputQueue { ready, committed, cells: cells.clone() };
    (queue, declare(cells, client, commits, declared), fetch(targets, counts, to_fetch, fetched))
}

/// Hashes and declares this rank's cells in order, never more than `prefetch_steps` ahead of the committed step.
async fn declare(
    cells: Cells,
    client: RowClient,
    mut commits: watch::Receiver<Step>,
    declared: mpsc::Sender<DeclaredCell>,
) -> Result<(), WorkerError> {
    let (mut step, last) = (*commits.borrow(), Step(cells.spec.last_step()));
    let prefetch = u64::from(cells.spec.embedding.prefetch_steps);
    while step < last {
        if commits.wait_for(|committed| step.0 <= committed.0 + prefetch).await.is_err() {
            return Ok(());
        }
        for cell in cells.spec.topology.cells_of(cells.rank, cells.spec.training.cells).map(Cell) {
            let loading = cells.clone();
            let loaded = tokio::task::spawn_blocking(move || loading.load(step, cell)).await;
            let (batch, unique) = loaded.map_err(|_| WorkerError::OtherSide("data"))??;
            let unique = Arc::new(unique);
            let rows = Box::pin(client.lookup(step, cell, row_ids(&unique)));
            if declared.send(DeclaredCell { step, cell, batch, unique, rows }).await.is_err() {
                return Ok(());
            }
        }
        step = step.next();
    }
    Ok(())
}

/// Awaits rows in the order of declaration, and counts what came.
async fn fetch(
    global_targets: u64,
    mut counts: InputCounts,
    mut declared: mpsc::Receiver<DeclaredCell>,
    fetched: mpsc::Sender<ReadyCell>,
) -> Result<(), WorkerError> {
    while let Some(DeclaredCell { step, cell, batch, unique, rows }) = declared.recv().await {
        let begun = Instant::now();
        let rows_suw = rows.await?;
        let rows_wait = begun.elapsed();
        counts.count(step, &batch, &unique).map_err(|source| WorkerError::Ngram { step, cell, source })?;
        counts.report_if_due().await;
        let work = CellWork { batch, unique, rows_suw, global_targets };
        let ready = ReadyCell { step, cell, work, rows_wait };
        if fetched.send(ready).await.is_err() {
            break;
        }
    }
    counts.report().await;
    Ok(())
}

impl InputQueue {
    /// The next cell, which must be `cell` of `step`; blocks until its rows are here.
    pub fn next(&mut self, step: Step, cell: Cell) -> Result<Arrival, WorkerError> {
        let begun = Instant::now();
        let ready = self.ready.blocking_recv().ok_or(WorkerError::OtherSide("input"))?;
        let waited = begun.elapsed();
        assert_eq!((ready.step, ready.cell), (step, cell), "cells are declared in the order of computation");
        let embedding_wait = waited.min(ready.rows_wait);
        Ok(Arrival { work: ready.work, embedding_wait, data_wait: waited - embedding_wait })
    }

    /// Lets declarations run ahead of the new committed step.
    pub fn allow(&self, committed: Step) {
        self.committed.send_replace(committed);
    }

    /// Names of the held-out sets, by number.
    pub fn held_out_sets(&self) -> Vec<String> {
        self.cells.loader.held_out_sets().map(str::to_owned).collect()
    }

    /// Cell `number` of held-out set number `set` with its rows at state version `step`; `None` past the end of the set.
    pub fn held_out(
        &self,
        step: Step,
        (set, number): (usize, u32),
        rows: &RowDesk,
    ) -> Result<Option<CellWork>, WorkerError> {
        let Some(batch) = self.cells.loader.held_out_cell(set, u64::from(number))? else { return Ok(None) };
        let unique = self.cells.unique(&batch).map_err(|source| WorkerError::Ngram {
            step,
            cell: Cell(number),
            source,
        })?;
        let unique = Arc::new(unique);
        let rows_suw = rows.read(step, row_ids(&unique))?;
        let global_targets = batch.target_count();
        Ok(Some(CellWork { batch, unique, rows_suw, global_targets }))
    }
}
