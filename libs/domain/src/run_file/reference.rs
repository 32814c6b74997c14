//! The reference of a run file: every key with its type, its range, its default and one line that says what it
//! does. `polygram keys` prints it. The keys, their types and defaults are read off the types, the ranges are those
//! of [`super::bounds`]; only the lines stand here, and a test compares them with the keys.

use super::change::OnResume;
use super::{ConfigError, Key, KeyKind, RunFile, bounds, change, flatten, read, required};

/// A key of a run file, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReference {
    /// Its path, dotted.
    pub path: String,
    /// What it takes, with the range of a number.
    pub takes: String,
    /// Its default, as TOML; `None`: it is not set, or it must be.
    pub default: Option<String>,
    /// Whether a run file must have it.
    pub is_required: bool,
    /// Whether a run that is resumed refuses another value.
    pub is_fixed: bool,
    /// What it does.
    pub meaning: &'static str,
}

/// A small run file that trains on made-up data, to begin from.
pub const EXAMPLE: &str = include_str!("../../../../configs/tiny.toml");

impl RunFile {
    /// Every key that a run file may have, in the order of its sections.
    pub fn reference() -> Result<Vec<KeyReference>, ConfigError> {
        let keys = RunFile::keys()?;
        let defaults = defaults(&keys)?;
        let reference = |key: &Key| {
            let is_required = required::is_required(&key.path);
            KeyReference {
                path: key.path.clone(),
                takes: takes(key),
                default: defaults.get(&key.path).filter(|_| !is_required).cloned(),
                is_required,
                is_fixed: !matches!(
                    change::rule_of(&key.path),
                    Some(OnResume::Applied | OnResume::HeldOutData)
                ),
                meaning: meaning(&key.path).unwrap_or_default(),
            }
        };
        Ok(keys.iter().map(reference).collect())
    }
}

impl RunFile {
    /// The keys whose last part is `name`, or the same in another tool's words; none where there is no such key.
    pub fn keys_named(name: &str) -> Vec<String> {
        let is_named = |path: &str, name: &str| path.rsplit('.').next() == Some(name);
        let named = |name: &str| -> Vec<String> {
            let keys = RunFile::keys().unwrap_or_default().into_iter().map(|key| key.path);
            keys.filter(|path| is_named(path, name)).collect()
        };
        let found = named(name);
        if found.is_empty() { read::synonym(name).map(named).unwrap_or_default() } else { found }
    }
}

/// The values of the keys that have a default.
fn defaults(keys: &[Key]) -> Result<std::collections::BTreeMap<String, String>, ConfigError> {
    let mut tree = toml::Table::new();
    for key in keys.iter().filter(|key| required::is_required(&key.path)) {
        let Some((section, name)) = key.path.split_once('.') else { continue };
        let value = match key.kind {
            KeyKind::Real => toml::Value::Float(1.0),
            KeyKind::Whole => toml::Value::Integer(1),
            _ => toml::Value::String("x".into()),
        };
        let section = tree.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let Some(section) = section.as_table_mut() {
            section.insert(name.to_owned(), value);
        }
    }
    let refused =
        |error: &dyn std::fmt::Display| ConfigError::Invalid(format!("cannot list the defaults: {error}"));
    let file: RunFile = tree.try_into().map_err(|error| refused(&error))?;
    let tree = toml::Table::try_from(&file).map_err(|error| refused(&error))?;
    let mut values = std::collections::BTreeMap::new();
    flatten("", &toml::Value::Table(tree), &mut values);
    Ok(values)
}

/// Type and range in words.
fn takes(key: &Key) -> String {
    let range = bounds::range_of(&key.path);
    match (&key.kind, range) {
        (KeyKind::Wholes, Some(range)) => format!("a list, each {range}"),
        (_, Some(range)) => range,
        (KeyKind::Whole, None) => "a whole number".into(),
        (KeyKind::Wholes, None) => "a list of whole numbers".into(),
        (KeyKind::Real, None) => "a number".into(),
        (KeyKind::Switch, None) => "true or false".into(),
        (KeyKind::Text, None) => "text".into(),
        (KeyKind::Choice(words), None) => {
            words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ")
        }
    }
}

fn meaning(path: &str) -> Option<&'static str> {
    MEANINGS.iter().find(|(key, _)| *key == path).map(|(_, meaning)| *meaning)
}

