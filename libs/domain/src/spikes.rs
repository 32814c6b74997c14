//! When a loss or a gradient norm is a spike, and which samples a run leaves out.
//!
//! Both are functions of what every rank knows alike: the losses and norms of the steps applied so far, bit for bit, and
//! the ranges left out. So all ranks decide alike, in every topology, and again after a restart.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A median deviation below this share of the median counts as so much: losses that are nearly alike are no reason to
/// call the next one a spike.
const LEAST_DEVIATION: f64 = 1e-3;

/// What is done about a spike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpikeAction {
    /// Nobody looks for spikes.
    #[default]
    Off,
    /// The run fails and says where.
    Stop,
    /// The step's update is dropped everywhere.
    Skip,
    /// The run goes back to a commit before the spike and leaves out the samples of the steps around it.
    RollBack,
}

/// What a spike is, and what is done about it. Caps and ways back hold for steps that are not finite too.
#[derive(Clone, Debug, PartialEq)]
pub struct SpikeSpec {
    /// What is done.
    pub action: SpikeAction,
    /// Applied steps that a step is compared with; before there are so many nothing is a spike.
    pub history_steps: u32,
    /// A loss is a spike above median + this · median absolute deviation; `None`: losses are not looked at.
    pub loss_deviations: Option<f64>,
    /// A norm is a spike above this · median; `None`: norms are not looked at.
    pub norm_factor: Option<f64>,
    /// A commit that is gone back to lies at least so many steps before the spike.
    pub roll_back_steps: u32,
    /// So many steps, the last of them the spike's, lose their samples when the run goes back.
    pub skip_steps: u32,
    /// Steps skipped and ways back within `window_steps`; one more fails the run.
    pub max_actions: u32,
    /// Steps over which actions are counted.
    pub window_steps: u64,
}

impl SpikeSpec {
    /// Nobody looks for spikes.
    pub fn off() -> SpikeSpec {
        SpikeSpec {
            action: SpikeAction::Off,
            history_steps: 64,
            loss_deviations: None,
            norm_factor: None,
            roll_back_steps: 1,
            skip_steps: 1,
            max_actions: 10,
            window_steps: 1000,
        }
    }
}

/// A number that is a spike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spike {
    /// What it is.
    pub kind: SpikeKind,
    /// The number.
    pub value: f64,
    /// What it should not exceed.
    pub limit: f64,
}

impl fmt::Display for Spike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spike { kind, value, limit } = self;
        let name = match kind {
            SpikeKind::Loss => "loss",
            SpikeKind::Norm => "gradient norm",
        };
        write!(f, "{name} {value} is a spike: by the steps before it may be {limit}")
    }
}

/// Which number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpikeKind {
    /// The loss, nats per token.
    Loss,
    /// The global gradient norm.
    Norm,
}

/// What a detector remembers, as it is stored: bits, so that it reads back to the same numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Loss and norm (bits of f64s) of the newest applied steps, oldest first.
    pub history: VecDeque<(u64, u64)>,
    /// Steps whose update was skipped, ascending.
    pub skipped: VecDeque<u64>,
}

impl Memory {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.history.is_empty() && self.skipped.is_empty()
    }

    /// Takes an applied step.
    pub fn applied(&mut self, spec: &SpikeSpec, (loss, norm): (u64, u64)) {
        if spec.action == SpikeAction::Off {
            return;
        }
        self.history.push_back((loss, norm));
        while self.history.len() > spec.history_steps as usize {
            self.history.pop_front();
        }
    }

    /// Takes a skipped step.
    pub fn skipped(&mut self, spec: &SpikeSpec, step: u64) {
        self.skipped.push_back(step);
        while self.skipped.front().is_some_and(|old| old.saturating_add(spec.window_steps) <= step) {
            self.skipped.pop_front();
        }
    }

    /// Whether `loss` or `norm` of the next step is a spike, the loss first.
    pub fn spike(&self, spec: &SpikeSpec, loss: f64, norm: f64) -> Option<Spike> {
        if spec.action == SpikeAction::Off || self.history.len() < spec.history_steps as usize {
            return None;
        }
        let numbers = |of: fn(&(u64, u64)) -> u64| self.history.iter().map(of).map(f64::from_bits).collect();
        if let Some(deviations) = spec.loss_deviations {
            let mut losses: Vec<f64> = numbers(|(loss, _)| *loss);
            let middle = median(&mut losses);
            losses.iter_mut().for_each(|loss| *loss = (*loss - middle).abs());
            let deviation = median(&mut losses).max(LEAST_DEVIATION * middle.abs());
            let limit = middle + deviations * deviation;
            if loss > limit {
                return Some(Spike { kind: SpikeKind::Loss, value: loss, limit });
            }
        }
        let factor = spec.norm_factor?;
        let limit = factor * median(&mut numbers(|(_, norm)| *norm));
        (norm > limit).then_some(Spike { kind: SpikeKind::Norm, value: norm, limit })
    }

    /// Actions within the window before `step`, of which `ways_back` went back at these steps.
    pub fn actions(&self, spec: &SpikeSpec, step: u64, ways_back: impl IntoIterator<Item = u64>) -> u32 {
        let recent = |at: &u64| at.saturating_add(spec.window_steps) > step;
        self.skipped.iter().copied().chain(ways_back).filter(recent).count() as u32
    }
}

