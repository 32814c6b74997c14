//! Tests of rows as a whole: the store and its arithmetic against references that share no code with them.
//!
//! * `optimizers`, `pytorch`: update rules; `decay`: rows that no step touches.
//! * `storage`: bf16, and rows out and back; `store`: gathering and updating many rows.

mod decay;
mod optimizers;
mod pytorch;
mod storage;
mod store;

use std::sync::Arc;

use polygram_domain::embedding::{AdamBias, EmbeddingSpec, RowOptimizer, RowType};
use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};
use polygram_domain::tables::{BUCKETS, TableSet};
use polygram_domain::{Generation, RowId, RowRef, RunFile, ShardIndex, Step, TableIndex};

use super::{Gradients, Rates, RowStore};
use crate::config::ShardConfig;

const RULES: [RowOptimizer; 5] = [
    RowOptimizer::Sgd,
    RowOptimizer::Adagrad,
    RowOptimizer::RowwiseAdagrad,
    RowOptimizer::Adam,
    RowOptimizer::PartialRowwiseAdam,
];

/// The tiny run's tables (about a thousand rows each) with rows of `width`.
fn config(width: u32, edit: impl FnOnce(&mut EmbeddingSpec)) -> ShardConfig {
    let text = include_str!("../../../../configs/tiny.toml");
    let file = RunFile::parse(text, "tiny", &["topology.shards=1".to_owned()]);
    let mut spec = file.and_then(|file| file.resolve()).unwrap();
    spec.model.hidden_size = width * spec.model.ngram.tables_per_site();
    edit(&mut spec.embedding);
    let mut config = ShardConfig::of(&spec, ShardIndex(0), Generation(1));
    config.tables = Arc::new(TableSet::of(&spec.model));
    assert_eq!(config.width(), width as usize);
    config
}

/// A store of all rows.
fn store(config: &ShardConfig) -> RowStore {
    RowStore::new(config, &(0..BUCKETS)).unwrap()
}