const MEANINGS: &[(&str, &str)] = &[
    ("run.name", "name of the run: 1 to 63 lower-case letters, digits and -, unique under its root"),
    ("run.seed", "seed of initial weights, of rows never written and of the order of samples"),
    ("run.failure_detection_seconds", "a process that is silent for so long is lost"),
    ("run.stop_grace_seconds", "longest time for the commit of a run that was told to stop"),
    ("model.vocab_size", "tokens of the vocabulary"),
    ("model.hidden_size", "width of the residual stream"),
    ("model.num_layers", "layers, each with two attentions, two dense FFNs and one mixture of experts"),
    ("model.num_attention_heads", "attention heads"),
    ("model.ffn_hidden_size", "inner width of the dense FFNs"),
    ("model.q_lora_rank", "width of the query latent"),
    ("model.kv_lora_rank", "width of the key and value latent"),
    ("model.qk_nope_head_dim", "width of a head's queries and keys without rotary positions"),
    ("model.qk_rope_head_dim", "width of a head's queries and keys with rotary positions"),
    ("model.v_head_dim", "width of a head's values"),
    ("model.n_routed_experts", "FFN experts of a mixture"),
    ("model.zero_expert_num", "identity experts of a mixture"),
    ("model.moe_topk", "experts chosen for a token, FFN and identity experts together"),
    ("model.expert_ffn_hidden_size", "inner width of an FFN expert"),
    ("model.routed_scaling_factor", "factor of every gate"),
    ("model.placement", "where n-gram embeddings enter the network"),
    ("model.rms_norm_eps", "epsilon of the RMS norms"),
    ("model.initializer_range", "standard deviation of initial weights"),
    ("model.rope_theta", "base of the rotary frequencies"),
    ("model.rope_scaling.factor", "YaRN: how much longer contexts are than the original ones"),
    ("model.rope_scaling.original_max_position_embeddings", "YaRN: length of the original contexts"),
    ("model.rope_scaling.beta_fast", "YaRN: rotations above which a frequency is kept"),
    ("model.rope_scaling.beta_slow", "YaRN: rotations below which a frequency is divided by the factor"),
    ("model.rope_scaling.mscale", "YaRN: attention temperature of queries and keys"),
    ("model.rope_scaling.mscale_all_dim", "YaRN: attention temperature of the softmax scale"),
    ("model.rope_scaling.attention_factor", "YaRN: factor of cosines and sines, instead of the computed one"),
    (
        "model.rope_scaling.truncate",
        "YaRN: whether the borders between frequencies are rounded to whole ones",
    ),
    ("model.bos_token_id", "token that begins a document"),
    ("model.eos_token_id", "token that closes a document"),
    (
        "model.max_position_embeddings",
        "longest context that is promised; training.seq_len where it is left out",
    ),
    ("ngram.max_order", "longest n-gram; there are tables for 2 to so many tokens"),
    ("ngram.heads", "tables of each order, each with a hash of its own"),
    ("ngram.ratio", "rows of a table as a multiple of the vocabulary; this or ngram.base_rows must be set"),
    (
        "ngram.base_rows",
        "rows of the first table, each later one has 2 more; this or ngram.ratio must be set",
    ),
    ("ngram.hash_vocab_size", "vocabulary of the hash; model.vocab_size where it is left out"),
    (
        "ngram.ignored_tokens",
        "tokens that begin the context of n-grams anew and have no n-grams of their own",
    ),
    ("ngram.normalizer", "divisor of the summed embeddings: their number, or its square root"),
    ("ngram.amplification", "how embeddings are amplified before they enter the network"),
    (
        "data.train",
        "training data: path of a .bin/.idx pair without extension; this or data.synthetic_tokens must be set",
    ),
    (
        "data.held_out",
        "held-out data: such a path, or a table of names and paths; needs evaluation.every_steps",
    ),
    ("data.train_identity", "identity that the training data must have; written by the run itself"),
    ("data.held_out_identity", "identities of the held-out sets; written by the run itself"),
    ("data.allow_change", "lets a resumed run go on with other training data"),
    ("data.synthetic_tokens", "made-up training tokens instead of data.train; one of the two must be set"),
    ("data.synthetic_held_out_tokens", "made-up held-out tokens; needs evaluation.every_steps"),
    ("training.steps", "updates of the whole run, which the schedule spans"),
    ("training.stop_at_step", "commit and stop after this update, the schedule unchanged"),
    ("training.seq_len", "positions of a sample"),
    ("training.micro_batch_size", "samples of a cell, which a worker computes at once"),
    ("training.cells", "cells of a step; a step trains on cells × micro_batch_size × seq_len tokens"),
    ("training.lr", "learning rate of the dense weights at its highest"),
    ("training.schedule", "course of the learning rate; \"wsd\" is warm-up, a constant rate and a decay"),
    ("training.min_lr_ratio", "lowest learning rate as a part of training.lr"),
    ("training.warmup_steps", "updates in which the learning rate rises"),
    ("training.decay_steps", "updates of the decay of schedule \"wsd\""),
    ("training.optimizer.beta1", "AdamW of the dense weights: decay of the first moment"),
    ("training.optimizer.beta2", "AdamW: decay of the second moment"),
    ("training.optimizer.eps", "AdamW: epsilon"),
    ("training.optimizer.weight_decay", "AdamW: decay of weights of two or more dimensions"),
    ("training.optimizer.word_embedding_lr_multiplier", "factor of the learning rate of word embeddings"),
    (
        "training.optimizer.word_embedding_weight_decay",
        "decay of word embeddings; that of the other weights where it is left out",
    ),
    ("training.clip.enabled", "whether gradients are clipped by their global norm"),
    ("training.clip.norm", "global norm to which gradients are clipped"),
    ("training.clip.tables", "whether gradients of n-gram tables take part in the norm and are clipped"),
    ("training.balance.bias_rate", "first rate of the router's bias update; 0 switches it off"),
    ("training.balance.bias_rate_halving_steps", "updates after which that rate is halved"),
    ("training.balance.bias_rate_min", "lowest rate of the bias update"),
    (
        "training.balance.target_top_k",
        "FFN experts wanted for a token on average; computed where it is left out",
    ),
    ("training.balance.loss_coefficient", "coefficient of the balance loss; 0 switches it off"),
    (
        "training.balance.loss_groups",
        "groups of FFN experts in the balance loss; one expert each where it is left out",
    ),
    ("training.balance.router_z_coefficient", "coefficient of the router's z-loss; 0 switches it off"),
    (
        "training.balance.hidden_z_coefficient",
        "coefficient of the z-loss of hidden states; 0 switches it off",
    ),
    ("training.compute", "number format of matrix products; weights are f32 always"),
    ("training.recompute", "compute activations again in backward instead of keeping them"),
    ("training.determinism", "runs with the same bits: of any topology, or of the same topology"),
    ("training.on_nonfinite", "what happens at a loss or gradient that is not finite"),
    ("embedding.optimizer", "update rule of the rows of n-gram tables"),
    ("embedding.bias", "count that corrects Adam's moments: the row's own updates, or the steps of the run"),
    ("embedding.lr_multiplier", "learning rate of rows as a multiple of that of the dense weights"),
    ("embedding.beta1", "decay of the rows' first moment"),
    ("embedding.beta2", "decay of the rows' second moment"),
    ("embedding.eps", "epsilon of the rows' optimizer"),
    ("embedding.weight_decay", "decay of rows"),
    ("embedding.decay", "rows that decay at a step: those that it updates, or all"),
    ("embedding.max_row_norm", "longest row; a longer one is shortened"),
    (
        "embedding.init_std",
        "standard deviation of rows never written; follows from the model where it is left out",
    ),
    ("embedding.storage", "number format of stored rows"),
    ("embedding.wire_rows", "number format of rows on their way to workers"),
    ("embedding.wire_gradients", "number format of row gradients on their way to shards"),
    ("embedding.prefetch_steps", "steps that rows are looked up ahead"),
    ("embedding.lanes", "threads of a shard, each with a part of its rows"),
    ("embedding.numa", "whether lanes are bound to memory nodes"),
    ("embedding.connections", "connections of a worker to a shard"),
    ("embedding.same_host", "what processes of one host exchange rows over"),
    ("embedding.memory_limit_gib", "memory of a shard's rows; a run fails that needs more"),
    ("topology.workers", "workers of the run"),
    ("topology.expert_parallel", "workers that hold all experts together"),
    ("topology.shards", "embedding shards of the run"),
    ("topology.min_workers", "fewest workers with which a job of a pool goes on; all where it is left out"),
    (
        "checkpoint.every_steps",
        "updates between two commits; where it is left out nothing is committed before the end",
    ),
    ("checkpoint.keep", "checkpoints that are kept; older ones are removed"),
    (
        "recovery_points.every_steps",
        "updates between two recovery points; there are none where it is left out",
    ),
    (
        "recovery_points.root",
        "where recovery points are kept: a folder or URL; beside the runs where it is left out",
    ),
    (
        "recovery_points.changes_below",
        "only changed rows are written while they are less than this part of all written rows",
    ),
    ("recovery.max_restarts", "restarts of one session; 0: the first lost process fails the run"),
    ("recovery.max_fruitless_restarts", "restarts in a row without progress after which the run fails"),
    ("recovery.backoff_seconds", "pause after two restarts without progress, doubled with each further one"),
    ("recovery.quarantine_after", "losses without progress after which a host is kept out"),
    ("recovery.quarantine_seconds", "how long a host is kept out"),
    ("recovery.wait_for_members_seconds", "in a pool: how long a missing worker is waited for"),
    ("recovery.resize_seconds", "in a pool: shortest time between two changes of the number of workers"),
    ("spikes.action", "what happens at a spike of the loss or of the gradient norm"),
    ("spikes.history_steps", "steps that a step is compared with"),
    ("spikes.loss_deviations", "median absolute deviations above the median from which a loss is a spike"),
    ("spikes.norm_factor", "multiple of the median from which a gradient norm is a spike"),
    ("spikes.roll_back_steps", "steps before the spike to which the run is rolled back"),
    ("spikes.skip_steps", "steps whose samples are left out after a rollback"),
    ("spikes.max_actions", "skips and rollbacks within the window; one more fails the run"),
    ("spikes.window_steps", "steps of that window"),
    (
        "evaluation.every_steps",
        "updates between two evaluations on the held-out data; none where it is left out",
    ),
    ("evaluation.cells", "cells of every held-out set that are evaluated, its first ones"),
    (
        "device.engine",
        "what computes: the model on libtorch, or a small stand-in for drills that learns no language",
    ),
    ("device.kind", "where tensors live"),
    ("device.threads", "threads of a worker's tensor arithmetic"),
    ("device.memory_gib", "memory that a worker may take; `plan` and `train` refuse what does not fit"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// No key is without its line, and no line is of a key that is gone.
    #[test]
    fn every_key_is_described_once() {
        let reference = RunFile::reference().unwrap();
        for key in &reference {
            assert!(!key.meaning.is_empty(), "{} has no line in reference.rs", key.path);
        }
        for (path, _) in MEANINGS {
            assert!(reference.iter().any(|key| key.path == *path), "{path} is no key");
            assert_eq!(MEANINGS.iter().filter(|(other, _)| other == path).count(), 1, "{path} is twice");
        }
    }

    #[test]
    fn types_ranges_and_defaults_are_those_of_the_types() {
        let reference = RunFile::reference().unwrap();
        let of = |path: &str| reference.iter().find(|key| key.path == path).unwrap().clone();
        let lr = of("training.lr");
        assert_eq!(
            (lr.takes.as_str(), lr.default, lr.is_required),
            ("a number above 0, at most 1000", None, true)
        );
        let keep = of("checkpoint.keep");
        assert_eq!((keep.default.as_deref(), keep.is_required, keep.is_fixed), (Some("3"), false, false));
        assert_eq!(of("checkpoint.every_steps").default, None);
        assert_eq!(of("training.schedule").takes, "\"constant\" or \"cosine\" or \"wsd\"");
        assert_eq!(of("ngram.ignored_tokens").takes, "a list, each a whole number from 0 to 16777215");
        assert!(of("model.hidden_size").is_fixed && of("training.cells").is_fixed);
        // The sections stand together, and every required key is said to be so.
        let required = reference.iter().filter(|key| key.is_required).count();
        assert_eq!(required, required::missing(&toml::Table::new()).len());
    }

    /// The example is a run file that resolves, whatever becomes of the keys.
    #[test]
    fn the_example_is_a_run_file() {
        RunFile::parse(EXAMPLE, "example", &[]).unwrap().resolve().unwrap();
    }
}
