//! Reads a Hugging Face `config.json` of the model family.
//!
//! Every key is read here, or is known not to change the logits (`known.rs`), or is refused by its name. A
//! number outside its range is refused, too. Keys have the meaning that they have in transformers 4.57.6.

mod config;
mod hash;
mod keys;
mod known;
mod rope;
#[cfg(test)]
mod tests;

use serde_json::Value;

pub use config::HfConfig;
pub use hash::HashConfig;
use hash::{token_of, token_range};
use keys::{Keys, shown};
use known::{ONLY, check_only, is_harmless};

use crate::model::{AttentionSpec, ModelSpec, MoeSpec, Placement};

/// `model_type` of this family.
pub const MODEL_TYPE: &str = "longcat_flash_ngram";
/// The class that reads it in transformers.
const ARCHITECTURE: &str = "LongcatFlashNgramForCausalLM";

/// Largest width or count of heads that is read.
const MAX_WIDTH: u32 = 1 << 20;
/// Most layers that are read.
const MAX_LAYERS: u32 = 1 << 12;
/// Most experts of a layer, and most experts of all layers together, that are read.
const MAX_EXPERTS: u32 = 1 << 16;
const MAX_EXPERTS_IN_ALL: u32 = 1 << 18;

impl HfConfig {
    /// The model it describes; the error names the key that this project cannot follow.
    pub fn to_model(&self) -> Result<ModelSpec, String> {
        let keys = self.keys();
        check_family(&keys)?;
        check_only(&keys, ONLY)?;
        check_types(&keys)?;
        let hash = HashConfig::read(&keys)?;
        let (attention, moe) = (attention(&keys)?, moe(&keys)?);
        let num_layers = keys.required("num_layers", 1..=MAX_LAYERS)?;
        if moe.experts.saturating_mul(num_layers) > MAX_EXPERTS_IN_ALL {
            return Err(format!(
                "n_routed_experts is {} and num_layers is {num_layers}; at most {MAX_EXPERTS_IN_ALL} experts in all \
                 layers together are supported",
                moe.experts
            ));
        }
        let hidden_size = keys.required("hidden_size", 1..=MAX_WIDTH)?;
        let tables = hash.ngram().tables_per_site();
        if !hidden_size.is_multiple_of(tables) {
            return Err(format!(
                "hidden_size is {hidden_size}; it must be a multiple of the number of n-gram tables, {tables} \
                 ((emb_neighbor_num − 1)·emb_split_num)"
            ));
        }
        let spec = ModelSpec {
            vocab_size: hash.vocab_size,
            hidden_size,
            num_layers,
            attention,
            ffn_hidden_size: keys.required("ffn_hidden_size", 1..=MAX_WIDTH)?,
            moe,
            ngram: hash.ngram(),
            placement: Placement::Input,
            rms_norm_eps: keys.required_number("rms_norm_eps", 1e-30..=1.0)?,
            initializer_range: keys.number("initializer_range", 1e-9..=1e3)?.unwrap_or(0.02),
            // The model computes alike without it: a document that does not begin with a token of its own
            // begins behind the end of another.
            bos_token_id: begin_of_document(&keys, hash.vocab_size)?.unwrap_or(hash.eos_token_id),
            eos_token_id: hash.eos_token_id,
            max_position_embeddings: keys.required("max_position_embeddings", 1..=u32::MAX)?,
        };
        check_repeated(&keys, &spec)?;
        check_unread(&keys)?;
        spec.validated()
    }
}

/// The file must be one of this family.
fn check_family(keys: &Keys<'_>) -> Result<(), String> {
    let architectures = keys.get("architectures").and_then(Value::as_array);
    let names_family = architectures.is_some_and(|list| list.iter().any(|name| name == ARCHITECTURE));
    match keys.text("model_type")? {
        Some(MODEL_TYPE) => Ok(()),
        None if names_family => Ok(()),
        None => Err(format!("model_type is missing; only \"{MODEL_TYPE}\" is supported")),
        Some("longcat_flash") if keys.get("emb_neighbor_num").is_none() => Err(format!(
            "model_type is \"longcat_flash\", a model without n-gram tables (emb_neighbor_num, emb_split_num and \
             ngram_vocab_size_ratio are missing); only \"{MODEL_TYPE}\" is supported"
        )),
        Some(other) => Err(format!("model_type is \"{other}\"; only \"{MODEL_TYPE}\" is supported")),
    }
}

/// `dtype` and its old name `torch_dtype` name the type of the stored weights, as the safetensors files do.
fn check_types(keys: &Keys<'_>) -> Result<(), String> {
    for key in ["dtype", "torch_dtype"] {
        let Some(name) = keys.text(key)? else { continue };
        if !["float32", "bfloat16", "float16"].contains(&name.trim_start_matches("torch.")) {
            return Err(format!("{key} is \"{name}\"; only float32, bfloat16 and float16 can be read"));
        }
    }
    Ok(())
}

