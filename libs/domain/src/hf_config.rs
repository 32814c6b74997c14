//! Hugging Face `config.json` of the model family, read and written.

use serde::{Deserialize, Serialize};

use crate::model::{
    Amplification, AttentionSpec, ModelSpec, MoeSpec, NgramSpec, Normalizer, Placement, YarnSpec,
};

/// The keys that decide hashing: all that n-gram ids need of a `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct HashConfig {
    /// V.
    pub vocab_size: u32,
    /// N.
    pub emb_neighbor_num: u32,
    /// K.
    pub emb_split_num: u32,
    /// Table rows over V.
    pub ngram_vocab_size_ratio: f64,
    /// Token that closes a document.
    pub eos_token_id: u32,
}

impl HashConfig {
    /// Reads the hashing keys of a `config.json`; other keys are not looked at.
    pub fn parse(text: &str) -> Result<HashConfig, String> {
        let config: HashConfig = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if config.vocab_size == 0 || config.emb_neighbor_num < 2 || config.emb_split_num == 0 {
            return Err(format!(
                "vocab_size {}, emb_neighbor_num {} and emb_split_num {} must be at least 1, 2 and 1",
                config.vocab_size, config.emb_neighbor_num, config.emb_split_num
            ));
        }
        if config.emb_neighbor_num > crate::model::MAX_ORDER || config.emb_split_num > 64 {
            return Err(format!(
                "emb_neighbor_num {} (at most {}) or emb_split_num {} (at most 64) is too large",
                config.emb_neighbor_num,
                crate::model::MAX_ORDER,
                config.emb_split_num
            ));
        }
        let largest = config.ngram().rows_of(config.ngram().tables_per_site() - 1);
        if !config.ngram_vocab_size_ratio.is_finite()
            || config.ngram_vocab_size_ratio <= 0.0
            || largest >= u64::from(u32::MAX)
        {
            return Err(format!(
                "ngram_vocab_size_ratio {} is not legal (largest table: {largest} rows)",
                config.ngram_vocab_size_ratio
            ));
        }
        Ok(config)
    }

    /// The n-gram tables it describes.
    pub fn ngram(&self) -> NgramSpec {
        NgramSpec {
            max_order: self.emb_neighbor_num,
            heads: self.emb_split_num,
            ratio: self.ngram_vocab_size_ratio,
            hash_vocab_size: self.vocab_size,
            ignored_tokens: Vec::new(),
            normalizer: Normalizer::Mean,
            amplification: Amplification::None,
        }
    }
}

/// `config.json` as published. Keys that this project does not need are ignored on reading.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the keys are Hugging Face's
pub struct HfConfig {
    pub architectures: Vec<String>,
    pub model_type: String,
    pub vocab_size: u32,
    pub hidden_size: u32,
    pub num_layers: u32,
    #[serde(default)]
    pub num_hidden_layers: Option<u32>,
    pub num_attention_heads: u32,
    pub ffn_hidden_size: u32,
    pub q_lora_rank: u32,
    pub kv_lora_rank: u32,
    pub qk_nope_head_dim: u32,
    pub qk_rope_head_dim: u32,
    #[serde(default)]
    pub head_dim: Option<u32>,
    pub v_head_dim: u32,
    pub moe_topk: u32,
    pub n_routed_experts: u32,
    #[serde(default)]
    pub zero_expert_num: u32,
    #[serde(default = "identity")]
    pub zero_expert_type: String,
    pub expert_ffn_hidden_size: u32,
    pub routed_scaling_factor: f64,
    pub emb_neighbor_num: u32,
    pub emb_split_num: u32,
    pub ngram_vocab_size_ratio: f64,
    pub rms_norm_eps: f64,
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
    pub rope_theta: f64,
    #[serde(default)]
    pub rope_scaling: Option<HfRopeScaling>,
    pub max_position_embeddings: u32,
    pub bos_token_id: u32,
    pub eos_token_id: u32,
    #[serde(default)]
    pub pad_token_id: Option<u32>,
    #[serde(default = "silu")]
    pub hidden_act: String,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub attention_dropout: f64,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default = "yes")]
    pub mla_scale_q_lora: bool,
    #[serde(default = "yes")]
    pub mla_scale_kv_lora: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch_dtype: Option<String>,
}

