//! A snapshot as its archive sees it: rows of one table after the other, in row order, pulled from the lanes.

use polygram_domain::{Step, TableIndex};
use polygram_row_exchange::SnapshotOrder;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::lane::Command;
use crate::rows::{DecayLog, Record};
use crate::selection::Selection;

/// The shard stopped before all rows of a snapshot were handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the shard stopped before its rows were written")]
pub struct SnapshotStopped;

/// What a snapshot is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    /// Updates in its rows.
    pub(crate) version: Step,
    /// What it was ordered for.
    pub(crate) order: SnapshotOrder,
    /// Which rows it hands out.
    pub(crate) selection: Selection,
    /// How far rows have decayed that no step touched.
    pub(crate) decayed: DecayLog,
}

/// Rows of a shard as they were at one version. Tables must be asked for in ascending order.
#[derive(Debug)]
pub struct SnapshotRows {
    snapshot: Snapshot,
    lanes: Vec<mpsc::Sender<Command>>,
    /// Lane that has the next rows.
    lane: usize,
}

impl SnapshotRows {
    pub(crate) fn new(snapshot: Snapshot, lanes: Vec<mpsc::Sender<Command>>) -> SnapshotRows {
        SnapshotRows { snapshot, lanes, lane: 0 }
    }

    /// What it was ordered for.
    pub fn order(&self) -> SnapshotOrder {
        self.snapshot.order
    }

    /// Which rows it hands out.
    pub fn selection(&self) -> Selection {
        self.snapshot.selection
    }

    /// Updates in the rows.
    pub fn version(&self) -> Step {
        self.snapshot.version
    }

    /// How far rows have decayed that no step touched.
    pub fn decayed(&self) -> DecayLog {
        self.snapshot.decayed
    }

    /// The next of its rows of `table`, ascending; `None` when there are no more, after which the next table may be
    /// asked for. A batch may be empty.
    pub async fn next(&mut self, table: TableIndex) -> Result<Option<Vec<Record>>, SnapshotStopped> {
        let Some(lane) = self.lanes.get(self.lane) else {
            self.lane = 0;
            return Ok(None);
        };
        let (reply, batch) = oneshot::channel();
        lane.send(Command::Batch { table, reply }).await.map_err(|_| SnapshotStopped)?;
        let batch = batch.await.map_err(|_| SnapshotStopped)?;
        if batch.is_last {
            self.lane += 1;
        }
        Ok(Some(batch.records))
    }
}
