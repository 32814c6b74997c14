//! Answers to lookups and reads: which rows may go out now, which must wait for a commit, and how they are framed.
//!
//! Rows leave on credit of the worker that gets them. A lane never waits for a worker: what has no credit yet stays
//! behind as positions, not as values, and is gathered when the credit is there ([`Backlog`]).

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use futures::future::{FutureExt, select_all};
use polygram_domain::embedding::RowType;
use polygram_domain::{Step, TableIndex};
use polygram_row_exchange::block::BlockShape;
use polygram_row_exchange::frame::{Header, Outgoing, Piece};
use polygram_row_exchange::message::RowBlock;
use polygram_row_exchange::pool::Buffers;

use crate::config::ShardConfig;
use crate::outbox::{Gone, Outbox, Permit};
use crate::rows::{RowStore, RowsOut};

/// Bytes of values in one frame of rows, about: what a core's own cache holds beside the rest. No result depends on it.
const FRAME_BYTES: usize = 256 << 10;
/// Memory of sent frames that is kept for later ones.
const SPARE_BYTES: usize = 32 << 20;

/// Where an answer goes, and what its frames say of themselves.
#[derive(Clone, Debug)]
pub(crate) struct ReplyTo {
    /// The worker's outbox.
    pub(crate) frames: Outbox,
    /// Header of every frame.
    pub(crate) header: Header,
}

/// A row of a request: site table, position in the request, row.
pub(super) type Wanted = (u32, u32, u32);

/// Positions of a request that wait for one step's commit.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) rows: Vec<Wanted>,
    pub(super) reply: ReplyTo,
    pub(super) since: Instant,
}

/// For each owned row of a request, the last uncommitted earlier step that changes it.
///
/// `rows` ascend; `steps` are (step, declared rows ascending), steps ascending. Linear in all lists.
pub(super) fn last_pending<'a>(
    rows: &[u32],
    steps: impl Iterator<Item = (u64, &'a [u32])>,
) -> Vec<Option<u64>> {
    let mut pending = vec![None; rows.len()];
    for (step, declared) in steps {
        let mut place = 0;
        for (row, pending) in rows.iter().zip(&mut pending) {
            while place < declared.len() && declared[place] < *row {
                place += 1;
            }
            if declared.get(place) == Some(row) {
                *pending = Some(step);
            }
        }
    }
    pending
}

/// How rows are framed.
#[derive(Clone, Debug)]
pub(super) struct Framing {
    tables_per_site: usize,
    shape: BlockShape,
    buffers: Buffers,
}

impl Framing {
    pub(super) fn of(config: &ShardConfig) -> Framing {
        Framing {
            tables_per_site: config.tables_per_site(),
            shape: config.shape(config.embedding.wire.rows),
            buffers: Buffers::new(SPARE_BYTES),
        }
    }

    fn rows_per_frame(&self) -> usize {
        (FRAME_BYTES / (self.shape.kind.bytes() * self.shape.stride()).max(1)).max(1)
    }

    /// Gathers `rows` into the payload of one frame: runs of positions, then values.
    fn gather(&self, store: &RowStore, rows: &[Wanted]) -> Piece {
        let head = RowBlock::head(&runs_of(rows.iter().map(|&(_, position, _)| position)));
        let BlockShape { sites, width, kind } = self.shape;
        let mut words = self.buffers.take(head.len() + self.shape.words(rows.len()));
        let (start, target) = words.split_at_mut(head.len());
        start.copy_from_slice(&head);
        if let Some(last) = target.last_mut() {
            // The half of it that an odd number of bf16 values leaves over.
            *last = 0;
        }
        let ids: Vec<u32> = rows.iter().map(|&(_, _, row)| row).collect();
        let mut at = 0;
        for site in 0..sites {
            let mut first = 0;
            for same in rows.chunk_by(|a, b| a.0 == b.0) {
                let table = TableIndex((site * self.tables_per_site) as u32 + same[0].0);
                let range = at..at + same.len() * width;
                at = range.end;
                let out = match kind {
                    RowType::F32 => RowsOut::F32(&mut bytemuck::cast_slice_mut(target)[range]),
                    RowType::Bf16 => RowsOut::Bf16(&mut bytemuck::cast_slice_mut(target)[range]),
                };
                store.gather(table, &ids[first..first + same.len()], out);
                first += same.len();
            }
        }
        Piece::Pooled(words)
    }

