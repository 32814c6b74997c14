//! The global gradient norm and the clip scale, from dense and row sums in canonical order.

use polygram_domain::run_spec::TrainingSpec;
use polygram_proto::bulk::Prepared;

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
