//! Row optimizers, exactly (docs/model.md, "Row optimizers").
//!
//! All arithmetic is f32 with IEEE division and square root, in the order written here; nothing is fused or
//! approximated, so every machine gets the same bits, however wide its vectors are. G is a row's gradient summed over
//! all cells, times the clip scale; n counts the row's updates, this one included (with `bias = "global"`: the steps of
//! the run, this one included); D is the row's width.
//!
//! | rule | state | update |
//! |---|---|---|
//! | sgd | – | w −= lr·G |
//! | adagrad | s\[D\] | s += G²; w −= (lr·G) / (√s + ε) |
//! | rowwise_adagrad | s | s += (Σ G²) / D; w −= (lr / (√s + ε))·G |
//! | adam | m\[D\], v\[D\] | m = β1·m + (1−β1)·G; v = β2·v + (1−β2)·G²; w −= α·(m / (√v + ε̂)) |
//! | partial_rowwise_adam | m\[D\], v | v = β2·v + (1−β2)·((Σ G²) / D); m as adam; w −= (α / (√v + ε̂))·m |
//!
//! Σ G² adds the squares of columns c, c + 16, c + 32, … for each c below 16, then partial sum c to c + 8, c + 4,
//! c + 2 and c + 1. Adam is Kingma and Ba's (1412.6980) in the order that the end of its section 2 gives, with
//! α = lr·√(1−β2ⁿ) / (1−β1ⁿ) and ε̂ = ε·√(1−β2ⁿ): w −= lr·m̂ / (√v̂ + ε) in one division a weight. Its bias correction
//! follows each row's own count (TensorFlow's LazyAdam keeps one count for all); the row-wise rules are FBGEMM's
//! table-batched embeddings'. β and 1−β are rounded to f32 from f64; βⁿ is made by repeated squaring, and α and ε̂ from
//! it, in f64 and then rounded.
//!
//! Decoupled decay comes first: w −= (lr·wd)·w. The norm limit comes last: where ‖w‖ (f64, [`square_sum`]) is above
//! it, w is multiplied by limit/‖w‖ rounded to f32.

use multiversion::multiversion;
use polygram_domain::Step;
use polygram_domain::embedding::{AdamBias, EmbeddingSpec, RowOptimizer};

/// Partial sums of squares over a row.
const PARTIALS: usize = 16;

/// The update rule of a run's rows.
#[derive(Clone, Copy, Debug)]
pub struct RowRule {
    kind: RowOptimizer,
    bias: AdamBias,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f32,
    max_norm: Option<f64>,
}

/// A row about to be updated.
#[derive(Debug)]
pub struct RowState<'a> {
    /// Updates of this row, this one included.
    pub updates: u32,
    /// Weights.
    pub weights: &'a mut [f32],
    /// Optimizer values: m, then v; or s.
    pub state: &'a mut [f32],
}

/// What a commit says of all rows.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Clip scale.
    pub scale: f32,
    /// Learning rate.
    pub lr: f32,
    /// The step that is applied: updates so far.
    pub step: Step,
}

/// Numbers of one update of an Adam rule.
#[derive(Clone, Copy)]
struct Moments {
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    /// α.
    rate: f32,
    /// ε̂.
    eps: f32,
}

impl RowRule {
    /// The rule of `spec`.
    pub fn of(spec: &EmbeddingSpec) -> RowRule {
        RowRule {
            kind: spec.optimizer,
            bias: spec.bias,
            beta1: spec.beta1,
            beta2: spec.beta2,
            eps: spec.eps,
            weight_decay: spec.weight_decay as f32,
            max_norm: spec.max_row_norm,
        }
    }

    /// Updates one row by its summed, unscaled gradient.
    pub fn update(&self, row: RowState<'_>, gradient: &[f32], rates: Rates) {
        let RowState { updates, weights, state } = row;
        if self.weight_decay != 0.0 {
            let decay = rates.lr * self.weight_decay;
            for weight in weights.iter_mut() {
                *weight -= decay * *weight;
            }
        }
        let row = RowState { updates, weights: &mut *weights, state };
        match self.kind {
            RowOptimizer::Sgd => sgd(row.weights, gradient, rates),
            RowOptimizer::Adagrad => adagrad(row, gradient, rates, self.eps as f32),
            RowOptimizer::RowwiseAdagrad => rowwise_adagrad(row, gradient, rates, self.eps as f32),
            RowOptimizer::Adam => adam(row, gradient, rates.scale, self.moments(updates, rates)),
            RowOptimizer::PartialRowwiseAdam => {
                partial_rowwise_adam(row, gradient, rates.scale, self.moments(updates, rates));
            }
        }
        if let Some(limit) = self.max_norm {
            let norm = square_sum(weights).sqrt();
            if norm > limit {
                let scale = (limit / norm) as f32;
                weights.iter_mut().for_each(|weight| *weight *= scale);
            }
        }
    }

