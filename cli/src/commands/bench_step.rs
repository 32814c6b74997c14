//! `polygram bench step`: some steps of a run file, with every process of it on this machine, and where their time goes.
//! The run lives in a folder of its own that is gone afterwards.

use polygram_domain::control::{PhaseSeconds, StepMetrics};
use polygram_faults::FaultInjection;
use serde::Serialize;

use crate::args::BenchStepArgs;
use crate::commands::{block_on, plan};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::launcher::{self, Claim, Ending, Plan};
use crate::printer::Printer;
use crate::settings::{Configuration, Root};
use crate::units;
use crate::{data_check, device_check};

/// What was run, and what was measured.
#[derive(Debug, Serialize)]
struct StepDocument {
    run_file: String,
    workers: u32,
    shards: u32,
    warmup_steps: u64,
    #[serde(flatten)]
    measured: Measured,
}

/// Numbers of some steps. Seconds by phase are rank 0's, and means over the steps.
#[derive(Debug, Serialize)]
struct Measured {
    steps: usize,
    tokens_per_step: u64,
    tokens_per_second: f64,
    step_seconds: Spread,
    seconds_by_phase: PhaseSeconds,
    embedding_wait_ratio: f64,
    data_wait_ratio: f64,
    peak_rss_bytes: u64,
    /// Where steps were taken beside a commit, and some were not.
    commits: Option<Commits>,
}

/// What commits cost the steps beside them. A step's time counts from the end of the one before, so that the copy of the
/// state is in it.
#[derive(Debug, PartialEq, Serialize)]
struct Commits {
    /// Memory that rank 0 keeps for snapshots.
    snapshot_bytes: u64,
    /// The longest time between two steps: the copy of the state is in it.
    longest_pause_seconds: f64,
    /// Steps that began while a checkpoint was being written.
    steps_beside: usize,
    usual_step_seconds: Spread,
    step_seconds_beside: Spread,
    /// The slowest step beside a commit by the usual one (median).
    slowest_beside_by_usual: f64,
    /// The mean of all steps by the mean of the usual ones, less one.
    slowdown: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Spread {
    median: f64,
    minimum: f64,
    maximum: f64,
}

pub(crate) fn run(args: &BenchStepArgs, printer: &mut Printer) -> Outcome {
    let steps = Configuration::load(&args.file, None)?.spec.training.steps;
    let mut file = args.file.clone();
    let last = args.warmup.saturating_add(args.steps);
    file.overrides.push(format!("training.stop_at_step={last}"));
    if let Some(every) = args.commit_every {
        file.overrides.push(format!("checkpoint.every_steps={every}"));
    }
    if steps < last {
        let message =
            format!("training.steps is {steps}, fewer than {last} to be run (--warmup and --steps)");
        return Err(Failure::usage(message).hint(format!("add --set training.steps={last}")));
    }
    let mut configuration = Configuration::load(&file, None)?;
    data_check::check(&mut configuration)?;
    plan::check_memory(&configuration)?;
    let spec = &configuration.spec;
    let programs = launcher::Programs::find()?;
    device_check::check(spec, &programs)?;
    let folder = tempfile::Builder::new().prefix("polygram-bench-").tempdir();
    let folder = folder.map_err(|error| Failure::failed("cannot make a temporary folder").because(error))?;
    let root = Root::Folder(folder.path().to_owned());
    let kept = usize::try_from(args.steps).unwrap_or(usize::MAX);
    let plan = Plan {
        configuration: &configuration,
        kept_steps: kept,
        root: &root,
        claim: Claim::IfVacant,
        faults: FaultInjection::Disabled,
    };
    let (ending, _) = block_on(launcher::launch(&programs, plan, printer))?;
    let steps = match ending {
        Ending::Over(last) => last.steps,
        Ending::AlreadyOver(_) => Vec::new(),
    };
    // Fewer where it was stopped from outside; what the line needs beyond that is not wanted.
    let measured: Vec<StepMetrics> =
        steps.into_iter().filter(|metrics| metrics.step.0 >= args.warmup).collect();
    if measured.len() != kept {
        let message = format!("{} of {kept} steps were measured: the run was stopped before", measured.len());
        return Err(Failure::failed(message));
    }
    let topology = spec.topology;
    let document = StepDocument {
        run_file: file.run_file.display().to_string(),
        workers: topology.workers,
        shards: topology.shards,
        warmup_steps: args.warmup,
        measured: measure(&measured),
    };
    printer.result(&document, || human(&document))?;
    Ok(ExitStatus::Success)
}

/// The numbers of at least one step.
fn measure(steps: &[StepMetrics]) -> Measured {
    let sum = |of: &dyn Fn(&StepMetrics) -> f64| steps.iter().map(of).sum::<f64>();
    let mean = |of: fn(&PhaseSeconds) -> f64| sum(&|step| of(&step.phases)) / steps.len() as f64;
    let seconds = sum(&|step| step.seconds);
    Measured {
        steps: steps.len(),
        tokens_per_step: steps[0].tokens,
        tokens_per_second: sum(&|step| step.tokens as f64) / seconds,
        step_seconds: spread(steps.iter().map(|step| step.seconds).collect()),
        seconds_by_phase: PhaseSeconds {
            lookup: mean(|phases| phases.lookup),
            computing: mean(|phases| phases.computing),
            pushing: mean(|phases| phases.pushing),
            reducing: mean(|phases| phases.reducing),
            updating: mean(|phases| phases.updating),
        },
        embedding_wait_ratio: sum(&|step| step.embedding_wait_seconds) / seconds,
        data_wait_ratio: sum(&|step| step.data_wait_seconds) / seconds,
        peak_rss_bytes: steps.iter().map(|step| step.peak_resident_bytes).max().unwrap_or(0),
        commits: commits(steps),
    }
}

/// Of at least one value.
fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    };
    Spread { median, minimum: values[0], maximum: values[values.len() - 1] }
}

