//! The progress line: numbers of the newest steps made into one dense line. Pure; the caller tells the time.

use std::collections::VecDeque;

use polygram_proto::control::StepMetrics;

use crate::units;

/// Steps over which speeds are averaged.
const WINDOW: usize = 16;

/// What is known of a run's progress.
#[derive(Debug)]
pub(crate) struct ProgressLine {
    last_step: u64,
    recent: VecDeque<StepMetrics>,
    /// Steps that are kept.
    kept: usize,
    step_seconds: f64,
    /// Steps of this session, and seconds from the launch to the first one's beginning.
    steps: u64,
    first_began_seconds: f64,
    last_commit: Option<u64>,
}

impl ProgressLine {
    /// For a session that ends after update number `last_step`; the newest `kept` steps are kept, or as many as speeds
    /// are averaged over.
    pub(crate) fn new(last_step: u64, kept: usize) -> ProgressLine {
        ProgressLine {
            last_step,
            recent: VecDeque::new(),
            kept: kept.max(WINDOW),
            step_seconds: 0.0,
            steps: 0,
            first_began_seconds: 0.0,
            last_commit: None,
        }
    }

    /// Takes one step's numbers, `elapsed_seconds` after the launch.
    pub(crate) fn step(&mut self, metrics: StepMetrics, elapsed_seconds: f64) {
        // A run that went back does these steps again.
        while self.recent.back().is_some_and(|newest| newest.step >= metrics.step) {
            self.recent.pop_back();
        }
        if self.steps == 0 {
            self.first_began_seconds = elapsed_seconds - metrics.seconds;
        }
        self.steps += 1;
        self.step_seconds += metrics.seconds;
        if self.recent.len() == self.kept {
            self.recent.pop_front();
        }
        self.recent.push_back(metrics);
    }

    /// Takes a commit.
    pub(crate) fn committed(&mut self, step: u64) {
        self.last_commit = Some(step);
    }

    /// The newest step's numbers.
    pub(crate) fn newest(&self) -> Option<&StepMetrics> {
        self.recent.back()
    }

    /// The steps that were kept, in order.
    pub(crate) fn into_steps(self) -> Vec<StepMetrics> {
        self.recent.into()
    }

    /// The newest commit of this session.
    pub(crate) fn last_commit(&self) -> Option<u64> {
        self.last_commit
    }

    /// Seconds spent in steps over `elapsed_seconds` since the launch: what is left after starting, restoring,
    /// evaluating and committing.
    pub(crate) fn goodput(&self, elapsed_seconds: f64) -> f64 {
        if elapsed_seconds > 0.0 { (self.step_seconds / elapsed_seconds).min(1.0) } else { 0.0 }
    }

    /// The line, `elapsed_seconds` after the launch; none before the first step.
    pub(crate) fn render(&self, elapsed_seconds: f64) -> Option<String> {
        let newest = self.newest()?;
        let sum = |of: fn(&StepMetrics) -> f64| self.recent.iter().rev().take(WINDOW).map(of).sum::<f64>();
        let seconds = sum(|m| m.seconds).max(f64::MIN_POSITIVE);
        let done = newest.step.0 + 1;
        let remaining = self.last_step.saturating_sub(done) as f64;
        let goodput = self.goodput(elapsed_seconds);
        // Evaluations and commits between the steps so far count: there will be as many.
        let eta =
            remaining * (elapsed_seconds - self.first_began_seconds).max(0.0) / self.steps.max(1) as f64;
        let mut line = format!(
            "step {done}/{}  loss {:.4}  {} tok/s  mem {}  data wait {}  embedding wait {}",
            self.last_step,
            newest.loss,
            units::count((sum(|m| m.tokens as f64) / seconds).round()),
            units::bytes(newest.resident_bytes),
            units::percent(sum(|m| m.data_wait_seconds) / seconds),
            units::percent(sum(|m| m.embedding_wait_seconds) / seconds),
        );
        match self.last_commit {
            Some(step) => line.push_str(&format!("  commit {step}")),
            None => line.push_str("  commit -"),
        }
        line.push_str(&format!("  eta {}  goodput {}", units::duration(eta), units::percent(goodput)));
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::Step;

    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        StepMetrics {
            step: Step(step),
            loss: 7.25,
            grad_norm: 1.0,
            lr: 1e-3,
            tokens: 2048,
            seconds: 0.5,
            data_wait_seconds: 0.005,
            embedding_wait_seconds: 0.05,
            resident_bytes: 3 << 29,
            ..StepMetrics::default()
        }
    }

    #[test]
    fn the_line_is_dense_and_complete() {
        let mut line = ProgressLine::new(240, 0);
        assert_eq!(line.render(1.0), None);
        for step in 0..40 {
            line.step(metrics(step), 3.5 + 0.6 * step as f64);
        }
        line.committed(20);
        assert_eq!(
            line.render(25.0).unwrap(),
            "step 40/240  loss 7.2500  4.10 k tok/s  mem 1.50 GiB  data wait 1%  embedding wait 10%  commit 20  \
             eta 1m 50s  goodput 80%"
        );
    }

    #[test]
    fn odd_numbers_do_not_break_it() {
        let mut line = ProgressLine::new(1, 0);
        line.step(StepMetrics { loss: f64::NAN, seconds: 0.0, ..metrics(5) }, 0.0);
        assert!(line.render(0.0).unwrap().starts_with("step 6/1  loss NaN"));
    }
}
