//! The n-gram tables' optimizer, storage and exchange: what the section `[embedding]` of a run resolves to.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The n-gram tables' optimizer, storage, exchange and their shards' limits.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingSpec {
    /// Update rule (docs/model.md, "Row optimizers").
    pub optimizer: RowOptimizer,
    /// Which count corrects Adam's bias.
    pub bias: AdamBias,
    /// Multiplies the schedule's learning rate.
    pub lr_multiplier: f64,
    /// β1 of Adam.
    pub beta1: f64,
    /// β2 of Adam.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Which rows decay at a step.
    pub decay: RowDecay,
    /// A row whose norm is above this after an update is scaled down to it; `None`: never.
    pub max_row_norm: Option<f64>,
    /// Standard deviation of initial row values.
    pub init_std: f64,
    /// How weights are stored; optimizer state is f32 always.
    pub storage: RowType,
    /// How values travel.
    pub wire: WireSpec,
    /// Lookups run this many steps ahead.
    pub prefetch_steps: u32,
    /// Threads of a shard that own buckets.
    pub lanes: u32,
    /// Whether lanes and their rows are bound to memory nodes.
    pub numa: Numa,
    /// Connections between a worker and a shard of another host.
    pub connections: u32,
    /// What processes of one host exchange rows over.
    pub same_host: SameHost,
    /// A shard refuses rows beyond this many bytes of records.
    pub memory_limit_bytes: u64,
}

impl EmbeddingSpec {
    /// f32 values of optimizer state in a checkpoint's record of a row of `width`, the update count aside.
    pub fn state_values(&self, width: usize) -> usize {
        self.optimizer.state_values(width) + self.decay_values()
    }

    /// f32 values that say how far a row has decayed: three 24-bit digits of a fixed-point sum, where all rows decay.
    pub fn decay_values(&self) -> usize {
        if self.all_rows_decay() { 3 } else { 0 }
    }

    /// Whether rows decay at steps that do not update them.
    pub fn all_rows_decay(&self) -> bool {
        self.decay == RowDecay::All && self.weight_decay > 0.0
    }

    /// Bytes of a written row of `width` in a shard's memory: weights, optimizer state, update count and row id, and
    /// where all rows decay 8 bytes of decay, rounded up to whole cache lines of 64 bytes.
    pub fn record_bytes(&self, width: usize) -> usize {
        let head = if self.all_rows_decay() { 16 } else { 8 };
        let weights = (self.storage.bytes() * width).next_multiple_of(4);
        (weights + 4 * self.optimizer.state_values(width) + head).next_multiple_of(64)
    }
}

/// Update rule of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowOptimizer {
    /// Adam.
    #[default]
    Adam,
    /// Adam with one second moment per row.
    PartialRowwiseAdam,
    /// Adagrad.
    Adagrad,
    /// Adagrad with one sum of squares per row.
    RowwiseAdagrad,
    /// Plain gradient descent.
    Sgd,
}

/// The word of a run file.
impl fmt::Display for RowOptimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl RowOptimizer {
    /// f32 values of optimizer state for a row of `width`, the update count aside.
    pub fn state_values(self, width: usize) -> usize {
        match self {
            RowOptimizer::Adam => 2 * width,
            RowOptimizer::PartialRowwiseAdam => width + 1,
            RowOptimizer::Adagrad => width,
            RowOptimizer::RowwiseAdagrad => 1,
            RowOptimizer::Sgd => 0,
        }
    }
}

/// Which count corrects the bias of Adam's moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdamBias {
    /// Each row's own updates.
    #[default]
    Row,
    /// Steps of the run, as dense Adam does.
    Global,
}

/// Which rows decay at a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowDecay {
    /// Those that the step updates.
    #[default]
    Touched,
    /// All of them, made up for when a row is read or updated next. Lookups ahead then wait for their step.
    All,
}

/// A floating-point format of row values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowType {
    /// IEEE single.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
}

/// The word of a run file.
impl fmt::Display for RowType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl RowType {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            RowType::F32 => 4,
            RowType::Bf16 => 2,
        }
    }
}

/// How row values travel between workers and shards. bf16 rounds to nearest, ties to even.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireSpec {
    /// Rows.
    pub rows: RowType,
    /// Row gradients.
    pub gradients: RowType,
}

/// Whether lanes and their rows are bound to memory nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Numa {
    /// Lanes are spread over the memory nodes and bound to them, where there is more than one.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// What processes of one host exchange rows over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SameHost {
    /// Anonymous memory that both map, where they can share it; else TCP.
    #[default]
    Auto,
    /// TCP, as between hosts.
    Tcp,
}
