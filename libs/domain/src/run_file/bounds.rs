//! The range of every numeric key of a run file. A number outside its range is refused where it is written,
//! before it is converted to anything: see [`check`].

use std::fmt;

use toml::Value;

/// The range of a number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Range {
    /// Whole numbers, both ends included.
    Whole(u64, u64),
    /// From the first to the second, both included.
    From(f64, f64),
    /// Above the first, at most the second.
    Above(f64, f64),
    /// From the first to below the second.
    Below(f64, f64),
    /// A seed: any 64-bit number; see [`super::seed`].
    Seed,
}

use Range::{Above, Below, From, Seed, Whole};

/// A number outside the range of its key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OutOfRange {
    /// The key, dotted.
    pub(super) key: String,
    /// What is wrong: key, value, range, and what to do where that is not obvious.
    pub(super) message: String,
}

/// Seconds of a day.
const DAY: f64 = 86_400.0;
/// Seconds of thirty days, the longest time that a run may be told to wait.
const MONTH: f64 = 30.0 * DAY;
/// Most updates: 10^12, which is 30,000 years of 1 ms steps.
const STEPS: u64 = 1_000_000_000_000;
const TOKEN: Range = Whole(0, WIDEST - 1);
/// Most tokens of a vocabulary.
const WIDEST: u64 = 1 << 24;
/// Widest layer.
const WIDTH: Range = Whole(1, 1 << 20);
/// Widest head and latent.
const HEAD: Range = Whole(1, 1 << 16);
const COEFFICIENT: Range = From(0.0, 1000.0);
const SHARE: Range = From(0.0, 1.0);
const BETA: Range = Below(0.0, 1.0);
const WAIT: Range = From(0.0, MONTH);

const SWITCH_OFF: &str = "leave it out to switch it off";
const NO_RECOVERY: &str = "recovery.max_restarts = 0 switches recovery off";

