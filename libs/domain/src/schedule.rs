//! Learning-rate schedules: pure functions of the step.

use serde::{Deserialize, Serialize};

/// Shape of the schedule after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Stays at the peak.
    Constant,
    /// Half a cosine from the peak to the minimum (Loshchilov and Hutter, 1608.03983, without restarts).
    #[default]
    Cosine,
    /// Warm-up, stable, decay: the peak until `decay_steps` before the end, then linear to the minimum
    /// (MiniCPM, 2404.06395).
    Wsd,
}

/// A schedule over `steps` updates. The rate of update `s` (from 0) is [`Schedule::lr`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Shape after warm-up.
    pub kind: ScheduleKind,
    /// Peak learning rate.
    pub peak: f64,
    /// Minimum, as a share of the peak.
    pub min_ratio: f64,
    /// Updates of linear warm-up; update 0 already moves.
    pub warmup_steps: u64,
    /// Updates of the final decay (WSD only).
    pub decay_steps: u64,
    /// Updates in all.
    pub steps: u64,
}

impl Schedule {
    /// Learning rate of update `step`, from 0. Past the end it stays at its last value.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let floor = self.peak * self.min_ratio;
        let progress = |from: u64, to: u64| {
            if to <= from { 1.0 } else { (step.saturating_sub(from) as f64 / (to - from) as f64).min(1.0) }
        };
        match self.kind {
            ScheduleKind::Constant => self.peak,
            ScheduleKind::Cosine => {
                let progress = progress(self.warmup_steps, self.steps.saturating_sub(1));
                floor + (self.peak - floor) * 0.5 * (1.0 + cos_half_turn(progress))
            }
            ScheduleKind::Wsd => {
                let start = self.steps.saturating_sub(self.decay_steps).max(self.warmup_steps);
                if step < start {
                    return self.peak;
                }
                let progress = progress(start.saturating_sub(1), self.steps.saturating_sub(1));
                self.peak + (floor - self.peak) * progress
            }
        }
    }
}

/// cos(π·x) for x in 0..=1, by its Taylor series about the nearest of 0, ½ and 1: sums and products only, so that
/// every machine gets the same bits.
fn cos_half_turn(x: f64) -> f64 {
    use std::f64::consts::PI;
    let series = |angle: f64, first: f64, from: u32| {
        let (mut term, mut sum, mut k) = (first, first, from);
        while k < from + 24 {
            term *= -angle * angle / f64::from((k + 1) * (k + 2));
            sum += term;
            k += 2;
        }
        sum
    };
    if x < 0.25 {
        series(PI * x, 1.0, 0)
    } else if x > 0.75 {
        -series(PI * (1.0 - x), 1.0, 0)
    } else {
        let angle = PI * (0.5 - x);
        series(angle, angle, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> Schedule {
        Schedule { kind, peak: 1.0, min_ratio: 0.1, warmup_steps: 10, decay_steps: 20, steps: 100 }
    }

    #[test]
    fn warms_up_and_ends_at_the_minimum() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Wsd] {
            let s = schedule(kind);
            assert_eq!(s.lr(0), 0.1);
            assert_eq!(s.lr(9), 1.0);
            assert!((s.lr(99) - 0.1).abs() < 1e-12, "{kind:?} ends at {}", s.lr(99));
            assert!((s.lr(1000) - 0.1).abs() < 1e-12);
            assert!((10..99).all(|step| s.lr(step) >= s.lr(step + 1)), "{kind:?} must not rise");
        }
        assert_eq!(schedule(ScheduleKind::Wsd).lr(79), 1.0);
        assert!(schedule(ScheduleKind::Wsd).lr(80) < 1.0);
        assert_eq!(schedule(ScheduleKind::Constant).lr(99), 1.0);
    }

    #[test]
    fn cosine_is_the_cosine() {
        for i in 0..=1000 {
            let x = f64::from(i) / 1000.0;
            assert!((cos_half_turn(x) - (std::f64::consts::PI * x).cos()).abs() < 1e-15, "{x}");
        }
    }
}
