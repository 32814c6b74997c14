//! The drill engine: an exact quadratic stand-in for the model.
//!
//! Position p has `x = E0[t] + rows` (its C rows side by side, D wide) and wants to reach the output row of its
//! target: `loss = ½·|x − H[target]|² / D`. Every other parameter is only decayed. The gradient is exact, every sum
//! follows the order that the real engine promises, and losses fall, so a cluster, its recovery and its determinism
//! are exercised for real. It says nothing about language.

use polygram_checkpoint::NamedTensor;
use polygram_checkpoint::tensors::{EXP_AVG, EXP_AVG_SQ};
use polygram_domain::batch::IGNORED_TARGET;
use polygram_domain::layout::{ParameterSpec, Part};
use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};
use polygram_domain::run_spec::{AdamWSpec, RunSpec};
use polygram_domain::sum_tree::SumTree;

use super::{CellResult, CellWork, Compute, ComputeError, DenseUpdate};

/// Parameters, moments and the pending gradient.
pub struct Drill {
    layout: Vec<(ParameterSpec, usize)>,
    weights: Vec<f32>,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    pending: SumTree<Vec<f32>>,
    gradient: Option<Vec<f32>>,
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
    pub fn new(spec: &RunSpec) -> Drill {
        let stream = Stream::new(spec.seed, Purpose::DenseInit);
        let mut weights = Vec::new();
        let mut layout = Vec::new();
        for (number, parameter) in spec.dense_parameters().into_iter().enumerate() {
            let offset = weights.len();
            let sigma = spec.model.initializer_range as f32;
            weights.extend((0..parameter.elements()).map(|element| {
                let words = stream.words(number as u64, element / 4);
                unit_variance_uniform(words[(element % 4) as usize]) * sigma
            }));
            layout.push((parameter, offset));
        }
        let offset_of =
            |part: Part| layout.iter().find(|(p, _)| p.part == part).map_or(0, |(_, offset)| *offset);
        let (embedding_offset, head_offset) = (offset_of(Part::WordEmbedding), offset_of(Part::LmHead));
        let tables = spec.tables();
        let tables_per_site = tables.tables_per_site() as usize;
        Drill {
            exp_avg: vec![0.0; weights.len()],
            exp_avg_sq: vec![0.0; weights.len()],
            weights,
            layout,
            pending: SumTree::default(),
            gradient: None,
            hidden: spec.model.hidden_size as usize,
            width: tables.iter().next().map_or(0, |table| table.width as usize),
            sites: tables.len() / tables_per_site.max(1),
            tables_per_site,
            routed: (spec.model.num_layers * spec.model.routed_experts()) as usize,
            top_k: u64::from(spec.model.moe.top_k),
            embedding_offset,
            head_offset,
            optimizer: spec.training.adamw.clone(),
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
        let (values, plain) = if let Some(plain) = tensor.name.strip_prefix(EXP_AVG_SQ) {
            (&mut self.exp_avg_sq, plain)
        } else if let Some(plain) = tensor.name.strip_prefix(EXP_AVG) {
            (&mut self.exp_avg, plain)
        } else {
            (&mut self.weights, tensor.name.as_str())
        };
        let (parameter, offset) = self
            .layout
            .iter()
            .find(|(parameter, _)| parameter.name == plain)
            .ok_or_else(|| refuse("the model has no such tensor".into()))?;
        if parameter.shape != tensor.shape {
            return Err(refuse(format!("shape {:?}, but the model has {:?}", tensor.shape, parameter.shape)));
        }
        let (start, end) = (tensor.elements.start as usize, tensor.elements.end as usize);
        match values.get_mut(offset + start..offset + end) {
            Some(target) if target.len() == tensor.data.len() && end <= parameter.elements() as usize => {
                target.copy_from_slice(&tensor.data);
                Ok(())
            }
            _ => Err(refuse(format!("elements {start}..{end} with {} values do not fit", tensor.data.len()))),
        }
    }
}

impl Compute for Drill {
    fn forward_backward(&mut self, cell: &CellWork) -> Result<CellResult, ComputeError> {
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
        let positions = cell.batch.tokens_bt().len() as u64;
        let mut routing_counts = vec![0; self.routed];
        if let Some(first) = routing_counts.first_mut() {
            *first = positions * self.top_k;
        }
        Ok(CellResult { loss_sum, row_gradients_suw, routing_counts })
    }

    fn gradient(&mut self) -> Result<&mut [f32], ComputeError> {
        let length = self.weights.len();
        let pending = std::mem::take(&mut self.pending);
        let gradient = &mut self.gradient;
        Ok(gradient.get_or_insert_with(|| pending.finish(add).unwrap_or_else(|| vec![0.0; length])))
    }

