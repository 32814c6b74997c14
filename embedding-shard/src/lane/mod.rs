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

use polygram_domain::{BucketIndex, RowId, Step, TableIndex};
use polygram_proto::bulk::message::{Request, RowBlock};
use tokio::sync::{mpsc, oneshot};

use crate::config::{ShardConfig, rows_of_buckets};
use crate::error::ShardError;
use crate::numa::{node_of_lane, pin_thread};
use crate::rows::{Rates, RowStore};
use copy_on_write::CopyOnWrite;
pub(crate) use copy_on_write::RowBatch;
pub(crate) use serving::ReplyTo;
use serving::{Parked, TableRows, last_pending, send_rows};
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
    /// Apply the step, or skip it; `snapshot`: begin one of the rows as they are then.
    Close { step: Step, rates: Option<Rates>, snapshot: bool },
    /// The next rows of the running snapshot.
    Batch { table: TableIndex, reply: oneshot::Sender<RowBatch> },
    /// The snapshot is over.
    EndSnapshot,
}

/// What a lane reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// A step's rows are known: rows written and rows that open steps will write.
    Counted { rows: u64 },
    /// A step's sums of squares, ascending by (table, bucket).
    Summed { step: Step, sums: Vec<(TableIndex, BucketIndex, f64)> },
    /// A step is closed.
    Closed { step: Step, written: u64 },
    /// The lane cannot go on.
    Failed(ShardError),
}

/// One lane's state.
#[derive(Debug)]
pub(crate) struct Lane {
    config: Arc<ShardConfig>,
    store: RowStore,
    /// Owned rows of each site table.
    owned: Vec<Range<u32>>,
    steps: BTreeMap<u64, StepRows>,
    /// Virtual rows that open steps will write.
    reserved: u64,
    parked: BTreeMap<u64, Vec<Parked>>,
    snapshot: Option<CopyOnWrite>,
}

impl Lane {
    /// A lane over `buckets`, with the rows it has.
    pub(crate) fn new(config: Arc<ShardConfig>, buckets: &Range<u32>, store: RowStore) -> Lane {
        let site = config.tables.iter().take(config.tables_per_site());
        let owned = site.map(|spec| rows_of_buckets(spec, buckets)).collect();
        Lane {
            store,
            owned,
            steps: BTreeMap::new(),
            reserved: 0,
            parked: BTreeMap::new(),
            snapshot: None,
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
        if let Some(node) = node_of_lane(self.config.embedding.numa, index) {
            pin_thread(&node);
        }
        while let Some(command) = commands.blocking_recv() {
            if let Some(report) = self.obey(command)?
                && reports.blocking_send((index, report)).is_err()
            {
                break;
            }
        }
        Ok(self.store)
    }

    fn obey(&mut self, command: Command) -> Result<Option<Report>, ShardError> {
        match command {
            Command::Union { step, requests } => {
                self.union(step, &requests);
                Ok(Some(Report::Counted { rows: self.store.written() + self.reserved }))
            }
            Command::Serve { step, request, reply } => {
                self.serve(step, request, reply);
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
                self.close(step, rates)?;
                if snapshot {
                    self.snapshot = Some(CopyOnWrite::new());
                }
                Ok(Some(Report::Closed { step, written: self.store.written() }))
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
    fn serve(&mut self, step: Step, request: Arc<Request>, reply: ReplyTo) {
        let mut ready = Vec::new();
        let mut waiting: BTreeMap<u64, Vec<TableRows>> = BTreeMap::new();
        for (table, owned) in self.owned.iter().enumerate() {
            let declared = request.rows_of(table);
            let part = owned_part(declared, owned);
            let first = request.offsets[table] + part.start;
            let rows = &declared[part];
            let open = self.steps.range(..step.0).map(|(step, rows)| (*step, rows.rows_of(table)));
            let mut here = Vec::new();
            let mut later: BTreeMap<u64, Vec<(u32, u32)>> = BTreeMap::new();
            for ((i, &row), pending) in rows.iter().enumerate().zip(last_pending(rows, open)) {
                let entry = ((first + i) as u32, row);
                match pending {
                    None => here.push(entry),
                    Some(step) => later.entry(step).or_default().push(entry),
                }
            }
            ready.push((table, here));
            for (step, rows) in later {
                waiting.entry(step).or_default().push((table, rows));
            }
        }
        if !send_rows(&self.store, self.sizes(), &ready, &reply) {
            return;
        }
        for (awaited, rows) in waiting {
            let parked = Parked { request: Arc::clone(&request), rows, reply: reply.clone() };
            self.parked.entry(awaited).or_default().push(parked);
        }
    }

    /// Applies a step's sums in row order (or drops them), then sends the rows that waited for it.
    fn close(&mut self, step: Step, rates: Option<Rates>) -> Result<(), ShardError> {
        let Some(rows) = self.steps.remove(&step.0) else { return Ok(()) };
        let (count, sites, _) = self.sizes();
        match rates {
            None => self.reserved = self.reserved.saturating_sub(self.new_rows(&rows)),
            Some(rates) => {
                let before = self.store.written();
                for site in 0..sites {
                    for table in 0..count {
                        let index = TableIndex((site * count + table) as u32);
                        let declared = rows.rows_of(table);
                        if let Some(snapshot) = &mut self.snapshot {
                            for &row in declared {
                                snapshot.before_update(&self.store, index, RowId(row));
                            }
                        }
                        self.store.update(index, declared, &rows.gradients(site, table), rates)?;
                    }
                }
                self.store.finish_step(rates.lr);
                self.reserved = self.reserved.saturating_sub(self.store.written() - before);
            }
        }
        for Parked { request, rows, reply } in self.parked.remove(&step.0).unwrap_or_default() {
            if !send_rows(&self.store, self.sizes(), &rows, &reply) {
                tracing::debug!(rows = request.rows.len(), "parked rows were no longer wanted");
            }
        }
        Ok(())
    }
}
