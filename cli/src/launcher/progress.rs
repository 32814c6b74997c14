//! The progress line: numbers of the newest steps made into one line that fits its width. Pure; the caller tells the
//! time.

use std::collections::VecDeque;

use polygram_domain::control::StepMetrics;
use polygram_domain::float;
use serde::Serialize;

use crate::units;

/// Steps over which speeds are averaged.
const WINDOW: usize = 16;
/// Steps over which the loss is averaged at the end.
const LOSS_WINDOW: usize = 100;

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

/// The mean loss of the newest steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct MeanLoss {
    /// Nats per token.
    #[serde(with = "float")]
    pub(crate) loss: f64,
    /// Steps that it is the mean of.
    pub(crate) steps: usize,
}

/// A part of the line; parts are left out, the last in `rank` first, until the line fits.
struct Part {
    text: String,
    rank: u32,
}

impl ProgressLine {
    /// For a session that ends after update number `last_step`; the newest `kept` steps are kept, or as many as are
    /// averaged over.
    pub(crate) fn new(last_step: u64, kept: usize) -> ProgressLine {
        ProgressLine {
            last_step,
            recent: VecDeque::new(),
            kept: kept.max(WINDOW).max(LOSS_WINDOW),
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

    /// The mean loss of this session's newest steps, at most 100; `None` before the first.
    pub(crate) fn mean_loss(&self) -> Option<MeanLoss> {
        let steps = self.recent.len().min(LOSS_WINDOW);
        let sum: f64 = self.recent.iter().rev().take(LOSS_WINDOW).map(|metrics| metrics.loss).sum();
        (steps > 0).then(|| MeanLoss { loss: sum / steps as f64, steps })
    }

    /// The line in at most `width` columns, `elapsed_seconds` after the launch; none before the first step. The step is
    /// always there, the other parts as far as they fit: loss and remaining time go last.
    pub(crate) fn render(&self, elapsed_seconds: f64, width: usize) -> Option<String> {
        let mut parts = self.parts(elapsed_seconds)?;
        let columns = |parts: &[Part]| {
            let texts: usize = parts.iter().map(|part| part.text.chars().count()).sum();
            texts + 2 * parts.len().saturating_sub(1)
        };
        while parts.len() > 1 && columns(&parts) > width {
            let last = parts.iter().map(|part| part.rank).max();
            parts.retain(|part| Some(part.rank) != last);
        }
        let texts: Vec<String> = parts.into_iter().map(|part| part.text).collect();
        Some(texts.join("  "))
    }

    /// The parts in the order of the line, each with its own rank.
    fn parts(&self, elapsed_seconds: f64) -> Option<Vec<Part>> {
        let newest = self.newest()?;
        let sum = |of: fn(&StepMetrics) -> f64| self.recent.iter().rev().take(WINDOW).map(of).sum::<f64>();
        let seconds = sum(|m| m.seconds).max(f64::MIN_POSITIVE);
        let done = newest.step.0.saturating_add(1);
        let remaining = self.last_step.saturating_sub(done) as f64;
        // Evaluations and commits between the steps so far count: there will be as many.
        let eta =
            remaining * (elapsed_seconds - self.first_began_seconds).max(0.0) / self.steps.max(1) as f64;
        let speed = units::count((sum(|m| m.tokens as f64) / seconds).round());
        let commit = self.last_commit.map_or("-".to_owned(), |step| step.to_string());
        let part = |rank, text| Part { text, rank };
        Some(vec![
            part(0, format!("step {done}/{}", self.last_step)),
            part(1, format!("loss {:.4}", newest.loss)),
            part(2, format!("eta {}", units::duration(eta))),
            part(3, format!("{speed} tok/s")),
            part(4, format!("commit {commit}")),
            part(6, format!("goodput {}", units::percent(self.goodput(elapsed_seconds)))),
            part(5, format!("row wait {}", units::percent(sum(|m| m.embedding_wait_seconds) / seconds))),
            part(8, format!("data wait {}", units::percent(sum(|m| m.data_wait_seconds) / seconds))),
            part(7, format!("mem {}", units::bytes(newest.resident_bytes))),
        ])
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

    fn after_40_steps() -> ProgressLine {
        let mut line = ProgressLine::new(240, 0);
        assert_eq!(line.render(1.0, 80), None);
        for step in 0..40 {
            line.step(metrics(step), 3.5 + 0.6 * step as f64);
        }
        line.committed(20);
        line
    }

    #[test]
    fn the_line_holds_what_its_width_allows() {
        let line = after_40_steps();
        let whole = "step 40/240  loss 7.2500  eta 1m 50s  4.10 k tok/s  commit 20  goodput 80%  row wait 10%  \
                     data wait 1%  mem 1.50 GiB";
        for (width, text) in [
            (usize::MAX, whole),
            (whole.len(), whole),
            (79, "step 40/240  loss 7.2500  eta 1m 50s  4.10 k tok/s  commit 20  row wait 10%"),
            (60, "step 40/240  loss 7.2500  eta 1m 50s  4.10 k tok/s"),
            (40, "step 40/240  loss 7.2500  eta 1m 50s"),
            (24, "step 40/240  loss 7.2500"),
            (12, "step 40/240"),
            (0, "step 40/240"),
        ] {
            assert_eq!(line.render(25.0, width).unwrap(), text, "{width} columns");
        }
    }

    /// Long numbers: the remaining time is still there on a terminal of 80 columns.
    #[test]
    fn the_remaining_time_fits_80_columns() {
        let mut line = ProgressLine::new(10_000_000, 0);
        line.step(StepMetrics { step: Step(1_234_567), loss: 12.3456, seconds: 12.5, ..metrics(0) }, 13.0);
        line.committed(1_234_000);
        let text = line.render(14.0, 79).unwrap();
        assert!(text.contains("eta ") && text.contains("commit 1234000"), "{text}");
        assert!(text.chars().count() <= 79, "{text}");
    }

    #[test]
    fn the_mean_loss_is_of_the_newest_hundred_steps() {
        let mut line = ProgressLine::new(1000, 0);
        assert_eq!(line.mean_loss(), None);
        for step in 0..150 {
            line.step(StepMetrics { loss: step as f64, ..metrics(step) }, 1.0);
        }
        assert_eq!(line.mean_loss(), Some(MeanLoss { loss: 99.5, steps: 100 }));
        // Steps that are done again count once.
        line.step(StepMetrics { loss: 0.0, ..metrics(140) }, 1.0);
        let again = line.mean_loss().unwrap();
        assert_eq!(again.steps, 91);
        assert!((again.loss - (50..140).sum::<u64>() as f64 / 91.0).abs() < 1e-9, "{again:?}");
        line.step(StepMetrics { loss: f64::NAN, ..metrics(141) }, 1.0);
        assert!(line.mean_loss().unwrap().loss.is_nan(), "a mean hides no step");
    }

    #[test]
    fn odd_numbers_do_not_break_it() {
        let mut line = ProgressLine::new(1, 0);
        line.step(StepMetrics { loss: f64::NAN, seconds: 0.0, ..metrics(5) }, 0.0);
        assert!(line.render(0.0, 80).unwrap().starts_with("step 6/1  loss NaN"));
        line.step(StepMetrics { step: Step(u64::MAX), ..metrics(0) }, 0.0);
        assert!(line.render(f64::NAN, 10).is_some());
    }
}
