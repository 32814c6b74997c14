//! Keys that contradict each other: a key that has no effect beside the others is refused rather than
//! ignored, and no part of the schedule is longer than the run.
//!
//! A switch that is set to "off" by its own key (`training.clip.enabled = false`, a rate of 0) may leave the
//! keys beneath it in the file.

use super::{
    ConfigError, EmbeddingSection, EvaluationSection, RecoveryPointsSection, RunFile, SpikesSection,
    TrainingSection,
};
use crate::embedding::{RowDecay, RowOptimizer};
use crate::run_spec::OnNonfinite;
use crate::schedule::ScheduleKind;
use crate::spikes::SpikeAction;

/// A key that somebody set and nothing reads.
struct Idle {
    key: &'static str,
    is_idle: bool,
    why: &'static str,
}

fn idle(key: &'static str, is_idle: bool, why: &'static str) -> Idle {
    Idle { key, is_idle, why }
}

/// Refuses keys without effect, and schedules longer than the run.
pub(super) fn check(file: &RunFile) -> Result<(), ConfigError> {
    let rules = [data(file), schedule(&file.training), spikes(file), embedding(&file.embedding)];
    if let Some(Idle { key, why, .. }) = rules.into_iter().flatten().find(|rule| rule.is_idle) {
        let joint = if why.ends_with(", or") { "" } else { ";" };
        return Err(ConfigError::Invalid(format!(
            "{key} has no effect: {why}{joint} leave {key} out (--set {key}= does)"
        )));
    }
    lengths(&file.training)
}

fn data(file: &RunFile) -> Vec<Idle> {
    let d = &file.data;
    let (evaluation, points) = (&file.evaluation, &file.recovery_points);
    let every_steps = evaluation.every_steps;
    let has_points = points.every_steps.is_some();
    let is_synthetic = d.synthetic_tokens.is_some();
    let has_held_out = d.held_out.is_some() || d.synthetic_held_out_tokens > 0;
    const SYNTHETIC: &str = "the run makes its own data (data.synthetic_tokens)";
    const NO_EVALUATION: &str = "nothing is evaluated, since evaluation.every_steps is not set: set it, or";
    vec![
        idle("data.held_out", is_synthetic && d.held_out.is_some(), SYNTHETIC),
        idle("data.train_identity", is_synthetic && d.train_identity.is_some(), SYNTHETIC),
        idle("data.held_out_identity", is_synthetic && d.held_out_identity.is_some(), SYNTHETIC),
        idle(
            "data.held_out_identity",
            d.held_out.is_none() && d.held_out_identity.is_some(),
            "there is no held-out data (data.held_out)",
        ),
        idle("data.allow_change", is_synthetic && d.allow_change, SYNTHETIC),
        idle(
            "data.synthetic_held_out_tokens",
            d.train.is_some() && !is_synthetic && d.synthetic_held_out_tokens > 0,
            "the run trains on files, whose held-out data is data.held_out",
        ),
        idle("data.held_out", every_steps.is_none() && d.held_out.is_some(), NO_EVALUATION),
        idle(
            "data.synthetic_held_out_tokens",
            every_steps.is_none() && d.synthetic_held_out_tokens > 0,
            NO_EVALUATION,
        ),
        idle(
            "evaluation.every_steps",
            every_steps.is_some() && !has_held_out,
            "there is no held-out data: set data.held_out (data.synthetic_held_out_tokens for made-up data), or",
        ),
        idle(
            "evaluation.cells",
            every_steps.is_none() && evaluation.cells != EvaluationSection::default().cells,
            NO_EVALUATION,
        ),
        idle("recovery_points.root", !has_points && points.root.is_some(), NO_POINTS),
        idle(
            "recovery_points.changes_below",
            !has_points && points.changes_below != RecoveryPointsSection::default().changes_below,
            NO_POINTS,
        ),
    ]
}

const NO_POINTS: &str = "recovery_points.every_steps is not set, so there are no recovery points: set it, or";