/// Key, range, and what else a message says.
const BOUNDS: &[(&str, Range, &str)] = &[
    ("run.seed", Seed, ""),
    ("run.failure_detection_seconds", From(1.0, DAY), "below 1 second a busy machine looks dead"),
    ("run.stop_grace_seconds", Above(0.0, MONTH), "leave it out to wait as long as it takes"),
    ("model.vocab_size", Whole(1, WIDEST), ""),
    ("model.hidden_size", WIDTH, ""),
    ("model.num_layers", Whole(1, 1024), ""),
    ("model.num_attention_heads", Whole(1, 4096), ""),
    ("model.ffn_hidden_size", WIDTH, ""),
    ("model.q_lora_rank", HEAD, ""),
    ("model.kv_lora_rank", HEAD, ""),
    ("model.qk_nope_head_dim", HEAD, ""),
    ("model.qk_rope_head_dim", HEAD, ""),
    ("model.v_head_dim", HEAD, ""),
    ("model.n_routed_experts", Whole(1, 16_384), ""),
    ("model.zero_expert_num", Whole(0, 16_384), ""),
    ("model.moe_topk", Whole(1, 32_768), ""),
    ("model.expert_ffn_hidden_size", WIDTH, ""),
    ("model.routed_scaling_factor", Above(0.0, 1e6), ""),
    ("model.rms_norm_eps", Above(0.0, 1.0), ""),
    ("model.initializer_range", Above(0.0, 100.0), ""),
    ("model.rope_theta", Above(0.0, 1e12), ""),
    ("model.rope_scaling.factor", From(1.0, 1e6), ""),
    ("model.rope_scaling.original_max_position_embeddings", Whole(1, 1 << 30), ""),
    ("model.rope_scaling.beta_fast", Above(0.0, 1e6), ""),
    ("model.rope_scaling.beta_slow", Above(0.0, 1e6), ""),
    ("model.rope_scaling.mscale", From(0.0, 1000.0), ""),
    ("model.rope_scaling.mscale_all_dim", From(0.0, 1000.0), ""),
    ("model.rope_scaling.attention_factor", From(1e-3, 1000.0), ""),
    ("model.bos_token_id", TOKEN, ""),
    ("model.eos_token_id", TOKEN, ""),
    ("model.max_position_embeddings", Whole(1, 1 << 30), ""),
    ("ngram.max_order", Whole(2, crate::model::MAX_ORDER as u64), ""),
    ("ngram.heads", Whole(1, 64), ""),
    ("ngram.ratio", Above(0.0, u32::MAX as f64), "row ids have 32 bits"),
    ("ngram.base_rows", Whole(1, u32::MAX as u64 - 1), "row ids have 32 bits"),
    ("ngram.hash_vocab_size", Whole(1, u32::MAX as u64), ""),
    ("ngram.ignored_tokens", TOKEN, ""),
    ("data.synthetic_tokens", Whole(1, 1 << 50), ""),
    ("data.synthetic_held_out_tokens", Whole(0, 1 << 50), ""),
    ("training.steps", Whole(1, STEPS), ""),
    ("training.stop_at_step", Whole(1, STEPS), "leave it out to run to training.steps"),
    ("training.seq_len", Whole(1, 1 << 24), ""),
    ("training.micro_batch_size", Whole(1, 1 << 16), ""),
    ("training.cells", Whole(1, 1 << 16), "it is a power of two"),
    ("training.lr", Above(0.0, 1000.0), ""),
    ("training.min_lr_ratio", SHARE, ""),
    ("training.warmup_steps", Whole(0, STEPS), ""),
    ("training.decay_steps", Whole(0, STEPS), ""),
    ("training.optimizer.beta1", BETA, ""),
    ("training.optimizer.beta2", BETA, ""),
    ("training.optimizer.eps", Above(0.0, 1.0), ""),
    ("training.optimizer.weight_decay", COEFFICIENT, ""),
    ("training.optimizer.word_embedding_lr_multiplier", COEFFICIENT, ""),
    ("training.optimizer.word_embedding_weight_decay", COEFFICIENT, ""),
    ("training.clip.norm", Above(0.0, 1e9), "training.clip.enabled = false switches it off"),
    ("training.balance.bias_rate", COEFFICIENT, ""),
    ("training.balance.bias_rate_halving_steps", Whole(1, STEPS), ""),
    ("training.balance.bias_rate_min", COEFFICIENT, ""),
    ("training.balance.target_top_k", Whole(1, 32_768), ""),
    ("training.balance.loss_coefficient", COEFFICIENT, ""),
    ("training.balance.loss_groups", Whole(1, 16_384), ""),
    ("training.balance.router_z_coefficient", COEFFICIENT, ""),
    ("training.balance.hidden_z_coefficient", COEFFICIENT, ""),
    ("embedding.lr_multiplier", COEFFICIENT, ""),
    ("embedding.beta1", BETA, ""),
    ("embedding.beta2", BETA, ""),
    ("embedding.eps", Above(0.0, 1.0), ""),
    ("embedding.weight_decay", COEFFICIENT, ""),
    ("embedding.max_row_norm", Above(0.0, 1e9), "leave it out for no limit"),
    ("embedding.init_std", From(0.0, 100.0), ""),
    ("embedding.prefetch_steps", Whole(0, 64), ""),
    ("embedding.lanes", Whole(1, 256), ""),
    ("embedding.connections", Whole(1, 64), ""),
    ("embedding.memory_limit_gib", Above(0.0, 65_536.0), ""),
    ("device.memory_gib", Above(0.0, 1_048_576.0), ""),
    ("topology.workers", Whole(1, 1 << 16), "it is a power of two"),
    ("topology.expert_parallel", Whole(1, 1 << 16), ""),
    ("topology.shards", Whole(1, crate::tables::BUCKETS as u64), ""),
    ("topology.min_workers", Whole(1, 1 << 16), "it is a power of two"),
    ("checkpoint.every_steps", Whole(1, STEPS), SWITCH_OFF),
    (
        "checkpoint.keep",
        Whole(2, u32::MAX as u64),
        "keep at least 2, so that a damaged newest checkpoint is not the only one",
    ),
    ("recovery_points.every_steps", Whole(1, STEPS), SWITCH_OFF),
    ("recovery_points.changes_below", SHARE, "it is a part of the written rows"),
    ("recovery.max_restarts", Whole(0, 1_000_000), ""),
    ("recovery.max_fruitless_restarts", Whole(1, 1_000_000), NO_RECOVERY),
    ("recovery.backoff_seconds", WAIT, ""),
    ("recovery.quarantine_after", Whole(1, 1_000_000), NO_RECOVERY),
    ("recovery.quarantine_seconds", WAIT, ""),
    ("recovery.wait_for_members_seconds", WAIT, ""),
    ("recovery.resize_seconds", WAIT, ""),
    ("spikes.history_steps", Whole(1, 1024), ""),
    ("spikes.loss_deviations", Above(0.0, 1e9), "leave it out not to look at losses"),
    ("spikes.norm_factor", Above(0.0, 1e9), "leave it out not to look at norms"),
    ("spikes.roll_back_steps", Whole(1, 1_000_000_000), ""),
    ("spikes.skip_steps", Whole(1, 1_000_000_000), ""),
    ("spikes.max_actions", Whole(1, 1_000_000_000), ""),
    ("spikes.window_steps", Whole(1, STEPS), ""),
    ("evaluation.every_steps", Whole(1, STEPS), SWITCH_OFF),
    ("evaluation.cells", Whole(1, 1 << 20), ""),
    ("device.threads", Whole(1, 1024), ""),
];

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Whole(least, most) => write!(f, "a whole number from {least} to {most}"),
            From(least, most) => write!(f, "a number from {least} to {most}"),
            Above(least, most) => write!(f, "a number above {least}, at most {most}"),
            Below(least, most) => write!(f, "a number from {least} to below {most}"),
            Seed => f.write_str(
                "a whole number from 0 to 18446744073709551615; one above 9223372036854775807 stands in quotes",
            ),
        }
    }
}

