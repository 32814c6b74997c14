//! A run as resolved: every value present, every rule checked. Made by [`crate::run_file::RunFile::resolve`].

use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointSpec, RecoveryPointSpec};
use crate::embedding::EmbeddingSpec;
use crate::held_out::HeldOutSets;
use crate::ids::RunName;
use crate::layout::{ParameterSpec, dense_parameters};
use crate::model::ModelSpec;
use crate::schedule::Schedule;
use crate::spikes::SpikeSpec;
use crate::tables::TableSet;
use crate::topology::Topology;

/// A whole run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// Name, unique under the root.
    pub name: RunName,
    /// Seed of initial values, row values and sample order.
    pub seed: u64,
    /// The model.
    pub model: ModelSpec,
    /// Where tokens come from.
    pub data: DataSpec,
    /// What the training data must be: the identity of its files, if somebody has taken it.
    pub train_identity: Option<String>,
    /// Steps, cells, optimizer and losses.
    pub training: TrainingSpec,
    /// The n-gram tables' optimizer and their shards' limits.
    pub embedding: EmbeddingSpec,
    /// Numbers of processes.
    pub topology: Topology,
    /// When checkpoints are committed and which are kept.
    pub checkpoint: CheckpointSpec,
    /// What is kept between them; `None`: nothing.
    pub recovery_points: Option<RecoveryPointSpec>,
    /// What a run does about a lost member.
    pub recovery: RecoverySpec,
    /// With how few workers it goes on in a pool.
    pub elasticity: ElasticitySpec,
    /// What a run does about a spike of its loss or gradient norm.
    pub spikes: SpikeSpec,
    /// Held-out evaluation; `None` switches it off.
    pub evaluation: Option<EvaluationSpec>,
    /// Device and threads of a worker.
    pub device: DeviceSpec,
    /// The one knob of failure detection, in seconds: a member silent for so long is lost. Every other timeout
    /// is derived from it.
    pub failure_detection_seconds: f64,
    /// How long a run that was told to stop may take to commit; then it ends without. `None`: as long as it takes.
    pub stop_grace_seconds: Option<f64>,
}

impl RunSpec {
    /// The n-gram tables.
    pub fn tables(&self) -> TableSet {
        TableSet::of(&self.model)
    }

    /// The dense tensors.
    pub fn dense_parameters(&self) -> Vec<ParameterSpec> {
        dense_parameters(&self.model)
    }

    /// Tokens that one update trains on: cells · micro-batch · seq_len.
    pub fn tokens_per_step(&self) -> u64 {
        self.samples_per_step() * u64::from(self.training.seq_len)
    }

    /// Samples that one update consumes.
    pub fn samples_per_step(&self) -> u64 {
        u64::from(self.training.cells) * u64::from(self.training.micro_batch_size)
    }

    /// The update after which this session of the run ends: `stop_at_step`, or the last.
    pub fn last_step(&self) -> u64 {
        self.training.stop_at_step.map_or(self.training.steps, |stop| stop.min(self.training.steps))
    }
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq)]
pub enum DataSpec {
    /// Megatron `.bin`/`.idx` pairs, given by their path without extension.
    Segments {
        /// Training data.
        train: String,
        /// Held-out sets; none where losses on held-out data are not wanted.
        held_out: HeldOutSets,
    },
    /// Tokens that the run makes itself: documents of a random Markov chain (seeded by the run).
    Synthetic {
        /// Training tokens.
        tokens: u64,
        /// Held-out tokens.
        held_out_tokens: u64,
    },
}

impl DataSpec {
    /// Names of the held-out sets, in the order in which they are evaluated.
    pub fn held_out_names(&self) -> Vec<&str> {
        match self {
            DataSpec::Segments { held_out, .. } => held_out.iter().map(|(name, _)| name).collect(),
            DataSpec::Synthetic { held_out_tokens: 0, .. } => Vec::new(),
            DataSpec::Synthetic { .. } => vec![HeldOutSets::UNNAMED],
        }
    }
}

/// Steps, cells, optimizer and losses.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSpec {
    /// Updates of the whole run; the schedule spans them.
    pub steps: u64,
    /// Commit and stop after this many updates, the schedule unchanged.
    pub stop_at_step: Option<u64>,
    /// Positions per sample.
    pub seq_len: u32,
    /// Samples per cell.
    pub micro_batch_size: u32,
    /// Cells per step (G); a power of two.
    pub cells: u32,
    /// Learning rate of the dense parameters.
    pub schedule: Schedule,
    /// Dense optimizer.
    pub adamw: AdamWSpec,
    /// Global-norm clip over dense, expert and table gradients; `None` switches it off.
    pub clip: Option<f64>,
    /// Whether table gradients take part in the norm and are clipped.
    pub clip_tables: bool,
    /// Router bias update and auxiliary losses.
    pub balance: BalanceSpec,
    /// Arithmetic of matrix products; master weights are f32 always.
    pub compute: ComputeType,
    /// Recompute activations of each layer in backward instead of keeping them.
    pub recompute: bool,
    /// Which orders of summation are promised.
    pub determinism: Determinism,
    /// What a non-finite loss or gradient does.
    pub on_nonfinite: OnNonfinite,
}

