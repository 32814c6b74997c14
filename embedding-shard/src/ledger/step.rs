//! What the ledger knows of one open step.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use polygram_domain::{BucketIndex, Rank, TableIndex};
use polygram_row_exchange::message::{
    Commit, PreparedBody, Reason, Refusal, Request, RowBlock, SnapshotOrder,
};

use super::peer::Peer;

/// Checksums of the pushed frames of one cell, by chunk: what tells a repeated frame from a contradiction.
pub(super) type Checksums = BTreeMap<u32, u32>;

/// Identifies a frame of gradients of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameId {
    /// Number of the frame, from 0.
    pub chunk: u32,
    /// Checksum of its payload.
    pub crc: u32,
}

/// A declared cell.
#[derive(Debug)]
pub(super) struct CellLedger {
    pub(super) request: Arc<Request>,
    pub(super) from: Peer,
    pub(super) served: bool,
    pub(super) checksums: Checksums,
    covered: Vec<bool>,
    missing: usize,
    pub(super) blocks: Vec<Arc<RowBlock>>,
}

impl CellLedger {
    pub(super) fn new(request: Arc<Request>, from: Peer) -> CellLedger {
        let rows = request.rows.len();
        CellLedger {
            request,
            from,
            served: false,
            checksums: Checksums::new(),
            covered: vec![false; rows],
            missing: rows,
            blocks: Vec::new(),
        }
    }

    /// Whether every row's gradient is here; a cell without rows says so by an empty push.
    pub(super) fn is_pushed(&self) -> bool {
        self.missing == 0 && !self.checksums.is_empty()
    }

    /// Takes a block of gradients. A frame that came before changes nothing.
    pub(super) fn push(&mut self, frame: FrameId, block: Arc<RowBlock>) -> Result<(), Refusal> {
        let FrameId { chunk, crc } = frame;
        let conflict = |text: String| Err(Refusal::new(Reason::Conflict, text));
        if let Some(before) = self.checksums.get(&chunk) {
            return match *before == crc {
                true => Ok(()),
                false => conflict(format!("chunk {chunk} of this cell came before with other bytes")),
            };
        }
        if self.is_pushed() {
            return conflict(format!("chunk {chunk} came after all gradients of the cell"));
        }
        for run in block.runs() {
            let Some(covered) = self.covered.get(run.start as usize..run.end as usize) else {
                let rows = self.covered.len();
                return conflict(format!("gradients of positions {run:?} for a cell of {rows} rows"));
            };
            if covered.contains(&true) {
                return conflict(format!("positions {run:?} have some of their gradients already"));
            }
        }
        for run in block.runs() {
            self.covered[run.start as usize..run.end as usize].fill(true);
            self.missing -= run.len();
        }
        self.checksums.insert(chunk, crc);
        self.blocks.push(block);
        Ok(())
    }
}

/// What a worker wants done with a step.
#[derive(Clone, Copy, Debug)]
pub enum Vote {
    /// Apply it.
    Commit(Commit),
    /// Leave the tables as they are.
    Abort {
        /// What is to be written all the same.
        snapshot: SnapshotOrder,
    },
}

impl Vote {
    /// What is to be written of the rows as they are then.
    pub fn snapshot(&self) -> SnapshotOrder {
        match self {
            Vote::Commit(commit) => commit.snapshot,
            Vote::Abort { snapshot } => *snapshot,
        }
    }

    /// Equal to the bit.
    pub(super) fn same(&self, other: &Vote) -> bool {
        match (self, other) {
            (Vote::Commit(a), Vote::Commit(b)) => {
                let bits = |c: &Commit| (c.scale.to_bits(), c.lr.to_bits(), c.snapshot);
                bits(a) == bits(b)
            }
            (Vote::Abort { snapshot: a }, Vote::Abort { snapshot: b }) => a == b,
            _ => false,
        }
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Vote::Commit(Commit { scale, lr, snapshot }) => {
                write!(f, "commit with scale {scale:?}, lr {lr:?}, snapshot {snapshot:?}")
            }
            Vote::Abort { snapshot } => write!(f, "abort with snapshot {snapshot:?}"),
        }
    }
}

/// A step between its first declaration and its end.
#[derive(Debug)]
pub(super) struct StepLedger {
    pub(super) cells: Vec<Option<CellLedger>>,
    /// All cells are declared, and the lanes know their union.
    pub(super) is_declared: bool,
    /// Cells whose gradients went to the lanes, from the first.
    pub(super) added: usize,
    /// Sums of squares from so many lanes.
    pub(super) summed: usize,
    pub(super) sums: Vec<(TableIndex, BucketIndex, f64)>,
    pub(super) prepared: Option<Arc<Sums>>,
    pub(super) waiting: Vec<Peer>,
    pub(super) votes: BTreeMap<Rank, (Vote, Peer)>,
}

impl StepLedger {
    pub(super) fn new(cells: u32) -> StepLedger {
        StepLedger {
            cells: (0..cells).map(|_| None).collect(),
            is_declared: false,
            added: 0,
            summed: 0,
            sums: Vec::new(),
            prepared: None,
            waiting: Vec::new(),
            votes: BTreeMap::new(),
        }
    }
}

/// The shard's answer to PREPARE.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums {
    /// Whether every gradient sum is finite.
    pub finite: bool,
    /// Sums of squares, ascending by (table, bucket).
    pub sums: Vec<(TableIndex, BucketIndex, f64)>,
}

impl Sums {
    /// The answer in messages of bounded size; at least one.
    pub fn parts(&self) -> Vec<PreparedBody> {
        let total = self.sums.len() as u32;
        let part = |sums: &[(TableIndex, BucketIndex, f64)]| PreparedBody {
            finite: self.finite,
            total,
            sums: sums.to_vec(),
        };
        match self.sums.is_empty() {
            true => vec![part(&[])],
            false => self.sums.chunks(PreparedBody::SUMS_PER_PART).map(part).collect(),
        }
    }
}

/// A step that is over, kept so that repeated frames get the same answers.
#[derive(Debug)]
pub(super) struct ClosedStep {
    pub(super) prepared: Arc<Sums>,
    pub(super) vote: Vote,
    pub(super) checksums: Vec<Checksums>,
    /// Lanes that have not closed it yet.
    pub(super) open_lanes: usize,
    /// Sum of the hashes of the rows updated, of the lanes that have.
    pub(super) fingerprint: u64,
    pub(super) waiting: Vec<Peer>,
}