/// Rotary scaling as Hugging Face writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HfRopeScaling {
    #[serde(alias = "rope_type", rename = "type")]
    pub kind: String,
    #[serde(flatten)]
    pub yarn: YarnFields,
}

/// The YaRN values beside the kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct YarnFields {
    pub factor: f64,
    pub original_max_position_embeddings: u32,
    #[serde(default)]
    pub beta_fast: Option<f64>,
    #[serde(default)]
    pub beta_slow: Option<f64>,
    #[serde(default)]
    pub mscale: Option<f64>,
    #[serde(default)]
    pub mscale_all_dim: Option<f64>,
}

fn identity() -> String {
    "identity".into()
}
fn silu() -> String {
    "silu".into()
}
fn yes() -> bool {
    true
}
fn initializer_range() -> f64 {
    0.02
}

/// `model_type` of this family.
pub const MODEL_TYPE: &str = "longcat_flash_ngram";

impl HfConfig {
    /// Reads a `config.json`.
    pub fn parse(text: &str) -> Result<HfConfig, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    /// The model it describes; the error names the key that this project cannot follow.
    pub fn to_model(&self) -> Result<ModelSpec, String> {
        let refuse = |key: &str, value: &str, wanted: &str| {
            Err(format!("{key} is {value}; only {wanted} is supported"))
        };
        if self.model_type != MODEL_TYPE {
            return refuse("model_type", &self.model_type, MODEL_TYPE);
        }
        if self.hidden_act != "silu" {
            return refuse("hidden_act", &self.hidden_act, "silu");
        }
        if self.attention_bias {
            return refuse("attention_bias", "true", "false");
        }
        if self.tie_word_embeddings {
            return refuse("tie_word_embeddings", "true", "false");
        }
        if !(self.mla_scale_q_lora && self.mla_scale_kv_lora) {
            return refuse("mla_scale_q_lora or mla_scale_kv_lora", "false", "true");
        }
        if self.zero_expert_num > 0 && self.zero_expert_type != "identity" {
            return refuse("zero_expert_type", &self.zero_expert_type, "identity");
        }
        let yarn = match &self.rope_scaling {
            None => None,
            Some(scaling) if scaling.kind == "yarn" => Some(YarnSpec {
                factor: scaling.yarn.factor,
                original_max_position_embeddings: scaling.yarn.original_max_position_embeddings,
                beta_fast: scaling.yarn.beta_fast.unwrap_or(32.0),
                beta_slow: scaling.yarn.beta_slow.unwrap_or(1.0),
                mscale: scaling.yarn.mscale.unwrap_or(1.0),
                mscale_all_dim: scaling.yarn.mscale_all_dim.unwrap_or(1.0),
            }),
            Some(scaling) => return refuse("rope_scaling.type", &scaling.kind, "yarn"),
        };
        ModelSpec {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_layers: self.num_layers,
            attention: AttentionSpec {
                heads: self.num_attention_heads,
                q_lora_rank: self.q_lora_rank,
                kv_lora_rank: self.kv_lora_rank,
                qk_nope_head_dim: self.qk_nope_head_dim,
                qk_rope_head_dim: self.qk_rope_head_dim,
                v_head_dim: self.v_head_dim,
                rope_theta: self.rope_theta,
                yarn,
            },
            ffn_hidden_size: self.ffn_hidden_size,
            moe: MoeSpec {
                experts: self.n_routed_experts,
                zero_experts: self.zero_expert_num,
                top_k: self.moe_topk,
                expert_hidden_size: self.expert_ffn_hidden_size,
                routed_scaling_factor: self.routed_scaling_factor,
            },
            ngram: NgramSpec {
                max_order: self.emb_neighbor_num,
                heads: self.emb_split_num,
                ratio: self.ngram_vocab_size_ratio,
                hash_vocab_size: self.vocab_size,
                ignored_tokens: Vec::new(),
                normalizer: Normalizer::Mean,
                amplification: Amplification::None,
            },
            placement: Placement::Input,
            rms_norm_eps: self.rms_norm_eps,
            initializer_range: self.initializer_range,
            bos_token_id: self.bos_token_id,
            eos_token_id: self.eos_token_id,
            max_position_embeddings: self.max_position_embeddings,
        }
        .validated()
    }
}
