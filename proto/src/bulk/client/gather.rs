//! Rows of a cell on their way from all shards: each part is copied to its places as it comes.
//!
//! Legend: U = unique rows of a cell, w = values per row. Row buffers are `[sites, U, w]`. They are not zeroed: a place
//! counts as filled only once a shard's values are in it, and an answer is given when all places are.

use std::ops::Range;
use std::sync::Arc;

use crate::bulk::block::{BlockShape, f32_from_bf16};
use crate::bulk::ids::ShardRows;
use crate::bulk::message::RowBlock;
use crate::bulk::pool::{Buffers, PooledWords};

/// Rows `[sites, U, w]` on their way.
#[derive(Debug)]
pub(super) struct Gather {
    /// f32 bits; what is not filled yet has any contents.
    rows_suw: PooledWords,
    shards: Arc<Vec<ShardRows>>,
    missing: Vec<usize>,
    filled: Vec<bool>,
    shape: BlockShape,
}

impl Gather {
    pub(super) fn new(shards: Arc<Vec<ShardRows>>, shape: BlockShape, buffers: &Buffers) -> Gather {
        let missing: Vec<usize> = shards.iter().map(ShardRows::len).collect();
        let unique = missing.iter().sum();
        Gather {
            rows_suw: buffers.take(shape.stride() * unique),
            shards,
            missing,
            filled: vec![false; unique],
            shape,
        }
    }

    /// Copies a part to its places. A part that came before is skipped: the shard answers a repeated request
    /// with the same bits.
    pub(super) fn place(&mut self, shard: usize, block: &RowBlock) -> Result<(), String> {
        let part = &self.shards[shard];
        let values = Values::of(block)?;
        let (rows, unique, sites, width) =
            (block.rows(), self.filled.len(), self.shape.sites, self.shape.width);
        let rows_suw: &mut [f32] = bytemuck::cast_slice_mut(&mut self.rows_suw);
        let mut taken = 0;
        for run in block.runs() {
            if run.end as usize > part.len() {
                return Err(format!("position {} came for {} rows", run.end - 1, part.len()));
            }
            for (position, stretch) in part.stretches(run.start as usize..run.end as usize) {
                let first = taken + (position - run.start as usize);
                // Usually the whole stretch is new; after a repeated request single rows may be there already.
                let pieces = match self.filled[stretch.clone()].iter().any(|&filled| filled) {
                    false => vec![(first, stretch)],
                    true => stretch
                        .enumerate()
                        .filter(|&(_, at)| !self.filled[at])
                        .map(|(i, at)| (first + i, at..at + 1))
                        .collect(),
                };
                for (from, to) in pieces {
                    for site in 0..sites {
                        let target = (site * unique + to.start) * width;
                        let source = (site * rows + from) * width;
                        let count = to.len() * width;
                        values.copy_to(source..source + count, &mut rows_suw[target..target + count]);
                    }
                    self.filled[to.clone()].fill(true);
                    self.missing[shard] -= to.len();
                }
            }
            taken += run.len();
        }
        Ok(())
    }

    /// The first shard whose rows are not all here.
    pub(super) fn awaited(&self) -> Option<usize> {
        self.missing.iter().position(|&rows| rows > 0)
    }

    /// The rows, once nobody is awaited.
    pub(super) fn finish(&mut self) -> Vec<f32> {
        debug_assert!(self.awaited().is_none());
        std::mem::replace(&mut self.rows_suw, PooledWords::from(Vec::new())).into_f32s()
    }
}

/// A block's values, as they travelled.
enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl Values<'_> {
    fn of(block: &RowBlock) -> Result<Values<'_>, String> {
        match (block.f32s(), block.bf16s()) {
            (Some(values), _) => Ok(Values::F32(values)),
            (_, Some(values)) => Ok(Values::Bf16(values)),
            _ => Err("rows of an unknown type".to_owned()),
        }
    }

    fn copy_to(&self, range: Range<usize>, target: &mut [f32]) {
        match self {
            Values::F32(values) => target.copy_from_slice(&values[range]),
            Values::Bf16(values) => f32_from_bf16(&values[range], target),
        }
    }
}
