//! A run file as written (TOML), and its resolution into a [`RunSpec`].
//!
//! Unknown keys are errors with a suggestion. `--set a.b=c` overrides are applied to the TOML tree before it is
//! read, so they obey the same rules as the file. The effective configuration (every key, defaults included) can
//! be printed with the origin of each key and is what a run is frozen with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::RunName;
use crate::model::{
    Amplification, AttentionSpec, ModelSpec, MoeSpec, NgramSpec, Normalizer, Placement, YarnSpec,
};
use crate::run_spec::{
    AdamWSpec, BalanceSpec, CheckpointSpec, ComputeType, DataSpec, Determinism, DeviceKind, DeviceSpec,
    EmbeddingSpec, Engine, EvaluationSpec, OnNonfinite, RowOptimizer, RunSpec, TrainingSpec,
};
use crate::schedule::{Schedule, ScheduleKind};
use crate::topology::Topology;

/// Why a configuration is refused; the text says what, where and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not TOML, a key is unknown or missing, or a value has the wrong type.
    #[error("{origin}: {message}")]
    Parse {
        /// File or override.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// Values that do not fit each other.
    #[error("{0}")]
    Invalid(String),
}

/// Where a key's effective value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody wrote it.
    Default,
    /// The run file.
    File,
    /// `--set`.
    Override,
}

/// A run file, section by section, defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // keys are documented where they are resolved: run_spec.rs and model.rs
pub struct RunFile {
    pub run: RunSection,
    pub model: ModelSection,
    pub ngram: NgramSection,
    #[serde(default)]
    pub data: DataSection,
    pub training: TrainingSection,
    #[serde(default)]
    pub embedding: EmbeddingSection,
    #[serde(default)]
    pub topology: TopologySection,
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    #[serde(default)]
    pub evaluation: EvaluationSection,
    #[serde(default)]
    pub device: DeviceSection,
}

macro_rules! section {
    ($name:ident { $($field:ident : $type:ty),* $(,)? }) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $type),* }
    };
    ($name:ident { $($field:ident : $type:ty = $default:expr),* $(,)? }) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $type),* }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default),* }
            }
        }
    };
}

/// `[run]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RunSection {
    pub name: String,
    #[serde(default)]
    pub seed: u64,
    #[serde(default = "default_failure_detection")]
    pub failure_detection_seconds: f64,
}

fn default_failure_detection() -> f64 {
    30.0
}

/// `[model]`, with Hugging Face's key names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ModelSection {
    pub vocab_size: u32,
    pub hidden_size: u32,
    pub num_layers: u32,
    pub num_attention_heads: u32,
    pub ffn_hidden_size: u32,
    pub q_lora_rank: u32,
    pub kv_lora_rank: u32,
    pub qk_nope_head_dim: u32,
    pub qk_rope_head_dim: u32,
    pub v_head_dim: u32,
    pub n_routed_experts: u32,
    pub zero_expert_num: u32,
    pub moe_topk: u32,
    pub expert_ffn_hidden_size: u32,
    pub routed_scaling_factor: f64,
    #[serde(default)]
    pub placement: Placement,
    #[serde(default = "default_rms_eps")]
    pub rms_norm_eps: f64,
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<YarnSpec>,
    #[serde(default = "default_bos")]
    pub bos_token_id: u32,
    #[serde(default = "default_eos")]
    pub eos_token_id: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_position_embeddings: Option<u32>,
}

fn default_rms_eps() -> f64 {
    1e-5
}
fn default_initializer_range() -> f64 {
    0.02
}
fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_bos() -> u32 {
    1
}
fn default_eos() -> u32 {
    2
}

/// `[ngram]`: either `ratio`, or `base_rows` (the first table has `base_rows` rows, each later one 2 more).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct NgramSection {
    pub max_order: u32,
    pub heads: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_rows: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_vocab_size: Option<u32>,
    #[serde(default)]
    pub ignored_tokens: Vec<u32>,
    #[serde(default)]
    pub normalizer: Normalizer,
    #[serde(default)]
    pub amplification: Amplification,
}

