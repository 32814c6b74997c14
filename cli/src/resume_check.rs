//! What changed since the checkpoint that a run goes on from: refused before anything starts, or shown.

use polygram_checkpoint::{Manifest, RunStore};
use polygram_domain::run_file::{Change, OnResume, Refused};
use polygram_domain::{RunFile, RunSpec};

use crate::exit::{Failure, Outcome};
use crate::settings::{Configuration, Root};
use crate::units::counted;

/// A rate that grows by less between two steps is no jump.
const JUMP: f64 = 1.2;

/// What a run that is resumed does otherwise than before.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// One line for each changed key.
    pub(crate) lines: Vec<String>,
    /// The learning rate rises again, nothing is left to train, or held-out data is other data.
    pub(crate) warnings: Vec<String>,
}

/// Compares the configuration with that of the run's newest checkpoint. Where there is none, or it cannot be
/// read, nothing is known: the coordinator reads it again and says what is wrong.
pub(crate) async fn check(configuration: &Configuration, root: &Root) -> Outcome<Changed> {
    let Some((manifest, before)) = newest(configuration, root).await else { return Ok(Changed::default()) };
    let step = manifest.step.0;
    let resumed = configuration.file.resumes(&before).map_err(|error| Failure::usage(error.to_string()))?;
    let changes = resumed.map_err(|refused| refusal(configuration, &refused, step))?;
    let (other, changes): (Vec<Change>, Vec<Change>) = changes.into_iter().partition(is_other_held_out_data);
    let lines = changes.iter().map(|change| format!("changed since the checkpoint of step {step}: {change}"));
    let jump = before.resolve().ok().and_then(|before| jump(&before, &configuration.spec, step));
    let warnings = other.iter().map(|change| incomparable(change, step));
    let warnings = warnings.chain(jump).chain(nothing_left(&configuration.spec, step));
    Ok(Changed { lines: lines.collect(), warnings: warnings.collect() })
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

async fn newest(configuration: &Configuration, root: &Root) -> Option<(Manifest, RunFile)> {
    let store = RunStore::open(&root.address(), &configuration.spec.name).ok()?;
    let manifest = store.latest_manifest().await.ok()?.manifest?;
    let text = store.read_config(&manifest.config).await.ok()?;
    let before = RunFile::parse(&text, "frozen configuration", &[]).ok()?;
    Some((manifest, before))
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
    let (key, last) = match spec.training.stop_at_step {
        Some(stop) if stop < step => ("training.stop_at_step", stop),
        _ => ("training.steps", spec.training.steps),
    };
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
    // A warm-up that goes on is no jump.
    let is_jump = old != new && is > was * JUMP && is > old.lr(step) * JUMP;
    is_jump.then(|| {
        format!(
            "the learning rate rises from {was:.3e} at step {step} to {is:.3e} at step {}: the schedule changed",
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
        assert!(text.contains("from 3.000e-4 at step 60") && text.contains("at step 61"), "{text}");
        assert_eq!(jump(&tiny, &longer, 3), None, "warm-up goes on");
        assert_eq!(jump(&tiny, &spec(&["training.lr=1e-3"]), 20), None, "it falls");
        assert!(jump(&tiny, &spec(&["training.lr=1e-2"]), 20).is_some());
    }
}
