//! What members have reported of the training itself: steps, evaluations, counts. Written here alone.

use std::collections::BTreeMap;

use polygram_domain::Step;
use polygram_domain::control::{Evaluation, StepMetrics};

use super::counts::Counts;
use super::event::Time;
use super::settings::Settings;

/// The newest reports.
#[derive(Clone, Debug)]
pub(super) struct Reported {
    metrics: Option<StepMetrics>,
    /// When the last step was reported, or steps began. Losses do not change it.
    stepped: Option<Time>,
    /// The newest evaluation of every held-out set, by name.
    evaluations: BTreeMap<String, Evaluation>,
    counts: Counts,
}

impl Reported {
    /// What attempts before this one have reported.
    pub(super) fn new(settings: &Settings) -> Reported {
        let is_known = |evaluation: &&Evaluation| settings.held_out_sets.contains(&evaluation.set);
        let earlier = settings.earlier.evaluations.iter().filter(is_known);
        let evaluations = earlier.map(|evaluation| (evaluation.set.clone(), evaluation.clone())).collect();
        Reported { metrics: None, stepped: None, evaluations, counts: Counts::default() }
    }

    /// Rank 0's newest metrics in this generation.
    pub(super) fn metrics(&self) -> Option<StepMetrics> {
        self.metrics
    }

    /// The state version that the generation has reached, as rank 0 reports it.
    pub(super) fn reached(&self) -> Option<Step> {
        self.metrics.map(|metrics| metrics.step.next())
    }

    /// When the last step was reported, or steps began.
    pub(super) fn stepped(&self) -> Option<Time> {
        self.stepped
    }

    /// Steps begin at `now`, the run's first or a generation's.
    pub(super) fn begin_steps(&mut self, now: Time) {
        self.stepped.get_or_insert(now);
    }

    /// Takes the metrics of a step. False where they are not newer than what is there.
    pub(super) fn take_metrics(&mut self, metrics: StepMetrics, now: Time) -> bool {
        let is_newer = self.metrics.is_none_or(|newest| metrics.step > newest.step);
        if is_newer {
            (self.metrics, self.stepped) = (Some(metrics), Some(now));
        }
        is_newer
    }

    pub(super) fn evaluations(&self) -> impl Iterator<Item = &Evaluation> {
        self.evaluations.values()
    }

    /// Takes an evaluation. False where it is known.
    pub(super) fn take_evaluation(&mut self, evaluation: &Evaluation) -> bool {
        let newest = self.evaluations.get(&evaluation.set).map(|newest| newest.step);
        let is_new = newest != Some(evaluation.step);
        if is_new {
            self.evaluations.insert(evaluation.set.clone(), evaluation.clone());
        }
        is_new
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) fn counts_mut(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// The generation ends: the next one reports for itself.
    pub(super) fn end_generation(&mut self) {
        self.metrics = None;
        self.counts = Counts::default();
    }

    /// A generation begins from `step`: what was evaluated behind it is done again.
    pub(super) fn resume_from(&mut self, step: Step) {
        self.evaluations.retain(|_, evaluation| evaluation.step <= step);
    }
}