section!(DataSection {
    train: Option<String> = None,
    held_out: Option<String> = None,
    synthetic_tokens: Option<u64> = None,
    synthetic_held_out_tokens: u64 = 0,
});

/// `[training]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TrainingSection {
    pub steps: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_at_step: Option<u64>,
    pub seq_len: u32,
    pub micro_batch_size: u32,
    pub cells: u32,
    pub lr: f64,
    #[serde(default)]
    pub schedule: ScheduleKind,
    #[serde(default = "default_min_lr_ratio")]
    pub min_lr_ratio: f64,
    #[serde(default)]
    pub warmup_steps: u64,
    #[serde(default)]
    pub decay_steps: u64,
    #[serde(default)]
    pub optimizer: AdamWSection,
    #[serde(default)]
    pub clip: ClipSection,
    #[serde(default)]
    pub balance: BalanceSection,
    #[serde(default)]
    pub compute: ComputeType,
    #[serde(default)]
    pub recompute: bool,
    #[serde(default)]
    pub determinism: Determinism,
    #[serde(default)]
    pub on_nonfinite: OnNonfinite,
}

fn default_min_lr_ratio() -> f64 {
    0.1
}

section!(AdamWSection {
    beta1: f64 = 0.9,
    beta2: f64 = 0.95,
    eps: f64 = 1e-16,
    weight_decay: f64 = 0.1,
    word_embedding_lr_multiplier: f64 = 1.0,
    word_embedding_weight_decay: Option<f64> = None,
});
section!(ClipSection { enabled: bool = true, norm: f64 = 1.0, tables: bool = true });
section!(BalanceSection {
    bias_rate: f64 = 0.1,
    bias_rate_halving_steps: u64 = 1000,
    bias_rate_min: f64 = 0.01,
    target_top_k: Option<u32> = None,
    loss_coefficient: f64 = 0.0,
    loss_groups: Option<u32> = None,
    router_z_coefficient: f64 = 0.0,
    hidden_z_coefficient: f64 = 0.0,
});
section!(EmbeddingSection {
    optimizer: RowOptimizer = RowOptimizer::Adam,
    lr_multiplier: f64 = 5.0,
    beta1: f64 = 0.9,
    beta2: f64 = 0.95,
    eps: f64 = 1e-16,
    weight_decay: f64 = 0.0,
    init_std: Option<f64> = None,
    prefetch_steps: u32 = 1,
    lanes: u32 = 1,
    memory_limit_gib: f64 = 8.0,
});
section!(TopologySection { workers: u32 = 1, expert_parallel: u32 = 1, shards: u32 = 1 });
section!(CheckpointSection { every_steps: Option<u64> = None, keep: u32 = 3 });
section!(EvaluationSection { every_steps: Option<u64> = None, cells: u32 = 4 });
section!(DeviceSection {
    engine: Engine = Engine::Torch,
    kind: DeviceKind = DeviceKind::Cpu,
    threads: u32 = 1
});