impl Range {
    fn holds(&self, value: &Value) -> bool {
        match (*self, value) {
            (Whole(least, most), Value::Integer(number)) => {
                u64::try_from(*number).is_ok_and(|number| (least..=most).contains(&number))
            }
            (Seed, Value::Integer(number)) => *number >= 0,
            (Whole(..) | Seed, Value::Float(_)) => false,
            (_, Value::Integer(number)) => self.holds_real(*number as f64),
            (_, Value::Float(number)) => self.holds_real(*number),
            (_, Value::Array(list)) => list.iter().all(|element| self.holds(element)),
            // What is no number has the wrong type, which its reader says.
            _ => true,
        }
    }

    fn holds_real(&self, number: f64) -> bool {
        match *self {
            From(least, most) => (least..=most).contains(&number),
            Above(least, most) => number > least && number <= most,
            Below(least, most) => (least..most).contains(&number),
            Whole(..) | Seed => false,
        }
    }
}

/// The range of the key `path` in words, if it has one.
pub(super) fn range_of(path: &str) -> Option<String> {
    BOUNDS.iter().find(|(key, ..)| *key == path).map(|(_, range, _)| range.to_string())
}

/// Refuses the first number of `tree` that is outside the range of its key.
pub(super) fn check(tree: &toml::Table) -> Result<(), OutOfRange> {
    check_table("", tree)
}

