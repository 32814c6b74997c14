//! The sections of a run file, as written in TOML: every key, its type and its default.

use serde::{Deserialize, Serialize};

use crate::embedding::{AdamBias, Numa, RowDecay, RowOptimizer, RowType, SameHost};
use crate::held_out::{HeldOutIdentities, HeldOutSets};
use crate::model::{Amplification, Normalizer, Placement, YarnSpec};
use crate::run_spec::{ComputeType, Determinism, DeviceKind, Engine, OnNonfinite};
use crate::schedule::ScheduleKind;
use crate::spikes::SpikeAction;

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
    pub recovery_points: RecoveryPointsSection,
    #[serde(default)]
    pub recovery: RecoverySection,
    #[serde(default)]
    pub spikes: SpikesSection,
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
    #[serde(default, with = "super::seed")]
    pub seed: u64,
    #[serde(default = "default_failure_detection")]
    pub failure_detection_seconds: f64,
    #[serde(default)]
    pub stop_grace_seconds: Option<f64>,
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
    held_out: Option<HeldOutSets> = None,
    train_identity: Option<String> = None,
    held_out_identity: Option<HeldOutIdentities> = None,
    allow_change: bool = false,
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

pub(super) fn default_min_lr_ratio() -> f64 {
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
    bias: AdamBias = AdamBias::Row,
    lr_multiplier: f64 = 5.0,
    beta1: f64 = 0.9,
    beta2: f64 = 0.95,
    eps: f64 = 1e-16,
    weight_decay: f64 = 0.0,
    decay: RowDecay = RowDecay::Touched,
    max_row_norm: Option<f64> = None,
    init_std: Option<f64> = None,
    storage: RowType = RowType::F32,
    wire_rows: RowType = RowType::F32,
    wire_gradients: RowType = RowType::F32,
    prefetch_steps: u32 = 1,
    lanes: u32 = 1,
    numa: Numa = Numa::Auto,
    connections: u32 = 1,
    same_host: SameHost = SameHost::Auto,
    memory_limit_gib: f64 = 8.0,
});
section!(TopologySection {
    workers: u32 = 1,
    expert_parallel: u32 = 1,
    shards: u32 = 1,
    min_workers: Option<u32> = None,
});
section!(CheckpointSection { every_steps: Option<u64> = None, keep: u32 = 3 });
section!(RecoveryPointsSection { every_steps: Option<u64> = None, root: Option<String> = None, changes_below: f64 = 0.5 });
section!(RecoverySection {
    max_restarts: u32 = 100,
    max_fruitless_restarts: u32 = 8,
    backoff_seconds: f64 = 1.0,
    quarantine_after: u32 = 3,
    quarantine_seconds: f64 = 300.0,
    wait_for_members_seconds: f64 = 60.0,
    resize_seconds: f64 = 300.0,
});
section!(SpikesSection {
    action: SpikeAction = SpikeAction::Off,
    history_steps: u32 = 64,
    loss_deviations: Option<f64> = None,
    norm_factor: Option<f64> = None,
    roll_back_steps: u32 = 1,
    skip_steps: u32 = 1,
    max_actions: u32 = 10,
    window_steps: u64 = 1000,
});
section!(EvaluationSection { every_steps: Option<u64> = None, cells: u32 = 4 });
section!(DeviceSection {
    engine: Engine = Engine::Torch,
    kind: DeviceKind = DeviceKind::Cpu,
    threads: u32 = 1,
    memory_gib: Option<f64> = None,
});
