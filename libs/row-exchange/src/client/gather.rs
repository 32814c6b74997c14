//! Rows of a cell on their way from all shards: each part is copied to its places as it comes.
//!
//! Legend: U = unique rows of a cell, w = values per row. Row buffers are `[sites, U, w]`. They are not zeroed: a place
//! counts as filled only once a shard's values are in it, and an answer is given when all places are.
//!
//! What always holds: a place is claimed once, by the first part that brings it, and only the claim's owner writes to
//! it. Claims are never given back: a part that fails its checksum fails the whole client. So shards copy side by side,
//! without a lock, and what is answered was verified.

use std::ops::Range;
use std::sync::Arc;

use super::region::Region;
use crate::block::BlockShape;
use crate::ids::ShardRows;
use crate::message::RowBlock;
use crate::pool::Buffers;

/// Rows `[sites, U, w]` on their way.
#[derive(Debug)]
pub(super) struct Gather {
    /// f32 bits; what is not filled yet has any contents.
    rows_suw: Arc<Region>,
    shards: Arc<Vec<ShardRows>>,
    /// Rows of each shard that are not filled.
    missing: Vec<usize>,
    claimed: Vec<bool>,
    shape: BlockShape,
}

/// The places of one part `[sites, n, w]` of a shard's rows, which are its owner's alone to fill.
#[derive(Debug)]
pub(super) struct Claim {
    rows_suw: Arc<Region>,
    /// Of the part's values in their order, where each stretch goes; apart from each other and from other claims'.
    stretches: Vec<Range<usize>>,
    rows: usize,
}

impl Claim {
    /// How many stretches the part has.
    pub(super) fn stretches(&self) -> usize {
        self.stretches.len()
    }

    /// The memory of stretch `index`, f32 bits; its old contents are of no meaning.
    pub(super) fn stretch_mut(&mut self, index: usize) -> &mut [u32] {
        // SAFETY: `Gather` gives each place to one claim only, and takes the region's memory away only when every
        // claim with places is settled, that is consumed. Stretches of this claim are lent one at a time.
        unsafe { self.rows_suw.slice_mut(self.stretches[index].clone()) }
    }
}

impl Gather {
    pub(super) fn new(shards: Arc<Vec<ShardRows>>, shape: BlockShape, buffers: &Buffers) -> Gather {
        let missing: Vec<usize> = shards.iter().map(ShardRows::len).collect();
        let unique = missing.iter().sum();
        Gather {
            rows_suw: Arc::new(Region::new(buffers.take(shape.stride() * unique))),
            shards,
            missing,
            claimed: vec![false; unique],
            shape,
        }
    }

    /// Claims the places of a whole part. `None` where some of them are claimed already or are not the shard's:
    /// [`Gather::place`] knows what to do with such a part.
    pub(super) fn claim(&mut self, shard: usize, runs: &[Range<u32>]) -> Option<Claim> {
        let part = &self.shards[shard];
        if runs.iter().any(|run| run.end as usize > part.len()) {
            return None;
        }
        let rows: Vec<Range<usize>> = runs
            .iter()
            .flat_map(|run| part.stretches(run.start as usize..run.end as usize))
            .map(|(_, rows)| rows)
            .collect();
        if rows.iter().any(|rows| self.claimed[rows.clone()].contains(&true)) {
            return None;
        }
        rows.iter().for_each(|rows| self.claimed[rows.clone()].fill(true));
        let stretches = (0..self.shape.sites).flat_map(|site| rows.iter().map(move |rows| (site, rows)));
        Some(Claim {
            rows_suw: Arc::clone(&self.rows_suw),
            stretches: stretches.map(|(site, rows)| self.at(site, rows)).collect(),
            rows: rows.iter().map(Range::len).sum(),
        })
    }

    /// Counts the places of a claim as filled. A claim of an earlier request of the same name counts for nothing.
    pub(super) fn settle(&mut self, shard: usize, claim: Claim) {
        if Arc::ptr_eq(&claim.rows_suw, &self.rows_suw) {
            self.missing[shard] -= claim.rows;
        }
    }

    /// Where a stretch of rows lies for a site.
    fn at(&self, site: usize, rows: &Range<usize>) -> Range<usize> {
        let (unique, width) = (self.claimed.len(), self.shape.width);
        (site * unique + rows.start) * width..(site * unique + rows.end) * width
    }