impl RunFile {
    /// Reads a run file's text and applies `overrides` of the form `a.b=c`, in order. `origin` names the file in
    /// errors.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<RunFile, ConfigError> {
        let parse_error = |message: String| ConfigError::Parse { origin: origin.to_owned(), message };
        // The file alone first, so that its errors carry their line.
        if overrides.is_empty() {
            return toml::from_str(text).map_err(|e| parse_error(with_suggestion(&e.to_string())));
        }
        let mut tree: toml::Table = toml::from_str(text).map_err(|e| parse_error(e.to_string()))?;
        for assignment in overrides {
            apply_override(&mut tree, assignment)?;
        }
        tree.try_into().map_err(|e: toml::de::Error| {
            let origin = format!("{origin} with --set {}", overrides.join(" --set "));
            ConfigError::Parse { origin, message: with_suggestion(e.to_string().trim()) }
        })
    }

    /// The effective configuration as TOML: every key with its value. Parsing it gives this `RunFile` again.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self)
            .map_err(|e| ConfigError::Invalid(format!("cannot write the configuration: {e}")))
    }

    /// Every effective key, dotted, with its value as TOML and its origin.
    pub fn origins(
        &self,
        text: &str,
        overrides: &[String],
    ) -> Result<BTreeMap<String, (String, Origin)>, ConfigError> {
        let parse = |text: &str| -> Result<toml::Table, ConfigError> {
            toml::from_str(text)
                .map_err(|e| ConfigError::Parse { origin: "run file".into(), message: e.to_string() })
        };
        let (mut effective, mut written) = (BTreeMap::new(), BTreeMap::new());
        flatten("", &toml::Value::Table(parse(&self.to_toml()?)?), &mut effective);
        flatten("", &toml::Value::Table(parse(text)?), &mut written);
        let set: Vec<&str> =
            overrides.iter().filter_map(|o| o.split_once('=')).map(|(key, _)| key.trim()).collect();
        Ok(effective
            .into_iter()
            .map(|(key, value)| {
                let origin = if set.contains(&key.as_str()) {
                    Origin::Override
                } else if written.contains_key(&key) {
                    Origin::File
                } else {
                    Origin::Default
                };
                (key, (value, origin))
            })
            .collect())
    }

    /// Checks every rule and resolves the run.
    pub fn resolve(&self) -> Result<RunSpec, ConfigError> {
        let model = self.model_spec().map_err(ConfigError::Invalid)?;
        let invalid = |message: String| Err(ConfigError::Invalid(message));
        let t = &self.training;
        for (key, value) in [
            ("training.steps", t.steps),
            ("training.seq_len", t.seq_len.into()),
            ("training.micro_batch_size", t.micro_batch_size.into()),
        ] {
            if value == 0 {
                return invalid(format!("{key} is 0; it must be at least 1"));
            }
        }
        if t.stop_at_step == Some(0) {
            return invalid("training.stop_at_step is 0; leave it out to run to training.steps".into());
        }
        let positive = [
            ("training.lr", t.lr),
            ("training.optimizer.eps", t.optimizer.eps),
            ("training.clip.norm", t.clip.norm),
            ("embedding.eps", self.embedding.eps),
            ("embedding.memory_limit_gib", self.embedding.memory_limit_gib),
            ("run.failure_detection_seconds", self.run.failure_detection_seconds),
        ];
        for (key, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return invalid(format!("{key} is {value}; it must be a positive number"));
            }
        }
        if self.run.failure_detection_seconds < 1.0 {
            return invalid(format!(
                "run.failure_detection_seconds is {}; below 1 second a busy machine looks dead",
                self.run.failure_detection_seconds
            ));
        }
        let init_std = self.embedding.init_std.unwrap_or(model.initializer_range);
        let word_embedding_weight_decay =
            t.optimizer.word_embedding_weight_decay.unwrap_or(t.optimizer.weight_decay);
        let not_negative = [
            ("training.min_lr_ratio", t.min_lr_ratio),
            ("training.optimizer.weight_decay", t.optimizer.weight_decay),
            ("training.optimizer.word_embedding_lr_multiplier", t.optimizer.word_embedding_lr_multiplier),
            ("training.optimizer.word_embedding_weight_decay", word_embedding_weight_decay),
            ("training.balance.bias_rate", t.balance.bias_rate),
            ("training.balance.bias_rate_min", t.balance.bias_rate_min),
            ("training.balance.loss_coefficient", t.balance.loss_coefficient),
            ("training.balance.router_z_coefficient", t.balance.router_z_coefficient),
            ("training.balance.hidden_z_coefficient", t.balance.hidden_z_coefficient),
            ("embedding.lr_multiplier", self.embedding.lr_multiplier),
            ("embedding.weight_decay", self.embedding.weight_decay),
            ("embedding.init_std", init_std),
        ];
        for (key, value) in not_negative {
            if !(value.is_finite() && value >= 0.0) {
                return invalid(format!("{key} is {value}; it must be 0 or a positive number"));
            }
        }
        let betas = [
            ("training.optimizer.beta1", t.optimizer.beta1),
            ("training.optimizer.beta2", t.optimizer.beta2),
            ("embedding.beta1", self.embedding.beta1),
            ("embedding.beta2", self.embedding.beta2),
        ];
        for (key, value) in betas {
            if !(0.0..1.0).contains(&value) {
                return invalid(format!("{key} is {value}; it must be at least 0 and below 1"));
            }
        }
        let target_top_k = t.balance.target_top_k.unwrap_or_else(|| default_target_top_k(&model));
        if target_top_k > model.moe.top_k {
            return invalid(format!(
                "training.balance.target_top_k is {target_top_k}, more than model.moe_topk = {}",
                model.moe.top_k
            ));
        }
        let loss_groups = t.balance.loss_groups.unwrap_or(model.moe.experts);
        if loss_groups == 0 || model.moe.experts % loss_groups != 0 {
            return invalid(format!(
                "training.balance.loss_groups is {loss_groups}; it must divide model.n_routed_experts = {}",
                model.moe.experts
            ));
        }
        if self.checkpoint.keep < 2 {
            return invalid(format!(
                "checkpoint.keep is {}; keep at least 2, so that a damaged newest checkpoint is not the only one",
                self.checkpoint.keep
            ));
        }
        for (key, value) in [
            ("checkpoint.every_steps", self.checkpoint.every_steps),
            ("evaluation.every_steps", self.evaluation.every_steps),
        ] {
            if value == Some(0) {
                return invalid(format!("{key} is 0; leave it out to switch it off"));
            }
        }
        for (key, value) in [
            ("embedding.lanes", self.embedding.lanes),
            ("device.threads", self.device.threads),
            ("evaluation.cells", self.evaluation.cells),
        ] {
            if value == 0 {
                return invalid(format!("{key} is 0; it must be at least 1"));
            }
        }
        if self.embedding.prefetch_steps > 64 || self.embedding.lanes > 256 {
            return invalid(format!(
                "embedding.prefetch_steps is {} (at most 64) and embedding.lanes is {} (at most 256)",
                self.embedding.prefetch_steps, self.embedding.lanes
            ));
        }
        let topology = Topology {
            workers: self.topology.workers,
            expert_parallel: self.topology.expert_parallel,
            shards: self.topology.shards,
        }
        .validated(t.cells)
        .map_err(ConfigError::Invalid)?;
        if topology.expert_parallel > 1 {
            return invalid(format!(
                "topology.expert_parallel is {}; this version computes every expert on every worker, so it must be 1",
                topology.expert_parallel
            ));
        }
        Ok(RunSpec {
            name: RunName::new(&*self.run.name).map_err(ConfigError::Invalid)?,
            seed: self.run.seed,
            data: self.data_spec()?,
            training: TrainingSpec {
                steps: t.steps,
                stop_at_step: t.stop_at_step,
                seq_len: t.seq_len,
                micro_batch_size: t.micro_batch_size,
                cells: t.cells,
                schedule: Schedule {
                    kind: t.schedule,
                    peak: t.lr,
                    min_ratio: t.min_lr_ratio,
                    warmup_steps: t.warmup_steps,
                    decay_steps: t.decay_steps,
                    steps: t.steps,
                },
                adamw: AdamWSpec {
                    beta1: t.optimizer.beta1,
                    beta2: t.optimizer.beta2,
                    eps: t.optimizer.eps,
                    weight_decay: t.optimizer.weight_decay,
                    word_embedding_lr_multiplier: t.optimizer.word_embedding_lr_multiplier,
                    word_embedding_weight_decay,
                },
                clip: t.clip.enabled.then_some(t.clip.norm),
                clip_tables: t.clip.tables,
                balance: BalanceSpec {
                    bias_rate: t.balance.bias_rate,
                    bias_rate_halving_steps: t.balance.bias_rate_halving_steps,
                    bias_rate_min: t.balance.bias_rate_min,
                    target_top_k,
                    loss_coefficient: t.balance.loss_coefficient,
                    loss_groups,
                    router_z_coefficient: t.balance.router_z_coefficient,
                    hidden_z_coefficient: t.balance.hidden_z_coefficient,
                },
                compute: t.compute,
                recompute: t.recompute,
                determinism: t.determinism,
                on_nonfinite: t.on_nonfinite,
            },
            embedding: EmbeddingSpec {
                optimizer: self.embedding.optimizer,
                lr_multiplier: self.embedding.lr_multiplier,
                beta1: self.embedding.beta1,
                beta2: self.embedding.beta2,
                eps: self.embedding.eps,
                weight_decay: self.embedding.weight_decay,
                init_std,
                prefetch_steps: self.embedding.prefetch_steps,
                lanes: self.embedding.lanes,
                memory_limit_bytes: (self.embedding.memory_limit_gib * 1024.0 * 1024.0 * 1024.0) as u64,
            },
            topology,
            checkpoint: CheckpointSpec {
                every_steps: self.checkpoint.every_steps,
                keep: self.checkpoint.keep,
            },
            evaluation: self
                .evaluation
                .every_steps
                .map(|every_steps| EvaluationSpec { every_steps, cells: self.evaluation.cells }),
            device: DeviceSpec {
                engine: self.device.engine,
                kind: self.device.kind,
                threads: self.device.threads,
            },
            failure_detection_seconds: self.run.failure_detection_seconds,
            model,
        })
    }

    fn data_spec(&self) -> Result<DataSpec, ConfigError> {
        match (&self.data.train, self.data.synthetic_tokens) {
            (Some(train), None) => {
                Ok(DataSpec::Segments { train: train.clone(), held_out: self.data.held_out.clone() })
            }
            (None, Some(tokens)) if tokens > 0 => {
                Ok(DataSpec::Synthetic { tokens, held_out_tokens: self.data.synthetic_held_out_tokens })
            }
            _ => Err(ConfigError::Invalid(
                "data needs exactly one source: data.train (the path of a .bin/.idx pair without extension) or \
                 data.synthetic_tokens (a positive number)"
                    .into(),
            )),
        }
    }

    fn model_spec(&self) -> Result<ModelSpec, String> {
        let m = &self.model;
        let n = &self.ngram;
        let hash_vocab_size = n.hash_vocab_size.unwrap_or(m.vocab_size);
        let ratio = match (n.ratio, n.base_rows) {
            (Some(ratio), None) => ratio,
            (None, Some(base)) if base > 0 => ratio_of_base(base, hash_vocab_size),
            _ => {
                return Err(
                    "ngram needs exactly one of ngram.ratio and ngram.base_rows (a positive number)".into()
                );
            }
        };
        let spec = ModelSpec {
            vocab_size: m.vocab_size,
            hidden_size: m.hidden_size,
            num_layers: m.num_layers,
            attention: AttentionSpec {
                heads: m.num_attention_heads,
                q_lora_rank: m.q_lora_rank,
                kv_lora_rank: m.kv_lora_rank,
                qk_nope_head_dim: m.qk_nope_head_dim,
                qk_rope_head_dim: m.qk_rope_head_dim,
                v_head_dim: m.v_head_dim,
                rope_theta: m.rope_theta,
                yarn: m.rope_scaling.clone(),
            },
            ffn_hidden_size: m.ffn_hidden_size,
            moe: MoeSpec {
                experts: m.n_routed_experts,
                zero_experts: m.zero_expert_num,
                top_k: m.moe_topk,
                expert_hidden_size: m.expert_ffn_hidden_size,
                routed_scaling_factor: m.routed_scaling_factor,
            },
            ngram: NgramSpec {
                max_order: n.max_order,
                heads: n.heads,
                ratio,
                hash_vocab_size,
                ignored_tokens: n.ignored_tokens.clone(),
                normalizer: n.normalizer,
                amplification: n.amplification,
            },
            placement: m.placement,
            rms_norm_eps: m.rms_norm_eps,
            initializer_range: m.initializer_range,
            bos_token_id: m.bos_token_id,
            eos_token_id: m.eos_token_id,
            max_position_embeddings: m.max_position_embeddings.unwrap_or(self.training.seq_len),
        }
        .validated()?;
        if let Some(base) = n.base_rows {
            let made = spec.ngram.rows_of(0);
            if made != base {
                return Err(format!(
                    "ngram.base_rows {base} cannot be written as a ratio of {hash_vocab_size}; got {made}"
                ));
            }
        }
        Ok(spec)
    }
}

