//! Published numbers: golden vectors of the model family (tests/golden/README.md), LongCat-Flash-Lite's size, and
//! a table size with good lattices.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::tensors::{TensorFile, largest_difference};
use polygram_tests::{Running, program, repository};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);

/// Standard output of a `polygram` command that must succeed, as JSON.
fn ask(folder: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new(program("polygram")?);
    command.current_dir(folder).args(arguments);
    let finished = Running::start(command, folder)?.wait(LIMIT)?.success()?;
    serde_json::from_str(&finished.stdout).with_context(|| finished.said())
}

fn logits_match(config: &str) -> Result<()> {
    let golden = repository().join("tests/golden").join(config);
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("out.safetensors");
    let mut command = Command::new(program("polygram")?);
    command.current_dir(folder.path()).arg("logits").arg("--model").arg(&golden);
    command.arg("--input").arg(golden.join("forward.safetensors")).arg("--output").arg(&output);
    Running::start(command, folder.path())?.wait(LIMIT)?.success()?;
    let (ours, theirs) = (TensorFile::open(&output)?, TensorFile::open(&golden.join("forward.safetensors"))?);
    ensure!(ours.i64s("ngram_ids")? == theirs.i64s("ngram_ids")?, "{config}: n-gram ids differ");
    // Tolerances of the golden vectors' README, absolute.
    for (name, tolerance) in [("embedding", 1e-5), ("logits", 1e-4), ("loss", 1e-5)] {
        let (shape, values) = ours.f32s(name)?;
        let (wanted_shape, wanted) = theirs.f32s(name)?;
        ensure!(shape == wanted_shape, "{config}: {name} is {shape:?} instead of {wanted_shape:?}");
        let difference = largest_difference(&values, &wanted)?;
        ensure!(difference <= tolerance, "{config}: {name} differs by {difference:e}, allowed {tolerance:e}");
    }
    Ok(())
}

#[test]
fn logits_of_a_match() {
    logits_match("A").unwrap();
}

#[test]
fn logits_of_b_match() {
    logits_match("B").unwrap();
}

/// N = 5, YaRN in the spelling of transformers 5, zero experts.
#[test]
fn logits_of_c_match() {
    logits_match("C").unwrap();
}

#[test]
fn ngram_ids_match_every_hash_case() {
    let text = fs::read_to_string(repository().join("tests/golden/hash_cases.json")).unwrap();
    let cases: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert!(!cases.is_empty());
    let folder = tempfile::tempdir().unwrap();
    let (config, tokens) = (folder.path().join("config.json"), folder.path().join("tokens.json"));
    for (name, case) in cases {
        // The keys of a case are those of a config.json.
        fs::write(&config, case.to_string()).unwrap();
        fs::write(&tokens, case["sequences"].to_string()).unwrap();
        let arguments =
            ["ngram", "ids", "--config", config.to_str().unwrap(), "--tokens", tokens.to_str().unwrap()];
        let ids = ask(folder.path(), &arguments).unwrap();
        let ids = ids.get("ids").unwrap_or(&ids);
        assert_eq!(*ids, case["ids"], "{name}");
    }
}

#[test]
fn longcat_flash_lite_has_its_published_size() {
    let folder = tempfile::tempdir().unwrap();
    let run_file = repository().join("configs/longcat-flash-lite.toml");
    let plan = ask(folder.path(), &["plan", run_file.to_str().unwrap(), "-o", "json"]).unwrap();
    let parameters = &plan["parameters"];
    assert_eq!(parameters["total"], json!(68_562_459_648u64));
    assert_eq!(parameters["ngram_tables"], json!(31_406_985_216u64));
    assert_eq!(parameters["experts"], json!(33_822_867_456u64));
    assert_eq!(parameters["embedding"], json!(402_653_184u64));
    let billions = |key: &str| parameters[key].as_u64().unwrap() as f64 / 1e9;
    assert_eq!(format!("{:.3}", billions("activated_min")), "2.921");
    assert_eq!(format!("{:.3}", billions("activated_max")), "4.506");
    assert_eq!(plan["tokens_per_step"], json!(8192u64 * 512));
    assert!(plan["memory"].is_object());
}

#[test]
fn a_table_size_with_good_lattices_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = 10_223_616u64;
    let rows = wanted.to_string();
    let arguments = [
        "ngram", "size", "--vocab", "131072", "--rows", &rows, "--orders", "4", "--heads", "4", "-o", "json",
    ];
    let sizing = ask(folder.path(), &arguments).unwrap();
    let numbers = |key: &str| sizing[key].as_array().unwrap().clone();
    let rows: Vec<u64> = numbers("rows").iter().map(|row| row.as_u64().unwrap()).collect();
    let merits: Vec<f64> = numbers("merits").iter().map(|merit| merit.as_f64().unwrap()).collect();
    assert_eq!((rows.len(), merits.len() >= 4), (12, true), "{sizing}");
    assert!(rows[0].abs_diff(wanted) as f64 <= 0.005 * wanted as f64, "{sizing}");
    assert!(rows.windows(2).all(|pair| pair[1] == pair[0] + 2), "{sizing}");
    assert!(merits[..4].iter().all(|merit| *merit >= 0.95), "bigram heads: {:?}", &merits[..4]);
    // The ratio gives the same sizes back through the published formula.
    let ratio = sizing["ratio"].as_f64().unwrap();
    for (table, size) in rows.iter().enumerate() {
        assert_eq!((ratio * 131_072.0 + (2 * table + 1) as f64) as u64, *size, "table {table}");
    }
}