fn read(store: &RowStore, table: TableIndex, row: u32, width: usize) -> Vec<f32> {
    let mut weights = vec![f32::NAN; width];
    store.read(RowRef { table, row: RowId(row) }, &mut weights);
    weights
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Numbers of one seed, one after the other.
struct Random {
    stream: Stream,
    next: u64,
}

impl Random {
    fn new(seed: u64) -> Random {
        Random { stream: Stream::new(seed, Purpose::SyntheticData), next: 0 }
    }

    fn word(&mut self) -> u32 {
        self.next += 1;
        self.stream.words(0, self.next)[0]
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.word() % bound
    }

    /// Values of mean 0 and standard deviation `std`.
    fn values(&mut self, count: usize, std: f32) -> Vec<f32> {
        (0..count).map(|_| unit_variance_uniform(self.word()) * std).collect()
    }

    /// About `count` rows below `end`, ascending, each once.
    fn rows(&mut self, count: usize, end: u32) -> Vec<u32> {
        let mut rows: Vec<u32> = (0..count).map(|_| self.below(end)).collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    /// Rates of a step: another scale and learning rate each time.
    fn rates(&mut self, step: u64, lr: f32) -> Rates {
        let scale = 0.5 + self.below(100) as f32 / 100.0;
        Rates { scale, lr: lr * (1 + self.below(4)) as f32, step: Step(step) }
    }
}

/// Contributions to the gradients of an update's rows: one or more a place.
struct Contributions(Vec<Vec<Vec<f32>>>);

impl Contributions {
    fn one_each(gradients: Vec<Vec<f32>>) -> Contributions {
        Contributions(gradients.into_iter().map(|gradient| vec![gradient]).collect())
    }
}

impl Gradients for Contributions {
    fn scratch_values(&self, width: usize) -> usize {
        width
    }

    fn sum<'a>(&'a self, place: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        match &self.0[place][..] {
            [gradient] => gradient,
            several => {
                scratch.fill(0.0);
                for gradient in several {
                    scratch.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
                }
                scratch
            }
        }
    }

    fn prefetch(&self, place: usize) {
        assert!(place < self.0.len(), "place {place} of {} was asked for ahead", self.0.len());
    }
}

/// A row in f64, as docs/model.md and `optimizer.rs` say it: no f32, no partial sums, `powf`.
#[derive(Clone, Debug)]
struct Exact {
    weights: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    updates: u64,
}

impl Exact {
    fn of(weights: &[f32]) -> Exact {
        let zeros = vec![0.0; weights.len()];
        let weights = weights.iter().map(|&weight| f64::from(weight)).collect();
        Exact { weights, first: zeros.clone(), second: zeros, updates: 0 }
    }

    /// Decoupled decay of one step.
    fn decay(&mut self, spec: &EmbeddingSpec, lr: f32) {
        self.weights.iter_mut().for_each(|weight| *weight *= 1.0 - f64::from(lr) * spec.weight_decay);
    }

    /// One update; no decay.
    fn update(&mut self, spec: &EmbeddingSpec, gradient: &[f32], rates: Rates) {
        self.updates += 1;
        let (lr, width) = (f64::from(rates.lr), gradient.len() as f64);
        let gs: Vec<f64> = gradient.iter().map(|&g| f64::from(g) * f64::from(rates.scale)).collect();
        let mean_square = gs.iter().map(|g| g * g).sum::<f64>() / width;
        let n = match spec.bias {
            AdamBias::Row => self.updates,
            AdamBias::Global => rates.step.0 + 1,
        } as f64;
        let corrections = [1.0 - spec.beta1.powf(n), 1.0 - spec.beta2.powf(n)];
        for (c, g) in gs.into_iter().enumerate() {
            let square = match spec.optimizer {
                RowOptimizer::RowwiseAdagrad | RowOptimizer::PartialRowwiseAdam => mean_square,
                _ => g * g,
            };
            self.weights[c] -= match spec.optimizer {
                RowOptimizer::Sgd => lr * g,
                RowOptimizer::Adagrad | RowOptimizer::RowwiseAdagrad => {
                    self.second[c] += square;
                    lr * g / (self.second[c].sqrt() + spec.eps)
                }
                RowOptimizer::Adam | RowOptimizer::PartialRowwiseAdam => {
                    self.first[c] = spec.beta1 * self.first[c] + (1.0 - spec.beta1) * g;
                    self.second[c] = spec.beta2 * self.second[c] + (1.0 - spec.beta2) * square;
                    let spread = (self.second[c] / corrections[1]).sqrt() + spec.eps;
                    lr * (self.first[c] / corrections[0]) / spread
                }
            };
        }
    }

    /// The largest difference from `weights`.
    fn distance(&self, weights: &[f32]) -> f64 {
        assert_eq!(self.weights.len(), weights.len());
        let distance = |(a, b): (&f64, &f32)| (a - f64::from(*b)).abs();
        // A NaN must not pass for nearness.
        let far = |d: f64| if d.is_nan() { f64::INFINITY } else { d };
        self.weights.iter().zip(weights).map(distance).map(far).fold(0.0, f64::max)
    }
}

/// The bf16 bits of a row after update `updates`, by the documented Philox counters: column c adds half c mod 2 (low
/// first) of word ⌊c/2⌋ mod 4 of block (table·2³² + row, updates·2³² + ⌊c/8⌋).
fn rounded(seed: u64, at: RowRef, updates: u32, values: &[f32]) -> Vec<u16> {
    let stream = Stream::new(seed, Purpose::StochasticRounding);
    let round = |(c, value): (usize, &f32)| {
        let high = u64::from(at.table.0) << 32 | u64::from(at.row.0);
        let word = stream.words(high, (u64::from(updates) << 32) + c as u64 / 8)[c / 2 % 4];
        let random = if c % 2 == 0 { word & 0xffff } else { word >> 16 };
        ((value.to_bits() + random) >> 16) as u16
    };
    values.iter().enumerate().map(round).collect()
}

/// Widened bf16.
fn wide(bits: &[u16]) -> Vec<f32> {
    bits.iter().map(|&bits| half::bf16::from_bits(bits).to_f32()).collect()
}

fn is_bf16(storage: RowType, weights: &[f32]) -> bool {
    storage == RowType::F32 || weights.iter().all(|weight| weight.to_bits() & 0xffff == 0)
}
