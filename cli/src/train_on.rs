//! What makes a run go on that has reached its last step, without raising a learning rate that has decayed.

use polygram_domain::run_spec::RunSpec;
use polygram_domain::schedule::{Schedule, ScheduleKind};

use crate::units::short_number;

/// Advice for a run that ended after update `done`, one line each.
pub(crate) fn advice(spec: &RunSpec, done: u64) -> Vec<String> {
    let training = &spec.training;
    if done < training.steps {
        return match training.stop_at_step.filter(|stop| *stop <= done) {
            Some(stop) => vec![format!(
                "to go on: the same command without training.stop_at_step = {stop}, or with a later one"
            )],
            None => vec!["the same command continues the run".into()],
        };
    }
    let schedule = &training.schedule;
    let more = training.steps.max(done).saturating_mul(2);
    let last = schedule.lr(training.steps.saturating_sub(1));
    if schedule.kind == ScheduleKind::Constant {
        return vec![format!(
            "to train on, the learning rate {} as before: the same command with --set training.steps={more}",
            short_number(last)
        )];
    }
    let raised = Schedule { steps: more, ..*schedule }.lr(training.steps);
    let mut lines = Vec::new();
    if raised > last {
        lines.push(format!(
            "the learning rate has decayed to {}; more training.steps alone would raise it to {} again",
            short_number(last),
            short_number(raised)
        ));
    }
    if last > 0.0 {
        lines.push(format!(
            "to train on at the rate that it has: the same command with --set training.steps={more} \
             --set training.lr={} --set training.min_lr_ratio=1",
            short_number(last)
        ));
    }
    lines.push(match schedule.kind {
        ScheduleKind::Wsd => format!(
            "to train longer before the decay: a new run from a checkpoint of step {} or before (`polygram ckpt ls {run}`, \
             then `polygram ckpt reshard {run} --step STEP --workers {} --shards {} --to-run NAME`)",
            training.steps.saturating_sub(schedule.decay_steps),
            spec.topology.workers,
            spec.topology.shards,
            run = spec.name,
        ),
        ScheduleKind::Constant | ScheduleKind::Cosine => {
            format!("for a longer cosine: a new run (--run NAME --set training.steps={more})")
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunFile;

    use super::*;

    fn spec(sets: &[String]) -> RunSpec {
        let tiny = include_str!("../../configs/tiny.toml");
        RunFile::parse(tiny, "tiny", sets).and_then(|file| file.resolve()).unwrap()
    }

    /// The advice is followed literally: no step of the longer run has a higher rate than the last one had.
    #[test]
    fn advice_does_not_raise_the_rate() {
        for sets in [
            &["training.schedule=cosine"][..],
            &["training.schedule=wsd", "training.decay_steps=20"],
            &["training.schedule=wsd", "training.decay_steps=20", "training.lr=0.1"],
            &["training.schedule=constant"],
        ] {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            let before = spec(&sets);
            let last = before.training.schedule.lr(59);
            let lines = advice(&before, 60);
            let command = lines.iter().find(|line| line.contains("the same command with --set")).unwrap();
            let mut longer = sets.clone();
            longer.extend(command.split("--set ").skip(1).map(|set| set.trim().to_owned()));
            let after = spec(&longer);
            assert_eq!(after.training.steps, 120, "{lines:?}");
            assert!(!command.contains("0000"), "{command}");
            for step in 60..120 {
                let rate = after.training.schedule.lr(step);
                assert!((rate - last).abs() <= 1e-5 * last, "{lines:?}, step {step}: {rate}");
            }
        }
    }

    #[test]
    fn a_run_that_went_further_is_told_more_steps_than_it_has() {
        let shorter = spec(&["training.steps=20".into()]);
        assert!(advice(&shorter, 60).join("\n").contains("training.steps=120"));
    }

    #[test]
    fn what_a_longer_run_alone_would_do_is_computed() {
        let decaying = spec(&["training.schedule=wsd".into(), "training.decay_steps=20".into()]);
        let lines = advice(&decaying, 60).join("\n");
        assert!(lines.contains("decayed to 3e-4") && lines.contains("raise it to 0.003"), "{lines}");
        assert!(lines.contains("checkpoint of step 40 or before"), "{lines}");
        let to_zero = spec(&["training.min_lr_ratio=0".into()]);
        let lines = advice(&to_zero, 60).join("\n");
        assert!(!lines.contains("training.lr=") && lines.contains("--run NAME"), "{lines}");
    }

    #[test]
    fn a_run_that_stopped_on_the_way_goes_on() {
        assert_eq!(advice(&spec(&[]), 20), ["the same command continues the run"]);
        let stopped = spec(&["training.stop_at_step=20".into()]);
        assert!(advice(&stopped, 20)[0].contains("without training.stop_at_step = 20"));
    }
}
