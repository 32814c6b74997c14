//! AdamW (Loshchilov and Hutter, 1711.05101) over the part of a rank's flat f32 buffer that it updates.
//!
//! ```text
//! w ← w − lr·wd·w;   m ← β1·m + (1−β1)·g;   v ← β2·v + (1−β2)·g²
//! w ← w − lr · (m / (1−β1^t)) / (√(v / (1−β2^t)) + ε)
//! ```
//! Every element is one sequence of IEEE f32 operations in plain code, so its bits depend on nothing but the numbers:
//! not on threads, the division over ranks or the processor. Scalars are computed in f64 and rounded once.

use std::ops::Range;

use polygram_domain::RankLayout;
use polygram_domain::layout::{ParameterSpec, Part, StatePart};
use polygram_domain::rank_layout::copy_own;
use polygram_domain::run_spec::AdamWSpec;

use crate::error::{ModelError, Result};
use crate::parameters::FlatBuffer;

/// Elements below which a second thread costs more than it brings.
const ELEMENTS_PER_THREAD: usize = 1 << 18;

/// Elements with settings of their own. Elements in no group are not moved and have no state.
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
    /// In order; the moments of one begin where those of the one before end.
    groups: Vec<Group>,
    exp_avg: FlatBuffer,
    exp_avg_sq: FlatBuffer,
}

impl AdamW {
    /// With zero state for the part of `layout` that its rank updates: one group per trained tensor, or per piece of one,
    /// decay on those of two or more dimensions, settings of their own on word embeddings.
    pub fn new(spec: &AdamWSpec, layout: &RankLayout) -> Result<AdamW> {
        let settings = |parameter: &ParameterSpec| match parameter.part {
            Part::WordEmbedding => (spec.word_embedding_lr_multiplier, spec.word_embedding_weight_decay),
            _ if parameter.is_decayed() => (1.0, spec.weight_decay),
            _ => (1.0, 0.0),
        };
        let own = layout.buckets().iter().flat_map(|bucket| layout.within(bucket.own.clone()));
        let groups = own.filter(|(entry, _)| entry.spec.is_trained()).map(|(entry, elements)| {
            let (lr_multiplier, weight_decay) = settings(&entry.spec);
            let start = entry.range.start;
            Group { range: start + elements.start..start + elements.end, lr_multiplier, weight_decay }
        });
        AdamW::of_groups(spec, groups.collect())
    }

    /// With zero state for `groups`, which must be disjoint and in order.
    pub fn of_groups(spec: &AdamWSpec, groups: Vec<Group>) -> Result<AdamW> {
        let (mut next, mut len) = (0, 0);
        for group in &groups {
            if group.range.start < next || group.range.end < group.range.start {
                return Err(ModelError::input(
                    "optimizer group",
                    format!("elements {:?}", group.range),
                    "disjoint ranges in order",
                ));
            }
            next = group.range.end;
            len += group.range.len();
        }
        let (beta1, beta2, eps) = (spec.beta1, spec.beta2, spec.eps);
        let (exp_avg, exp_avg_sq) = (FlatBuffer::zeros(len)?, FlatBuffer::zeros(len)?);
        Ok(AdamW { beta1, beta2, eps, groups, exp_avg, exp_avg_sq })
    }

