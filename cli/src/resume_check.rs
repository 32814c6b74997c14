//! What changed since the checkpoint that a run goes on from: refused before anything starts, or shown.

use polygram_checkpoint::{Manifest, RunStore, keys};
use polygram_domain::control::{RunState, RunStatus};
use polygram_domain::run_file::{Change, OnResume, Refused};
use polygram_domain::{RunFile, RunSpec, Step};

use crate::exit::{Failure, Outcome};
use crate::settings::{Configuration, Root};
use crate::stored;
use crate::units::{counted, short_number};

/// A rate that grows by less between two steps is no jump.
const JUMP: f64 = 1.2;

/// What a run that is resumed does otherwise than before.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// One line for each changed key.
    pub(crate) lines: Vec<String>,
    /// The learning rate rises again, held-out data is other data, or checkpoints are gone.
    pub(crate) warnings: Vec<String>,
    /// Nothing is left to train, and nothing else to do.
    pub(crate) idle: Option<Idle>,
}

/// A run that has reached its last step, or that the settings end before the step that it has reached.
#[derive(Debug)]
pub(crate) struct Idle {
    /// The step of its newest checkpoint.
    pub(crate) step: u64,
    /// What the store says of it.
    pub(crate) status: RunStatus,
    /// What it was trained with.
    pub(crate) before: RunSpec,
    /// The key that ends it, and its value.
    end: (&'static str, u64),
    /// Keys that the command changes.
    changes: usize,
}

impl Idle {
    /// Why nothing is trained.
    pub(crate) fn reason(&self) -> String {
        let settings = if self.changes > 0 { ", and its settings are left as they were" } else { "" };
        if self.before.last_step() == self.end.1 {
            return format!("nothing is left to train{settings}");
        }
        let (key, last) = self.end;
        format!("nothing is trained, for {key} is {last}{settings}")
    }