/// The middle of some numbers, the lower one of two; 0 of none.
fn median(numbers: &mut [f64]) -> f64 {
    let middle = numbers.len().saturating_sub(1) / 2;
    if numbers.is_empty() {
        return 0.0;
    }
    *numbers.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// What a run remembers of spikes and of what was done about them: part of its training state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyState {
    /// What spikes are judged by.
    #[serde(default, skip_serializing_if = "Memory::is_empty")]
    pub memory: Memory,
    /// Samples that are not trained on.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub left_out: LeftOut,
    /// Updates applied before each spike that the run went back from, in the order of events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ways_back: Vec<u64>,
}

impl PolicyState {
    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        *self == PolicyState::default()
    }
}

/// Samples that a run leaves out: ranges of their numbers over all epochs, ascending and apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeftOut(Vec<[u64; 2]>);

impl LeftOut {
    /// Leaves out `range` too. Ranges that touch become one.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.0.push([range.start, range.end]);
        self.0.sort_unstable();
        let mut joined: Vec<[u64; 2]> = Vec::with_capacity(self.0.len());
        for [start, end] in self.0.drain(..) {
            match joined.last_mut() {
                Some(last) if start <= last[1] => last[1] = last[1].max(end),
                _ => joined.push([start, end]),
            }
        }
        self.0 = joined;
    }

    /// The number of the sample that comes after `consumed` others.
    pub fn sample_after(&self, consumed: u64) -> u64 {
        let mut sample = consumed;
        for [start, end] in &self.0 {
            if sample < *start {
                break;
            }
            sample = sample.saturating_add(end - start);
        }
        sample
    }

    /// The ranges.
    pub fn ranges(&self) -> &[[u64; 2]] {
        &self.0
    }

    /// Whether every sample is used.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec() -> SpikeSpec {
        SpikeSpec {
            action: SpikeAction::Skip,
            history_steps: 5,
            loss_deviations: Some(3.0),
            norm_factor: Some(10.0),
            roll_back_steps: 1,
            skip_steps: 1,
            max_actions: 2,
            window_steps: 100,
        }
    }

    fn memory(losses: &[f64]) -> Memory {
        let mut memory = Memory::default();
        for loss in losses {
            memory.applied(&spec(), (loss.to_bits(), 1f64.to_bits()));
        }
        memory
    }

    #[test]
    fn a_spike_is_told_from_noise() {
        let memory = memory(&[9.0, 5.0, 5.2, 4.8, 5.1, 4.9]);
        assert_eq!(memory.history.len(), 5, "the oldest is forgotten");
        // Median 5.0, deviations 0, 0.1, 0.1, 0.2, 0.2: the limit is 5.3.
        assert_eq!(memory.spike(&spec(), 5.29, 1.0), None);
        let spike = memory.spike(&spec(), 5.31, 99.0).unwrap();
        assert_eq!(spike.kind, SpikeKind::Loss);
        assert!((spike.limit - 5.3).abs() < 1e-9, "{spike:?}");
        assert_eq!(memory.spike(&spec(), 5.0, 10.0), None);
        let spike = memory.spike(&spec(), 5.0, 10.1).unwrap();
        assert_eq!((spike.kind, spike.limit), (SpikeKind::Norm, 10.0));
        assert_eq!(memory.spike(&SpikeSpec { loss_deviations: None, ..spec() }, 99.0, 1.0), None);
        assert_eq!(memory.spike(&SpikeSpec { action: SpikeAction::Off, ..spec() }, 99.0, 99.0), None);
    }

    #[test]
    fn a_short_or_even_history_is_no_reason() {
        assert_eq!(memory(&[1.0; 4]).spike(&spec(), 99.0, 99.0), None);
        assert_eq!(memory(&[1.0; 5]).spike(&spec(), 1.0029, 1.0), None);
        assert!(memory(&[1.0; 5]).spike(&spec(), 1.0031, 1.0).is_some());
    }

    #[test]
    fn actions_are_counted_over_the_window() {
        let mut memory = Memory::default();
        memory.skipped(&spec(), 10);
        memory.skipped(&spec(), 50);
        assert_eq!(memory.actions(&spec(), 60, [20, 59]), 4);
        assert_eq!(memory.actions(&spec(), 115, [20]), 2);
        memory.skipped(&spec(), 120);
        assert_eq!(memory.skipped, [50, 120]);
    }

    #[test]
    fn a_memory_survives_json() {
        let memory = Memory { skipped: [7].into(), ..memory(&[f64::MIN_POSITIVE, 0.1]) };
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
    }

    proptest! {
        /// Samples come in order, all but those left out, each once.
        #[test]
        fn what_is_left_out_never_comes(ranges in prop::collection::vec((0u64..60, 0u64..9), 0..6)) {
            let mut left_out = LeftOut::default();
            let mut gone = std::collections::BTreeSet::new();
            for (start, count) in ranges {
                left_out.add(start..start + count);
                gone.extend(start..start + count);
            }
            let wanted = (0..200).filter(|sample| !gone.contains(sample));
            for (consumed, sample) in (0..).zip(wanted) {
                prop_assert_eq!(left_out.sample_after(consumed), sample);
            }
            prop_assert!(left_out.ranges().windows(2).all(|pair| pair[0][1] < pair[1][0]));
        }
    }
}