fn schedule(t: &TrainingSection) -> Vec<Idle> {
    let balance = &t.balance;
    vec![
        idle(
            "training.decay_steps",
            t.schedule != ScheduleKind::Wsd && t.decay_steps > 0,
            "only training.schedule = \"wsd\" has a decay of its own length: choose it, or",
        ),
        idle(
            "training.min_lr_ratio",
            t.schedule == ScheduleKind::Constant && t.min_lr_ratio != super::sections::default_min_lr_ratio(),
            "training.schedule = \"constant\" never falls",
        ),
        idle(
            "training.balance.loss_groups",
            balance.loss_groups.is_some() && balance.loss_coefficient == 0.0,
            "training.balance.loss_coefficient is 0, so there is no balance loss: set it, or",
        ),
    ]
}

fn spikes(file: &RunFile) -> Vec<Idle> {
    let (s, defaults) = (&file.spikes, SpikesSection::default());
    let on_nonfinite = file.training.on_nonfinite;
    let is_off = s.action == SpikeAction::Off;
    let rolls_back = s.action == SpikeAction::RollBack || on_nonfinite == OnNonfinite::RollBack;
    let acts = rolls_back || s.action == SpikeAction::Skip || on_nonfinite == OnNonfinite::Skip;
    const OFF: &str = "spikes.action is \"off\": set it, or";
    const NO_ROLL_BACK: &str =
        "neither spikes.action nor training.on_nonfinite is \"roll_back\": set one of them, or";
    const NO_ACTION: &str =
        "neither spikes.action nor training.on_nonfinite is \"skip\" or \"roll_back\": set one of them, or";
    vec![
        idle("spikes.loss_deviations", is_off && s.loss_deviations.is_some(), OFF),
        idle("spikes.norm_factor", is_off && s.norm_factor.is_some(), OFF),
        idle("spikes.history_steps", is_off && s.history_steps != defaults.history_steps, OFF),
        idle(
            "spikes.roll_back_steps",
            !rolls_back && s.roll_back_steps != defaults.roll_back_steps,
            NO_ROLL_BACK,
        ),
        idle("spikes.skip_steps", !rolls_back && s.skip_steps != defaults.skip_steps, NO_ROLL_BACK),
        idle("spikes.max_actions", !acts && s.max_actions != defaults.max_actions, NO_ACTION),
        idle("spikes.window_steps", !acts && s.window_steps != defaults.window_steps, NO_ACTION),
    ]
}

fn embedding(e: &EmbeddingSection) -> Vec<Idle> {
    let defaults = EmbeddingSection::default();
    let is_adam = matches!(e.optimizer, RowOptimizer::Adam | RowOptimizer::PartialRowwiseAdam);
    const NOT_ADAM: &str = "embedding.optimizer has no such moment";
    vec![
        idle("embedding.beta1", !is_adam && e.beta1 != defaults.beta1, NOT_ADAM),
        idle("embedding.beta2", !is_adam && e.beta2 != defaults.beta2, NOT_ADAM),
        idle(
            "embedding.eps",
            e.optimizer == RowOptimizer::Sgd && e.eps != defaults.eps,
            "embedding.optimizer = \"sgd\" divides by nothing",
        ),
        idle(
            "embedding.decay",
            e.decay == RowDecay::All && e.weight_decay == 0.0,
            "embedding.weight_decay is 0, so no row decays: set it, or",
        ),
    ]
}

