//! Row optimizers, exactly (docs/model.md, "Row optimizers").
//!
//! All arithmetic is f32 with IEEE division and square root, in the order written here; nothing is fused or
//! approximated, so every machine gets the same bits. G is a row's gradient summed over all cells, times the clip
//! scale; n counts the row's updates, this one included.
//!
//! | rule | update |
//! |---|---|
//! | sgd | w −= lr·G |
//! | adam | m = β1·m + (1−β1)·G; v = β2·v + (1−β2)·G²; w −= lr·(m/(1−β1ⁿ)) / (√(v/(1−β2ⁿ)) + ε) |
//!
//! Adam is Kingma and Ba's (1412.6980) with the bias correction of each row's own count (TensorFlow's LazyAdam keeps
//! one count for all). Decoupled decay comes first: w −= (lr·wd)·w. β and 1−β are rounded to f32 from f64; the
//! corrections 1−βⁿ are computed in f64 by repeated squaring and then rounded.

use polygram_domain::embedding::{EmbeddingSpec, RowOptimizer};

/// The update rule of a run's rows.
#[derive(Clone, Copy, Debug)]
pub struct RowRule {
    kind: RowOptimizer,
    beta1: f64,
    beta2: f64,
    eps: f32,
    weight_decay: f32,
}

/// A row about to be updated.
#[derive(Debug)]
pub struct RowState<'a> {
    /// Updates of this row, this one included (n).
    pub updates: u32,
    /// Weights.
    pub weights: &'a mut [f32],
    /// Optimizer values: m, then v.
    pub state: &'a mut [f32],
}

/// What a commit says of all rows.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Clip scale.
    pub scale: f32,
    /// Learning rate.
    pub lr: f32,
}

impl RowRule {
    /// The rule of `spec`.
    pub fn of(spec: &EmbeddingSpec) -> RowRule {
        RowRule {
            kind: spec.optimizer,
            beta1: spec.beta1,
            beta2: spec.beta2,
            eps: spec.eps as f32,
            weight_decay: spec.weight_decay as f32,
        }
    }

    /// Updates one row by its summed, unscaled gradient.
    pub fn update(&self, row: RowState<'_>, gradient: &[f32], rates: Rates) {
        let Rates { scale, lr } = rates;
        if self.weight_decay != 0.0 {
            let decay = lr * self.weight_decay;
            for weight in row.weights.iter_mut() {
                *weight -= decay * *weight;
            }
        }
        match self.kind {
            RowOptimizer::Sgd => {
                for (weight, gradient) in row.weights.iter_mut().zip(gradient) {
                    *weight -= lr * (gradient * scale);
                }
            }
            RowOptimizer::Adam => {
                let (first, second) = row.state.split_at_mut(row.weights.len());
                let (beta1, rest1) = (self.beta1 as f32, (1.0 - self.beta1) as f32);
                let (beta2, rest2) = (self.beta2 as f32, (1.0 - self.beta2) as f32);
                let correction1 = (1.0 - power(self.beta1, row.updates)) as f32;
                let correction2 = (1.0 - power(self.beta2, row.updates)) as f32;
                let values = row.weights.iter_mut().zip(first).zip(second).zip(gradient);
                for (((weight, m), v), gradient) in values {
                    let g = gradient * scale;
                    *m = beta1 * *m + rest1 * g;
                    *v = beta2 * *v + rest2 * (g * g);
                    *weight -= lr * (*m / correction1) / ((*v / correction2).sqrt() + self.eps);
                }
            }
        }
    }
}

/// `base` to the power `n` by repeated squaring, lowest bit first: products only, so the same everywhere.
fn power(base: f64, n: u32) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};

    fn spec(optimizer: RowOptimizer, weight_decay: f64) -> EmbeddingSpec {
        EmbeddingSpec {
            optimizer,
            lr_multiplier: 1.0,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay,
            init_std: 1.0,
            prefetch_steps: 0,
            lanes: 1,
            memory_limit_bytes: 1 << 30,
        }
    }

    fn gradient(step: u64, column: u64) -> f32 {
        unit_variance_uniform(Stream::new(5, Purpose::SyntheticData).words(step, column)[0])
    }

    /// Against an independent f64 computation, with the powers as running products.
    #[test]
    fn adam_follows_its_f64_reference() {
        const WIDTH: usize = 13;
        for weight_decay in [0.0, 0.1] {
            let rule = RowRule::of(&spec(RowOptimizer::Adam, weight_decay));
            let (mut weights, mut state) = (vec![0.5f32; WIDTH], vec![0.0f32; 2 * WIDTH]);
            let (mut w, mut m, mut v) = ([0.5f64; WIDTH], [0.0f64; WIDTH], [0.0f64; WIDTH]);
            let (mut p1, mut p2) = (1.0, 1.0);
            for n in 1..=200u32 {
                let grads: Vec<f32> = (0..WIDTH).map(|c| gradient(u64::from(n), c as u64)).collect();
                let rates = Rates { scale: 0.5, lr: 1e-3 };
                let row = RowState { updates: n, weights: &mut weights, state: &mut state };
                rule.update(row, &grads, rates);
                (p1, p2) = (p1 * 0.9, p2 * 0.95);
                for c in 0..WIDTH {
                    let g = f64::from(grads[c]) * 0.5;
                    w[c] *= 1.0 - 1e-3 * weight_decay;
                    m[c] = 0.9 * m[c] + 0.1 * g;
                    v[c] = 0.95 * v[c] + 0.05 * g * g;
                    w[c] -= 1e-3 * (m[c] / (1.0 - p1)) / ((v[c] / (1.0 - p2)).sqrt() + 1e-8);
                }
                for c in 0..WIDTH {
                    let error = (f64::from(weights[c]) - w[c]).abs();
                    assert!(error < 1e-6, "update {n}, column {c}: {} against {}", weights[c], w[c]);
                }
            }
        }
    }

    #[test]
    fn sgd_subtracts() {
        let rule = RowRule::of(&spec(RowOptimizer::Sgd, 0.0));
        let mut weights = [1.0f32, 2.0];
        let row = RowState { updates: 1, weights: &mut weights, state: &mut [] };
        rule.update(row, &[2.0, -4.0], Rates { scale: 0.5, lr: 0.25 });
        assert_eq!(weights, [0.75, 2.5]);
    }

    #[test]
    fn powers_agree_with_products() {
        let mut product = 1.0f64;
        for n in 1..2000u32 {
            product *= 0.999;
            assert!((power(0.999, n) / product - 1.0).abs() < 1e-12, "{n}");
        }
        assert_eq!(power(0.9, 0), 1.0);
        assert_eq!(power(0.9, u32::MAX), 0.0);
    }
}