    /// Payload bytes of a frame of `rows`, not less than it will have.
    fn payload_bytes(&self, rows: &[Wanted]) -> usize {
        let runs = runs_of(rows.iter().map(|&(_, position, _)| position)).len();
        4 * (1 + 2 * runs + self.shape.words(rows.len()))
    }
}

/// Rows that may go out and have no credit yet.
#[derive(Debug)]
struct Unsent {
    rows: Vec<Wanted>,
    /// Rows of them that are sent.
    sent: usize,
    reply: ReplyTo,
}

impl Unsent {
    /// The rows of the next frame.
    fn next(&self, framing: &Framing) -> &[Wanted] {
        let end = self.rows.len().min(self.sent + framing.rows_per_frame());
        &self.rows[self.sent..end]
    }

    /// Sends the next frame. Returns whether there are more.
    fn send(&mut self, permit: Permit, framing: &Framing, store: &RowStore) -> bool {
        let rows = self.next(framing);
        let count = rows.len();
        let piece = framing.gather(store, rows);
        match Outgoing::seal(&self.reply.header, vec![piece]) {
            Ok(frame) => permit.send(frame),
            Err(error) => {
                tracing::error!(%error, "rows do not fit a frame");
                return false;
            }
        }
        self.sent += count;
        self.sent < self.rows.len()
    }
}

/// Answers that wait for credit, of all workers.
#[derive(Debug)]
pub(super) struct Backlog {
    framing: Framing,
    unsent: VecDeque<Unsent>,
}

impl Backlog {
    pub(super) fn new(framing: Framing) -> Backlog {
        Backlog { framing, unsent: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Sends `rows`, as far as there is credit; the rest waits here.
    pub(super) fn send(&mut self, store: &RowStore, rows: Vec<Wanted>, reply: ReplyTo) {
        if !rows.is_empty() {
            self.unsent.push_back(Unsent { rows, sent: 0, reply });
            let last = self.unsent.len() - 1;
            self.advance(last, store);
        }
    }

    /// Sends what has credit by now.
    pub(super) fn retry(&mut self, store: &RowStore) {
        let mut index = 0;
        while index < self.unsent.len() {
            index += usize::from(self.advance(index, store));
        }
    }

    /// Sends what answer `index` has credit for. Returns whether it still waits; an answer that does not is removed.
    fn advance(&mut self, index: usize, store: &RowStore) -> bool {
        let unsent = &mut self.unsent[index];
        loop {
            let bytes = self.framing.payload_bytes(unsent.next(&self.framing));
            match unsent.reply.frames.try_reserve(bytes) {
                Ok(Some(permit)) => {
                    if !unsent.send(permit, &self.framing, store) {
                        break;
                    }
                }
                Ok(None) => return true,
                Err(Gone) => break,
            }
        }
        self.unsent.remove(index);
        false
    }

    /// Waits until the first of the waiting answers gets credit, and sends a frame of it. Dropping the future loses
    /// nothing.
    pub(super) async fn credit(&mut self, store: &RowStore) {
        let waits = self.unsent.iter().map(|unsent| {
            unsent.reply.frames.reserve(self.framing.payload_bytes(unsent.next(&self.framing))).boxed_local()
        });
        let (permit, index, others) = select_all(waits).await;
        drop(others);
        let keeps = match permit {
            Ok(permit) => self.unsent[index].send(permit, &self.framing, store),
            Err(Gone) => false,
        };
        if !keeps {
            self.unsent.remove(index);
        }
    }

    /// Whether an answer of `version` waits.
    pub(super) fn has(&self, version: Step) -> bool {
        self.unsent.iter().any(|unsent| unsent.reply.header.step <= version)
    }
}

/// Ascending positions as runs.
fn runs_of(positions: impl Iterator<Item = u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for position in positions {
        match runs.last_mut() {
            Some(run) if run.end == position => run.end += 1,
            _ => runs.push(position..position + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_that_changes_a_row_counts() {
        let steps: [(u64, &[u32]); 3] = [(4, &[1, 3, 9]), (5, &[3]), (6, &[0, 9, 10])];
        let pending = last_pending(&[0, 1, 2, 3, 9, 11], steps.into_iter());
        assert_eq!(pending, [Some(6), Some(4), None, Some(5), Some(6), None]);
        assert_eq!(last_pending(&[], std::iter::empty()), []);
    }

    #[test]
    fn runs_join_neighbours() {
        assert_eq!(runs_of([0, 1, 2, 5, 7, 8].into_iter()), [0..3, 5..6, 7..9]);
        assert_eq!(runs_of([].into_iter()), []);
    }
}
