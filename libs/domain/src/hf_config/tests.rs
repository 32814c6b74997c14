//! Real configurations, and every way in which one can be wrong.
#![allow(clippy::unwrap_used)] // a malformed golden file fails the test

use std::path::Path;

use serde_json::{Value, json};

use super::{HashConfig, HfConfig};
use crate::model::{ModelSpec, YarnSpec};

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn model(config: &Value) -> Result<ModelSpec, String> {
    HfConfig::parse(&config.to_string())?.to_model()
}

/// Golden A's configuration with these keys in place of its own.
fn changed(keys: Value) -> Value {
    let mut config = golden("A/config.json");
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

/// The message that refuses A with these keys.
fn refusal(keys: Value) -> String {
    let config = changed(keys.clone());
    model(&config).expect_err(&format!("{keys} was not refused"))
}

fn accepted(keys: Value) -> ModelSpec {
    model(&changed(keys.clone())).unwrap_or_else(|error| panic!("{keys}: {error}"))
}

fn yarn_of(keys: Value) -> YarnSpec {
    accepted(keys).attention.yarn.unwrap()
}

#[test]
fn configurations_of_released_tools_load() {
    let lite = model(&golden("configs/longcat-flash-lite.json")).unwrap();
    assert_eq!((lite.hidden_size, lite.num_layers, lite.ngram.tables_per_site()), (3072, 14, 12));
    assert_eq!((lite.moe.experts, lite.moe.zero_experts, lite.moe.top_k), (256, 128, 12));
    assert_eq!(lite.attention.yarn.unwrap().factor, 10.0);
    for version in ["4.57.6", "5.24.0"] {
        let load =
            |kind: &str| model(&golden(&format!("configs/transformers-{version}-{kind}.json"))).unwrap();
        let (plain, yarn) = (load("plain"), load("yarn"));
        assert_eq!((plain.attention.rope_theta, &plain.attention.yarn), (10_000.0, &None), "{version}");
        let both = load("yarn-both-types");
        assert_eq!(yarn, both, "{version}");
        let scaling = yarn.attention.yarn.clone().unwrap();
        assert_eq!((scaling.factor, scaling.original_max_position_embeddings), (4.0, 32), "{version}");
        assert_eq!(
            (scaling.mscale, scaling.mscale_all_dim, scaling.beta_fast),
            (1.0, 1.0, 32.0),
            "{version}"
        );
    }
}

#[test]
fn relatives_of_the_family_are_refused_by_the_key() {
    let error = model(&golden("configs/longcat-flash-chat.json")).unwrap_err();
    assert!(error.contains("model_type") && error.contains("emb_neighbor_num"), "{error}");
    let mut sparse = golden("configs/longcat-flash-lite-sparse.json");
    // Mended one by one, each key that this project does not compute with is named.
    for (key, mended) in [
        ("model_type", json!("longcat_flash_ngram")),
        ("attention_method", json!("MLA")),
        ("oe_neighbor_num", Value::Null),
        ("oe_split_num", Value::Null),
        ("oe_vocab_size_ratio", Value::Null),
        ("emb_neighbor_num", json!(4)),
        ("emb_split_num", json!(4)),
        ("ngram_vocab_size_ratio", json!(78)),
        ("rope_scaling", json!({ "rope_type": "yarn", "factor": 120 })),
        ("cli_factor", Value::Null),
        ("index_head_dim", Value::Null),
        ("index_init_tokens", Value::Null),
        ("index_k_norm_type", Value::Null),
        ("index_local_tokens", Value::Null),
        ("index_n_heads", Value::Null),
        ("index_topk", Value::Null),
    ] {
        let error = model(&sparse).unwrap_err();
        assert!(error.contains(key), "{key} is not in: {error}");
        sparse[key] = mended;
    }
    model(&sparse).unwrap();
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let error = refusal(json!({ "residual_gate": 0.5, "_name_or_path": "x", "another": [1, 2] }));
    assert!(error.contains("residual_gate (0.5)") && error.contains("another ([1,2])"), "{error}");
    assert!(!error.contains("_name_or_path"), "{error}");
    accepted(json!({ "residual_gate": null, "_commit_hash": "abc", "mtp_num_layers": 1, "max_length": 20 }));
}

/// Each key that changes the arithmetic: values that mean "off" load, others do not.
#[test]
fn keys_that_change_the_arithmetic_have_one_value() {
    for (key, good, bad) in [
        ("attention_bias", json!(false), json!(true)),
        ("compression_config", json!(null), json!({ "bits": 4 })),
        ("dtype", json!("torch.bfloat16"), json!("float8_e4m3fn")),
        ("first_k_dense_replace", json!(0), json!(1)),
        ("hidden_act", json!("silu"), json!("gelu")),
        ("layer_types", json!(["full_attention"]), json!(["sliding_attention"])),
        ("mla_scale_kv_lora", json!(true), json!(false)),
        ("mla_scale_q_lora", json!(null), json!(false)),
        ("n_shared_experts", json!(0), json!(1)),
        ("ngram_exclude_sp_token", json!(false), json!(true)),
        ("ngram_fix_normalize_factor", json!(false), json!(true)),
        ("norm_topk_prob", json!(false), json!(true)),
        ("partial_rotary_factor", json!(1.0), json!(0.5)),
        ("pruned_heads", json!({}), json!({ "0": [1] })),
        ("quantization_config", json!(null), json!({ "quant_method": "fp8" })),
        ("router_bias", json!(false), json!(true)),
        ("router_dtype", json!("float32"), json!("bfloat16")),
        ("scoring_func", json!("softmax"), json!("sigmoid")),
        ("sliding_window", json!(null), json!(4096)),
        ("tie_word_embeddings", json!(false), json!(true)),
        ("torch_dtype", json!("float16"), json!("int8")),
        ("use_mla", json!(1), json!(0)),
        // Keys that repeat another.
        ("head_dim", json!(8), json!(24)),
        ("intermediate_size", json!(56), json!(57)),
        ("moe_intermediate_size", json!(32), json!(31)),
        ("num_experts_per_tok", json!(2), json!(3)),
        ("num_hidden_layers", json!(2), json!(3)),
        ("num_hidden_layers", json!(4), json!(2.5)),
        ("num_key_value_heads", json!(4), json!(2)),
        ("num_local_experts", json!(6), json!(8)),
        ("qk_head_dim", json!(24), json!(25)),
        ("text_vocab_size", json!(113), json!(100)),
    ] {
        accepted(json!({ key: good }));
        let error = refusal(json!({ key: bad }));
        assert!(error.contains(key) && error.contains(&bad.to_string()), "{key}: {error}");
    }
    // The kind of zero experts matters only where there are some.
    accepted(json!({ "zero_expert_type": "other" }));
    let error = refusal(json!({ "zero_expert_type": "other", "zero_expert_num": 2 }));
    assert!(error.contains("zero_expert_type"), "{error}");
}

/// No number of the file panics, wraps or is taken for another.
#[test]
fn numbers_out_of_range_are_refused_by_name() {
    let config = golden("A/config.json");
    let huge: Value = serde_json::from_str("1e300").unwrap();
    for (key, value) in config.as_object().unwrap() {
        if !value.is_number() || ["attention_dropout", "initializer_range"].contains(&key.as_str()) {
            continue;
        }
        let exact = ["head_dim", "num_hidden_layers"].contains(&key.as_str());
        for bad in [json!(-1), huge.clone(), json!("7"), json!([7, 8]), json!(true), json!({})] {
            let error = refusal(json!({ key: bad }));
            assert!(error.contains(key.as_str()), "{key} = {bad}: {error}");
        }
        if value.is_u64() && !exact && key != "ngram_vocab_size_ratio" {
            for bad in [json!(4_294_967_296u64), json!(u64::MAX), json!(2.5), json!(64.0)] {
                let error = refusal(json!({ key: bad }));
                assert!(error.contains(key.as_str()), "{key} = {bad}: {error}");
            }
        }
        if !key.ends_with("token_id") && key != "zero_expert_num" {
            assert!(refusal(json!({ key: 0 })).contains(key.as_str()), "{key} = 0");
        }
    }
    // Combinations that would be too large together.
    let error = refusal(json!({ "num_layers": 4096, "num_hidden_layers": null, "n_routed_experts": 65536 }));
    assert!(error.contains("n_routed_experts") && error.contains("num_layers"), "{error}");
    assert!(refusal(json!({ "moe_topk": 7 })).contains("moe_topk"));
    assert!(refusal(json!({ "hidden_size": 66 })).contains("hidden_size"));
    assert!(refusal(json!({ "qk_rope_head_dim": 7, "head_dim": 7 })).contains("qk_rope_head_dim"));
    assert!(refusal(json!({ "ngram_vocab_size_ratio": 4e7 })).contains("ngram_vocab_size_ratio"));
    // The largest that each may be does not overflow either: the next rule, or none, refuses it.
    for key in ["qk_nope_head_dim", "v_head_dim", "q_lora_rank", "num_attention_heads"] {
        if let Err(error) = model(&changed(json!({ key: 1 << 20 }))) {
            assert!(error.contains(key), "{key}: {error}");
        }
        assert!(refusal(json!({ key: u32::MAX })).contains(key));
    }
}

#[test]
fn tokens_may_be_lists_of_one() {
    assert_eq!(accepted(json!({ "eos_token_id": [2] })).eos_token_id, 2);
    assert_eq!(accepted(json!({ "bos_token_id": [1] })).bos_token_id, 1);
    // A model without a BOS begins a document behind an EOS.
    assert_eq!(accepted(json!({ "bos_token_id": null })).bos_token_id, 2);
    for bad in [json!([2, 3]), json!([]), json!(113), json!(null), json!([[2]])] {
        assert!(refusal(json!({ "eos_token_id": bad })).contains("eos_token_id"), "{bad}");
    }
    assert!(refusal(json!({ "bos_token_id": 113 })).contains("bos_token_id"));
}

#[test]
fn keys_without_a_part_in_the_computation_may_be_missing() {
    for key in ["architectures", "bos_token_id", "pad_token_id", "torch_dtype", "hidden_act", "head_dim"] {
        let mut config = golden("A/config.json");
        config.as_object_mut().unwrap().remove(key);
        model(&config).unwrap_or_else(|error| panic!("without {key}: {error}"));
    }
    for key in ["vocab_size", "num_layers", "moe_topk", "rms_norm_eps", "routed_scaling_factor", "rope_theta"]
    {
        let mut config = golden("A/config.json");
        config.as_object_mut().unwrap().remove(key);
        let error = model(&config).unwrap_err();
        assert!(error.contains(key) && error.contains("missing"), "without {key}: {error}");
    }
    // The class names the family where model_type does not.
    accepted(json!({ "model_type": null }));
    assert!(
        refusal(json!({ "model_type": null, "architectures": ["LlamaForCausalLM"] })).contains("model_type")
    );
    assert!(refusal(json!({ "model_type": "llama" })).contains("llama"));
}

#[test]
fn both_spellings_of_rotary_settings_mean_the_same() {
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 });
    let with = |key: &str, value: Value| {
        let mut object = yarn.clone();
        object[key] = value;
        object
    };
    let wanted = accepted(json!({ "rope_scaling": yarn }));
    for keys in [
        json!({ "rope_scaling": with("type", json!("yarn")) }),
        json!({ "rope_scaling": with("rope_theta", json!(10000)) }),
        json!({ "rope_parameters": yarn }),
        json!({ "rope_parameters": with("rope_theta", json!(10000.0)), "rope_theta": null }),
        json!({ "rope_parameters": with("mscale", json!(null)) }),
        json!({ "rope_scaling": yarn, "rope_parameters": with("rope_theta", json!(10000.0)) }),
        json!({ "rope_scaling": { "type": "yarn", "factor": 4, "original_max_position_embeddings": 32 } }),
        json!({ "rope_scaling": with("beta_fast", json!(32)) }),
        json!({ "rope_scaling": with("beta_slow", json!(0)) }),
        json!({ "rope_scaling": with("truncate", json!(true)) }),
    ] {
        assert_eq!(accepted(keys.clone()), wanted, "{keys}");
    }
    for keys in [
        json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 5e5 }, "rope_theta": null }),
        json!({ "rope_parameters": { "rope_theta": 5e5 }, "rope_theta": null }),
        json!({ "rope_parameters": {}, "rope_theta": 5e5 }),
        json!({ "rope_scaling": { "rope_type": "default" }, "rope_theta": 500000 }),
    ] {
        let attention = accepted(keys.clone()).attention;
        assert_eq!((attention.rope_theta, attention.yarn), (5e5, None), "{keys}");
    }
    for (keys, word) in [
        (json!({ "rope_scaling": with("type", json!("linear")) }), "rope_scaling.type"),
        (json!({ "rope_scaling": with("rope_theta", json!(9)) }), "rope_scaling.rope_theta"),
        (json!({ "rope_scaling": with("mscale_al_dim", json!(1)) }), "rope_scaling.mscale_al_dim"),
        (json!({ "rope_scaling": { "factor": 4.0 } }), "rope_scaling.rope_type"),
        (json!({ "rope_scaling": { "rope_type": "default", "mscale_all_dim": 1 } }), "mscale_all_dim"),
        (json!({ "rope_scaling": yarn, "rope_parameters": with("factor", json!(8)) }), "differ"),
        (json!({ "rope_scaling": "yarn" }), "rope_scaling"),
        (
            json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }),
            "rope_parameters.rope_type",
        ),
        (json!({ "rope_parameters": with("partial_rotary_factor", json!(0.5)) }), "partial_rotary_factor"),
        (json!({ "rope_theta": null, "rope_scaling": yarn }), "rope_theta"),
        (json!({ "rope_theta": 1.0, "rope_scaling": yarn }), "rope_theta"),
        (json!({ "rope_scaling": with("truncate", json!(1)) }), "rope_scaling.truncate"),
        (json!({ "rope_scaling": { "rope_type": "yarn" } }), "rope_scaling.factor"),
    ] {
        let error = refusal(keys.clone());
        assert!(error.contains(word), "{keys}: {error}");
    }
    for kind in ["linear", "dynamic", "llama3", "longrope", "deepseek_yarn", "Yarn"] {
        for section in ["rope_scaling", "rope_parameters"] {
            let error = refusal(json!({ section: { "rope_type": kind, "factor": 4.0 } }));
            assert!(error.contains("rope_type") && error.contains(kind), "{error}");
        }
    }
    for key in ["factor", "mscale", "mscale_all_dim", "attention_factor", "beta_fast", "beta_slow"] {
        for bad in [json!(-1), json!(1e300), json!("1"), json!([1])] {
            let error = refusal(json!({ "rope_scaling": with(key, bad.clone()) }));
            assert!(error.contains(&format!("rope_scaling.{key}")), "{key} = {bad}: {error}");
        }
    }
}