    /// The elements that have state: each group's, and where its moments begin.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&Range<usize>, usize)> {
        places(&self.groups)
    }

    /// First moments, group after group.
    pub(crate) fn exp_avg(&self) -> &[f32] {
        self.exp_avg.as_slice()
    }

    /// Second moments, group after group.
    pub(crate) fn exp_avg_sq(&self) -> &[f32] {
        self.exp_avg_sq.as_slice()
    }

    /// Writes what `values`, elements `range` of the flat buffer, have of the moments that are kept here. Weights are
    /// not.
    pub(crate) fn restore(&mut self, part: StatePart, range: &Range<usize>, values: &[f32]) {
        let moments = match part {
            StatePart::Weight => return,
            StatePart::ExpAvg => &mut self.exp_avg,
            StatePart::ExpAvgSq => &mut self.exp_avg_sq,
        };
        for (own, at) in places(&self.groups) {
            copy_own((range, values), (own, at), moments.as_mut_slice());
        }
    }

    /// Moves `weights`, flat, by the gradient: `gradient(range)` gives the values of a group's elements. Uses as many
    /// threads as [`crate::set_threads`] fixed; the bits do not depend on them.
    ///
    /// # Errors
    /// Where weights or a gradient do not reach as far as a group, or the update's number is 0.
    pub fn step<'g>(
        &mut self,
        weights: &mut [f32],
        gradient: impl Fn(Range<usize>) -> &'g [f32],
        update: Update,
    ) -> Result<()> {
        if update.number == 0 {
            return Err(ModelError::input("update number", 0, "at least 1"));
        }
        let end = self.groups.last().map_or(0, |group| group.range.end);
        if weights.len() < end {
            return Err(ModelError::input(
                "weights",
                format!("{} values", weights.len()),
                format!("at least {end}"),
            ));
        }
        let rules: Vec<Rule> = self.groups.iter().map(|group| self.rule(group, update)).collect();
        let ranges: Vec<Range<usize>> = self.groups.iter().map(|group| group.range.clone()).collect();
        let (mut m, mut v) = (self.exp_avg.as_mut_slice(), self.exp_avg_sq.as_mut_slice());
        let total = m.len();
        let threads = (tch::get_num_threads().max(1) as usize).min(total / ELEMENTS_PER_THREAD + 1);
        let quota = total.div_ceil(threads).max(1);
        let mut shares: Vec<Vec<Piece<'_>>> = (0..threads).map(|_| Vec::new()).collect();
        let (mut rest, mut at, mut done) = (weights, 0, 0);
        for (range, rule) in ranges.into_iter().zip(&rules) {
            let values = gradient(range.clone());
            if values.len() != range.len() {
                return Err(ModelError::input(
                    "gradient",
                    format!("{} values for elements {range:?}", values.len()),
                    format!("{} values", range.len()),
                ));
            }
            let (_, after) = std::mem::take(&mut rest).split_at_mut(range.start - at);
            let (mut own, after) = after.split_at_mut(range.len());
            (rest, at) = (after, range.end);
            let mut values = values;
            while !own.is_empty() {
                let len = own.len().min(quota - done % quota);
                let (weights, g);
                (weights, own) = std::mem::take(&mut own).split_at_mut(len);
                (g, values) = values.split_at(len);
                let (first, second);
                (first, m) = std::mem::take(&mut m).split_at_mut(len);
                (second, v) = std::mem::take(&mut v).split_at_mut(len);
                shares[done / quota].push(Piece { rule, weights, gradient: g, first, second });
                done += len;
            }
        }
        let work = |share: Vec<Piece<'_>>| share.into_iter().for_each(Piece::apply);
        if threads == 1 {
            shares.into_iter().for_each(work);
        } else {
            std::thread::scope(|scope| {
                for share in shares {
                    scope.spawn(move || work(share));
                }
            });
        }
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

/// Each group's elements, and where its moments begin.
fn places(groups: &[Group]) -> impl Iterator<Item = (&Range<usize>, usize)> {
    groups.iter().scan(0, |next, group| {
        let at = *next;
        *next += group.range.len();
        Some((&group.range, at))
    })
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

/// Elements that one thread moves by one rule.
struct Piece<'a> {
    rule: &'a Rule,
    weights: &'a mut [f32],
    gradient: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Piece<'_> {
    fn apply(self) {
        let Piece { rule, weights, gradient, first, second } = self;
        for (((w, &g), m), v) in weights.iter_mut().zip(gradient).zip(first).zip(second) {
            let g = g * rule.scale;
            *m = rule.beta1 * *m + rule.beta1_rest * g;
            *v = rule.beta2 * *v + rule.beta2_rest * (g * g);
            let direction = (*m / rule.correction1) / ((*v / rule.correction2).sqrt() + rule.eps);
            *w = (*w - rule.decay * *w) - rule.lr * direction;
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
        let mut adamw = AdamW::of_groups(&spec(), vec![group]).unwrap();
        let mut weights = [1.0f32, -1.0, 0.0, 7.0];
        let update = Update { lr: 0.01, scale: 1.0, number: 1 };
        let gradient = [1e-9, -1e4, 0.0, 1.0];
        adamw.step(&mut weights, |range| &gradient[range], update).unwrap();
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
            let mut adamw = AdamW::of_groups(&spec(), groups).unwrap();
            let mut weights: Vec<f32> = gradient.iter().map(|g| g * 3.0).collect();
            for number in 1..5 {
                let update = Update { lr: 0.01, scale: 0.3, number };
                adamw.step(&mut weights, |range| &gradient[range], update).unwrap();
            }
            weights.iter().map(|w| w.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(run(&[]), run(&[1, 7, 1234]));
    }

    #[test]
    fn illegal_groups_and_lengths_are_refused() {
        let group = |range: Range<usize>| Group { range, lr_multiplier: 1.0, weight_decay: 0.0 };
        assert!(AdamW::of_groups(&spec(), vec![group(0..3), group(2..4)]).is_err());
        let mut adamw = AdamW::of_groups(&spec(), vec![group(0..4)]).unwrap();
        let update = Update { lr: 0.1, scale: 1.0, number: 1 };
        let four = [0.0; 4];
        assert!(adamw.step(&mut [0.0; 3], |range| &four[range], update).is_err());
        assert!(adamw.step(&mut [0.0; 4], |_| &four[..3], update).is_err());
        assert!(adamw.step(&mut [0.0; 4], |range| &four[range], Update { number: 0, ..update }).is_err());
        assert!(adamw.step(&mut [0.0; 4], |range| &four[range], update).is_ok());
    }

    /// Groups that lie apart have their moments side by side.
    #[test]
    fn gaps_have_no_state_and_are_not_moved() {
        let group = |range: Range<usize>| Group { range, lr_multiplier: 1.0, weight_decay: 0.0 };
        let gradient: Vec<f32> = (0..10).map(|i| i as f32 - 4.5).collect();
        let run = |groups: Vec<Group>| {
            let mut adamw = AdamW::of_groups(&spec(), groups).unwrap();
            let mut weights = vec![1.0f32; 10];
            for number in 1..4 {
                let update = Update { lr: 0.1, scale: 1.0, number };
                adamw.step(&mut weights, |range| &gradient[range], update).unwrap();
            }
            (weights, adamw.exp_avg().to_vec())
        };
        let (whole, moments) = run(vec![group(0..10)]);
        let (parts, kept) = run(vec![group(1..3), group(7..9)]);
        assert_eq!(kept, [&moments[1..3], &moments[7..9]].concat());
        assert_eq!((&parts[1..3], &parts[7..9]), (&whole[1..3], &whole[7..9]));
        assert!(parts[3..7].iter().all(|&weight| weight == 1.0));
    }
}
