//! Update rules against PyTorch's optimizers (tests/golden/row_optimizers.json; its README says how it was made).

use polygram_domain::Step;
use polygram_domain::embedding::{AdamBias, EmbeddingSpec, RowOptimizer};
use serde::Deserialize;

use super::config;
use crate::rows::{Rates, RowRule, RowState};

#[derive(Deserialize)]
struct Golden {
    origin: String,
    columns: usize,
    betas: [f64; 2],
    eps: f64,
    weight_decay_of_adamw: f64,
    looks: Vec<usize>,
    rates: Vec<f32>,
    weights: Vec<Vec<f32>>,
    gradients: Vec<Vec<Vec<f32>>>,
    results: std::collections::BTreeMap<String, Vec<Vec<Vec<f32>>>>,
}

#[test]
fn rows_hit_at_every_step_equal_pytorchs() {
    let text = include_str!("../../../../tests/golden/row_optimizers.json");
    let golden: Golden = serde_json::from_str(text).unwrap();
    assert_eq!(golden.results.len(), 6);
    for (name, looks) in &golden.results {
        let (optimizer, weight_decay) = match name.as_str() {
            "sgd" => (RowOptimizer::Sgd, 0.0),
            "adagrad" => (RowOptimizer::Adagrad, 0.0),
            "rowwise_adagrad" => (RowOptimizer::RowwiseAdagrad, 0.0),
            "partial_rowwise_adam" => (RowOptimizer::PartialRowwiseAdam, 0.0),
            "adam" => (RowOptimizer::Adam, 0.0),
            "adamw" => (RowOptimizer::Adam, golden.weight_decay_of_adamw),
            _ => panic!("{name} is no rule"),
        };
        // Where every step hits the row, its own count and the run's are the same.
        for bias in [AdamBias::Row, AdamBias::Global] {
            let [beta1, beta2] = golden.betas;
            let (eps, base) = (golden.eps, config(12, |_| ()).embedding);
            let spec = EmbeddingSpec { optimizer, bias, beta1, beta2, eps, weight_decay, ..base };
            compare(&golden, &RowRule::of(&spec), looks, &format!("{name}, {bias:?}, {}", golden.origin));
        }
    }
}

fn compare(golden: &Golden, rule: &RowRule, looks: &[Vec<Vec<f32>>], case: &str) {
    for (row, first) in golden.weights.iter().enumerate() {
        // Long enough for any rule's state.
        let (mut weights, mut state) = (first.clone(), vec![0.0; 2 * golden.columns]);
        let mut expected = golden.looks.iter().zip(looks);
        for (step, gradients) in golden.gradients.iter().enumerate() {
            let rates = Rates { scale: 1.0, lr: golden.rates[step], step: Step(step as u64) };
            let row_state = RowState { updates: step as u32 + 1, weights: &mut weights, state: &mut state };
            rule.update(row_state, &gradients[row], rates);
            if !golden.looks.contains(&(step + 1)) {
                continue;
            }
            let (_, rows) = expected.next().unwrap();
            for (column, (weight, expected)) in weights.iter().zip(&rows[row]).enumerate() {
                let error = (weight - expected).abs();
                let near = error <= 1e-6 * expected.abs().max(1.0);
                assert!(near, "{case}: row {row}, column {column}, step {step}: {weight} against {expected}");
            }
            assert_eq!(rows[row].len(), golden.columns);
        }
        assert!(expected.next().is_none(), "{case}: not all looks were compared");
    }
}
