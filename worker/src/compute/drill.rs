//! The drill engine: an exact quadratic stand-in for the model.
//!
//! Position p has `x = E0[t] + rows` (its C rows side by side, D wide) and wants to reach the output row of its
//! target: `loss = ½·|x − H[target]|² / D`. Every other parameter is only decayed. The gradient is exact, every sum
//! follows the order that the real engine promises, and losses fall, so a cluster, its recovery and its determinism
//! are exercised for real. It says nothing about language.

use std::ops::Range;

use polygram_checkpoint::NamedTensor;
use polygram_collective::Collective;
use polygram_domain::RankLayout;
use polygram_domain::batch::IGNORED_TARGET;
use polygram_domain::layout::{EXP_AVG, EXP_AVG_SQ, Part, StatePart, StateView, state_part};
use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};
use polygram_domain::rank_layout::copy_own;
use polygram_domain::run_spec::{AdamWSpec, RunSpec};
use polygram_domain::sum_tree::SumTree;

use super::{CellResult, CellWork, Compute, ComputeError, DenseUpdate, ExchangeWatch, TakeBucket};
use crate::gradients::SummedGradient;

/// Parameters, moments and the pending gradient.
pub struct Drill {
    layout: RankLayout,
    weights: Vec<f32>,
    /// Moments of the parts that this rank updates, bucket after bucket.
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    pending: SumTree<Vec<f32>>,
    hidden: usize,
    width: usize,
    tables_per_site: usize,
    sites: usize,
    routed: usize,
    top_k: u64,
    embedding_offset: usize,
    head_offset: usize,
    optimizer: AdamWSpec,
}

impl Drill {
    /// Parameters at their initial values, a function of the run's seed.
    pub fn new(spec: &RunSpec, layout: RankLayout) -> Drill {
        let stream = Stream::new(spec.seed, Purpose::DenseInit);
        let sigma = spec.model.initializer_range as f32;
        let mut weights = Vec::with_capacity(layout.len());
        for entry in layout.entries() {
            weights.extend((0..entry.spec.elements()).map(|element| {
                let words = stream.words(entry.number as u64, element / 4);
                unit_variance_uniform(words[(element % 4) as usize]) * sigma
            }));
        }
        let offset_of = |part: Part| {
            layout.entries().iter().find(|entry| entry.spec.part == part).map_or(0, |entry| entry.range.start)
        };
        let tables = spec.tables();
        let tables_per_site = tables.tables_per_site() as usize;
        Drill {
            exp_avg: vec![0.0; layout.own_len()],
            exp_avg_sq: vec![0.0; layout.own_len()],
            weights,
            pending: SumTree::default(),
            hidden: spec.model.hidden_size as usize,
            width: tables.width(),
            sites: tables.sites(),
            tables_per_site,
            routed: (spec.model.num_layers * spec.model.routed_experts()) as usize,
            top_k: u64::from(spec.model.moe.top_k),
            embedding_offset: offset_of(Part::WordEmbedding),
            head_offset: offset_of(Part::LmHead),
            optimizer: spec.training.adamw.clone(),
            layout,
        }
    }

    /// `x − H[target]` of position `p`; row column `c·W + w` adds to `x[(c·W + w) mod D]` at every site.
    fn residual(&self, cell: &CellWork, position: usize, target: usize) -> Vec<f32> {
        let token = cell.batch.tokens_bt()[position] as usize;
        let word = &self.weights[self.embedding_offset + token * self.hidden..][..self.hidden];
        let head = &self.weights[self.head_offset + target * self.hidden..][..self.hidden];
        let mut residual: Vec<f32> = word.iter().zip(head).map(|(x, h)| x - h).collect();
        self.for_each_row(cell, position, |row, column| {
            for (w, value) in cell.rows_suw[row..row + self.width].iter().enumerate() {
                residual[(column + w) % self.hidden] += value;
            }
        });
        residual
    }

    /// Visits (offset of the row in a `[S, U, W]` buffer, first column) for each row of a position.
    fn for_each_row(&self, cell: &CellWork, position: usize, mut visit: impl FnMut(usize, usize)) {
        let unique = cell.unique.rows.len();
        for site in 0..self.sites {
            for table in 0..self.tables_per_site {
                let row = cell.unique.inverse_pc[position * self.tables_per_site + table] as usize;
                visit((site * unique + row) * self.width, table * self.width);
            }
        }
    }

    fn targets<'a>(&self, cell: &'a CellWork) -> impl Iterator<Item = (usize, usize)> + 'a {
        let targets = cell.batch.targets_bt().iter().enumerate();
        targets.filter(|(_, target)| **target != IGNORED_TARGET).map(|(p, target)| (p, *target as usize))
    }
}

