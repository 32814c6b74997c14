//! Answers to lookups and reads: which rows may go out now, which must wait for a commit, and how they are framed.

use std::ops::Range;
use std::sync::Arc;

use polygram_domain::TableIndex;
use polygram_proto::bulk::frame::{Header, Outgoing, Piece};
use polygram_proto::bulk::message::{Request, RowBlock};

use crate::rows::{RowStore, RowsOut};
use crate::server::outbox::Outbox;

/// Bytes of values in one frame of rows, about; no result depends on it.
const FRAME_BYTES: usize = 256 << 10;

/// Where an answer goes, and what its frames say of themselves.
#[derive(Clone, Debug)]
pub(crate) struct ReplyTo {
    /// The worker's outbox.
    pub(crate) frames: Outbox,
    /// Header of every frame.
    pub(crate) header: Header,
}

/// Rows of one site table as (position in the request, row), positions ascending.
pub(super) type TableRows = (usize, Vec<(u32, u32)>);

/// Positions of a request that wait for one step's commit.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) request: Arc<Request>,
    pub(super) rows: Vec<TableRows>,
    pub(super) reply: ReplyTo,
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

/// Sends rows of site tables as (position, row), in frames of runs. Returns whether the connection still takes them.
pub(super) fn send_rows(
    store: &RowStore,
    (tables_per_site, sites, width): (usize, usize, usize),
    rows: &[TableRows],
    reply: &ReplyTo,
) -> bool {
    let flat: Vec<(usize, u32, u32)> = rows
        .iter()
        .flat_map(|(table, rows)| rows.iter().map(|&(position, row)| (*table, position, row)))
        .collect();
    let per_frame = (FRAME_BYTES / (4 * sites * width).max(1)).max(1);
    for part in flat.chunks(per_frame) {
        let mut words = RowBlock::head(&runs_of(part.iter().map(|&(_, position, _)| position)));
        let values_at = words.len();
        words.resize(values_at + part.len() * sites * width, 0);
        let values: &mut [f32] = bytemuck::cast_slice_mut(&mut words[values_at..]);
        for (site, target) in values.chunks_exact_mut((part.len() * width).max(1)).enumerate() {
            let mut at = 0;
            for same in part.chunk_by(|a, b| a.0 == b.0) {
                let table = TableIndex((site * tables_per_site + same[0].0) as u32);
                let wanted: Vec<u32> = same.iter().map(|&(_, _, row)| row).collect();
                store.gather(table, &wanted, RowsOut::F32(&mut target[at..at + same.len() * width]));
                at += same.len() * width;
            }
        }
        let sent = Outgoing::seal(&reply.header, vec![Piece::Words(words)])
            .is_ok_and(|frame| reply.frames.blocking_send(frame).is_ok());
        if !sent {
            return false;
        }
    }
    true
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