/// transformers takes 0 and null for "not given"; what is not given is not 1.
#[test]
fn yarn_scales_that_are_not_given_are_0() {
    let yarn = |more: Value| {
        let mut object = json!({ "rope_type": "yarn", "factor": 4.0 });
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        yarn_of(json!({ "rope_scaling": object }))
    };
    for more in [json!({}), json!({ "mscale": null, "mscale_all_dim": 0 }), json!({ "mscale": 0.0 })] {
        let found = yarn(more);
        assert_eq!((found.mscale, found.mscale_all_dim, found.attention_factor), (0.0, 0.0, None));
        // Not given, the original length is that of the file's max_position_embeddings.
        assert_eq!(found.original_max_position_embeddings, 128);
        assert!(found.truncate);
    }
    let found =
        yarn(json!({ "mscale": 0.707, "mscale_all_dim": 1, "attention_factor": 1.3, "truncate": false }));
    assert_eq!((found.mscale, found.mscale_all_dim, found.attention_factor), (0.707, 1.0, Some(1.3)));
    assert!(!found.truncate);
}

#[test]
fn what_is_not_a_json_object_is_refused() {
    for text in ["", "{", "[]", "7", "null", "{\"a\": NaN}", "\u{feff}{}", &"[".repeat(10_000)] {
        assert!(HfConfig::parse(text).is_err(), "{text:.20}");
    }
}