impl Drill {
    fn import(&mut self, tensor: &NamedTensor) -> Result<(), ComputeError> {
        let refuse = |reason: String| ComputeError::State { name: tensor.name.clone(), reason };
        let (part, plain) = state_part(&tensor.name);
        let entry = self.layout.get(plain).ok_or_else(|| refuse("the model has no such tensor".into()))?;
        if entry.spec.shape != tensor.shape {
            return Err(refuse(format!(
                "shape {:?}, but the model has {:?}",
                tensor.shape, entry.spec.shape
            )));
        }
        let (start, end) = (tensor.elements.start as usize, tensor.elements.end as usize);
        if start + tensor.data.len() != end || end > entry.range.len() {
            return Err(refuse(format!(
                "elements {start}..{end} with {} values do not fit",
                tensor.data.len()
            )));
        }
        let range = entry.range.start + start..entry.range.start + end;
        let moments = match part {
            StatePart::Weight => {
                self.weights[range].copy_from_slice(&tensor.data);
                return Ok(());
            }
            StatePart::ExpAvg => &mut self.exp_avg,
            StatePart::ExpAvgSq => &mut self.exp_avg_sq,
        };
        for (own, at) in own_parts(&self.layout) {
            copy_own((&range, &tensor.data), (&own, at), moments);
        }
        Ok(())
    }
}

/// The parts of the flat buffer that a rank updates, and where the moments of each begin.
fn own_parts(layout: &RankLayout) -> impl Iterator<Item = (Range<usize>, usize)> {
    layout.buckets().iter().scan(0, |next, bucket| {
        let at = *next;
        *next += bucket.own.len();
        Some((bucket.own.clone(), at))
    })
}

impl Compute for Drill {
    fn layout(&self) -> &RankLayout {
        &self.layout
    }

    /// Its experts compute nothing, so there is nothing to exchange.
    fn join(&mut self, _ranks: Box<dyn Collective>, _watch: ExchangeWatch) -> Result<(), ComputeError> {
        Ok(())
    }

    fn forward_backward(
        &mut self,
        cell: &CellWork,
        take: Option<&mut TakeBucket<'_>>,
    ) -> Result<CellResult, ComputeError> {
        let mut gradient = vec![0.0; self.weights.len()];
        let mut row_gradients_suw = vec![0.0; cell.rows_suw.len()];
        let mut loss_sum = 0.0;
        let inverse = 1.0 / self.hidden as f32;
        let share = 1.0 / cell.global_targets as f32;
        for (position, target) in self.targets(cell) {
            let residual = self.residual(cell, position, target);
            loss_sum += residual.iter().map(|r| f64::from(r * r)).sum::<f64>() * 0.5 * f64::from(inverse);
            let step: Vec<f32> = residual.iter().map(|r| r * inverse * share).collect();
            let token = cell.batch.tokens_bt()[position] as usize;
            for (column, g) in step.iter().enumerate() {
                gradient[self.embedding_offset + token * self.hidden + column] += g;
                gradient[self.head_offset + target * self.hidden + column] -= g;
            }
            self.for_each_row(cell, position, |row, column| {
                for (w, value) in row_gradients_suw[row..row + self.width].iter_mut().enumerate() {
                    *value += step[(column + w) % self.hidden];
                }
            });
        }
        self.pending.push(gradient, add);
        if let Some(take) = take {
            let sum = std::mem::take(&mut self.pending).finish(add).unwrap_or_default();
            for (index, bucket) in self.layout.buckets().iter().enumerate().rev() {
                take(index, sum[bucket.range.clone()].to_vec());
            }
        }
        let positions = cell.batch.tokens_bt().len() as u64;
        let mut routing_counts = vec![0; self.routed];
        if let Some(first) = routing_counts.first_mut() {
            *first = positions * self.top_k;
        }
        Ok(CellResult { loss_sum, row_gradients_suw, routing_counts })
    }

    fn apply(
        &mut self,
        update: &DenseUpdate<'_>,
        gradient: &SummedGradient,
    ) -> Result<&mut [f32], ComputeError> {
        let o = &self.optimizer;
        let correction = |beta: f64| (1.0 - (0..update.update).fold(1.0, |power, _| power * beta)) as f32;
        let (first_correction, second_correction) = (correction(o.beta1), correction(o.beta2));
        let (beta1, beta2, eps) = (o.beta1 as f32, o.beta2 as f32, o.eps as f32);
        for (own, at) in own_parts(&self.layout) {
            for (entry, elements) in
                self.layout.within(own.clone()).filter(|(entry, _)| entry.spec.is_trained())
            {
                let decay = if entry.spec.is_decayed() { o.weight_decay * update.lr } else { 0.0 } as f32;
                let start = entry.range.start;
                let range = start + elements.start..start + elements.end;
                let places = at + range.start - own.start..at + range.end - own.start;
                let moments = self.exp_avg[places.clone()].iter_mut().zip(&mut self.exp_avg_sq[places]);
                let weights = self.weights[range.clone()].iter_mut();
                for ((weight, (first, second)), g) in weights.zip(moments).zip(gradient.values(range)) {
                    let g = g * update.scale;
                    *first = beta1 * *first + (1.0 - beta1) * g;
                    *second = beta2 * *second + (1.0 - beta2) * (g * g);
                    let step = (*first / first_correction) / ((*second / second_correction).sqrt() + eps);
                    *weight -= decay * *weight;
                    *weight -= update.lr as f32 * step;
                }
            }
        }
        Ok(&mut self.weights)
    }