/// The ratio whose tables have `base`, `base + 2`, … rows: (base − 0.5)/V, which truncates back for every table.
pub fn ratio_of_base(base: u64, hash_vocab_size: u32) -> f64 {
    (base as f64 - 0.5) / f64::from(hash_vocab_size.max(1))
}

/// FFN experts wanted per token when nothing is said: k · n/(n + z), rounded, at least 1 (8 of 12 for 256 + 128).
fn default_target_top_k(model: &ModelSpec) -> u32 {
    let (k, n) = (u64::from(model.moe.top_k), u64::from(model.moe.experts));
    let routed = u64::from(model.routed_experts());
    (((2 * k * n + routed) / (2 * routed)).max(1)) as u32
}

fn apply_override(tree: &mut toml::Table, assignment: &str) -> Result<(), ConfigError> {
    let error = |message: String| ConfigError::Parse { origin: format!("--set {assignment}"), message };
    let (path, text) =
        assignment.split_once('=').ok_or_else(|| error("write it as section.key=value".into()))?;
    let value = parse_value(text.trim());
    let keys: Vec<&str> = path.split('.').map(str::trim).collect();
    let Some((last, parents)) = keys.split_last() else {
        return Err(error("write it as section.key=value".into()));
    };
    if keys.iter().any(|key| key.is_empty()) || parents.is_empty() {
        return Err(error("write it as section.key=value".into()));
    }
    let mut table = tree;
    for key in parents {
        table = table
            .entry(*key)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| error(format!("{key} is a value, not a section")))?;
    }
    table.insert((*last).to_owned(), value);
    Ok(())
}

