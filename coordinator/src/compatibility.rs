//! Whether a run may be continued with a configuration. What each key means is in
//! [`polygram_domain::run_file`].

use polygram_domain::run_file::{Change, Refused};
use polygram_domain::{ConfigError, RunFile};

/// Why a run cannot be continued with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// Settings changed that must stay.
    #[error("{refused} (since step {step}). Set it back, or train under another run name")]
    Changed {
        /// The checkpoint's step.
        step: u64,
        /// What changed.
        refused: Refused,
    },
    /// One of the configurations cannot be taken apart.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The settings that changed since a checkpoint of `step` was made under `before`, if it may be continued
/// under `after`.
pub fn check(before: &RunFile, after: &RunFile, step: u64) -> Result<Vec<Change>, Incompatible> {
    after.resumes(before)?.map_err(|refused| Incompatible::Changed { step, refused })
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
    fn the_rest_may_change_and_is_named() {
        let sets = [
            "training.steps=500",
            "training.stop_at_step=30",
            "training.lr=1e-4",
            "topology.workers=2",
            "topology.shards=3",
            "checkpoint.every_steps=5",
            "evaluation.cells=1",
            "embedding.prefetch_steps=0",
            "run.failure_detection_seconds=3.0",
        ];
        let mut wanted = sets.map(|set| set.split_once('=').unwrap().0);
        wanted.sort_unstable();
        let changes = check(&tiny(&[]), &tiny(&sets), 20).unwrap();
        assert_eq!(changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), wanted);
        // The same number of samples a step, cut into other cells.
        check(&tiny(&[]), &tiny(&["training.cells=8", "training.micro_batch_size=1"]), 20).unwrap();
    }
}
