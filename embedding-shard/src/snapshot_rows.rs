//! A snapshot as its archive sees it: rows of one table after the other, in row order, pulled from the lanes.

use polygram_checkpoint::{CheckpointError, StoreProblem};
use polygram_domain::{Step, TableIndex};
use polygram_row_exchange::SnapshotOrder;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::lane::Command;
use crate::rows::{DecayLog, Record};
use crate::selection::Selection;

/// Why a snapshot was not archived.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The store refused it.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The shard stopped meanwhile.
    #[error("the shard stopped before its rows were written")]
    Stopped,
    /// Nobody takes the report of what was written.
    #[error("nobody takes the report of what was written")]
    Unreported,
}

impl ArchiveError {
    /// What kept the store from taking the rows, if the store did not.
    pub fn store_problem(&self) -> Option<StoreProblem> {
        match self {
            ArchiveError::Store(error) => error.store_problem(),
            ArchiveError::Stopped | ArchiveError::Unreported => None,
        }
    }
}

/// Rows of a shard as they were at one version. Tables must be asked for in ascending order.
#[derive(Debug)]
pub struct SnapshotRows {
    version: Step,
    order: SnapshotOrder,
    selection: Selection,
    decayed: DecayLog,
    lanes: Vec<mpsc::Sender<Command>>,
    /// Lane that has the next rows.
    lane: usize,
}

impl SnapshotRows {
    pub(crate) fn new(
        (version, decayed): (Step, DecayLog),
        (order, selection): (SnapshotOrder, Selection),
        lanes: Vec<mpsc::Sender<Command>>,
    ) -> SnapshotRows {
        SnapshotRows { version, order, selection, decayed, lanes, lane: 0 }
    }

    /// What it was ordered for.
    pub fn order(&self) -> SnapshotOrder {
        self.order
    }

    /// Which rows it hands out.
    pub fn selection(&self) -> Selection {
        self.selection
    }

    /// Updates in the rows.
    pub fn version(&self) -> Step {
        self.version
    }

    /// How far rows have decayed that no step touched.
    pub fn decayed(&self) -> DecayLog {
        self.decayed
    }

    /// The next of its rows of `table`, ascending; `None` when there are no more, after which the next table may be
    /// asked for. A batch may be empty.
    pub async fn next(&mut self, table: TableIndex) -> Result<Option<Vec<Record>>, ArchiveError> {
        let Some(lane) = self.lanes.get(self.lane) else {
            self.lane = 0;
            return Ok(None);
        };
        let (reply, batch) = oneshot::channel();
        lane.send(Command::Batch { table, reply }).await.map_err(|_| ArchiveError::Stopped)?;
        let batch = batch.await.map_err(|_| ArchiveError::Stopped)?;
        if batch.is_last {
            self.lane += 1;
        }
        Ok(Some(batch.records))
    }
}
