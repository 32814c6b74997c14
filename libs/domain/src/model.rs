//! The model's dimensions and variants (docs/model.md), checked once.

use serde::{Deserialize, Serialize};

pub use crate::yarn::YarnSpec;

/// Longest n-gram order that table sizing and hashing support.
pub const MAX_ORDER: u32 = 16;
/// Most hash heads per order.
pub const MAX_HEADS: u32 = 64;

/// Everything that decides the shape and the arithmetic of the model. Build it with [`ModelSpec::validated`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Rows of the word embedding and of the output head (V).
    pub vocab_size: u32,
    /// Width of the residual stream (D).
    pub hidden_size: u32,
    /// Shortcut-connected layers; each has two attentions, two dense FFNs and one mixture of experts.
    pub num_layers: u32,
    /// Latent attention.
    pub attention: AttentionSpec,
    /// Inner width of the dense FFNs.
    pub ffn_hidden_size: u32,
    /// Mixture of experts.
    pub moe: MoeSpec,
    /// Hashed n-gram tables.
    pub ngram: NgramSpec,
    /// Where embeddings enter the network.
    pub placement: Placement,
    /// Epsilon of every RMSNorm but the two latent ones, which use 1e-6.
    pub rms_norm_eps: f64,
    /// Standard deviation σ of initial weights.
    pub initializer_range: f64,
    /// Token that begins a document, written into exports only.
    pub bos_token_id: u32,
    /// Token that closes a document; it belongs to the document it closes.
    pub eos_token_id: u32,
    /// Longest sequence an export promises.
    pub max_position_embeddings: u32,
}

/// Multi-head latent attention (docs/model.md, "Attention").
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Heads.
    pub heads: u32,
    /// Rank of the query latent.
    pub q_lora_rank: u32,
    /// Rank of the key/value latent.
    pub kv_lora_rank: u32,
    /// Width per head that carries no position.
    pub qk_nope_head_dim: u32,
    /// Width per head that is rotated; even.
    pub qk_rope_head_dim: u32,
    /// Value width per head.
    pub v_head_dim: u32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Context extension, if any.
    pub yarn: Option<YarnSpec>,
}

/// Mixture of FFN experts and zero (identity) experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// FFN experts (n).
    pub experts: u32,
    /// Identity experts (z).
    pub zero_experts: u32,
    /// Experts chosen per token, FFN and zero together (k).
    pub top_k: u32,
    /// Inner width of an FFN expert.
    pub expert_hidden_size: u32,
    /// Multiplies every gate, those of zero experts too.
    pub routed_scaling_factor: f64,
}

/// Hashed n-gram tables at one embedding site: orders 2..=N with K heads each.
#[derive(Clone, Debug, PartialEq)]
pub struct NgramSpec {
    /// Longest n-gram (N), at least 2.
    pub max_order: u32,
    /// Hash heads per order (K).
    pub heads: u32,
    /// Rows of table i are `int(ratio · hash_vocab_size + 2·i + 1)`, the product in f64, truncated.
    pub ratio: f64,
    /// The polynomial's base; the model's `vocab_size` unless given.
    pub hash_vocab_size: u32,
    /// Tokens that become 0 in the context, cut it, and use their plain word embedding undivided.
    pub ignored_tokens: Vec<u32>,
    /// Divisor of the sum of the C + 1 embeddings.
    pub normalizer: Normalizer,
    /// Cure against the embedding signal drowning in the residual stream.
    pub amplification: Amplification,
}

/// Divisor of the summed embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalizer {
    /// C + 1 (released LongCat-Flash-Lite).
    #[default]
    Mean,
    /// √(C + 1) (later models).
    Sqrt,
}

/// Embedding amplification (arXiv 2601.21204 §3.2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Amplification {
    /// None.
    #[default]
    None,
    /// Multiply by √D.
    SqrtD,
    /// LayerNorm without affine parameters, eps 1e-5.
    LayerNorm,
}

/// Where embeddings enter (arXiv 2601.21204 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// N-gram embedding at the input (NE).
    #[default]
    Input,
    /// Plain input embedding; each dense FFN's up-projection is a per-layer word embedding (PLE). No tables.
    PerLayer,
    /// Plain input embedding; each dense FFN's up-projection is a per-layer n-gram embedding (PLNE).
    PerLayerNgram,
}

impl NgramSpec {
    /// Tables at one site, C = (N − 1)·K.
    pub fn tables_per_site(&self) -> u32 {
        (self.max_order - 1) * self.heads
    }

    /// Order n of the site's table `i`.
    pub fn order_of(&self, table: u32) -> u32 {
        table / self.heads + 2
    }

    /// Rows of the site's table `i`: `int(ratio·V + 2·i + 1)`, the whole sum in f64, then truncated (HF modeling code).
    pub fn rows_of(&self, table: u32) -> u64 {
        (self.ratio * f64::from(self.hash_vocab_size) + f64::from(2 * table + 1)) as u64
    }
}

impl ModelSpec {
    /// Width per head of queries and keys.
    pub fn qk_head_dim(&self) -> u32 {
        self.attention.qk_nope_head_dim + self.attention.qk_rope_head_dim
    }

    /// Routed choices per layer: FFN experts, then zero experts.
    pub fn routed_experts(&self) -> u32 {
        self.moe.experts + self.moe.zero_experts
    }
}