fn check_table(prefix: &str, table: &toml::Table) -> Result<(), OutOfRange> {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if let Value::Table(table) = value {
            check_table(&key, table)?;
            continue;
        }
        let Some((_, range, more)) = BOUNDS.iter().find(|(bounded, ..)| *bounded == key) else { continue };
        if !range.holds(value) {
            let more = if more.is_empty() { String::new() } else { format!("; {more}") };
            let message = format!("{key} is {}; it must be {range}{more}", shown(value));
            return Err(OutOfRange { key, message });
        }
    }
    Ok(())
}

/// A value as a person writes it: TOML spells out all digits of 1e308.
fn shown(value: &Value) -> String {
    match value {
        Value::Float(number) if number.is_finite() && (number.abs() >= 1e9 || number.abs() < 1e-4) => {
            format!("{number:e}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KeyKind, RunFile};
    use super::*;

    const TINY: &str = include_str!("../../../../configs/tiny.toml");

    /// No number of a run file is without a bound: what is far outside is refused by its key, at once.
    #[test]
    fn every_number_has_a_range() {
        // `run.seed` takes every whole number that TOML has, from 0.
        let any = [("run.seed", i64::MAX.to_string())];
        for key in RunFile::keys().unwrap() {
            let path = &key.path;
            let values: Vec<String> = match key.kind {
                KeyKind::Whole | KeyKind::Real => {
                    ["-1", "9223372036854775807", "1e308", "-1e308", "nan", "inf", "-inf"]
                        .map(str::to_owned)
                        .to_vec()
                }
                KeyKind::Wholes => ["[-1]", "[9223372036854775807]", "[1.5]"].map(str::to_owned).to_vec(),
                KeyKind::Switch | KeyKind::Text | KeyKind::Choice(_) => continue,
            };
            for value in values {
                let set = format!("{path}={value}");
                let read = RunFile::parse(TINY, "tiny.toml", std::slice::from_ref(&set));
                if any.iter().any(|(key, most)| key == path && *most == value) {
                    assert!(read.is_ok(), "{set}: {read:?}");
                    continue;
                }
                let Err(error) = read else { panic!("{set} was accepted: it needs a range in bounds.rs") };
                let error = error.to_string();
                assert!(error.contains(path) && error.contains("it must be"), "{set}: {error}");
                assert!(error.starts_with(&format!("--set {set}")), "{set}: {error}");
            }
        }
    }

    #[test]
    fn every_range_is_of_a_key_and_holds_its_default() {
        let keys = RunFile::keys().unwrap();
        for (bounded, range, _) in BOUNDS {
            assert!(keys.iter().any(|key| key.path == *bounded), "{bounded} is no key");
            assert_eq!(BOUNDS.iter().filter(|(other, ..)| other == bounded).count(), 1, "{bounded} is twice");
            if let Whole(least, most) = range {
                assert!(least < most && i64::try_from(*most).is_ok(), "{bounded}");
            }
        }
        let file = RunFile::parse(TINY, "tiny.toml", &[]).unwrap();
        check(&toml::Table::try_from(&file).unwrap()).unwrap();
    }

    #[test]
    fn the_ends_of_a_range_belong_to_it() {
        let read = |set: &str| RunFile::parse(TINY, "tiny.toml", &[set.to_owned()]);
        for set in ["checkpoint.keep=2", "training.lr=1000", "run.failure_detection_seconds=86400"] {
            assert!(read(set).is_ok(), "{set}: {:?}", read(set));
        }
        for (set, words) in [
            ("checkpoint.keep=1", "a whole number from 2"),
            ("training.lr=0", "above 0"),
            ("training.lr=1000.0000001", "at most 1000"),
            ("run.failure_detection_seconds=0.99", "busy machine"),
            ("embedding.beta1=1.0", "below 1"),
            ("training.lr=1e308", "is 1e308"),
            ("checkpoint.every_steps=0", "switch it off"),
            ("model.qk_nope_head_dim=4294967295", "model.qk_nope_head_dim is 4294967295"),
        ] {
            let error = read(set).unwrap_err().to_string();
            assert!(error.contains(words), "{set}: {error}");
        }
    }
}
