//! Where snapshots of rows go, and the run's roots as such places.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use polygram_checkpoint::{
    CheckpointError, ObjectEntry, Part, PartRef, RowRecord, RowScope, RowSet, RowWriter, RunStore,
    StoreProblem, TableShape,
};
use polygram_domain::{CheckpointKind, Step};
use polygram_faults::{Point, pass};
use polygram_row_exchange::SnapshotOrder;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::config::ShardConfig;
use crate::selection::{RowCounts, Selection};
use crate::snapshot::{SnapshotRows, SnapshotStopped};

/// Why a snapshot was not archived.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The store refused it.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The shard stopped meanwhile.
    #[error(transparent)]
    Stopped(#[from] SnapshotStopped),
    /// Nobody takes the report of what was written.
    #[error("nobody takes the report of what was written")]
    Unreported,
}

impl ArchiveError {
    /// What kept the store from taking the rows, if the store did not.
    pub fn store_problem(&self) -> Option<StoreProblem> {
        match self {
            ArchiveError::Store(error) => error.store_problem(),
            ArchiveError::Stopped(_) | ArchiveError::Unreported => None,
        }
    }
}

/// A place for snapshots. One call of each per snapshot; training goes on meanwhile.
pub trait RowArchive: Send + Sync {
    /// Decides which rows the snapshot that was ordered is to hand out: all, unless the place knows better.
    fn select(&self, _order: SnapshotOrder, _rows: RowCounts) -> Selection {
        Selection::All
    }

    /// Takes all of a snapshot's rows. They exist only if this returns without an error.
    fn archive<'a>(
        &'a self,
        rows: SnapshotRows,
    ) -> Pin<Box<dyn Future<Output = Result<(), ArchiveError>> + Send + 'a>>;
}

/// What became of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shipment {
    /// It is in its store.
    Part {
        /// What it is for.
        kind: CheckpointKind,
        /// What was written.
        part: Part,
    },
    /// It is no part of a recovery point, for it could not be written.
    NotWritten {
        /// Updates in its rows.
        step: Step,
        /// One sentence.
        reason: String,
    },
}

/// The recovery points that a shard goes on from: objects of all its rows, and what was written last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The newest recovery point.
    pub last: Step,
    /// Objects that hold all written rows of some step, to be named by every recovery point of changes.
    pub all: Vec<ObjectEntry>,
}

/// Where recovery points go.
#[derive(Debug)]
pub struct PointArchive {
    /// Their store.
    store: RunStore,
    /// Changes alone are written while they are less than this part of the written rows.
    changes_below: f64,
    /// What the next one may go on from.
    chain: Mutex<Option<Chain>>,
}

impl PointArchive {
    /// The place that nothing has been written to yet, or that `chain` was.
    pub fn new(store: RunStore, changes_below: f64, chain: Option<Chain>) -> PointArchive {
        PointArchive { store, changes_below, chain: Mutex::new(chain) }
    }

    /// Changes may be written where the point that they follow is kept and small enough.
    fn select(&self, after: Option<Step>, rows: RowCounts) -> Selection {
        let chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        let follows = chain.as_ref().is_some_and(|chain| Some(chain.last) == after);
        if follows && (rows.changed as f64) < self.changes_below * rows.written as f64 {
            Selection::Changed
        } else {
            Selection::AllAnew
        }
    }

    fn take_chain(&self) -> Option<Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set_chain(&self, chain: Chain) {
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain);
    }
}

/// Writes snapshots to the run's root, those for recovery points to theirs, and hands on what was written.
#[derive(Debug)]
pub struct StoreArchive {
    store: RunStore,
    points: Option<PointArchive>,
    config: Arc<ShardConfig>,
    shipments: mpsc::Sender<Shipment>,
}

impl StoreArchive {
    /// Archives into `store`; what becomes of each snapshot goes to `shipments`.
    pub fn new(store: RunStore, config: ShardConfig, shipments: mpsc::Sender<Shipment>) -> StoreArchive {
        StoreArchive { store, points: None, config: Arc::new(config), shipments }
    }

    /// The same, with a place for recovery points.
    pub fn with_points(self, points: PointArchive) -> StoreArchive {
        StoreArchive { points: Some(points), ..self }
    }