#[test]
fn hashing_needs_only_its_own_keys() {
    let config = json!({
        "vocab_size": 97, "emb_neighbor_num": 3, "emb_split_num": 2, "ngram_vocab_size_ratio": 5.5, "eos_token_id": [3],
        "model_type": "anything", "some_other_key": 1
    });
    let hash = HashConfig::parse(&config.to_string()).unwrap();
    assert_eq!((hash.vocab_size, hash.eos_token_id, hash.ngram_vocab_size_ratio), (97, 3, 5.5));
    for (key, bad) in [
        ("vocab_size", json!(0)),
        ("emb_neighbor_num", json!(1)),
        ("emb_neighbor_num", json!(17)),
        ("emb_split_num", json!(65)),
        ("ngram_vocab_size_ratio", json!(0)),
        ("ngram_vocab_size_ratio", json!(1e300)),
        ("ngram_vocab_size_ratio", json!("5")),
        ("eos_token_id", json!(97)),
        ("eos_token_id", json!(null)),
        ("oe_split_num", json!(4)),
        ("ngram_exclude_sp_token", json!(true)),
    ] {
        let mut config = config.clone();
        config[key] = bad.clone();
        let error = HashConfig::parse(&config.to_string()).unwrap_err();
        assert!(error.contains(key), "{key} = {bad}: {error}");
    }
}
