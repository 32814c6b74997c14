//! AdamW (Loshchilov and Hutter, 1711.05101) over flat f32 buffers.
//!
//! ```text
//! w ← w − lr·wd·w;   m ← β1·m + (1−β1)·g;   v ← β2·v + (1−β2)·g²
//! w ← w − lr · (m / (1−β1^t)) / (√(v / (1−β2^t)) + ε)
//! ```
//! Every element is one sequence of IEEE f32 operations in plain code, so its bits depend on nothing but the numbers:
//! not on threads, the division into buffers or the processor. Scalars are computed in f64 and rounded once.

use std::ops::Range;

use polygram_domain::layout::{ParameterSpec, Part};
use polygram_domain::run_spec::AdamWSpec;

use crate::error::{ModelError, Result};
use crate::parameters::{FlatBuffer, Layout};

/// Elements below which a second thread costs more than it brings.
const ELEMENTS_PER_THREAD: usize = 1 << 18;

/// A run of elements with settings of their own. Elements in no group are not moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Elements of the flat buffer.
    pub range: Range<usize>,
    /// Multiplies the learning rate.
    pub lr_multiplier: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// One update's scalars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Multiplies every gradient: the clip scale.
    pub scale: f32,
    /// Number of this update, from 1.
    pub number: u64,
}

/// The optimizer and its state.
#[derive(Debug)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    eps: f64,
    groups: Vec<Group>,
    exp_avg: FlatBuffer,
    exp_avg_sq: FlatBuffer,
}

impl AdamW {
    /// With zero state for a buffer of `len` elements. Groups must be disjoint and in order.
    pub fn new(spec: &AdamWSpec, groups: Vec<Group>, len: usize) -> Result<AdamW> {
        let mut next = 0;
        for group in &groups {
            if group.range.start < next || group.range.end < group.range.start || group.range.end > len {
                return Err(ModelError::input(
                    "optimizer group",
                    format!("elements {:?}", group.range),
                    format!("disjoint ranges in order within {len} elements"),
                ));
            }
            next = group.range.end;
        }
        let (beta1, beta2, eps) = (spec.beta1, spec.beta2, spec.eps);
        let (exp_avg, exp_avg_sq) = (FlatBuffer::zeros(len)?, FlatBuffer::zeros(len)?);
        Ok(AdamW { beta1, beta2, eps, groups, exp_avg, exp_avg_sq })
    }

    /// The groups of a model: one per trained tensor, decay on those of two or more dimensions, settings of their own on
    /// word embeddings.
    pub fn groups_of(layout: &Layout, spec: &AdamWSpec) -> Vec<Group> {
        let trained = layout.entries().iter().filter(|entry| entry.spec.is_trained());
        let settings = |parameter: &ParameterSpec| match parameter.part {
            Part::WordEmbedding => (spec.word_embedding_lr_multiplier, spec.word_embedding_weight_decay),
            _ if parameter.is_decayed() => (1.0, spec.weight_decay),
            _ => (1.0, 0.0),
        };
        trained
            .map(|entry| {
                let (lr_multiplier, weight_decay) = settings(&entry.spec);
                Group { range: entry.range.clone(), lr_multiplier, weight_decay }
            })
            .collect()
    }

    /// First moments, flat.
    pub fn exp_avg(&self) -> &[f32] {
        self.exp_avg.as_slice()
    }

    /// Second moments, flat.
    pub fn exp_avg_sq(&self) -> &[f32] {
        self.exp_avg_sq.as_slice()
    }

