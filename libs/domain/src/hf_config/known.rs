//! Keys of a `config.json` that need no number of the model: those that must have one value, and those that
//! do not change what the model computes.

use serde_json::Value;

use super::keys::{Keys, shown};

/// The only value of a key that this project computes with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Only {
    /// Missing or null.
    Missing,
    /// false or 0.
    Off,
    /// true or 1.
    On,
    /// The number 1.
    One,
    /// `[]` or `{}`.
    Empty,
    /// One of these texts, in any case.
    Text(&'static [&'static str]),
    /// A list that repeats this text.
    Each(&'static str),
}

impl Only {
    fn admits(self, value: &Value) -> bool {
        let is_text = |value: &Value, wanted: &str| {
            value.as_str().is_some_and(|text| text.eq_ignore_ascii_case(wanted))
        };
        match self {
            Only::Missing => false,
            Only::Off => value.as_bool() == Some(false) || value.as_f64() == Some(0.0),
            Only::On => value.as_bool() == Some(true) || value.as_f64() == Some(1.0),
            Only::One => value.as_f64() == Some(1.0),
            Only::Empty => {
                value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(|object| object.is_empty())
            }
            Only::Text(wanted) => wanted.iter().any(|wanted| is_text(value, wanted)),
            Only::Each(wanted) => {
                value.as_array().is_some_and(|list| list.iter().all(|value| is_text(value, wanted)))
            }
        }
    }

    fn wanted(self) -> String {
        match self {
            Only::Missing => "a model without it".into(),
            Only::Off => "false".into(),
            Only::On => "true".into(),
            Only::One => "1".into(),
            Only::Empty => "an empty one".into(),
            Only::Text(wanted) => format!("\"{}\"", wanted[0]),
            Only::Each(wanted) => format!("\"{wanted}\" for every layer"),
        }
    }
}

/// Checks the keys of `table` that are there.
pub(super) fn check_only(keys: &Keys<'_>, table: &[(&str, Only)]) -> Result<(), String> {
    for (key, only) in table {
        if let Some(value) = keys.get(key).filter(|value| !only.admits(value)) {
            return Err(format!(
                "{} is {}; only {} is supported",
                keys.name(key),
                shown(value),
                only.wanted()
            ));
        }
    }
    Ok(())
}

/// Keys that change what is computed, each with the only value that this project computes with. Most come
/// from relatives of this family and from other families, whose tools write them with the value "off".
pub(super) const ONLY: &[(&str, Only)] = &[
    // Attention.
    ("attention_bias", Only::Off),
    ("attention_method", Only::Text(&["MLA"])),
    ("attn_logit_softcapping", Only::Missing),
    ("cross_attention_hidden_size", Only::Missing),
    ("is_causal", Only::On),
    ("layer_types", Only::Each("full_attention")),
    ("mla_scale_kv_lora", Only::On),
    ("mla_scale_q_lora", Only::On),
    ("mla_use_nope", Only::Off),
    ("mla_use_output_gate", Only::Off),
    ("partial_rotary_factor", Only::One),
    ("qk_layernorm", Only::Off),
    ("rope_interleave", Only::On),
    ("sliding_window", Only::Missing),
    ("use_bidirectional_attention", Only::Off),
    ("use_mla", Only::On),
    ("use_qk_norm", Only::Off),
    ("use_sliding_window", Only::Off),
    // Feed-forward networks and experts.
    ("decoder_sparse_step", Only::One),
    ("first_k_dense_replace", Only::Off),
    ("hidden_act", Only::Text(&["silu", "swish"])),
    ("mlp_bias", Only::Off),
    ("mlp_only_layers", Only::Empty),
    ("moe_layer_freq", Only::One),
    ("moe_router_dtype", Only::Text(&["float32", "fp32"])),
    ("n_group", Only::One),
    ("n_shared_experts", Only::Off),
    ("norm_topk_prob", Only::Off),
    ("num_shared_experts", Only::Off),
    ("router_bias", Only::Off),
    ("router_dtype", Only::Text(&["float32", "fp32"])),
    ("scoring_func", Only::Text(&["softmax"])),
    ("topk_group", Only::One),
    // Embedding, head, and the whole.
    ("add_cross_attention", Only::Off),
    ("compression_config", Only::Missing),
    ("final_logit_softcapping", Only::Missing),
    ("is_encoder_decoder", Only::Off),
    ("logit_scale", Only::One),
    ("logits_scaling", Only::One),
    ("ngram_fix_normalize_factor", Only::Off),
    ("pruned_heads", Only::Empty),
    ("quantization_config", Only::Missing),
    ("residual_multiplier", Only::One),
    ("tie_encoder_decoder", Only::Off),
    ("tie_word_embeddings", Only::Off),
];

/// Whether `key` does not change the logits of given tokens, whatever its value is.
pub(super) fn is_harmless(key: &str) -> bool {
    // Names of files and classes, and the multi-token-prediction block, which logits do not use.
    key.starts_with('_') || key.starts_with("mtp_") || HARMLESS.contains(&key)
}

const HARMLESS: &[&str] = &[
    // Where the file comes from, and which classes read it.
    "architectures",
    "auto_map",
    "custom_pipelines",
    "name_or_path",
    "prefix",
    "tokenizer_class",
    "transformers_version",
    "unsloth_version",
    // Kernels, parallelism and caches.
    "attn_implementation",
    "cache_implementation",
    "chunk_size_feed_forward",
    "ep_size",
    "pretraining_tp",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    // What other calls return.
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    // Training with other tools.
    "attention_dropout",
    "aux_loss_alpha",
    "hidden_dropout",
    "resid_pdrop",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "seq_aux",
    // Multi-token prediction.
    "nextn_use_scmoe",
    "num_nextn_predict_layers",
    // Tasks other than language modelling.
    "finetuning_task",
    "id2label",
    "is_decoder",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    "tf_legacy_loss",
    // Special tokens without a part in the computation.
    "decoder_start_token_id",
    "pad_token_id",
    "sep_token_id",
    // Generation.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];
