//! A lane: one thread that owns a contiguous run of buckets of every table, alone.
//!
//! Lanes do as they are told, in the order they are told: every decision about steps is the ledger's
//! ([`crate::ledger`]), every byte on a socket is an I/O task's. No result depends on how many lanes there are.

mod copy_on_write;
mod serving;
mod step_rows;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polygram_domain::{BucketIndex, RowId, RowRef, Step, TableIndex};
use polygram_row_exchange::message::{Request, RowBlock};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::config::{ShardConfig, rows_of_buckets};
use crate::error::ShardError;
use crate::numa::pin_thread;
use crate::observe::{LaneObserver, StepTotals, UpdatedRow, norm_is_sampled};
use crate::query::{Peek, Peeked};
use crate::rows::{Rates, RowStore, RowsOut, square_sum};
use crate::selection::{RowCounts, Selection};
use copy_on_write::CopyOnWrite;
pub(crate) use copy_on_write::RowBatch;
pub(crate) use serving::ReplyTo;
use serving::{Backlog, Framing, Parked, Wanted, last_pending};
use step_rows::{StepRows, owned_part};

/// What a lane is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Every cell of the step is declared: these rows will change.
    Union { step: Step, requests: Vec<Arc<Request>> },
    /// Answer a lookup of `step`; all earlier uncommitted steps have had their union.
    Serve { step: Step, request: Arc<Request>, reply: ReplyTo },
    /// Add the next cell's gradients, in cell order.
    Add { step: Step, request: Arc<Request>, blocks: Vec<Arc<RowBlock>> },
    /// All cells are in: report sums of squares.
    Sum { step: Step },
    /// Apply the step, or skip it; `snapshot`: begin one of these rows as they are then.
    Close { step: Step, rates: Option<Rates>, snapshot: Option<Selection> },
    /// The next rows of the running snapshot.
    Batch { table: TableIndex, reply: oneshot::Sender<RowBatch> },
    /// The snapshot is over.
    EndSnapshot,
    /// Somebody outside the run looks at some rows.
    Peek(Peek),
}

/// What a lane reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// A step's rows are known: rows written and rows that open steps will write.
    Counted { rows: u64 },
    /// A step's sums of squares, ascending by (table, bucket).
    Summed { step: Step, sums: Vec<(TableIndex, BucketIndex, f64)> },
    /// A step is closed; what rows there are now, and the sum of the hashes of those that the step has updated.
    Closed { step: Step, rows: RowCounts, fingerprint: u64 },
    /// The lane cannot go on.
    Failed(ShardError),
}

/// One lane's state.
pub(crate) struct Lane {
    config: Arc<ShardConfig>,
    store: RowStore,
    /// Updates in its rows.
    version: Step,
    /// Owned rows of each site table.
    owned: Vec<Range<u32>>,
    steps: BTreeMap<u64, StepRows>,
    /// Virtual rows that open steps will write.
    reserved: u64,
    parked: BTreeMap<u64, Vec<Parked>>,
    backlog: Backlog,
    snapshot: Option<CopyOnWrite>,
    observer: LaneObserver,
    /// Time at work since the last closed step.
    busy: Duration,
    runtime: Handle,
}

impl Lane {
    /// A lane over `buckets`, with the rows it has, at `version`. Call it within a tokio runtime.
    pub(crate) fn new(
        config: Arc<ShardConfig>,
        buckets: &Range<u32>,
        version: Step,
        store: RowStore,
        observer: LaneObserver,
    ) -> Lane {
        let site = config.tables.iter().take(config.tables_per_site());
        let owned = site.map(|spec| rows_of_buckets(spec, buckets)).collect();
        Lane {
            store,
            version,
            owned,
            steps: BTreeMap::new(),
            reserved: 0,
            parked: BTreeMap::new(),
            backlog: Backlog::new(Framing::of(&config)),
            snapshot: None,
            observer,
            busy: Duration::ZERO,
            runtime: Handle::current(),
            config,
        }
    }