    fn gradient_square_sum(&mut self) -> Result<f64, ComputeError> {
        let bounds: Vec<(usize, usize)> =
            self.layout.iter().map(|(p, offset)| (*offset, offset + p.elements() as usize)).collect();
        let gradient = self.gradient()?;
        Ok(bounds
            .iter()
            .map(|(start, end)| {
                gradient[*start..*end].iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>()
            })
            .sum())
    }

    fn apply(&mut self, update: &DenseUpdate<'_>) -> Result<(), ComputeError> {
        self.gradient()?;
        let gradient = self.gradient.take().unwrap_or_default();
        let o = &self.optimizer;
        let correction = |beta: f64| (1.0 - (0..update.update).fold(1.0, |power, _| power * beta)) as f32;
        let (first_correction, second_correction) = (correction(o.beta1), correction(o.beta2));
        let (beta1, beta2, eps) = (o.beta1 as f32, o.beta2 as f32, o.eps as f32);
        for (parameter, offset) in self.layout.iter().filter(|(p, _)| p.is_trained()) {
            let decay = if parameter.is_decayed() { o.weight_decay * update.lr } else { 0.0 } as f32;
            let range = *offset..offset + parameter.elements() as usize;
            let moments = self.exp_avg[range.clone()].iter_mut().zip(&mut self.exp_avg_sq[range.clone()]);
            let weights = self.weights[range.clone()].iter_mut();
            for ((weight, (first, second)), g) in weights.zip(moments).zip(&gradient[range]) {
                let g = g * update.scale;
                *first = beta1 * *first + (1.0 - beta1) * g;
                *second = beta2 * *second + (1.0 - beta2) * (g * g);
                let step = (*first / first_correction) / ((*second / second_correction).sqrt() + eps);
                *weight -= decay * *weight;
                *weight -= update.lr as f32 * step;
            }
        }
        Ok(())
    }

    fn discard(&mut self) {
        self.pending = SumTree::default();
        self.gradient = None;
    }

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

    fn export(&self, keep: &dyn Fn(usize) -> bool) -> Result<Vec<NamedTensor>, ComputeError> {
        let mut tensors = Vec::new();
        for (_, (parameter, offset)) in self.layout.iter().enumerate().filter(|(number, _)| keep(*number)) {
            let mut add = |prefix: &str, values: &[f32]| {
                let data = values[*offset..offset + parameter.elements() as usize].to_vec();
                tensors.push(NamedTensor::whole(
                    format!("{prefix}{}", parameter.name),
                    &parameter.shape,
                    data,
                ));
            };
            add("", &self.weights);
            if parameter.is_trained() {
                add(EXP_AVG, &self.exp_avg);
                add(EXP_AVG_SQ, &self.exp_avg_sq);
            }
        }
        Ok(tensors)
    }

    fn restore(&mut self, tensors: &mut dyn Iterator<Item = NamedTensor>) -> Result<(), ComputeError> {
        for tensor in tensors {
            self.import(&tensor)?;
        }
        Ok(())
    }
}

fn add(mut left: Vec<f32>, right: Vec<f32>) -> Vec<f32> {
    left.iter_mut().zip(&right).for_each(|(l, r)| *l += r);
    left
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use polygram_domain::{CellBatch, RunFile};
    use polygram_ngram::{Hasher, UniqueRows, batch_ids};

    use super::*;

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
        CellWork { batch, unique: Arc::new(unique), rows_suw, global_targets: 8 }
    }

    #[test]
    fn gradients_are_those_of_the_loss() {
        let spec = spec();
        let mut drill = Drill::new(&spec);
        let mut work = cell(&spec);
        let result = drill.forward_backward(&work).unwrap();
        let gradient = drill.gradient().unwrap().to_vec();
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
            assert!((found - f64::from(gradient[i])).abs() < 1e-5, "{what}: {found} against {}", gradient[i]);
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

    #[test]
    fn state_survives_export_and_restore() {
        let spec = spec();
        let work = cell(&spec);
        let mut drill = Drill::new(&spec);
        let update = |drill: &mut Drill, number| {
            drill.forward_backward(&work).unwrap();
            let update =
                DenseUpdate { update: number, lr: 1e-2, scale: 0.5, routing_counts: &[], bias_rate: 0.0 };
            drill.apply(&update).unwrap();
        };
        update(&mut drill, 1);
        let state = drill.export(&|_| true).unwrap();
        let mut restored = Drill::new(&spec);
        restored.restore(&mut state.into_iter()).unwrap();
        update(&mut drill, 2);
        update(&mut restored, 2);
        assert_eq!(drill.export(&|_| true).unwrap(), restored.export(&|_| true).unwrap());
        let mut wrong = NamedTensor::whole("model.norm.weight", &[3], vec![0.0; 3]);
        assert!(
            restored.restore(&mut std::iter::once(wrong.clone())).unwrap_err().to_string().contains("[3]")
        );
        wrong.name = "model.nonsense".into();
        assert!(restored.restore(&mut std::iter::once(wrong)).is_err());
    }
}
