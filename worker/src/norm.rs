//! The global gradient norm and the clip scale, from dense and row sums in canonical order.

use std::ops::Range;

use polygram_domain::run_spec::{RunSpec, TrainingSpec};
use polygram_domain::{Rank, RankLayout};
use polygram_row_exchange::Prepared;

/// The row gradients of a step, as the shards report them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSummary {
    /// Whether all of them are finite.
    pub finite: bool,
    /// Sum of squares; buckets are added ascending by table, then bucket.
    pub square_sum: f64,
}

impl From<&Prepared> for RowSummary {
    fn from(prepared: &Prepared) -> RowSummary {
        let square_sum = prepared.sums.iter().map(|(_, _, sum)| sum).sum();
        RowSummary { finite: prepared.finite, square_sum }
    }
}

/// Norm and scales of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClippedGradient {
    /// `N = √(Σ dense + Σ rows)`, in f64; rows take part as the config says.
    pub norm: f64,
    /// Scale of dense gradients: `min(1, clip / (N + 1e-6))`, or 1 without a clip.
    pub dense_scale: f32,
    /// Scale of row gradients: the same, or 1 where tables are not clipped.
    pub table_scale: f32,
    /// Whether every gradient is finite.
    pub finite: bool,
}

/// Adds the dense square sum and the rows' and derives the scales.
pub fn clip(training: &TrainingSpec, dense_square_sum: f64, rows: &RowSummary) -> ClippedGradient {
    let square_sum = dense_square_sum + if training.clip_tables { rows.square_sum } else { 0.0 };
    let norm = square_sum.sqrt();
    let scale = training.clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0)) as f32;
    ClippedGradient {
        norm,
        dense_scale: scale,
        table_scale: if training.clip_tables { scale } else { 1.0 },
        finite: norm.is_finite() && rows.finite,
    }
}

/// Puts every rank's sums of squares back into canonical order.
pub struct SquareSums {
    /// By rank: tensor and blocks that it sums, in its order.
    by_rank: Vec<Vec<(usize, Range<usize>)>>,
    /// Blocks of every tensor.
    blocks: Vec<usize>,
}

impl SquareSums {
    /// For the ranks of `spec`.
    ///
    /// # Errors
    /// Where the parameters would not fit an address space.
    pub fn of(spec: &RunSpec) -> Result<SquareSums, String> {
        let mut blocks = Vec::new();
        let mut by_rank = Vec::new();
        for rank in (0..spec.topology.workers).map(Rank) {
            let layout = RankLayout::of(&spec.model, &spec.topology, rank)?;
            by_rank.push(layout.own_blocks().collect());
            blocks = layout.blocks().to_vec();
        }
        Ok(SquareSums { by_rank, blocks })
    }

    /// Of so many `blocks` of each tensor, divided as `by_rank` says.
    #[cfg(test)]
    pub(crate) fn of_blocks(by_rank: Vec<Vec<(usize, Range<usize>)>>, blocks: Vec<usize>) -> SquareSums {
        SquareSums { by_rank, blocks }
    }

    /// Whether `sums` are as many as the blocks of `rank`; the error says how many there are.
    pub fn check(&self, rank: Rank, sums: &[f64]) -> Result<(), String> {
        let blocks = self.by_rank.get(rank.index()).into_iter().flatten();
        let wanted: usize = blocks.map(|(_, blocks)| blocks.len()).sum();
        if sums.len() == wanted {
            Ok(())
        } else {
            Err(format!("{} square sums instead of {wanted}", sums.len()))
        }
    }

    /// The sum of squares of the whole dense gradient, from the sums of all ranks' blocks, by rank: block sums added in
    /// order within each tensor, and tensors in canonical order, so that every rank has the same bits.
    pub fn total<'a>(&self, by_rank: impl Iterator<Item = &'a [f64]>) -> f64 {
        let mut sums: Vec<Vec<f64>> = self.blocks.iter().map(|&blocks| vec![0.0; blocks]).collect();
        for (blocks, mut found) in self.by_rank.iter().zip(by_rank) {
            for (tensor, blocks) in blocks {
                let (these, rest) = found.split_at(blocks.len().min(found.len()));
                for (sum, found) in sums[*tensor][blocks.clone()].iter_mut().zip(these) {
                    *sum = *found;
                }
                found = rest;
            }
        }
        sums.iter().map(|blocks| blocks.iter().sum::<f64>()).sum()
    }
}