/// AdamW (Loshchilov and Hutter, 1711.05101).
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWSpec {
    /// β1.
    pub beta1: f64,
    /// β2.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// Decay of weights of two or more dimensions.
    pub weight_decay: f64,
    /// Multiplies the learning rate of word embeddings (`embed_tokens`).
    pub word_embedding_lr_multiplier: f64,
    /// Decay of word embeddings; `weight_decay` unless given. Decay erodes rows that are rarely hit.
    pub word_embedding_weight_decay: f64,
}

/// Router bias update (docs/model.md, "Balance") and auxiliary losses; a coefficient of 0 switches a loss off.
#[derive(Clone, Debug, PartialEq)]
pub struct BalanceSpec {
    /// First rate of the bias update; 0 switches it off.
    pub bias_rate: f64,
    /// The rate is halved every so many steps.
    pub bias_rate_halving_steps: u64,
    /// Lowest rate.
    pub bias_rate_min: f64,
    /// FFN experts wanted per token on average, of `moe_topk`.
    pub target_top_k: u32,
    /// Coefficient of the balance loss.
    pub loss_coefficient: f64,
    /// Groups of FFN experts in the balance loss; equal to the experts: one group each.
    pub loss_groups: u32,
    /// Coefficient of the router z-loss.
    pub router_z_coefficient: f64,
    /// Coefficient of the hidden z-loss.
    pub hidden_z_coefficient: f64,
}

impl BalanceSpec {
    /// Rate of the bias update after update `step` (from 0): halved every `bias_rate_halving_steps`, not below the
    /// minimum.
    pub fn bias_rate_at(&self, step: u64) -> f64 {
        let halvings = (step / self.bias_rate_halving_steps.max(1)).min(60);
        (self.bias_rate / (1u64 << halvings) as f64).max(self.bias_rate_min.min(self.bias_rate))
    }
}

/// Arithmetic of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeType {
    /// IEEE single.
    #[default]
    F32,
    /// bfloat16 products, f32 master weights.
    Bf16,
}

/// Which runs have the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Determinism {
    /// Any number of workers, expert ranks and shards.
    #[default]
    Elastic,
    /// The same topology.
    Topology,
}

/// What a non-finite loss or gradient does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// The run fails and says where.
    #[default]
    Stop,
    /// The step is skipped everywhere.
    Skip,
    /// The run goes back and leaves out the samples of the steps around it, as `spikes` says.
    RollBack,
}

/// What a run does about a lost member: how often it goes back to its last commit and starts again, and when it gives
/// up.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoverySpec {
    /// Restarts of one session of the run; 0: the first lost member fails the run.
    pub max_restarts: u32,
    /// Restarts in a row of which none came further than the run had been before; at least 1.
    pub max_fruitless_restarts: u32,
    /// Pause before the second fruitless restart in a row, doubled with each further one; the first restart waits for
    /// nothing.
    pub backoff_seconds: f64,
    /// Fruitless failures by members of one host after which it is kept out, if the run has other hosts; at least 1.
    pub quarantine_after: u32,
    /// How long it is kept out.
    pub quarantine_seconds: f64,
}

/// With how few workers a run of a pool goes on, and how long it waits before it does. A run that one launcher starts
/// always has all its workers.
#[derive(Clone, Debug, PartialEq)]
pub struct ElasticitySpec {
    /// Fewest workers; a power of two, at most `topology.workers`, and a multiple of `topology.expert_parallel`.
    pub min_workers: u32,
    /// How long a run waits for members of its pool before it goes on with fewer workers, or gives its members back.
    pub wait_for_members_seconds: f64,
    /// A run with fewer workers grows again at the earliest so long after it last changed their number.
    pub resize_seconds: f64,
}

impl ElasticitySpec {
    /// The most workers, of `workers` or fewer, that the run may have out of `offered`: halves of `workers` down to the
    /// fewest.
    pub fn workers_within(&self, workers: u32, offered: u32) -> Option<u32> {
        let halves = std::iter::successors(Some(workers), |workers| Some(workers / 2));
        halves.take_while(|workers| *workers >= self.min_workers.max(1)).find(|workers| *workers <= offered)
    }
}

/// Held-out evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationSpec {
    /// Evaluate every so many updates, and after the last update of a session that was not asked to stop.
    pub every_steps: u64,
    /// Cells of every held-out set per evaluation, its first ones.
    pub cells: u32,
}

/// Device and threads of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// What computes losses and gradients.
    pub engine: Engine,
    /// Where tensors live.
    pub kind: DeviceKind,
    /// Threads of tensor arithmetic per worker; fixed, since sums may depend on it.
    pub threads: u32,
    /// Memory that a worker may take where its tensors live; `None`: no limit is known.
    pub memory_bytes: Option<u64>,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Host memory.
    #[default]
    Cpu,
    /// The CUDA device of the worker's local rank.
    Cuda,
}

/// What computes losses and gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The model, on libtorch.
    #[default]
    Torch,
    /// A small quadratic stand-in with the model's parameters, for drills of everything around the model: clusters,
    /// faults, recovery. It learns nothing about language.
    Drill,
}