/// Parts of the run that are longer than the run.
fn lengths(t: &TrainingSection) -> Result<(), ConfigError> {
    let invalid = |message: String| Err(ConfigError::Invalid(message));
    let TrainingSection { steps, warmup_steps, decay_steps, .. } = *t;
    if let Some(stop) = t.stop_at_step.filter(|stop| *stop > steps) {
        return invalid(format!(
            "training.stop_at_step is {stop}, but the run ends after training.steps = {steps}; raise training.steps or \
             leave training.stop_at_step out"
        ));
    }
    if warmup_steps > steps {
        return invalid(format!(
            "training.warmup_steps is {warmup_steps}, more than training.steps = {steps}; a warm-up must end within the \
             run"
        ));
    }
    if t.schedule == ScheduleKind::Wsd && decay_steps == 0 {
        return invalid(
            "training.decay_steps is 0, but training.schedule = \"wsd\" ends with a decay; set training.decay_steps, or \
             choose training.schedule = \"constant\""
                .into(),
        );
    }
    // Each is below 10^12.
    if warmup_steps + decay_steps > steps {
        return invalid(format!(
            "training.warmup_steps = {warmup_steps} and training.decay_steps = {decay_steps} are together more than \
             training.steps = {steps}; warm-up and decay must fit into the run"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = include_str!("../../../../configs/tiny.toml");

    fn resolve(sets: &[&str]) -> Result<(), String> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let file = RunFile::parse(TINY, "tiny", &sets).map_err(|error| error.to_string())?;
        file.resolve().map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_without_effect_are_refused_by_name() {
        for sets in [
            &["data.held_out=x"][..],
            &["data.allow_change=true"],
            &["data.train_identity=x"],
            &["data.held_out_identity=x"],
            &["evaluation.every_steps=5", "data.synthetic_held_out_tokens=0"],
            &["training.decay_steps=5"],
            &["training.min_lr_ratio=0.2", "training.schedule=constant"],
            &["spikes.norm_factor=3.0"],
            &["spikes.loss_deviations=3.0"],
            &["spikes.history_steps=8"],
            &["spikes.skip_steps=2", "spikes.roll_back_steps=2"],
            &["spikes.max_actions=2"],
            &["spikes.window_steps=20"],
            &["recovery_points.root=/x"],
            &["recovery_points.changes_below=0.7"],
            &["embedding.beta1=0.8", "embedding.optimizer=sgd"],
            &["embedding.beta2=0.8", "embedding.optimizer=rowwise_adagrad"],
            &["embedding.eps=1e-8", "embedding.optimizer=sgd"],
            &["embedding.decay=all"],
            &["training.balance.loss_groups=2", "training.balance.loss_coefficient=0"],
        ] {
            let error = resolve(sets).unwrap_err();
            let keys = sets.iter().map(|set| set.split_once('=').unwrap().0);
            assert!(
                error.contains("has no effect") && keys.clone().any(|key| error.starts_with(key)),
                "{sets:?}: {error}"
            );
        }
    }

    #[test]
    fn the_same_keys_are_welcome_where_they_work() {
        for sets in [
            &["training.decay_steps=5", "training.schedule=wsd"][..],
            &["spikes.norm_factor=3.0", "spikes.action=stop"],
            &["spikes.skip_steps=2", "spikes.roll_back_steps=2", "training.on_nonfinite=roll_back"],
            &["spikes.max_actions=2", "training.on_nonfinite=skip"],
            &["recovery_points.root=/x", "recovery_points.every_steps=2"],
            &["embedding.decay=all", "embedding.weight_decay=0.1"],
            &["training.clip.enabled=false", "training.clip.norm=2.0"],
            &["training.stop_at_step=60", "training.warmup_steps=60"],
        ] {
            assert_eq!(resolve(sets), Ok(()), "{sets:?}");
        }
    }

    #[test]
    fn no_part_of_a_schedule_is_longer_than_the_run() {
        for (sets, key) in [
            (&["training.steps=4"][..], "training.warmup_steps"),
            (&["training.stop_at_step=61"], "training.stop_at_step"),
            (&["training.schedule=wsd"], "training.decay_steps"),
            (&["training.schedule=wsd", "training.decay_steps=56"], "training.decay_steps"),
        ] {
            let error = resolve(sets).unwrap_err();
            assert!(
                error.contains(key) && error.contains("60") | error.contains("is 0") | error.contains("= 4"),
                "{sets:?}: {error}"
            );
        }
    }
}