    /// Works until the commands end, and gives the rows back.
    pub(crate) fn run(
        mut self,
        index: usize,
        mut commands: mpsc::Receiver<Command>,
        reports: &mpsc::Sender<(usize, Report)>,
    ) -> Result<RowStore, ShardError> {
        if let Some(node) = self.store.node() {
            pin_thread(node);
        }
        while let Some(command) = self.next(&mut commands) {
            let started = Instant::now();
            let report = self.obey(command)?;
            self.backlog.retry(&self.store);
            self.busy += started.elapsed();
            if let Some(report) = report
                && reports.blocking_send((index, report)).is_err()
            {
                break;
            }
        }
        Ok(self.store)
    }

    /// The next command. Answers that wait for credit go out meanwhile.
    fn next(&mut self, commands: &mut mpsc::Receiver<Command>) -> Option<Command> {
        while !self.backlog.is_empty() {
            let (backlog, store) = (&mut self.backlog, &self.store);
            let command = self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    command = commands.recv() => Some(command),
                    () = backlog.credit(store) => None,
                }
            });
            if let Some(command) = command {
                return command;
            }
        }
        commands.blocking_recv()
    }

    fn obey(&mut self, command: Command) -> Result<Option<Report>, ShardError> {
        match command {
            Command::Union { step, requests } => {
                self.union(step, &requests);
                Ok(Some(Report::Counted { rows: self.store.written() + self.reserved }))
            }
            Command::Serve { step, request, reply } => {
                self.serve(step, &request, reply);
                Ok(None)
            }
            Command::Add { step, request, blocks } => {
                if let Some(rows) = self.steps.get_mut(&step.0) {
                    rows.add(&request, &blocks, &self.owned);
                }
                Ok(None)
            }
            Command::Sum { step } => {
                let sums = match self.steps.get_mut(&step.0) {
                    Some(rows) => {
                        rows.settle();
                        rows.square_sums(&self.config.tables)
                    }
                    None => Vec::new(),
                };
                Ok(Some(Report::Summed { step, sums }))
            }
            Command::Close { step, rates, snapshot } => {
                let fingerprint = self.close(step, rates)?;
                if let Some(selection) = snapshot {
                    if selection == Selection::AllAnew {
                        self.store.begin_changes();
                    }
                    let changes = || self.store.changes();
                    let only = (selection == Selection::Changed).then(changes).flatten();
                    self.snapshot = Some(CopyOnWrite::new(only));
                }
                let rows = RowCounts { written: self.store.written(), changed: self.store.changed() };
                Ok(Some(Report::Closed { step, rows, fingerprint }))
            }
            Command::Batch { table, reply } => {
                let batch = match &mut self.snapshot {
                    Some(snapshot) => snapshot.batch(&self.store, table),
                    None => RowBatch { is_last: true, ..RowBatch::default() },
                };
                if reply.send(batch).is_err() {
                    tracing::debug!("a snapshot batch was no longer wanted");
                }
                Ok(None)
            }
            Command::EndSnapshot => {
                self.snapshot = None;
                Ok(None)
            }
            Command::Peek(peek) => {
                self.peek(peek);
                Ok(None)
            }
        }
    }

    fn sizes(&self) -> (usize, usize, usize) {
        (self.config.tables_per_site(), self.config.sites(), self.config.width())
    }

    fn union(&mut self, step: Step, requests: &[Arc<Request>]) {
        let width = self.config.width();
        let rows = StepRows::union(requests.iter().map(Arc::as_ref), &self.owned, width);
        self.reserved += self.new_rows(&rows);
        self.steps.insert(step.0, rows);
    }

    /// Virtual rows of `rows` that no open step of `self.steps` will write.
    fn new_rows(&self, rows: &StepRows) -> u64 {
        let (count, sites, _) = self.sizes();
        let mut new = 0;
        for table in 0..count {
            let mine = rows.rows_of(table);
            let open = last_pending(mine, self.steps.iter().map(|(step, rows)| (*step, rows.rows_of(table))));
            let fresh: Vec<u32> =
                mine.iter().zip(open).filter(|(_, open)| open.is_none()).map(|(&row, _)| row).collect();
            for site in 0..sites {
                new += self.store.count_virtual(TableIndex((site * count + table) as u32), &fresh);
            }
        }
        new
    }

    /// Sends what no earlier open step changes, and parks the rest until those steps are closed.
    fn serve(&mut self, step: Step, request: &Request, reply: ReplyTo) {
        let mut ready: Vec<Wanted> = Vec::new();
        let mut waiting: BTreeMap<u64, Vec<Wanted>> = BTreeMap::new();
        for (table, owned) in self.owned.iter().enumerate() {
            let declared = request.rows_of(table);
            let part = owned_part(declared, owned);
            let first = request.offsets[table] + part.start;
            let rows = &declared[part];
            let open = self.steps.range(..step.0).map(|(step, rows)| (*step, rows.rows_of(table)));
            for ((i, &row), pending) in rows.iter().enumerate().zip(last_pending(rows, open)) {
                let wanted = (table as u32, (first + i) as u32, row);
                match pending {
                    None => ready.push(wanted),
                    Some(step) => waiting.entry(step).or_default().push(wanted),
                }
            }
        }
        for (awaited, rows) in waiting {
            let parked = Parked { rows, reply: reply.clone(), since: Instant::now() };
            self.parked.entry(awaited).or_default().push(parked);
        }
        self.backlog.send(&self.store, ready, reply);
    }

    /// Applies a step's sums in row order (or drops them), then sends the rows that waited for it. Answers the sum of the
    /// hashes of the rows updated.
    fn close(&mut self, step: Step, rates: Option<Rates>) -> Result<u64, ShardError> {
        let Some(rows) = self.steps.remove(&step.0) else { return Ok(0) };
        while self.backlog.has(step) {
            // A worker that votes has its rows; one that does not wait for them still gets those of its version.
            self.runtime.block_on(self.backlog.credit(&self.store));
        }
        match rates {
            None => self.reserved = self.reserved.saturating_sub(self.new_rows(&rows)),
            Some(rates) => self.apply(&rows, rates)?,
        }
        self.version = step.next();
        let sites = self.config.sites() as u64;
        let fingerprint = self.observer.closed_step(StepTotals {
            version: self.version,
            declared_rows: sites * rows.contributions(),
            step_rows: sites * rows.len() as u64,
            changed_rows: self.store.changed(),
            busy: std::mem::take(&mut self.busy),
        });
        for Parked { rows, reply, since } in self.parked.remove(&step.0).unwrap_or_default() {
            self.observer.released(since.elapsed());
            self.backlog.send(&self.store, rows, reply);
        }
        Ok(fingerprint)
    }

    fn apply(&mut self, rows: &StepRows, rates: Rates) -> Result<(), ShardError> {
        let (count, sites, _) = self.sizes();
        let before = self.store.written();
        for (site, table) in (0..sites).flat_map(|site| (0..count).map(move |table| (site, table))) {
            let index = TableIndex((site * count + table) as u32);
            let declared = rows.rows_of(table);
            if let Some(snapshot) = &mut self.snapshot {
                for &row in declared {
                    snapshot.before_update(&self.store, RowRef { table: index, row: RowId(row) });
                }
            }
            let observer = &mut self.observer;
            self.store.update_noting(index, declared, &rows.gradients(site, table), rates, |updated| {
                let row = UpdatedRow { table: index, row: updated.row, updates: updated.updates };
                observer.updated(row, updated.stored);
                if norm_is_sampled(updated.row) {
                    observer.row_norm(square_sum(updated.weights).sqrt() as f32);
                }
            })?;
        }
        self.store.finish_step(rates.lr);
        self.reserved = self.reserved.saturating_sub(self.store.written() - before);
        Ok(())
    }

    fn peek(&self, Peek { table, rows, reply, .. }: Peek) {
        let mut values_rw = vec![0.0; rows.len() * self.config.width()];
        self.store.gather(table, &rows, RowsOut::F32(&mut values_rw));
        if reply.send(Peeked { version: self.version, values_rw }).is_err() {
            tracing::debug!("nobody waits for the rows that were looked at");
        }
    }
}
