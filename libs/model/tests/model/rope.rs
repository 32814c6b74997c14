//! Logits under many rotary settings against those of transformers 4.57.6 (tests/golden/README.md,
//! `rope.json`), in both spellings of `config.json`.

use serde_json::{Value, json};

use polygram_model::Options;
use polygram_model::hf::HfDirectory;

use crate::fixture::{Golden, floats, golden_path, largest_difference};

/// Positions of the first sequence whose logits are kept: its last ones.
const POSITIONS: usize = 8;

#[test]
fn logits_agree_with_transformers_under_every_rotary_setting() {
    let golden = Golden::open("B");
    let cells = golden.sequences();
    let first = &cells[0];
    let wanted = std::fs::read(golden_path("rope.safetensors")).unwrap();
    let settings = std::fs::read_to_string(golden_path("rope.json")).unwrap();
    let settings: serde_json::Map<String, Value> = serde_json::from_str(&settings).unwrap();
    assert!(settings.len() >= 38);
    let mut worst = 0.0f32;
    for (name, keys) in &settings {
        for spelling in [transformers_4, transformers_5] {
            let mut config = golden.json("config.json");
            config.as_object_mut().unwrap().extend(spelling(keys).as_object().unwrap().clone());
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let weights = golden_path("B/model.safetensors").canonicalize().unwrap();
            std::os::unix::fs::symlink(weights, folder.path().join("model.safetensors")).unwrap();
            let directory =
                HfDirectory::open(folder.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut model = directory.load(Options::evaluation()).unwrap();
            let found = model.inspect(&first.input(first.batch.target_count())).unwrap().logits_btv;
            let last = found.len() / first.batch.seq_len() * (first.batch.seq_len() - POSITIONS);
            let difference = largest_difference(&found[last..], &floats(&wanted, name));
            assert!(difference <= 1e-4, "{name}: logits differ by {difference:e}: {config}");
            worst = worst.max(difference);
        }
    }
    println!("{} settings: largest difference {worst:e}", settings.len());
}

/// As the vectors' own keys are: `rope_theta` beside `rope_scaling`.
fn transformers_4(keys: &Value) -> Value {
    keys.clone()
}

/// Everything within `rope_parameters`, as transformers 5 writes it.
fn transformers_5(keys: &Value) -> Value {
    let mut parameters = match &keys["rope_scaling"] {
        Value::Null => json!({ "rope_type": "default" }),
        scaling => scaling.clone(),
    };
    parameters["rope_theta"] = keys["rope_theta"].clone();
    json!({ "rope_theta": null, "rope_scaling": null, "rope_parameters": parameters })
}
