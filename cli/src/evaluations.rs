//! Losses on held-out sets: in words, and what a model without context would reach on the same tokens.

use std::collections::BTreeMap;

use polygram_checkpoint::{Chain, RunStore};
use polygram_data::Loader;
use polygram_domain::batch::IGNORED_TARGET;
use polygram_domain::control::Evaluation;
use polygram_domain::run_spec::{DataSpec, RunSpec};
use polygram_domain::{HeldOutSets, RunFile, Step};

use crate::settings::Configuration;

/// What the loss on a held-out set is called: its name is left out where a run has one set without a name.
pub(crate) fn label(set: &str) -> String {
    if set == HeldOutSets::UNNAMED { "held-out loss".to_owned() } else { format!("held-out loss of {set}") }
}

/// One line: loss, step and size of the sample.
pub(crate) fn line(evaluation: &Evaluation) -> String {
    let Evaluation { step, set, loss, tokens } = evaluation;
    let tokens = crate::units::counted(*tokens, "token");
    format!("{} {loss:.4} nats per token at step {step}, over {tokens}", label(set))
}

/// What a loss is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Comparison {
    /// The entropy of the evaluated tokens, in nats: no model without context has a smaller loss on them.
    Entropy(f64),
    /// The set held other data when it was evaluated.
    OtherData,
    /// The tokens are not known any more.
    None,
}

/// What `evaluation` is compared with, of a session that began at version `resume_step`. An older evaluation may be one of
/// other data, which `chain`, the run's ledger, and the configurations of its steps in `store` say.
pub(crate) async fn compare(
    evaluation: &Evaluation,
    configuration: &Configuration,
    resume_step: Step,
    past: Option<(&RunStore, &Chain)>,
) -> Comparison {
    let spec = &configuration.spec;
    let entropy = || sample_entropy(spec, evaluation).map_or(Comparison::None, Comparison::Entropy);
    if evaluation.step > resume_step {
        return entropy();
    }
    let Some((store, chain)) = past else { return Comparison::None };
    let Some(was) = identity_at(evaluation, (store, chain)).await else { return Comparison::None };
    let now = configuration.file.data.held_out_identity.as_ref();
    match now.and_then(|now| now.get(&evaluation.set)) {
        Some(now) if now == was => entropy(),
        Some(_) => Comparison::OtherData,
        None => Comparison::None,
    }
}

/// The identity of the data that was evaluated.
async fn identity_at(evaluation: &Evaluation, (store, chain): (&RunStore, &Chain)) -> Option<String> {
    let config = store.read_config(chain.config_at(evaluation.step)?).await.ok()?;
    let file = RunFile::parse(&config, "frozen configuration", &[]).ok()?;
    file.data.held_out_identity?.get(&evaluation.set).map(str::to_owned)
}

/// The entropy, in nats, of the tokens that were predicted in `evaluation`: the first ones of its set. `None` where the data
/// cannot be read, or does not make the number of tokens that were evaluated.
fn sample_entropy(spec: &RunSpec, Evaluation { set, tokens, .. }: &Evaluation) -> Option<f64> {
    let mut spec = spec.clone();
    if let DataSpec::Segments { held_out, .. } = &spec.data {
        // The training data is not needed, and may be large.
        let (_, prefix) = held_out.iter().find(|(name, _)| name == set)?;
        let (train, held_out) =
            (prefix.to_owned(), HeldOutSets::named([(set.clone(), prefix.to_owned())]).ok()?);
        spec.data = DataSpec::Segments { train, held_out };
    }
    let loader = Loader::of_run(&spec).ok()?;
    let number = loader.held_out_sets().position(|name| name == set)?;
    let (mut counts, mut total) = (BTreeMap::<i64, u64>::new(), 0);
    for index in 0..loader.held_out_cells(number) {
        if total >= *tokens {
            break;
        }
        let cell = loader.held_out_cell(number, index).ok()??;
        for target in cell.targets_bt().iter().filter(|target| **target != IGNORED_TARGET) {
            *counts.entry(*target).or_default() += 1;
            total += 1;
        }
    }
    (total == *tokens && total > 0).then(|| entropy(counts.values(), total))
}

/// The entropy, in nats, of the distribution that `counts` of `total` make.
fn entropy<'a>(counts: impl Iterator<Item = &'a u64>, total: u64) -> f64 {
    let total = total as f64;
    let sum: f64 = counts.map(|count| *count as f64 / total).map(|share| share * share.ln()).sum();
    (-sum).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entropy_is_that_of_the_evaluated_tokens() {
        let tiny = include_str!("../../configs/tiny.toml");
        let spec = RunFile::parse(tiny, "tiny", &[]).and_then(|file| file.resolve()).unwrap();
        let evaluation =
            |tokens| Evaluation { step: Step(1), set: HeldOutSets::UNNAMED.into(), loss: 1.0, tokens };
        let cell = u64::from(spec.training.micro_batch_size * spec.training.seq_len);
        let (few, many) =
            (sample_entropy(&spec, &evaluation(cell)), sample_entropy(&spec, &evaluation(20 * cell)));
        // Few tokens have few kinds: their entropy is at most ln of their number, and below that of many.
        assert!(few.unwrap() <= (cell as f64).ln() && few.unwrap() < many.unwrap(), "{few:?} {many:?}");
        for tokens in [0, cell - 1, u64::MAX] {
            assert_eq!(sample_entropy(&spec, &evaluation(tokens)), None, "{tokens} are no whole cells of it");
        }
        assert_eq!(sample_entropy(&spec, &Evaluation { set: "other".into(), ..evaluation(cell) }), None);
        assert_eq!(entropy([1, 1].iter(), 2), 2f64.ln());
        assert_eq!(entropy([7].iter(), 7), 0.0);
    }
}
