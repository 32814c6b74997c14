//! Which settings a run may change when it is continued.
//!
//! A checkpoint is the state of one model on one order of samples: what decides the shape of the state, the values of
//! rows never written or the meaning of "samples consumed" stays as it was. Rates, schedules, lengths, topology,
//! intervals and paths may change.

use polygram_domain::{ConfigError, RunFile};

/// Keys, or sections ending in a dot, that stay.
const FIXED: &[(&str, &str)] = &[
    ("model.", "the checkpoint holds the tensors of another model"),
    ("ngram.", "the checkpoint holds rows of other tables"),
    ("run.seed", "initial rows and the order of samples follow from it"),
    ("training.seq_len", "the data cursor counts samples of this length"),
    ("data.synthetic_tokens", "the data cursor counts samples of this data"),
    ("embedding.init_std", "rows never written follow from it"),
    ("embedding.optimizer", "the checkpoint holds the state of another optimizer"),
    ("embedding.bias", "the moments in the checkpoint were corrected by another count"),
    ("embedding.decay", "the checkpoint does not say how far its rows have decayed"),
    ("embedding.storage", "the checkpoint's rows were stored in another format"),
    ("device.engine", "the checkpoint was trained by another engine"),
];

/// Why a run cannot be continued with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// A setting changed that must stay.
    #[error(
        "{key} was {before} when step {step} was committed and is {after} now; {why}. Set it back, or train under \
         another run name"
    )]
    Changed {
        /// The key, dotted.
        key: String,
        /// Its value in the checkpoint's configuration.
        before: String,
        /// Its value now.
        after: String,
        /// The checkpoint's step.
        step: u64,
        /// What depends on it.
        why: &'static str,
    },
    /// One of the configurations cannot be taken apart.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Whether a checkpoint of `step` made under `before` may be continued under `after`.
pub fn check(before: &RunFile, after: &RunFile, step: u64) -> Result<(), Incompatible> {
    let values = |file: &RunFile| file.origins(&file.to_toml()?, &[]);
    let (old, new) = (values(before)?, values(after)?);
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let fixed = FIXED
            .iter()
            .find(|(fixed, _)| if fixed.ends_with('.') { key.starts_with(fixed) } else { key == fixed });
        let Some((_, why)) = fixed else { continue };
        let text = |value: Option<&(String, _)>| value.map_or("not set".into(), |(text, _)| text.clone());
        let (before, after) = (text(old.get(key)), text(new.get(key)));
        if before != after {
            return Err(Incompatible::Changed { key: key.clone(), before, after, step, why });
        }
    }
    let samples = |file: &RunFile| u64::from(file.training.cells) * u64::from(file.training.micro_batch_size);
    if samples(before) != samples(after) {
        return Err(Incompatible::Changed {
            key: "training.cells × training.micro_batch_size".into(),
            before: samples(before).to_string(),
            after: samples(after).to_string(),
            step,
            why: "the data cursor counts this many samples a step",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = include_str!("../../configs/tiny.toml");

    fn tiny(overrides: &[&str]) -> RunFile {
        let overrides: Vec<String> = overrides.iter().map(|&o| o.to_owned()).collect();
        RunFile::parse(TINY, "tiny", &overrides).unwrap()
    }

    #[test]
    fn what_decides_the_state_stays() {
        for (change, key) in [
            ("model.hidden_size=96", "model.hidden_size"),
            ("model.rms_norm_eps=1e-6", "model.rms_norm_eps"),
            ("ngram.heads=1", "ngram.heads"),
            ("ngram.base_rows=1005", "ngram.base_rows"),
            ("ngram.ignored_tokens=[3]", "ngram.ignored_tokens"),
            ("run.seed=8", "run.seed"),
            ("training.seq_len=64", "training.seq_len"),
            ("training.cells=8", "training.cells"),
            ("training.micro_batch_size=1", "training.micro_batch_size"),
            ("data.synthetic_tokens=5000", "data.synthetic_tokens"),
            ("embedding.init_std=0.5", "embedding.init_std"),
            ("embedding.optimizer=\"sgd\"", "embedding.optimizer"),
        ] {
            let error = check(&tiny(&[]), &tiny(&[change]), 20).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("20"), "{change}: {error}");
        }
    }

    #[test]
    fn the_rest_may_change() {
        check(
            &tiny(&[]),
            &tiny(&[
                "training.steps=500",
                "training.stop_at_step=30",
                "training.lr=1e-4",
                "topology.workers=2",
                "topology.shards=3",
                "checkpoint.every_steps=5",
                "evaluation.cells=1",
                "embedding.prefetch_steps=0",
                "run.failure_detection_seconds=3.0",
            ]),
            20,
        )
        .unwrap();
        // The same number of samples a step, cut into other cells.
        check(&tiny(&[]), &tiny(&["training.cells=8", "training.micro_batch_size=1"]), 20).unwrap();
    }
}
