//! Update rules against f64, and the norm limit.

use polygram_domain::Step;
use polygram_domain::embedding::{AdamBias, EmbeddingSpec, RowOptimizer};

use super::{Exact, RULES, Random, bits, config};
use crate::rows::{Rates, RowRule, RowState};

/// Updates `weights` for 200 steps by `spec`'s rule and in f64; returns both.
fn both(spec: &EmbeddingSpec, width: usize, seed: u64) -> (Vec<f32>, Exact, Vec<f32>) {
    let mut random = Random::new(seed);
    let first = random.values(width, 0.1);
    let (mut weights, mut exact) = (first.clone(), Exact::of(&first));
    let mut state = vec![0.0; spec.optimizer.state_values(width)];
    let rule = RowRule::of(spec);
    for updates in 1..=200 {
        // Every third step from step 17 on updates the row: its own count and the run's differ.
        let rates = random.rates(17 + 3 * u64::from(updates), 5e-4);
        let gradient = random.values(width, 1.0);
        let row = RowState { updates, weights: &mut weights, state: &mut state };
        rule.update(row, &gradient, rates);
        exact.decay(spec, rates.lr);
        exact.update(spec, &gradient, rates);
    }
    (weights, exact, first)
}

#[test]
fn rules_equal_f64_references() {
    for optimizer in RULES {
        let is_adam = matches!(optimizer, RowOptimizer::Adam | RowOptimizer::PartialRowwiseAdam);
        let biases: &[AdamBias] = if is_adam { &[AdamBias::Row, AdamBias::Global] } else { &[AdamBias::Row] };
        for (&bias, weight_decay) in biases.iter().flat_map(|bias| [(bias, 0.0), (bias, 0.1)]) {
            for width in [13, 256] {
                let spec = EmbeddingSpec { optimizer, bias, weight_decay, eps: 1e-8, ..base() };
                let seed = width as u64;
                let (weights, exact, first) = both(&spec, width, seed);
                let case =
                    format!("{optimizer:?}, {bias:?}, decay {weight_decay}, width {width}, seed {seed}");
                let distance = exact.distance(&weights);
                assert!(distance <= 1e-6, "{case}: off by {distance:e}");
                let moved = exact.distance(&first);
                assert!(moved > 1e-3, "{case}: moved by {moved:e} only");
            }
        }
    }
}

#[test]
fn settings_matter() {
    for (optimizer, edit) in [
        (RowOptimizer::Adam, (|spec| spec.bias = AdamBias::Global) as fn(&mut EmbeddingSpec)),
        (RowOptimizer::PartialRowwiseAdam, |spec| spec.bias = AdamBias::Global),
        (RowOptimizer::Adam, |spec| spec.beta1 = 0.8),
        (RowOptimizer::Adam, |spec| spec.beta2 = 0.99),
        (RowOptimizer::Adagrad, |spec| spec.eps = 1e-1),
        (RowOptimizer::RowwiseAdagrad, |spec| spec.eps = 1e-1),
        (RowOptimizer::Sgd, |spec| spec.weight_decay = 0.1),
        (RowOptimizer::Sgd, |spec| spec.max_row_norm = Some(0.1)),
    ] {
        let mut spec = EmbeddingSpec { optimizer, ..base() };
        let (_, exact, _) = both(&spec, 13, 3);
        edit(&mut spec);
        let (weights, ..) = both(&spec, 13, 3);
        let distance = exact.distance(&weights);
        assert!(distance > 1e-4, "{spec:?}: {distance:e}");
    }
}

fn base() -> EmbeddingSpec {
    let mut base = config(8, |_| ()).embedding;
    base.max_row_norm = None;
    base.weight_decay = 0.0;
    base
}

fn norm(weights: &[f32]) -> f64 {
    weights.iter().map(|&weight| f64::from(weight) * f64::from(weight)).sum::<f64>().sqrt()
}

#[test]
fn long_rows_are_cut_to_the_limit() {
    let mut random = Random::new(7);
    let (mut cut, mut left) = (0, 0);
    for optimizer in RULES {
        for case in 0..40 {
            let width = if case % 2 == 0 { 13 } else { 256 };
            let free = EmbeddingSpec { optimizer, ..base() };
            let first = random.values(width, 0.01 * (1 + case) as f32);
            let gradient = random.values(width, 1.0);
            let rates = Rates { scale: 1.0, lr: 1e-3, step: Step(case) };
            let update = |spec: &EmbeddingSpec| {
                let (mut weights, mut state) = (first.clone(), vec![0.0; optimizer.state_values(width)]);
                let row = RowState { updates: 1, weights: &mut weights, state: &mut state };
                RowRule::of(spec).update(row, &gradient, rates);
                (weights, state)
            };
            let (unlimited, unlimited_state) = update(&free);
            let limit = 0.2 * (width as f64).sqrt();
            let (weights, state) = update(&EmbeddingSpec { max_row_norm: Some(limit), ..free });
            let context = format!("seed 7, {optimizer:?}, case {case}");
            assert_eq!(bits(&state), bits(&unlimited_state), "{context}: state");
            if norm(&unlimited) <= limit {
                left += 1;
                assert_eq!(bits(&weights), bits(&unlimited), "{context}: a row within the limit");
                continue;
            }
            cut += 1;
            assert!((norm(&weights) / limit - 1.0).abs() <= 1e-6, "{context}: norm {}", norm(&weights));
            let scale = limit / norm(&unlimited);
            for (weight, unlimited) in weights.iter().zip(&unlimited) {
                let expected = f64::from(*unlimited) * scale;
                let error = (f64::from(*weight) - expected).abs();
                assert!(error <= 1e-6 * expected.abs(), "{context}: direction is off by {error:e}");
            }
        }
    }
    assert!(cut > 50 && left > 50, "{cut} rows were cut, {left} were not");
}