    fn applied(&mut self, _update: &DenseUpdate<'_>) -> Result<(), ComputeError> {
        Ok(())
    }

    fn recycle(&mut self, _gradient: SummedGradient) {}

    fn evaluate(&mut self, cell: &CellWork) -> Result<f64, ComputeError> {
        let inverse = 1.0 / self.hidden as f64;
        Ok(self
            .targets(cell)
            .map(|(position, target)| {
                let residual = self.residual(cell, position, target);
                residual.iter().map(|r| f64::from(r * r)).sum::<f64>() * 0.5 * inverse
            })
            .sum())
    }

    fn assist_evaluation(&mut self) -> Result<(), ComputeError> {
        Ok(())
    }

    fn state(&self) -> Vec<StateView<'_>> {
        let mut state = Vec::new();
        for (own, at) in own_parts(&self.layout) {
            for (entry, elements) in self.layout.within(own.clone()) {
                let start = entry.range.start + elements.start;
                let moments = at + start - own.start..at + start - own.start + elements.len();
                let mut add = |prefix: &str, values| {
                    state.push(StateView {
                        name: format!("{prefix}{}", entry.spec.name),
                        shape: &entry.spec.shape,
                        elements: elements.clone(),
                        values,
                    });
                };
                add("", &self.weights[start..start + elements.len()]);
                if entry.spec.is_trained() {
                    add(EXP_AVG, &self.exp_avg[moments.clone()]);
                    add(EXP_AVG_SQ, &self.exp_avg_sq[moments]);
                }
            }
        }
        state
    }

    fn restore(&mut self, tensors: &mut dyn Iterator<Item = NamedTensor>) -> Result<(), ComputeError> {
        for tensor in tensors {
            if !self.layout.is_elsewhere(state_part(&tensor.name).1) {
                self.import(&tensor)?;
            }
        }
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        self.layout.own_fingerprint(&self.weights)
    }

    fn optimizer_bytes(&self) -> u64 {
        ((self.exp_avg.len() + self.exp_avg_sq.len()) * size_of::<f32>()) as u64
    }
}

