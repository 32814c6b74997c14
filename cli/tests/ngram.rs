//! `polygram ngram` against the golden ids, and what it refuses.
#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

mod common;

use common::{file, polygram_in, repository};
use serde_json::{Value, json};

fn hash_cases() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(repository().join("tests/golden/hash_cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn ids_equal_the_golden_ones() {
    let folder = tempfile::tempdir().unwrap();
    let cases = hash_cases();
    assert!(!cases.is_empty());
    for (name, case) in cases {
        let config = json!({
            "vocab_size": case["vocab_size"],
            "ngram_vocab_size_ratio": case["ngram_vocab_size_ratio"],
            "emb_neighbor_num": case["emb_neighbor_num"],
            "emb_split_num": case["emb_split_num"],
            "eos_token_id": case["eos_token_id"],
            "some_other_key": [1, 2],
        });
        let config = file(folder.path(), "config.json", &config.to_string());
        let tokens = file(folder.path(), "tokens.json", &case["sequences"].to_string());
        let said = polygram_in(folder.path(), &["ngram", "ids", "--config", &config, "--tokens", &tokens]);
        assert_eq!(said.json()["ids"], case["ids"], "{name}");
    }
}

/// Bases that an independent search found; docs/model.md, "Table sizes and collisions".
#[test]
fn sizes_have_high_merit() {
    let folder = tempfile::tempdir().unwrap();
    let args = "ngram size --vocab 131072 --rows 10223616 --orders 4 --heads 4 -o json";
    let sizing = polygram_in(folder.path(), &args.split(' ').collect::<Vec<_>>()).json();
    assert_eq!(sizing["base"], json!(10_232_743));
    let rows: Vec<u64> = serde_json::from_value(sizing["rows"].clone()).unwrap();
    let merits: Vec<f64> = serde_json::from_value(sizing["merits"].clone()).unwrap();
    assert_eq!((rows.len(), merits.len()), (12, 12));
    assert!(rows.windows(2).all(|pair| pair[1] == pair[0] + 2));
    assert!(merits[..4].iter().all(|&merit| merit >= 0.95), "{merits:?}");
    let ratio = sizing["ratio"].as_f64().unwrap();
    assert_eq!((ratio * 131_072.0 + 1.0) as u64, rows[0]);
}

#[test]
fn human_sizes_say_what_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let args = "ngram size --vocab 8192 --rows 100000 --orders 3 --heads 2";
    let said = polygram_in(folder.path(), &args.split(' ').collect::<Vec<_>>());
    assert!(said.stdout.contains("ngram.base_rows = "), "{}", said.stdout);
}

#[test]
fn bad_input_is_refused_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let good = json!({"vocab_size": 11, "ngram_vocab_size_ratio": 3.5, "emb_neighbor_num": 3, "emb_split_num": 2,
                      "eos_token_id": 2});
    let ids = |config: &str, tokens: &str| {
        let config = file(folder.path(), "config.json", config);
        let tokens = file(folder.path(), "tokens.json", tokens);
        polygram_in(folder.path(), &["ngram", "ids", "--config", &config, "--tokens", &tokens])
    };
    let fine = good.to_string();
    assert_eq!(ids(&fine, "[[1, 2], [], [3]]").json()["ids"].as_array().unwrap().len(), 3);
    ids(&fine, "[[1, 2], [3, 11]]").refused(&["token 11", "sequence 1", "position 1", "vocabulary of 11"]);
    ids(&fine, "[[4294967295]]").refused(&["4294967295"]);
    ids(&fine, "[[4294967296]]").refused(&["tokens.json", "4294967296"]);
    ids(&fine, "[[-1]]").refused(&["tokens.json", "-1"]);
    ids(&fine, "[[1.5]]").refused(&["tokens.json", "1.5"]);
    ids(&fine, "[1, 2]").refused(&["list of lists"]);
    ids(&fine, "[[1, 2]").refused(&["tokens.json", "EOF"]);
    ids("{", "[[1]]").refused(&["config.json"]);
    ids("{}", "[[1]]").refused(&["config.json", "vocab_size"]);
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config.to_string()
    };
    ids(&with("emb_neighbor_num", json!(1)), "[[1]]").refused(&["emb_neighbor_num"]);
    ids(&with("vocab_size", json!(0)), "[[1]]").refused(&["vocab_size"]);
    ids(&with("ngram_vocab_size_ratio", json!(1e18)), "[[1]]").refused(&["ngram_vocab_size_ratio"]);
    ids(&with("emb_split_num", json!("four")), "[[1]]").refused(&["config.json", "four"]);
    let args = ["ngram", "ids", "--config", "absent.json", "--tokens", "absent.json"];
    polygram_in(folder.path(), &args).refused(&["absent.json"]);
    let size = |text: &str| polygram_in(folder.path(), &text.split(' ').collect::<Vec<_>>());
    size("ngram size --vocab 0 --rows 5 --orders 3 --heads 2").refused(&["--vocab", "from 1 to 16777216"]);
    size("ngram size --vocab 10 --rows 0 --orders 3 --heads 2").refused(&["rows"]);
    size("ngram size --vocab 10 --rows 99999999999 --orders 3 --heads 2").refused(&["rows"]);
    size("ngram size --vocab 10 --rows 99 --orders 1 --heads 2").refused(&["--orders", "from 2 to 16"]);
    size("ngram size --vocab 10 --rows 99 --orders 3 --heads 0").refused(&["heads"]);
    size("ngram size --vocab ten --rows 99 --orders 3 --heads 1").refused(&["--vocab", "ten"]);
}