    /// Both moments, to be restored.
    pub(crate) fn moments_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        (self.exp_avg.as_mut_slice(), self.exp_avg_sq.as_mut_slice())
    }

    /// Moves `weights` by `gradient`. Uses as many threads as [`crate::set_threads`] fixed; the bits do not depend on
    /// them.
    pub fn step(&mut self, weights: &mut [f32], gradient: &[f32], update: Update) -> Result<()> {
        let len = self.exp_avg.as_slice().len();
        for (what, found) in [("weights", weights.len()), ("gradient", gradient.len())] {
            if found != len {
                return Err(ModelError::input(what, format!("{found} values"), format!("{len} values")));
            }
        }
        if update.number == 0 {
            return Err(ModelError::input("update number", 0, "at least 1"));
        }
        let threads = (tch::get_num_threads().max(1) as usize).min(len / ELEMENTS_PER_THREAD + 1);
        let rules: Vec<(Range<usize>, Rule)> =
            self.groups.iter().map(|group| (group.range.clone(), self.rule(group, update))).collect();
        let chunk = len.div_ceil(threads).max(1);
        let (m, v) = self.moments_mut();
        std::thread::scope(|scope| {
            let pieces = weights
                .chunks_mut(chunk)
                .zip(gradient.chunks(chunk))
                .zip(m.chunks_mut(chunk).zip(v.chunks_mut(chunk)));
            for (index, ((weights, gradient), (m, v))) in pieces.enumerate() {
                let rules = &rules;
                let mut work = move || {
                    let start = index * chunk;
                    let end = start + weights.len();
                    for (range, rule) in rules {
                        let (from, to) = (range.start.max(start), range.end.min(end));
                        if from < to {
                            let part = from - start..to - start;
                            rule.apply(
                                (&mut weights[part.clone()], &gradient[part.clone()]),
                                (&mut m[part.clone()], &mut v[part]),
                            );
                        }
                    }
                };
                if threads == 1 {
                    work();
                } else {
                    scope.spawn(work);
                }
            }
        });
        Ok(())
    }

    fn rule(&self, group: &Group, update: Update) -> Rule {
        let lr = update.lr * group.lr_multiplier;
        let correction = |beta: f64| (1.0 - libm::pow(beta, update.number as f64)) as f32;
        Rule {
            scale: update.scale,
            lr: lr as f32,
            decay: (lr * group.weight_decay) as f32,
            beta1: self.beta1 as f32,
            beta1_rest: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            beta2_rest: (1.0 - self.beta2) as f32,
            correction1: correction(self.beta1),
            correction2: correction(self.beta2),
            eps: self.eps as f32,
        }
    }
}

/// The scalars of one group's update, in f32.
struct Rule {
    scale: f32,
    lr: f32,
    decay: f32,
    beta1: f32,
    beta1_rest: f32,
    beta2: f32,
    beta2_rest: f32,
    correction1: f32,
    correction2: f32,
    eps: f32,
}

impl Rule {
    fn apply(&self, (weights, gradient): (&mut [f32], &[f32]), (m, v): (&mut [f32], &mut [f32])) {
        for (((w, &g), m), v) in weights.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * self.scale;
            *m = self.beta1 * *m + self.beta1_rest * g;
            *v = self.beta2 * *v + self.beta2_rest * (g * g);
            let direction = (*m / self.correction1) / ((*v / self.correction2).sqrt() + self.eps);
            *w = (*w - self.decay * *w) - self.lr * direction;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> AdamWSpec {
        AdamWSpec {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-16,
            weight_decay: 0.1,
            word_embedding_lr_multiplier: 1.0,
            word_embedding_weight_decay: 0.1,
        }
    }

    /// The first update moves every element by lr·sign(g), whatever the gradient's size, after decay.
    #[test]
    fn first_update_is_the_sign() {
        let group = Group { range: 0..3, lr_multiplier: 2.0, weight_decay: 0.5 };
        let mut adamw = AdamW::new(&spec(), vec![group], 4).unwrap();
        let mut weights = [1.0f32, -1.0, 0.0, 7.0];
        let update = Update { lr: 0.01, scale: 1.0, number: 1 };
        adamw.step(&mut weights, &[1e-9, -1e4, 0.0, 1.0], update).unwrap();
        for (found, wanted) in weights.iter().zip([1.0 - 0.01 - 0.02, -1.0 + 0.01 + 0.02, 0.0, 7.0]) {
            assert!((found - wanted).abs() < 1e-6, "{weights:?}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_division() {
        let len = 3000;
        let gradient: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect();
        let run = |cuts: &[usize]| {
            let mut edges = vec![0];
            edges.extend(cuts);
            edges.push(len);
            let groups = edges
                .windows(2)
                .map(|w| Group { range: w[0]..w[1], lr_multiplier: 1.0, weight_decay: 0.1 })
                .collect();
            let mut adamw = AdamW::new(&spec(), groups, len).unwrap();
            let mut weights: Vec<f32> = gradient.iter().map(|g| g * 3.0).collect();
            for number in 1..5 {
                adamw.step(&mut weights, &gradient, Update { lr: 0.01, scale: 0.3, number }).unwrap();
            }
            weights.iter().map(|w| w.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(run(&[]), run(&[1, 7, 1234]));
    }

    #[test]
    fn illegal_groups_and_lengths_are_refused() {
        let group = |range: Range<usize>| Group { range, lr_multiplier: 1.0, weight_decay: 0.0 };
        assert!(AdamW::new(&spec(), vec![group(0..3), group(2..4)], 4).is_err());
        assert!(AdamW::new(&spec(), vec![group(0..5)], 4).is_err());
        let mut adamw = AdamW::new(&spec(), vec![group(0..4)], 4).unwrap();
        let update = Update { lr: 0.1, scale: 1.0, number: 1 };
        assert!(adamw.step(&mut [0.0; 3], &[0.0; 4], update).is_err());
        assert!(adamw.step(&mut [0.0; 4], &[0.0; 4], Update { number: 0, ..update }).is_err());
    }
}