    /// What makes a run go on that was trained for more steps than it has done.
    pub(crate) fn cure(&self) -> String {
        let ((key, _), step) = (self.end, self.step);
        format!(
            "to train on: the same command with {key} above {step}, or without it; the run was trained with \
             training.steps = {}",
            self.before.training.steps
        )
    }
}

/// Compares the configuration with that of the run's newest checkpoint. Where the store cannot be read, nothing is known: the
/// coordinator reads it again and says what is wrong.
///
/// # Errors
/// A change that is refused, or a folder that is the copy of another run.
pub(crate) async fn check(configuration: &Configuration, root: &Root) -> Outcome<Changed> {
    let spec = &configuration.spec;
    let Ok(store) = RunStore::open(&root.address(), &spec.name) else { return Ok(Changed::default()) };
    let latest = match store.latest_manifest().await {
        Ok(latest) => latest,
        Err(error) if error.is_of_another_run() => return Err(stored::refused(root, error)),
        Err(_) => return Ok(Changed::default()),
    };
    let mut status: Option<RunStatus> = store.read_status().await.ok().flatten();
    if let Some(status) = status.as_mut().filter(|status| !status.state.is_over()) {
        // One whose coordinator was killed may have recorded steps after its last status.
        status.step = status.step.max(Step(store.newest_metrics_step().await.unwrap_or(0)));
    }
    let is_sound = latest.damaged.is_empty()
        && store.list(keys::DAMAGED).await.is_ok_and(|quarantined| quarantined.is_empty());
    let gone = status.as_ref().filter(|_| is_sound).and_then(|status| {
        // Recovery points may be newer than what is committed.
        let newest = latest.manifest.as_ref().map(|manifest| manifest.step);
        gone(status, newest).filter(|_| spec.recovery_points.is_none())
    });
    let Some(manifest) = latest.manifest else {
        return Ok(Changed { warnings: gone.into_iter().collect(), ..Changed::default() });
    };
    let Some(before) = frozen(&store, &manifest).await else { return Ok(Changed::default()) };
    let step = manifest.step.0;
    let resumed = configuration.file.resumes(&before).map_err(|error| Failure::usage(error.to_string()))?;
    let changes = resumed.map_err(|refused| refusal(configuration, &refused, step))?;
    let (other, changes): (Vec<Change>, Vec<Change>) = changes.into_iter().partition(is_other_held_out_data);
    let lines = changes.iter().map(|change| format!("changed since the checkpoint of step {step}: {change}"));
    let before = before.resolve().ok();
    let jump = before.as_ref().and_then(|before| jump(before, spec, step));
    let warnings = other.iter().map(|change| incomparable(change, step));
    let warnings = warnings.chain(gone).chain(jump).chain(nothing_left(spec, step)).collect();
    let idle =
        before.zip(status.filter(|_| is_sound)).and_then(|(before, status)| idle(step, spec, before, status));
    let idle = idle.map(|idle| Idle { changes: changes.len(), ..idle });
    Ok(Changed { lines: lines.collect(), warnings, idle })
}

/// Whether nothing is to be done: no step is left, the store says how the run ended, and keeps no checkpoint that would have
/// to go.
fn idle(step: u64, spec: &RunSpec, before: RunSpec, status: RunStatus) -> Option<Idle> {
    let is_over = matches!(status.state, RunState::Completed | RunState::Stopped);
    let keeps = spec.checkpoint.keep >= before.checkpoint.keep;
    let is_of_checkpoint = status.run == spec.name.as_str() && status.step.0 == step;
    let end = end_of(spec);
    (end.1 <= step && is_over && keeps && is_of_checkpoint).then_some(Idle {
        step,
        status,
        before,
        end,
        changes: 0,
    })
}

/// The key that ends a run, and its value.
fn end_of(spec: &RunSpec) -> (&'static str, u64) {
    match spec.training.stop_at_step {
        Some(stop) if stop < spec.training.steps => ("training.stop_at_step", stop),
        _ => ("training.steps", spec.training.steps),
    }
}

/// Says so if a run goes on from before the step that it had reached, since checkpoints are gone or nothing was committed.
fn gone(status: &RunStatus, newest: Option<Step>) -> Option<String> {
    let RunStatus { run, step, last_commit, .. } = status;
    if newest.is_none() && step.0 > 0 {
        let why = match last_commit {
            Some(_) => "no checkpoint of it is left",
            None => "nothing of it was committed",
        };
        return Some(format!("run {run} had done {}, but {why}: it begins anew", counted(step.0, "step")));
    }
    let (was, newest) = (last_commit.as_ref().filter(|_| status.state.is_over())?, newest?);
    (newest < *was).then(|| {
        format!(
            "the checkpoint of step {was} of run {run} is not there any more: it goes on from step {newest}"
        )
    })
}

/// The run file that `manifest` was made with.
async fn frozen(store: &RunStore, manifest: &Manifest) -> Option<RunFile> {
    let text = store.read_config(&manifest.config).await.ok()?;
    RunFile::parse(&text, "frozen configuration", &[]).ok()
}

/// Whether a held-out set has other data than before, and not only an identity that was not known.
fn is_other_held_out_data(change: &Change) -> bool {
    change.on_resume() == OnResume::HeldOutData && change.before.is_some() && change.after.is_some()
}

fn incomparable(Change { key, before, after }: &Change, step: u64) -> String {
    let set = key.replacen("_identity", "", 1);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!(
        "held-out data changed: {set} was {} and is {} now; its losses are not comparable with those up to step {step}",
        text(before),
        text(after)
    )
}

fn refusal(configuration: &Configuration, refused: &Refused, step: u64) -> Failure {
    let run = &configuration.spec.name;
    // Data is given back by its files, not by its identity.
    let settings = refused.changes.iter().filter(|(change, _)| change.on_resume() != OnResume::Data);
    let back =
        |(change, _): &(Change, _)| Some(format!("--set '{}={}'", change.key, change.before.as_ref()?));
    let back: Vec<String> = settings.filter_map(back).collect();
    let back = if back.is_empty() { String::new() } else { format!("set it back ({}), or ", back.join(" ")) };
    Failure::usage(format!("run {run} cannot be resumed from step {step}: {refused}"))
        .hint(format!("{back}train under another name (--run NAME)"))
}

/// Says so if the run is to end before the `step` that it has reached.
fn nothing_left(spec: &RunSpec, step: u64) -> Option<String> {
    let (key, last) = end_of(spec);
    (last < step).then(|| {
        format!(
            "{key} is {last}, but the run has done {} already: nothing is trained, and its checkpoint of step {step} stays \
             as it is; to train on, set {key} above {step}",
            counted(step, "step")
        )
    })
}

/// Says so if the learning rate rises at the step that the run goes on with.
fn jump(before: &RunSpec, after: &RunSpec, step: u64) -> Option<String> {
    let (old, new) = (&before.training.schedule, &after.training.schedule);
    let (was, is) = (old.lr(step.checked_sub(1)?), new.lr(step));
    // A warm-up that goes on is no jump, nor is a step that is not done.
    let is_jump = old != new && step < after.last_step() && is > was * JUMP && is > old.lr(step) * JUMP;
    is_jump.then(|| {
        format!(
            "the learning rate rises from {} at step {step} to {} at step {}: the schedule changed",
            short_number(was),
            short_number(is),
            step + 1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(sets: &[&str]) -> RunSpec {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let tiny = include_str!("../../configs/tiny.toml");
        RunFile::parse(tiny, "tiny", &sets).and_then(|file| file.resolve()).unwrap()
    }

    #[test]
    fn other_held_out_data_is_told_and_a_new_set_is_not() {
        let change = |before: Option<&str>, after: Option<&str>| Change {
            key: "data.held_out_identity.code".into(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        for (before, after, is_other) in
            [(Some("x"), Some("y"), true), (None, Some("y"), false), (Some("x"), None, false)]
        {
            assert_eq!(is_other_held_out_data(&change(before, after)), is_other, "{before:?} {after:?}");
        }
        let text = incomparable(&change(Some("x"), Some("y")), 20);
        assert!(text.contains("data.held_out.code was x and is y now") && text.contains("step 20"), "{text}");
    }

    #[test]
    fn fewer_steps_than_are_done_are_told() {
        assert_eq!(nothing_left(&spec(&[]), 60), None);
        assert_eq!(nothing_left(&spec(&["training.stop_at_step=20"]), 20), None);
        let text = nothing_left(&spec(&["training.steps=20"]), 60).unwrap();
        assert!(text.contains("training.steps is 20, but the run has done 60 steps"), "{text}");
        let text = nothing_left(&spec(&["training.stop_at_step=20"]), 40).unwrap();
        assert!(text.contains("set training.stop_at_step above 40"), "{text}");
    }

    #[test]
    fn a_rate_that_rises_again_is_told() {
        let tiny = spec(&[]);
        assert_eq!(jump(&tiny, &tiny, 60), None);
        let longer = spec(&["training.steps=120"]);
        let text = jump(&tiny, &longer, 60).unwrap();
        assert!(text.contains("from 3e-4 at step 60") && text.contains("at step 61"), "{text}");
        assert_eq!(jump(&tiny, &longer, 3), None, "warm-up goes on");
        assert_eq!(jump(&tiny, &spec(&["training.lr=1e-3"]), 20), None, "it falls");
        assert!(jump(&tiny, &spec(&["training.lr=1e-2"]), 20).is_some());
        let idle = spec(&["training.lr=1e-2", "training.steps=30"]);
        assert_eq!(jump(&tiny, &idle, 40), None, "nothing is trained at that rate");
    }
}