fn add(mut left: Vec<f32>, right: Vec<f32>) -> Vec<f32> {
    left.iter_mut().zip(&right).for_each(|(l, r)| *l += r);
    left
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use polygram_collective::Solo;
    use polygram_domain::square_sum::BLOCK;
    use polygram_domain::{CellBatch, Rank, RunFile};
    use polygram_ngram::{Hasher, UniqueRows, batch_ids};

    use super::*;
    use crate::gradients::{GradientSums, SumRanks};
    use crate::host_copy::HostCopy;

    fn spec() -> RunSpec {
        let text = include_str!("../../../configs/tiny.toml");
        RunFile::parse(text, "tiny", &["device.engine=drill".into()]).and_then(|file| file.resolve()).unwrap()
    }

    fn cell(spec: &RunSpec) -> CellWork {
        let batch = CellBatch::from_samples(&[3, 9, 4, 9, 3, 9, 4, 9, 5, 7], 2, 4).unwrap();
        let hasher = Hasher::new(&spec.model.ngram, spec.model.eos_token_id).unwrap();
        let unique = UniqueRows::of(&batch_ids(&hasher, batch.tokens_bt(), 4).unwrap(), hasher.tables());
        let width = spec.tables().iter().next().unwrap().width as usize;
        let rows_suw = (0..unique.len() * width).map(|i| (i as f32 * 0.37).sin() * 0.1).collect();
        CellWork { samples: 0..2, batch, unique: Arc::new(unique), rows_suw, global_targets: 8 }
    }

    fn drill(spec: &RunSpec) -> Drill {
        Drill::new(spec, RankLayout::of(&spec.model, &spec.topology, Rank(0)).unwrap())
    }

    /// Forward and backward of one cell that is a whole step of one rank.
    fn step(drill: &mut Drill, work: &CellWork) -> (CellResult, SummedGradient) {
        let ranks = SumRanks { workers: Box::new(Solo::new("test")), same_experts: None };
        let mut sums = GradientSums::start(Arc::new(drill.layout.clone()), ranks).unwrap();
        sums.begin().unwrap();
        let result =
            drill.forward_backward(work, Some(&mut |index, values| sums.sum(index, values))).unwrap();
        (result, sums.finish().unwrap())
    }

    #[test]
    fn gradients_are_those_of_the_loss() {
        let spec = spec();
        let mut drill = drill(&spec);
        let mut work = cell(&spec);
        let (result, gradient) = step(&mut drill, &work);
        let epsilon = 1e-2f32;
        let slope = |up: f64, down: f64| (up - down) / (2.0 * f64::from(epsilon)) / 8.0;
        let token = 9 * drill.hidden;
        for (what, offset) in [("word", drill.embedding_offset), ("head", drill.head_offset)] {
            let i = offset + token + 5;
            let was = drill.weights[i];
            let mut loss_at = |value: f32| {
                drill.weights[i] = value;
                drill.evaluate(&work).unwrap()
            };
            let found = slope(loss_at(was + epsilon), loss_at(was - epsilon));
            drill.weights[i] = was;
            let given = f64::from(gradient.values(i..i + 1)[0]);
            assert!((found - given).abs() < 1e-5, "{what}: {found} against {given}");
        }
        for i in [0, 17, work.rows_suw.len() - 1] {
            let was = work.rows_suw[i];
            work.rows_suw[i] = was + epsilon;
            let up = drill.evaluate(&work).unwrap();
            work.rows_suw[i] = was - epsilon;
            let found = slope(up, drill.evaluate(&work).unwrap());
            work.rows_suw[i] = was;
            let given = f64::from(result.row_gradients_suw[i]);
            assert!((found - given).abs() < 1e-5, "row value {i}: {found} against {given}");
        }
    }

    /// A W-th of the optimizer state on each of W workers, whole blocks aside, as `plan` says.
    #[test]
    fn optimizer_state_is_divided_over_workers() {
        for (workers, experts) in [(1, 1), (2, 1), (4, 1), (4, 4), (8, 2)] {
            let sets = [("workers", workers), ("expert_parallel", experts)];
            let mut sets = sets.map(|(key, value)| format!("topology.{key}={value}")).to_vec();
            sets.extend(["device.engine=drill".into(), "training.cells=8".into()]);
            let text = include_str!("../../../configs/tiny.toml");
            let spec = RunFile::parse(text, "tiny", &sets).and_then(|file| file.resolve()).unwrap();
            let planned = polygram_domain::plan::plan(&spec).memory.worker_optimizer_bytes;
            let layout = |rank| RankLayout::of(&spec.model, &spec.topology, rank).unwrap();
            let bytes = |rank| Drill::new(&spec, layout(rank)).optimizer_bytes();
            let all: Vec<u64> = (0..workers).map(Rank).map(bytes).collect();
            println!("{workers} workers, {experts} expert ranks: {all:?} bytes, planned {planned}");
            // The drill has moments of the selection biases too, and never moves them.
            let biases = 8 * u64::from(spec.model.num_layers * spec.model.routed_experts());
            let sum = all.iter().sum::<u64>() - biases;
            assert_eq!(sum.div_ceil(u64::from(workers)), planned);
            let most = planned + (8 * BLOCK * layout(Rank(0)).buckets().len()) as u64;
            assert!(all.iter().all(|&bytes| bytes <= most), "{all:?}");
        }
    }

    #[test]
    fn state_survives_export_and_restore() {
        let spec = spec();
        let work = cell(&spec);
        let mut first = drill(&spec);
        let export = |drill: &Drill| {
            let state = drill.state();
            HostCopy::prepare(0, 1).unwrap().take(state, || true).unwrap()
        };
        let update = |drill: &mut Drill, number| {
            let (_, gradient) = step(drill, &work);
            let update =
                DenseUpdate { update: number, lr: 1e-2, scale: 0.5, routing_counts: &[], bias_rate: 0.0 };
            drill.apply(&update, &gradient).unwrap();
        };
        update(&mut first, 1);
        let state = export(&first);
        let mut restored = drill(&spec);
        restored.restore(&mut state.into_iter()).unwrap();
        update(&mut first, 2);
        update(&mut restored, 2);
        assert_eq!(export(&first), export(&restored));
        let mut wrong = NamedTensor::whole("model.norm.weight", &[3], vec![0.0; 3]);
        assert!(
            restored.restore(&mut std::iter::once(wrong.clone())).unwrap_err().to_string().contains("[3]")
        );
        wrong.name = "model.nonsense".into();
        assert!(restored.restore(&mut std::iter::once(wrong)).is_err());
    }
}