fn attention(keys: &Keys<'_>) -> Result<AttentionSpec, String> {
    let width = |key| keys.required(key, 1..=MAX_WIDTH);
    let qk_rope_head_dim = width("qk_rope_head_dim")?;
    if !qk_rope_head_dim.is_multiple_of(2) {
        return Err(format!("qk_rope_head_dim is {qk_rope_head_dim}; it must be even: pairs are rotated"));
    }
    let (rope_theta, yarn) = rope::read(keys)?;
    Ok(AttentionSpec {
        heads: width("num_attention_heads")?,
        q_lora_rank: width("q_lora_rank")?,
        kv_lora_rank: width("kv_lora_rank")?,
        qk_nope_head_dim: width("qk_nope_head_dim")?,
        qk_rope_head_dim,
        v_head_dim: width("v_head_dim")?,
        rope_theta,
        yarn,
    })
}

fn moe(keys: &Keys<'_>) -> Result<MoeSpec, String> {
    let experts = keys.required("n_routed_experts", 1..=MAX_EXPERTS)?;
    let zero_experts = keys.whole("zero_expert_num", 0..=MAX_EXPERTS)?.unwrap_or(0);
    if let Some(kind) = keys.text("zero_expert_type")?
        && zero_experts > 0
        && kind != "identity"
    {
        return Err(format!("zero_expert_type is \"{kind}\"; only \"identity\" is supported"));
    }
    let top_k = keys.required("moe_topk", 1..=MAX_EXPERTS)?;
    if top_k > experts + zero_experts {
        return Err(format!(
            "moe_topk is {top_k}, but there are only {} experts (n_routed_experts + zero_expert_num)",
            experts + zero_experts
        ));
    }
    Ok(MoeSpec {
        experts,
        zero_experts,
        top_k,
        expert_hidden_size: keys.required("expert_ffn_hidden_size", 1..=MAX_WIDTH)?,
        routed_scaling_factor: keys.required_number("routed_scaling_factor", 1e-9..=1e9)?,
    })
}

/// `bos_token_id`: a token, a list of one, or null.
fn begin_of_document(keys: &Keys<'_>, vocab_size: u32) -> Result<Option<u32>, String> {
    const KEY: &str = "bos_token_id";
    let Some(value) = keys.get(KEY) else { return Ok(None) };
    let token = match value.as_array().map(Vec::as_slice) {
        Some([only]) => only,
        _ => value,
    };
    let token = token_of(token, vocab_size);
    token.map(Some).ok_or_else(|| keys.wrong(KEY, value, &token_range(vocab_size)))
}

/// Keys that repeat what another key says must say the same.
fn check_repeated(keys: &Keys<'_>, spec: &ModelSpec) -> Result<(), String> {
    let a = &spec.attention;
    let repeated = [
        ("head_dim", "qk_rope_head_dim", a.qk_rope_head_dim),
        ("qk_head_dim", "qk_nope_head_dim + qk_rope_head_dim", spec.qk_head_dim()),
        ("num_key_value_heads", "num_attention_heads", a.heads),
        ("intermediate_size", "ffn_hidden_size", spec.ffn_hidden_size),
        ("moe_intermediate_size", "expert_ffn_hidden_size", spec.moe.expert_hidden_size),
        ("num_experts_per_tok", "moe_topk", spec.moe.top_k),
        ("num_experts", "n_routed_experts", spec.moe.experts),
        ("num_local_experts", "n_routed_experts", spec.moe.experts),
    ];
    for (key, of, wanted) in repeated {
        if let Some(value) = keys.get(key).filter(|value| value.as_u64() != Some(wanted.into())) {
            return Err(format!("{key} is {}, but {of} is {wanted}; they must be equal", shown(value)));
        }
    }
    // Two attentions make a layer: transformers counts them, other tools count layers.
    let layers = spec.num_layers;
    let counts = [Some(u64::from(layers)), Some(2 * u64::from(layers))];
    if let Some(value) = keys.get("num_hidden_layers").filter(|value| !counts.contains(&value.as_u64())) {
        return Err(format!(
            "num_hidden_layers is {}, but num_layers is {layers}; it must be {layers} or {}",
            shown(value),
            2 * layers
        ));
    }
    Ok(())
}

/// Refuses unknown keys.
fn check_unread(keys: &Keys<'_>) -> Result<(), String> {
    let unknown: Vec<String> = keys
        .unread()
        .into_iter()
        .filter(|(key, _)| !is_harmless(key))
        .map(|(key, value)| format!("{key} ({})", shown(value)))
        .collect();
    match unknown.len() {
        0 => Ok(()),
        1 => Err(format!(
            "unknown key {}: it may change what the model computes. If it does not, set it to null",
            unknown[0]
        )),
        _ => Err(format!(
            "unknown keys {}: they may change what the model computes. Set those that do not to null",
            unknown.join(", ")
        )),
    }
}
