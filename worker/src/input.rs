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
use std::ops::{AddAssign, Range};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polygram_data::{DataIdentity, Loader};
use polygram_domain::run_spec::{DataSpec, RunSpec};
use polygram_domain::spikes::LeftOut;
use polygram_domain::{Cell, CellBatch, MicroBatchRef, Rank, Step};
use polygram_ngram::{Hasher, NgramError, UniqueRows, batch_ids};
use polygram_process::Panicked;
use polygram_proto::control::Reporter;
use polygram_row_exchange::{RowError, RowExchange, UniqueIds};
use tokio::sync::{mpsc, watch};

use crate::compute::CellWork;
use crate::error::WorkerError;
use crate::input_counts::InputCounts;
use crate::row_desk::RowDesk;

/// A cell with its rows, and what compute waited for.
pub struct Arrival {
    /// The work.
    pub work: CellWork,
    /// What compute waited for.
    pub waits: InputWaits,
}

/// Time that compute stood still for its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputWaits {
    /// For tokens.
    pub data: Duration,
    /// For rows.
    pub embedding: Duration,
}

impl AddAssign for InputWaits {
    fn add_assign(&mut self, other: InputWaits) {
        self.data += other.data;
        self.embedding += other.embedding;
    }
}

/// A cell with its rows, on its way to compute.
struct ReadyCell {
    at: MicroBatchRef,
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

    /// The step that takes these samples where none are left out.
    fn place_of(&self, step: Step) -> Step {
        let samples = self.spec.samples_per_step();
        Step(self.left_out.sample_after(step.0 * samples) / samples)
    }

    /// Numbers of the samples of a micro-batch.
    fn samples_of(&self, at: MicroBatchRef) -> Range<u64> {
        let count = u64::from(self.spec.training.micro_batch_size);
        let first = self.place_of(at.step).0 * self.spec.samples_per_step() + u64::from(at.index.0) * count;
        first..first + count
    }

    fn load(&self, at: MicroBatchRef) -> Result<(CellBatch, UniqueRows), WorkerError> {
        let batch = self.loader.cell(self.place_of(at.step), at.index)?;
        let unique = self.unique(&batch).map_err(|source| WorkerError::Ngram { at, source })?;
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
    at: MicroBatchRef,
    samples: Range<u64>,
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
    exchange: impl RowExchange,
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
    (queue, declare(cells, exchange, commits, declared), fetch(targets, counts, to_fetch, fetched))
}

/// Hashes and declares this rank's cells in order, never more than `prefetch_steps` ahead of the committed step.
async fn declare(
    cells: Cells,
    exchange: impl RowExchange,
    mut commits: watch::Receiver<Step>,
    declared: mpsc::Sender<DeclaredCell>,
) -> Result<(), WorkerError> {
    let (mut step, last) = (*commits.borrow(), Step(cells.spec.last_step()));
    let prefetch = u64::from(cells.spec.embedding.prefetch_steps);
    while step < last {
        if commits.wait_for(|committed| step.0 <= committed.0 + prefetch).await.is_err() {
            return Ok(());
        }
        for index in cells.spec.topology.cells_of(cells.rank, cells.spec.training.cells).map(Cell) {
            let at = MicroBatchRef { step, index };
            let loading = cells.clone();
            let loaded = tokio::task::spawn_blocking(move || loading.load(at)).await;
            let (batch, unique) = loaded.map_err(|error| Panicked::of_task("data loading", error))??;
            let unique = Arc::new(unique);
            let rows = Box::pin(exchange.lookup(at, row_ids(&unique)));
            let samples = cells.samples_of(at);
            if declared.send(DeclaredCell { at, samples, batch, unique, rows }).await.is_err() {
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
    while let Some(DeclaredCell { at, samples, batch, unique, rows }) = declared.recv().await {
        let begun = Instant::now();
        let rows_suw = rows.await?;
        let rows_wait = begun.elapsed();
        counts.count(at.step, &batch, &unique).map_err(|source| WorkerError::Ngram { at, source })?;
        counts.report_if_due().await;
        let work = CellWork { samples, batch, unique, rows_suw, global_targets };
        let ready = ReadyCell { at, work, rows_wait };
        if fetched.send(ready).await.is_err() {
            break;
        }
    }
    counts.report().await;
    Ok(())
}

impl InputQueue {
    /// The next micro-batch, which must be the one `at`; blocks until its rows are here.
    pub fn next(&mut self, at: MicroBatchRef) -> Result<Arrival, WorkerError> {
        let begun = Instant::now();
        let ready = self.ready.blocking_recv().ok_or(WorkerError::OtherSide("input"))?;
        let waited = begun.elapsed();
        assert_eq!(ready.at, at, "micro-batches are declared in the order of computation");
        let embedding = waited.min(ready.rows_wait);
        Ok(Arrival { work: ready.work, waits: InputWaits { data: waited - embedding, embedding } })
    }

    /// Lets declarations run ahead of the new committed step.
    pub fn allow(&self, committed: Step) {
        self.committed.send_replace(committed);
    }

    /// Names of the held-out sets, by number.
    pub fn held_out_sets(&self) -> Vec<String> {
        self.cells.loader.held_out_sets().map(str::to_owned).collect()
    }

    /// Micro-batch `at.index` of held-out set number `set` with its rows at state version `at.step`; `None` past the end of
    /// the set.
    pub fn held_out(
        &self,
        set: usize,
        at: MicroBatchRef,
        rows: &RowDesk,
    ) -> Result<Option<CellWork>, WorkerError> {
        let Some(batch) = self.cells.loader.held_out_cell(set, u64::from(at.index.0))? else {
            return Ok(None);
        };
        let unique = self.cells.unique(&batch).map_err(|source| WorkerError::Ngram { at, source })?;
        let unique = Arc::new(unique);
        let rows_suw = rows.read(at.step, row_ids(&unique))?;
        let global_targets = batch.target_count();
        Ok(Some(CellWork { samples: 0..0, batch, unique, rows_suw, global_targets }))
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunFile;

    use super::*;

    #[test]
    fn samples_left_out_are_passed_over() {
        let text = include_str!("../../configs/tiny.toml");
        let spec = RunFile::parse(text, "tiny", &[]).and_then(|file| file.resolve()).unwrap();
        let (samples, count) = (spec.samples_per_step(), u64::from(spec.training.micro_batch_size));
        let all = Cells::open(Arc::new(spec), Rank(0)).unwrap();
        let at = |step, index| MicroBatchRef { step: Step(step), index: Cell(index) };
        assert_eq!(all.samples_of(at(2, 1)), 2 * samples + count..2 * samples + 2 * count);
        let mut left_out = LeftOut::default();
        left_out.add(2 * samples..3 * samples);
        let fewer = all.clone().leaving_out(left_out);
        assert_eq!(fewer.samples_of(at(1, 3)), all.samples_of(at(1, 3)));
        assert_eq!(fewer.samples_of(at(2, 1)), all.samples_of(at(3, 1)));
        assert_eq!(fewer.load(at(2, 1)).unwrap().0, all.load(at(3, 1)).unwrap().0);
    }
}