    fn moments(&self, updates: u32, rates: Rates) -> Moments {
        let n = match self.bias {
            AdamBias::Row => u64::from(updates),
            AdamBias::Global => rates.step.0.saturating_add(1),
        };
        let spread = (1.0 - power(self.beta2, n)).sqrt();
        Moments {
            beta1: self.beta1 as f32,
            rest1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            rest2: (1.0 - self.beta2) as f32,
            rate: (f64::from(rates.lr) * spread / (1.0 - power(self.beta1, n))) as f32,
            eps: (self.eps * spread) as f32,
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn sgd(weights: &mut [f32], gradient: &[f32], rates: Rates) {
    for (weight, gradient) in weights.iter_mut().zip(gradient) {
        *weight -= rates.lr * (gradient * rates.scale);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn adagrad(row: RowState<'_>, gradient: &[f32], rates: Rates, eps: f32) {
    let RowState { weights, state: sums, .. } = row;
    for ((weight, sum), gradient) in weights.iter_mut().zip(sums).zip(gradient) {
        let g = gradient * rates.scale;
        *sum += g * g;
        *weight -= (rates.lr * g) / (sum.sqrt() + eps);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn rowwise_adagrad(row: RowState<'_>, gradient: &[f32], rates: Rates, eps: f32) {
    let (weights, sum) = (row.weights, &mut row.state[0]);
    *sum += mean_square(gradient, rates.scale);
    let rate = rates.lr / (sum.sqrt() + eps);
    for (weight, gradient) in weights.iter_mut().zip(gradient) {
        *weight -= rate * (gradient * rates.scale);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn adam(
    RowState { weights, state, .. }: RowState<'_>,
    gradient: &[f32],
    scale: f32,
    Moments { beta1, rest1, beta2, rest2, rate, eps }: Moments,
) {
    let (first, second) = state.split_at_mut(weights.len());
    for (((weight, m), v), gradient) in weights.iter_mut().zip(first).zip(second).zip(gradient) {
        let g = gradient * scale;
        *m = beta1 * *m + rest1 * g;
        *v = beta2 * *v + rest2 * (g * g);
        *weight -= rate * (*m / (v.sqrt() + eps));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn partial_rowwise_adam(
    RowState { weights, state, .. }: RowState<'_>,
    gradient: &[f32],
    scale: f32,
    Moments { beta1, rest1, beta2, rest2, rate, eps }: Moments,
) {
    let (first, rest) = state.split_at_mut(weights.len());
    let second = &mut rest[0];
    *second = beta2 * *second + rest2 * mean_square(gradient, scale);
    let rate = rate / (second.sqrt() + eps);
    for ((weight, m), gradient) in weights.iter_mut().zip(first).zip(gradient) {
        *m = beta1 * *m + rest1 * (gradient * scale);
        *weight -= rate * *m;
    }
}

/// (Σ (g·scale)²) / D, in the module's order.
#[inline(always)]
fn mean_square(gradient: &[f32], scale: f32) -> f32 {
    let mut partials = [0.0f32; PARTIALS];
    let (groups, rest) = gradient.as_chunks::<PARTIALS>();
    for group in groups {
        for (partial, gradient) in partials.iter_mut().zip(group) {
            let g = gradient * scale;
            *partial += g * g;
        }
    }
    for (partial, gradient) in partials.iter_mut().zip(rest) {
        let g = gradient * scale;
        *partial += g * g;
    }
    let mut half = PARTIALS / 2;
    while half > 0 {
        for c in 0..half {
            partials[c] += partials[c + half];
        }
        half /= 2;
    }
    partials[0] / gradient.len() as f32
}

/// The sum of squares of a row in f64: the squares of columns c, c + 16, c + 32, … for each c below 16, then partial
/// sum c to c + 8, c + 4, c + 2 and c + 1. A value that is not finite makes the sum not finite, and nothing else can.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn square_sum(values: &[f32]) -> f64 {
    let mut partials = [0.0f64; PARTIALS];
    let (groups, rest) = values.as_chunks::<PARTIALS>();
    for group in groups {
        for (partial, value) in partials.iter_mut().zip(group) {
            *partial += f64::from(*value) * f64::from(*value);
        }
    }
    for (partial, value) in partials.iter_mut().zip(rest) {
        *partial += f64::from(*value) * f64::from(*value);
    }
    let mut half = PARTIALS / 2;
    while half > 0 {
        for c in 0..half {
            partials[c] += partials[c + half];
        }
        half /= 2;
    }
    partials[0]
}

/// `base` to the power `n` by repeated squaring, lowest bit first: products only, so the same everywhere.
fn power(base: f64, n: u64) -> f64 {
    let (mut result, mut square, mut bits) = (1.0, base, n);
    while bits > 0 {
        if bits & 1 == 1 {
            result *= square;
        }
        square *= square;
        bits >>= 1;
    }
    result
}
