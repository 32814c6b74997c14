//! Pushing a cell's gradients: divided among the shards, in chunks, each as soon as its shard grants credit.

use std::ops::Range;
use std::sync::Arc;

use polygram_domain::MicroBatchRef;
use polygram_domain::bf16::round_to_nearest;
use polygram_domain::embedding::RowType;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::pending::Key;
use super::shared::Inner;
use crate::block::{BlockShape, RowBlock};
use crate::error::{Cause, RowError};
use crate::frame::{Kind, Outgoing, Piece};
use crate::ids::ShardRows;
use crate::pool::PooledWords;

/// One cell's gradients `[sites, U, w]` on their way to all shards.
#[derive(Clone)]
pub(super) struct Push {
    pub(super) inner: Arc<Inner>,
    pub(super) shards: Arc<Vec<ShardRows>>,
    /// f32 bits.
    pub(super) values: Arc<PooledWords>,
    /// Rows of the cell (U).
    pub(super) unique: usize,
    pub(super) at: MicroBatchRef,
}

impl Push {
    /// Queues all of it. Shards do not wait for each other: a task for each shard, ended with this future.
    pub(super) async fn send(self) -> Result<(), RowError> {
        let mut tasks = JoinSet::new();
        for shard in 0..self.shards.len() {
            let push = self.clone();
            tasks.spawn(async move { push.send_to(shard).await });
        }
        while let Some(joined) = tasks.join_next().await {
            joined.map_err(|error| {
                let rule = format!("the task that pushes failed: {error}");
                self.inner.registry.call_error(self.at.step, Some(self.at.index), rule)
            })??;
        }
        Ok(())
    }

    /// Queues one shard's part. The chunks spread over its connections once the shard has answered the lookup; before,
    /// and where it has nothing to answer, they follow the lookup on the first.
    async fn send_to(&self, shard: usize) -> Result<(), RowError> {
        let inner = &self.inner;
        let fail = |cause: Cause| RowError {
            step: Some(self.at.step),
            cell: Some(self.at.index),
            ..inner.registry.error(shard, None, cause)
        };
        let (part, queue) = (&self.shards[shard], &inner.shards[shard]);
        let reply = inner.limits.reply;
        let is_answered = part.len() > 0 && !inner.registry.is_open(Key::Lookup(self.at));
        let row_bytes = inner.gradients.stride() * inner.gradients.kind.bytes();
        let rows_per_chunk = (inner.limits.chunk_bytes / row_bytes.max(1)).max(1);
        let (mut start, mut chunk) = (0, 0);
        loop {
            let end = part.len().min(start + rows_per_chunk);
            let positions = start..end;
            let head = RowBlock::head((start < end).then_some(start as u32..end as u32).as_slice());
            let bytes = 4 * (head.len() + inner.gradients.words(positions.len()));
            let permit = timeout(reply, queue.reserve(bytes))
                .await
                .map_err(|_| fail(Cause::Deadline(reply)))?
                .map_err(|_| fail(inner.registry.closed()))?;
            let mut header = inner.identity.header(Kind::Push, self.at.step, self.at.index);
            header.chunk = chunk;
            let pieces = self.pieces(part, positions, head);
            let frame = Outgoing::seal_late(&header, pieces).map_err(|error| fail(error.into()))?;
            match is_answered {
                true => permit.send(frame),
                false => permit.send_in_order(frame),
            }
            (start, chunk) = (end, chunk + 1);
            if start >= part.len() {
                return Ok(());
            }
        }
    }

    /// A chunk's payload: f32 values as they lie, bf16 values rounded into a buffer.
    fn pieces(&self, part: &ShardRows, positions: Range<usize>, head: Vec<u32>) -> Vec<Piece> {
        let BlockShape { sites, width, kind } = self.inner.gradients;
        let at = |site: usize, row: usize| (site * self.unique + row) * width;
        let rows = positions.len();
        let stretches = (0..sites).flat_map(|site| {
            let stretches = part.stretches(positions.clone());
            stretches.map(move |(_, rows)| at(site, rows.start)..at(site, rows.end))
        });
        match kind {
            RowType::F32 => {
                let shared = |range| Piece::Shared(Arc::clone(&self.values), range);
                std::iter::once(Piece::Words(head)).chain(stretches.map(shared)).collect()
            }
            RowType::Bf16 => {
                let mut words = self.inner.payloads.take(head.len() + self.inner.gradients.words(rows));
                let (front, back) = words.split_at_mut(head.len());
                front.copy_from_slice(&head);
                if let Some(last) = back.last_mut() {
                    // The padding, where the values do not fill whole words.
                    *last = 0;
                }
                let values: &[f32] = bytemuck::cast_slice(&self.values);
                let mut rest: &mut [u16] = bytemuck::cast_slice_mut(back);
                for range in stretches {
                    let (here, after) = rest.split_at_mut(range.len());
                    round_to_nearest(&values[range], here);
                    rest = after;
                }
                vec![Piece::Pooled(words)]
            }
        }
    }
}
