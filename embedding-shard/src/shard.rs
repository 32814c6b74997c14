//! [`Shard`]: rows and a place in a run. Restore it, then serve it.

use std::sync::Arc;

use polygram_checkpoint::RowRecord;
use polygram_domain::{RowRef, Step, TableIndex};
use tokio::sync::{mpsc, watch};

use crate::archive::RowArchive;
use crate::config::ShardConfig;
use crate::error::{ShardError, memory_message};
use crate::numa::{node_of_lane, nodes};
use crate::observe::{LaneObserver, ShardView};
use crate::query::{Peek, ShardReader};
use crate::rows::{DecayLog, Record, RowStore};
use crate::server::{self, Door};
use crate::status::ShardStatus;

/// An embedding shard that is not serving: its rows are in hand.
pub struct Shard {
    config: Arc<ShardConfig>,
    version: Step,
    stores: Vec<RowStore>,
    archive: Option<Arc<dyn RowArchive>>,
    status: watch::Sender<ShardStatus>,
    outside: Outside,
}

/// How others look into a shard: the lanes' ends and theirs.
struct Outside {
    observers: Vec<LaneObserver>,
    view: ShardView,
    peeks: mpsc::Receiver<Peek>,
    reader: ShardReader,
}

impl Outside {
    fn of(config: &Arc<ShardConfig>) -> Outside {
        let lanes = config.lane_buckets().into_iter().map(|_| LaneObserver::new(config.tables.len()));
        let (observers, published) = lanes.unzip();
        let (reader, peeks) = ShardReader::new(Arc::clone(config));
        Outside { observers, view: ShardView::new(Arc::clone(config), published), peeks, reader }
    }
}

/// Written rows of each table.
fn written_by_table(store: &RowStore, tables: usize) -> Vec<u64> {
    let count = |table| {
        let rows = store.rows_of(table);
        let next = |from: u32| store.next_written(table, from, rows.end);
        std::iter::successors(next(rows.start), |row| next(row.0 + 1)).count() as u64
    };
    let is_virtual = store.written() == 0;
    (0..tables as u32).map(|table| if is_virtual { 0 } else { count(TableIndex(table)) }).collect()
}

impl Shard {
    /// A shard at version 0 whose rows are all virtual.
    ///
    /// # Errors
    /// [`ShardError::Config`] where the tables have more than one width; [`ShardError::Memory`] where the system gives
    /// no memory for the index.
    pub fn new(config: ShardConfig) -> Result<Shard, ShardError> {
        if config.tables.iter().any(|table| table.width as usize != config.width()) {
            return Err(ShardError::Config("tables of several widths are not supported".into()));
        }
        let nodes = nodes(config.embedding.numa);
        let mut stores = Vec::new();
        for (lane, buckets) in config.lane_buckets().iter().enumerate() {
            stores.push(RowStore::on_node(&config, buckets, node_of_lane(&nodes, lane).cloned())?);
        }
        let config = Arc::new(config);
        Ok(Shard {
            version: Step(0),
            stores,
            archive: None,
            status: watch::Sender::default(),
            outside: Outside::of(&config),
            config,
        })
    }

    /// Where snapshots go. Without one, a commit that asks for a snapshot fails the shard.
    pub fn with_archive(mut self, archive: Arc<dyn RowArchive>) -> Shard {
        self.archive = Some(archive);
        self
    }

    /// Its place in the run.
    pub fn config(&self) -> &Arc<ShardConfig> {
        &self.config
    }

    /// Updates in its rows.
    pub fn version(&self) -> Step {
        self.version
    }

    /// Says which version restored rows have.
    pub fn set_version(&mut self, version: Step) {
        self.version = version;
    }

    /// Says how far restored rows have decayed, those never written too.
    pub fn set_decayed(&mut self, log: DecayLog) {
        self.stores.iter_mut().for_each(|store| store.set_decayed(log));
    }

