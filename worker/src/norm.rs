//! The global gradient norm and the clip scale, from dense and row sums in canonical order.

use std::ops::Range;

use polygram_collective::Collective;
use polygram_domain::run_spec::{RunSpec, TrainingSpec};
use polygram_domain::{Rank, RankLayout, Step};
use polygram_proto::bulk::Prepared;

use crate::error::WorkerError;

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

/// Adds the dense square sum and the buckets' (ascending by table, then bucket) and derives the scales.
pub fn clip(training: &TrainingSpec, dense_square_sum: f64, prepared: &Prepared) -> ClippedGradient {
    let row_square_sum: f64 = prepared.sums.iter().map(|(_, _, sum)| sum).sum();
    let square_sum = dense_square_sum + if training.clip_tables { row_square_sum } else { 0.0 };
    let norm = square_sum.sqrt();
    let scale = training.clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0)) as f32;
    ClippedGradient {
        norm,
        dense_scale: scale,
        table_scale: if training.clip_tables { scale } else { 1.0 },
        finite: norm.is_finite() && prepared.finite,
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

    /// The sum of squares of the whole dense gradient of `step`, of which `own` are this rank's blocks: block sums added
    /// in order within each tensor, and tensors in canonical order, so that every rank has the same bits.
    pub fn total(&self, step: Step, own: &[f64], ranks: &mut dyn Collective) -> Result<f64, WorkerError> {
        let bytes: Vec<u8> = own.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let gathered = ranks.all_gather(&bytes)?;
        let mut sums: Vec<Vec<f64>> = self.blocks.iter().map(|&blocks| vec![0.0; blocks]).collect();
        for ((rank, bytes), blocks) in (0..).map(Rank).zip(&gathered).zip(&self.by_rank) {
            let mut found =
                bytes.chunks_exact(8).map(|word| f64::from_le_bytes(std::array::from_fn(|i| word[i])));
            let wanted: usize = blocks.iter().map(|(_, blocks)| blocks.len()).sum();
            if bytes.len() != 8 * wanted {
                let what = format!("{} bytes of sums of squares instead of {}", bytes.len(), 8 * wanted);
                return Err(WorkerError::Disagreement { rank, step, what });
            }
            for (tensor, blocks) in blocks {
                sums[*tensor][blocks.clone()]
                    .iter_mut()
                    .zip(&mut found)
                    .for_each(|(sum, found)| *sum = found);
            }
        }
        Ok(sums.iter().map(|blocks| blocks.iter().sum::<f64>()).sum())
    }
}