    /// Copies a part to its places. A part that came before, or is just coming, is skipped: the shard answers a
    /// repeated request with the same bits.
    pub(super) fn place(&mut self, shard: usize, block: &RowBlock) -> Result<(), String> {
        let shards = Arc::clone(&self.shards);
        let part = &shards[shard];
        let mut taken = 0;
        for run in block.runs() {
            if run.end as usize > part.len() {
                return Err(format!("position {} came for {} rows", run.end - 1, part.len()));
            }
            for (position, stretch) in part.stretches(run.start as usize..run.end as usize) {
                let first = taken + (position - run.start as usize);
                // Usually the whole stretch is new; after a repeated request single rows may be there already.
                let pieces = match self.claimed[stretch.clone()].contains(&true) {
                    false => vec![(first, stretch)],
                    true => stretch
                        .enumerate()
                        .filter(|&(_, at)| !self.claimed[at])
                        .map(|(i, at)| (first + i, at..at + 1))
                        .collect(),
                };
                for (from, to) in pieces {
                    self.claimed[to.clone()].fill(true);
                    for site in 0..self.shape.sites {
                        let source = (site * block.rows() + from) * self.shape.width;
                        let target = self.at(site, &to);
                        // SAFETY: these places were claimed by nobody, and are from now on by this call; the memory is
                        // there, since not all places are filled.
                        let target = unsafe { self.rows_suw.slice_mut(target) };
                        let count = target.len();
                        let values = block.values().range(source..source + count);
                        values.copy_to(bytemuck::cast_slice_mut(target));
                    }
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

    /// The rows, once nobody is awaited; none before.
    pub(super) fn finish(&mut self) -> Vec<f32> {
        debug_assert!(self.awaited().is_none());
        match self.awaited() {
            None => self.rows_suw.take().into_f32s(),
            Some(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::embedding::RowType;

    use super::*;
    use crate::ids::ShardRows;

    /// Two shards of one table: rows 0..3 and 3..5 of a cell of five.
    fn gather() -> Gather {
        let part = |range: Range<usize>| ShardRows { offsets: vec![0, range.len()], ranges: vec![range] };
        let shape = BlockShape { sites: 2, width: 2, kind: RowType::F32 };
        Gather::new(Arc::new(vec![part(0..3), part(3..5)]), shape, &Buffers::new(0))
    }

    fn block(run: Range<u32>, values: &[f32]) -> RowBlock {
        let mut words = RowBlock::head(std::slice::from_ref(&run));
        words.extend(values.iter().map(|value| value.to_bits()));
        RowBlock::decode(words.into(), BlockShape { sites: 2, width: 2, kind: RowType::F32 }).unwrap()
    }

    fn fill(claim: &mut Claim, mut value: f32) {
        for index in 0..claim.stretches() {
            for word in claim.stretch_mut(index) {
                *word = value.to_bits();
                value += 1.0;
            }
        }
    }

    #[test]
    fn claims_fill_their_places() {
        let mut gather = gather();
        let mut late = gather.claim(1, std::slice::from_ref(&(0..2))).unwrap();
        let mut first = gather.claim(0, &[0..1, 2..3]).unwrap();
        assert_eq!((first.stretches(), late.stretches()), (4, 2));
        std::thread::scope(|scope| {
            scope.spawn(|| fill(&mut first, 10.0));
            scope.spawn(|| fill(&mut late, 30.0));
        });
        gather.settle(0, first);
        gather.place(0, &block(1..2, &[20.0, 21.0, 22.0, 23.0])).unwrap();
        assert_eq!(gather.awaited(), Some(1), "what is not settled does not count");
        gather.settle(1, late);
        assert_eq!(gather.awaited(), None);
        let site = |rows: [f32; 5]| rows.map(|value| [value, value + 1.0]).concat();
        let expected = [site([10.0, 20.0, 12.0, 30.0, 32.0]), site([14.0, 22.0, 16.0, 34.0, 36.0])].concat();
        assert_eq!(gather.finish(), expected);
    }

    #[test]
    fn places_are_claimed_once() {
        let mut gather = gather();
        let mut claim = gather.claim(0, std::slice::from_ref(&(1..2))).unwrap();
        assert!(gather.claim(0, std::slice::from_ref(&(0..2))).is_none(), "one of them is claimed");
        assert!(gather.claim(1, std::slice::from_ref(&(0..3))).is_none(), "the shard has two rows");
        // The same rows by another connection: what is claimed is left to its owner.
        gather.place(0, &block(0..3, &[9.0; 12])).unwrap();
        assert_eq!(gather.awaited(), Some(0));
        gather.place(1, &block(0..2, &[8.0; 8])).unwrap();
        fill(&mut claim, 1.0);
        gather.settle(0, claim);
        assert_eq!(gather.awaited(), None);
        let rows = gather.finish();
        assert_eq!(rows[..6], [9.0, 9.0, 1.0, 2.0, 9.0, 9.0]);
        assert_eq!(rows[10..16], [9.0, 9.0, 3.0, 4.0, 9.0, 9.0]);
    }

    #[test]
    fn an_abandoned_request_leaves_its_claims_whole() {
        let mut gather = gather();
        let mut claim = gather.claim(0, std::slice::from_ref(&(0..3))).unwrap();
        drop(gather);
        fill(&mut claim, 1.0);
    }
}
