//! Ids against the golden vectors (tests/golden/README.md): Meituan's published modeling code on real sizes.
#![allow(clippy::unwrap_used)] // a malformed golden file fails the test

use std::path::{Path, PathBuf};

use polygram_domain::hf_config::HashConfig;
use polygram_ngram::{Hasher, Stream, batch_ids};
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn hash_cases_at_real_sizes() {
    let text = std::fs::read_to_string(golden().join("hash_cases.json")).unwrap();
    let cases: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 2);
    for (name, case) in &cases {
        let config = HashConfig::parse(&case.to_string()).unwrap();
        let hasher = Hasher::new(&config.ngram(), config.eos_token_id).unwrap();
        assert_eq!(hasher.rows(), numbers(&case["table_sizes"]), "{name}");
        let sequences = case["sequences"].as_array().unwrap();
        for (s, sequence) in sequences.iter().enumerate() {
            let tokens = numbers(sequence);
            let wanted: Vec<u32> = case["ids"][s].as_array().unwrap().iter().flat_map(numbers).collect();
            assert_eq!(hasher.ids(&tokens).unwrap(), wanted, "{name}, sequence {s}");
            let mut stream = Stream::new(&hasher);
            let streamed: Vec<u32> = tokens.iter().flat_map(|&t| stream.push(t).unwrap()).collect();
            assert_eq!(streamed, wanted, "{name}, sequence {s}, streamed");
        }
    }
}

/// One i64 tensor of a safetensors file: 8 bytes of header length, the header (JSON), then the data.
fn integers(file: &[u8], name: &str) -> (Vec<usize>, Vec<u32>) {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let entry = &header[name];
    assert_eq!(entry["dtype"], "I64", "{name}");
    let shape = numbers(&entry["shape"]).iter().map(|&n| n as usize).collect();
    let range = numbers(&entry["data_offsets"]);
    let data = &file[8 + length + range[0] as usize..8 + length + range[1] as usize];
    (shape, data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect())
}

#[test]
fn ids_of_the_small_models() {
    for model in ["A", "B", "C"] {
        let folder = golden().join(model);
        let config =
            HashConfig::parse(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
        let hasher = Hasher::new(&config.ngram(), config.eos_token_id).unwrap();
        let file = std::fs::read(folder.join("forward.safetensors")).unwrap();
        let (shape, tokens) = integers(&file, "input_ids");
        assert_eq!(integers(&file, "table_sizes").1, hasher.rows(), "{model}");
        assert_eq!(batch_ids(&hasher, &tokens, shape[1]).unwrap(), integers(&file, "ngram_ids").1, "{model}");
    }
}
