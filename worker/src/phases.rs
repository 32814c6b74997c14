//! Step and phase of the compute thread: shown in heartbeats, timed for metrics, and a place for faults of tests.

use std::time::Instant;

use polygram_domain::Step;
use polygram_domain::control::{Phase, PhaseSeconds};
use polygram_proto::control::Progress;

use crate::compute::ExchangeWatch;

/// Where the compute thread is, and where the time of its step goes.
pub struct Phases {
    progress: Progress,
    /// The present phase and when it began.
    now: (Phase, Instant),
    seconds: PhaseSeconds,
    step_began: Instant,
    step_ended: Instant,
    boundary_seconds: f64,
}

/// Wall time of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTiming {
    /// From its first lookup to its last update.
    pub seconds: f64,
    /// Between the step before and this one.
    pub boundary_seconds: f64,
    /// `seconds` by phase.
    pub phases: PhaseSeconds,
}

impl Phases {
    /// Shown through `progress`.
    pub fn new(progress: Progress) -> Phases {
        let now = Instant::now();
        Phases {
            progress,
            now: (Phase::Starting, now),
            seconds: PhaseSeconds::default(),
            step_began: now,
            step_ended: now,
            boundary_seconds: 0.0,
        }
    }

    /// A step begins.
    pub fn begin_step(&mut self) {
        self.step_began = Instant::now();
        self.boundary_seconds = (self.step_began - self.step_ended).as_secs_f64();
        self.now = (Phase::Starting, self.step_began);
        self.seconds = PhaseSeconds::default();
    }

    /// A phase begins.
    pub fn enter(&mut self, step: Step, phase: Phase) {
        self.progress.set(step, phase);
        self.count(phase);
        polygram_faults::enter(step.0, phase.as_str());
    }

    /// The step is done; the present phase lasts.
    pub fn end_step(&mut self) -> StepTiming {
        self.count(self.now.0);
        self.step_ended = self.now.1;
        StepTiming {
            seconds: (self.step_ended - self.step_began).as_secs_f64(),
            boundary_seconds: self.boundary_seconds,
            phases: self.seconds,
        }
    }

    /// The expert exchange reports to it whether it waits: heartbeats then show that this rank exchanges, not computes.
    pub fn exchange_watch(&self) -> ExchangeWatch {
        let progress = self.progress.clone();
        let mut before = Phase::Computing;
        Box::new(move |waits| {
            let (step, phase) = progress.get();
            if !waits {
                return progress.set(step, before);
            }
            before = phase;
            progress.set(step, Phase::Exchanging);
            polygram_faults::enter(step.0, Phase::Exchanging.as_str());
        })
    }

    fn count(&mut self, phase: Phase) {
        let (last, since) = std::mem::replace(&mut self.now, (phase, Instant::now()));
        self.seconds.add(last, (self.now.1 - since).as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_step() {
        let progress = Progress::new(Step(0), Phase::Starting);
        let mut phases = Phases::new(progress.clone());
        for step in (4..6).map(Step) {
            phases.begin_step();
            for phase in [Phase::Lookup, Phase::Computing, Phase::Reducing, Phase::Updating] {
                phases.enter(step, phase);
                assert_eq!(progress.get(), (step, phase));
                std::hint::black_box((0..10_000).sum::<u64>());
            }
            let timing = phases.end_step();
            let PhaseSeconds { lookup, computing, pushing, reducing, updating } = timing.phases;
            let sum = lookup + computing + pushing + reducing + updating;
            assert!(pushing == 0.0 && sum > 0.0 && sum <= timing.seconds, "{timing:?}");
            assert!(timing.boundary_seconds >= 0.0);
        }
    }
}