/// A TOML value, or the bare text as a string.
fn parse_value(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

fn flatten(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, out);
            }
        }
        other => {
            out.insert(prefix.to_owned(), other.to_string());
        }
    }
}

/// Adds "did you mean" to serde's message about an unknown key or variant.
fn with_suggestion(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let is_unknown = message.contains("unknown field") || message.contains("unknown variant");
    let Some((wrong, known)) = quoted.split_first().filter(|_| is_unknown) else {
        return message.trim().to_owned();
    };
    let best = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(wrong, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(wrong.len()) / 2)
        .min();
    match best {
        Some((_, candidate)) => format!("{}\ndid you mean `{candidate}`?", message.trim()),
        None => message.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = include_str!("../../../configs/tiny.toml");

    fn parse(overrides: &[&str]) -> Result<RunFile, ConfigError> {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        RunFile::parse(TINY, "configs/tiny.toml", &overrides)
    }

    #[test]
    fn effective_configuration_reads_back() {
        let file = parse(&[
            "training.steps=7",
            "model.rope_scaling={factor=4.0, original_max_position_embeddings=64}",
        ])
        .unwrap();
        let again = RunFile::parse(&file.to_toml().unwrap(), "effective", &[]).unwrap();
        assert_eq!(file, again);
        assert_eq!(file.resolve().unwrap(), again.resolve().unwrap());
    }

    #[test]
    fn origins_name_file_default_and_override() {
        let overrides = vec!["training.steps=7".to_owned()];
        let file = RunFile::parse(TINY, "tiny", &overrides).unwrap();
        let origins = file.origins(TINY, &overrides).unwrap();
        assert_eq!(origins["training.steps"], ("7".into(), Origin::Override));
        assert_eq!(origins["training.seq_len"].1, Origin::File);
        assert_eq!(origins["embedding.weight_decay"].1, Origin::Default);
    }

    #[test]
    fn unknown_keys_are_refused_with_a_suggestion() {
        let error = parse(&["training.stepz=7"]).unwrap_err().to_string();
        assert!(error.contains("stepz") && error.contains("did you mean `steps`"), "{error}");
        let error = parse(&["trainin.steps=7"]).unwrap_err().to_string();
        assert!(error.contains("did you mean `training`"), "{error}");
        let error = RunFile::parse(&format!("{TINY}\n[nonsense]\n"), "x.toml", &[]).unwrap_err().to_string();
        assert!(error.contains("x.toml") && error.contains("nonsense"), "{error}");
        assert!(
            parse(&["training.schedule=cosin"]).unwrap_err().to_string().contains("did you mean `cosine`")
        );
        assert!(
            parse(&["steps"]).is_err()
                && parse(&["steps=1"]).is_err()
                && parse(&["training.steps.x=1"]).is_err()
        );
    }

    #[test]
    fn rules_name_the_key() {
        for (set, key) in [
            ("training.cells=3", "training.cells"),
            ("topology.workers=3", "topology.workers"),
            ("topology.workers=64", "training.cells"),
            ("topology.shards=0", "topology.shards"),
            ("topology.expert_parallel=2", "topology.expert_parallel"),
            ("checkpoint.keep=1", "checkpoint.keep"),
            ("training.lr=-1", "training.lr"),
            ("training.lr=nan", "training.lr"),
            ("ngram.heads=7", "ngram.heads"),
            ("model.moe_topk=99", "model.moe_topk"),
            ("model.eos_token_id=9999999", "model.eos_token_id"),
            ("embedding.beta2=1.0", "embedding.beta2"),
            ("training.balance.loss_groups=5", "training.balance.loss_groups"),
            ("run.name=Bad_Name", "run name"),
            ("data.train=x", "data"),
            ("ngram.ratio=2.5", "ngram.base_rows"),
        ] {
            let error = parse(&[set]).and_then(|file| file.resolve()).unwrap_err().to_string();
            assert!(error.contains(key), "{set}: {error}");
        }
    }

    #[test]
    fn base_rows_survive_the_ratio() {
        for vocab in [113u32, 32_000, 50_257, 131_072, 163_840] {
            for base in [u64::from(vocab) * 7 + 3, 10_232_743, 3_905_163] {
                let ratio = ratio_of_base(base, vocab);
                for table in 0..20u32 {
                    assert_eq!(
                        (ratio * f64::from(vocab) + f64::from(2 * table + 1)) as u64,
                        base + 2 * u64::from(table),
                        "V {vocab} base {base}"
                    );
                }
            }
        }
    }

    #[test]
    fn word_embeddings_decay_like_the_rest_unless_told_otherwise() {
        let adamw = |overrides: &[&str]| parse(overrides).unwrap().resolve().unwrap().training.adamw;
        assert_eq!(adamw(&["training.optimizer.weight_decay=0.2"]).word_embedding_weight_decay, 0.2);
        let own = "training.optimizer.word_embedding_weight_decay=0.0";
        assert_eq!(adamw(&["training.optimizer.weight_decay=0.2", own]).word_embedding_weight_decay, 0.0);
        let negative = parse(&["training.optimizer.word_embedding_weight_decay=-1.0"]).unwrap().resolve();
        assert!(negative.unwrap_err().to_string().contains("word_embedding_weight_decay"));
    }
}