    /// How far rows have decayed that no step touched.
    pub fn decayed(&self) -> DecayLog {
        self.stores.first().map(RowStore::decayed).unwrap_or_default()
    }

    /// Follows what the shard is doing while it serves.
    pub fn status(&self) -> watch::Receiver<ShardStatus> {
        self.status.subscribe()
    }

    /// Reads rows while the shard serves.
    pub fn reader(&self) -> ShardReader {
        self.outside.reader.clone()
    }

    /// Sees what lanes count while the shard serves.
    pub fn view(&self) -> ShardView {
        self.outside.view.clone()
    }

    /// Puts one saved row back.
    ///
    /// # Errors
    /// [`ShardError::Restore`] for a row of another shard or shape, or twice the same; [`ShardError::Memory`] beyond
    /// the ceiling.
    pub fn restore_row(&mut self, table: TableIndex, row: RowRecord<'_>) -> Result<(), ShardError> {
        let owner = self.stores.iter_mut().find(|store| {
            table.index() < self.config.tables.len() && store.rows_of(table).contains(&row.row.0)
        });
        let Some(store) = owner else {
            let rule = format!("it is not of shard {}", self.config.index);
            return Err(ShardError::Restore { table, row: row.row, rule });
        };
        store.restore(table, row)?;
        let (rows, bytes) = (self.written(), self.config.record_bytes());
        let limit = self.config.embedding.memory_limit_bytes;
        if rows.saturating_mul(bytes) > limit {
            return Err(ShardError::Memory(memory_message(rows, bytes, limit)));
        }
        Ok(())
    }

    /// Counts a row that was put back as changed since all rows were last written to a recovery point.
    pub(crate) fn mark_changed(&mut self, at: RowRef) {
        let owner = self.stores.iter_mut().find(|store| store.rows_of(at.table).contains(&at.row.0));
        owner.into_iter().for_each(|store| store.mark_changed(at));
    }

    /// Written rows.
    pub fn written(&self) -> u64 {
        self.stores.iter().map(RowStore::written).sum()
    }

    /// Every written row, ascending by table and row.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let tables = (0..self.config.tables.len() as u32).map(TableIndex);
        tables.flat_map(move |table| {
            self.stores.iter().flat_map(move |store| {
                let rows = store.rows_of(table);
                let mut from = rows.start;
                std::iter::from_fn(move || {
                    let row = store.next_written(table, from, rows.end)?;
                    from = row.0 + 1;
                    let (updates, values) = store.record(RowRef { table, row })?;
                    Some(Record { table, row, updates, values })
                })
            })
        })
    }

    /// The weights of an owned row, written or virtual; `None` for a row of another shard.
    pub fn weights(&self, at: RowRef) -> Option<Vec<f32>> {
        let store = self
            .stores
            .iter()
            .filter(|_| at.table.index() < self.config.tables.len())
            .find(|store| store.rows_of(at.table).contains(&at.row.0))?;
        let mut weights = vec![0.0; self.config.width()];
        store.read(at, &mut weights);
        Some(weights)
    }

    /// Serves the workers that come through `door`, which was opened with this shard's configuration, until `shutdown`, and gives the shard back with its rows.
    ///
    /// # Errors
    /// When the workers contradict each other, the memory ceiling would be passed, or a snapshot or a lane fails. Every connected worker is told first.
    pub async fn serve(
        self,
        door: Door,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<Shard, ShardError> {
        let Shard { config, version, stores, archive, status, outside } = self;
        let Outside { mut observers, peeks, .. } = outside;
        for (observer, store) in observers.iter_mut().zip(&stores) {
            observer.begin(version, &written_by_table(store, config.tables.len()));
        }
        let job = server::Job {
            config: Arc::clone(&config),
            version,
            stores,
            archive: archive.clone(),
            status,
            observers,
            peeks,
        };
        let (version, stores, status) = server::serve(job, door, shutdown).await?;
        let outside = Outside::of(&config);
        Ok(Shard { config, version, stores, archive, status, outside })
    }
}