fn commits(steps: &[StepMetrics]) -> Option<Commits> {
    let whole = |step: &StepMetrics| step.boundary_seconds + step.seconds;
    let (beside, usual): (Vec<_>, Vec<_>) = steps.iter().partition(|step| step.commit_under_way);
    if beside.is_empty() || usual.is_empty() {
        return None;
    }
    let mean = |steps: &[&StepMetrics]| steps.iter().map(|s| whole(s)).sum::<f64>() / steps.len() as f64;
    let all: Vec<&StepMetrics> = steps.iter().collect();
    let slowdown = mean(&all) / mean(&usual) - 1.0;
    let (usual, times) = (
        spread(usual.into_iter().map(whole).collect()),
        spread(beside.iter().map(|step| whole(step)).collect()),
    );
    Some(Commits {
        snapshot_bytes: steps.iter().map(|step| step.snapshot_bytes).max().unwrap_or(0),
        longest_pause_seconds: steps.iter().map(|step| step.boundary_seconds).fold(0.0, f64::max),
        steps_beside: beside.len(),
        slowest_beside_by_usual: times.maximum / usual.median,
        usual_step_seconds: usual,
        step_seconds_beside: times,
        slowdown,
    })
}

fn human(document: &StepDocument) -> String {
    let StepDocument { warmup_steps, workers, shards, measured, .. } = document;
    let Measured { steps, tokens_per_step, .. } = measured;
    let Spread { median, minimum, maximum } = measured.step_seconds;
    let mut text = format!(
        "{} of {} after {warmup_steps} others, {}, {}\n\
         {} tokens/s; a step takes {median:.4} s ({minimum:.4} to {maximum:.4})\n",
        units::counted(*steps as u64, "step"),
        units::counted(*tokens_per_step, "token"),
        units::counted((*workers).into(), "worker"),
        units::counted((*shards).into(), "shard"),
        units::count(measured.tokens_per_second.round()),
    );
    let PhaseSeconds { lookup, computing, pushing, reducing, updating } = measured.seconds_by_phase;
    for (name, seconds) in [
        ("lookup", lookup),
        ("computing", computing),
        ("pushing", pushing),
        ("reducing", reducing),
        ("updating", updating),
    ] {
        text.push_str(&format!("{name:>12} {seconds:.4} s\n"));
    }
    let [embedding, data] =
        [measured.embedding_wait_ratio, measured.data_wait_ratio].map(|ratio| 100.0 * ratio);
    let peak = units::bytes(measured.peak_rss_bytes);
    text.push_str(&format!(
        "waited for rows {embedding:.2} % of the time, for tokens {data:.2} %; rank 0 took {peak} at most\n"
    ));
    if let Some(commits) = &measured.commits {
        text.push_str(&format!(
            "{} beside a commit, {:.4} s ({:.4} to {:.4}), others {:.4} s: the slowest {:.2} times; the run is {:.1} % \
             slower by them; a pause for the copy of {} takes {:.3} s at most\n",
            units::counted(commits.steps_beside as u64, "step"),
            commits.step_seconds_beside.median,
            commits.step_seconds_beside.minimum,
            commits.step_seconds_beside.maximum,
            commits.usual_step_seconds.median,
            commits.slowest_beside_by_usual,
            100.0 * commits.slowdown,
            units::bytes(commits.snapshot_bytes),
            commits.longest_pause_seconds,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use polygram_domain::Step;

    use super::*;

    #[test]
    fn figures_are_of_all_steps() {
        let step = |number: u64, seconds: f64| StepMetrics {
            step: Step(number),
            tokens: 100,
            seconds,
            embedding_wait_seconds: 0.1,
            peak_resident_bytes: 7 + number,
            phases: PhaseSeconds { computing: seconds - 0.2, lookup: 0.1, ..PhaseSeconds::default() },
            ..StepMetrics::default()
        };
        let measured = measure(&[step(5, 1.0), step(6, 4.0), step(7, 2.0), step(8, 1.0)]);
        assert_eq!((measured.steps, measured.tokens_per_step, measured.peak_rss_bytes), (4, 100, 15));
        assert_eq!(measured.commits, None);
        assert_eq!(measured.step_seconds, Spread { median: 1.5, minimum: 1.0, maximum: 4.0 });
        assert_eq!(measured.tokens_per_second, 50.0);
        assert_eq!(measured.embedding_wait_ratio, 0.05);
        assert!((measured.seconds_by_phase.computing - 1.8).abs() < 1e-12);
        let document =
            StepDocument { run_file: "run.toml".into(), workers: 1, shards: 2, warmup_steps: 5, measured };
        assert!(human(&document).contains("50 tokens/s"), "{}", human(&document));
    }

    #[test]
    fn a_copy_counts_for_the_step_after_it() {
        let step = |number: u64, boundary_seconds: f64, commit_under_way: bool| StepMetrics {
            step: Step(number),
            seconds: 1.0,
            boundary_seconds,
            commit_under_way,
            snapshot_bytes: 64,
            ..StepMetrics::default()
        };
        let steps = [step(1, 0.0, false), step(2, 0.5, true), step(3, 0.0, true), step(4, 0.0, false)];
        let commits = commits(&steps).unwrap();
        assert_eq!((commits.steps_beside, commits.snapshot_bytes), (2, 64));
        assert_eq!((commits.slowest_beside_by_usual, commits.longest_pause_seconds), (1.5, 0.5));
        assert_eq!(commits.slowdown, 0.125);
    }
}
