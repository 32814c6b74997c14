//! What becomes of a step that is not finite or has a spike. Decided before COMMIT from numbers that all ranks agree on, so
//! that a step is skipped, or gone back from, by all or by none.

use polygram_domain::run_spec::{OnNonfinite, RunSpec};
use polygram_domain::spikes::{PolicyState, SpikeAction, SpikeKind, SpikeSpec};
use polygram_domain::{Step, StepOutcome};

use crate::error::WorkerError;

/// The run's policy, with what it remembers.
#[derive(Clone, Debug)]
pub struct Policy {
    spikes: SpikeSpec,
    on_nonfinite: OnNonfinite,
    samples_per_step: u64,
    state: PolicyState,
}

/// The numbers of a step that all ranks agree on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// The step.
    pub step: Step,
    /// Mean loss.
    pub loss: f64,
    /// Global norm before clipping.
    pub norm: f64,
    /// Whether the shards found every row gradient finite.
    pub rows_finite: bool,
}

impl Finding {
    /// Whether the step can be applied at all.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.norm.is_finite() && self.rows_finite
    }
}

impl Policy {
    /// The policy of a run that remembers `state`.
    pub fn new(spec: &RunSpec, state: PolicyState) -> Policy {
        Policy {
            spikes: spec.spikes.clone(),
            on_nonfinite: spec.training.on_nonfinite,
            samples_per_step: spec.samples_per_step(),
            state,
        }
    }

    /// Number of the first sample of `step`: those left out are passed over.
    pub fn first_sample(&self, step: Step) -> u64 {
        self.state.left_out.sample_after(step.0 * self.samples_per_step)
    }

    /// What becomes of a step; the error where the run stops or goes back.
    pub fn judge(&self, finding: &Finding) -> Result<StepOutcome, WorkerError> {
        let Finding { step, loss, norm, rows_finite } = *finding;
        let (skipped, goes_back, cause) = if !finding.is_finite() {
            let goes_back = match self.on_nonfinite {
                OnNonfinite::Stop => {
                    return Err(WorkerError::NotFinite { step, loss, grad_norm: norm, rows_finite });
                }
                OnNonfinite::Skip => false,
                OnNonfinite::RollBack => true,
            };
            let rows = if rows_finite { "finite" } else { "not finite" };
            let cause = format!("not finite: loss {loss}, gradient norm {norm}, row gradients {rows}");
            (StepOutcome::SkippedNonfinite, goes_back, cause)
        } else if let Some(spike) = self.state.memory.spike(&self.spikes, loss, norm) {
            let goes_back = match self.spikes.action {
                SpikeAction::Off | SpikeAction::Stop => return Err(WorkerError::Spike { step, spike }),
                SpikeAction::Skip => false,
                SpikeAction::RollBack => true,
            };
            let skipped = match spike.kind {
                SpikeKind::Loss => StepOutcome::SkippedLossSpike,
                SpikeKind::Norm => StepOutcome::SkippedNormSpike,
            };
            (skipped, goes_back, spike.to_string())
        } else {
            return Ok(StepOutcome::Applied);
        };
        let ways_back = self.state.ways_back.iter().copied();
        let count = self.state.memory.actions(&self.spikes, step.0, ways_back);
        if count >= self.spikes.max_actions {
            return Err(WorkerError::TooManyActions { step, cause, count });
        }
        if goes_back { Err(WorkerError::GoBack { step, cause }) } else { Ok(skipped) }
    }

    /// Remembers a step that is over.
    pub fn note(&mut self, outcome: StepOutcome, finding: &Finding) {
        let bits = (finding.loss.to_bits(), finding.norm.to_bits());
        match outcome {
            StepOutcome::Applied => self.state.memory.applied(&self.spikes, bits),
            _ => self.state.memory.skipped(&self.spikes, finding.step.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunFile;

    use super::*;

    fn policy(sets: &[&str], state: PolicyState) -> Policy {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let text = include_str!("../../configs/tiny.toml");
        let spec = RunFile::parse(text, "tiny", &sets).and_then(|file| file.resolve()).unwrap();
        Policy::new(&spec, state)
    }

    fn finding(step: u64, loss: f64, norm: f64) -> Finding {
        Finding { step: Step(step), loss, norm, rows_finite: true }
    }

    const SPIKES: [&str; 3] =
        ["spikes.history_steps=3", "spikes.loss_deviations=5.0", "spikes.norm_factor=4.0"];

    #[test]
    fn what_is_not_finite_is_stopped_skipped_or_gone_back_from() {
        let nan = finding(4, f64::NAN, 1.0);
        let rows = Finding { rows_finite: false, ..finding(4, 1.0, 1.0) };
        for finding in [nan, rows] {
            let judged = |set: &[&str]| policy(set, PolicyState::default()).judge(&finding);
            assert!(matches!(judged(&[]), Err(WorkerError::NotFinite { .. })));
            let skipped = judged(&["training.on_nonfinite=\"skip\""]);
            assert!(matches!(skipped, Ok(StepOutcome::SkippedNonfinite)));
            let back = judged(&["training.on_nonfinite=\"roll_back\""]);
            assert!(matches!(back, Err(WorkerError::GoBack { .. })));
        }
    }

    #[test]
    fn spikes_are_stopped_skipped_or_gone_back_from_up_to_the_cap() {
        let with = |action: &str| {
            // Nothing counts actions that are never taken.
            let cap = if action == "stop" { "spikes.max_actions=10" } else { "spikes.max_actions=2" };
            let action = format!("spikes.action={action:?}");
            let mut policy = policy(&[&SPIKES[..], &[&action, cap]].concat(), PolicyState::default());
            (0..3).for_each(|step| policy.note(StepOutcome::Applied, &finding(step, 2.0, 1.0)));
            policy
        };
        assert!(matches!(with("stop").judge(&finding(3, 9.0, 1.0)), Err(WorkerError::Spike { .. })));
        assert!(matches!(with("roll_back").judge(&finding(3, 2.0, 5.0)), Err(WorkerError::GoBack { .. })));
        let mut policy = with("skip");
        for step in 3..5 {
            let outcome = policy.judge(&finding(step, 9.0, 1.0)).unwrap();
            assert_eq!(outcome, StepOutcome::SkippedLossSpike);
            policy.note(outcome, &finding(step, 9.0, 1.0));
        }
        assert_eq!(policy.judge(&finding(5, 2.0, 1.0)).unwrap(), StepOutcome::Applied);
        let error = policy.judge(&finding(5, 2.0, 5.0)).unwrap_err();
        assert!(matches!(error, WorkerError::TooManyActions { count: 2, .. }), "{error}");
        assert_eq!(policy.judge(&finding(1500, 2.0, 5.0)).unwrap(), StepOutcome::SkippedNormSpike);
        // Ways back count too.
        let mut policy = with("skip");
        policy.state.ways_back = vec![2, 3];
        assert!(matches!(policy.judge(&finding(4, 9.0, 1.0)), Err(WorkerError::TooManyActions { .. })));
    }

    #[test]
    fn samples_left_out_are_passed_over() {
        let mut state = PolicyState::default();
        let whole = policy(&[], PolicyState::default());
        let samples = whole.first_sample(Step(1));
        state.left_out.add(2 * samples..3 * samples);
        let policy = policy(&[], state);
        assert_eq!(policy.first_sample(Step(1)), samples);
        assert_eq!(policy.first_sample(Step(2)), 3 * samples);
    }
}