    async fn write(&self, rows: SnapshotRows) -> Result<(), ArchiveError> {
        let step = rows.version();
        let shipment = match (rows.order(), &self.points) {
            (SnapshotOrder::Point { .. }, Some(points)) => match self.write_point(points, rows).await {
                Ok(part) => Shipment::Part { kind: CheckpointKind::Point, part },
                Err(ArchiveError::Store(error)) => {
                    tracing::warn!(%step, %error, "this shard's part of a recovery point is not written");
                    Shipment::NotWritten { step, reason: error.to_string() }
                }
                Err(error) => return Err(error),
            },
            (SnapshotOrder::Point { .. }, None) => {
                let reason = "this shard has no place for recovery points".to_owned();
                Shipment::NotWritten { step, reason }
            }
            _ => {
                let part = self.write_rows(&self.store, rows).await?;
                Shipment::Part { kind: CheckpointKind::Commit, part }
            }
        };
        pass(Point::ShardUploaded);
        self.shipments.send(shipment).await.map_err(|_| ArchiveError::Unreported)
    }

    async fn write_point(&self, points: &PointArchive, rows: SnapshotRows) -> Result<Part, ArchiveError> {
        // Until this one is written there is nothing to go on from.
        let before = points.take_chain();
        let (step, selection) = (rows.version(), rows.selection());
        let mut part = self.write_rows(&points.store, rows).await?;
        let all = match before.filter(|_| selection == Selection::Changed) {
            Some(chain) => {
                part.objects.extend(chain.all.iter().cloned());
                chain.all
            }
            None => part.objects.clone(),
        };
        points.set_chain(Chain { last: step, all });
        Ok(part)
    }

    async fn write_rows(&self, store: &RunStore, mut rows: SnapshotRows) -> Result<Part, ArchiveError> {
        let (step, member) = (rows.version(), format!("shard-{}", self.config.index));
        let scope = match rows.selection() {
            Selection::Changed => RowScope::Changed,
            Selection::All | Selection::AllAnew => RowScope::All,
        };
        let mut objects = Vec::new();
        for spec in self.config.tables.iter() {
            let shape = TableShape::of(spec, self.config.state_values());
            let buckets = self.config.buckets();
            let mut writer =
                RowWriter::new(store, PartRef { step, member: &member }, RowSet { shape, scope }, buckets)?;
            while let Some(records) = rows.next(spec.index).await? {
                for record in &records {
                    let values = &record.values;
                    writer.push(RowRecord { row: record.row, updates: record.updates, values }).await?;
                }
            }
            objects.extend(writer.finish().await?);
        }
        let decays = self.config.embedding.all_rows_decay();
        let table_decay = decays.then(|| rows.decayed().units());
        Ok(Part { member, step, objects, cursor: None, table_decay })
    }
}

impl RowArchive for StoreArchive {
    fn select(&self, order: SnapshotOrder, rows: RowCounts) -> Selection {
        match (order, &self.points) {
            (SnapshotOrder::Point { after }, Some(points)) => points.select(after, rows),
            _ => Selection::All,
        }
    }

    fn archive<'a>(
        &'a self,
        rows: SnapshotRows,
    ) -> Pin<Box<dyn Future<Output = Result<(), ArchiveError>> + Send + 'a>> {
        Box::pin(self.write(rows))
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunName;

    use super::*;

    #[test]
    fn changes_follow_a_kept_point_while_they_are_few() {
        let store = RunStore::create("memory://", &RunName::new("r").unwrap()).unwrap();
        let chain = Chain { last: Step(40), all: Vec::new() };
        let points = PointArchive::new(store, 0.5, Some(chain));
        let rows = |changed| RowCounts { written: 100, changed };
        assert_eq!(points.select(Some(Step(40)), rows(49)), Selection::Changed);
        assert_eq!(points.select(Some(Step(40)), rows(50)), Selection::AllAnew);
        // The one before was given up, or is of another generation.
        assert_eq!(points.select(Some(Step(30)), rows(1)), Selection::AllAnew);
        assert_eq!(points.select(None, rows(1)), Selection::AllAnew);
        assert!(points.take_chain().is_some());
        assert_eq!(points.select(Some(Step(40)), rows(1)), Selection::AllAnew);
    }
}
