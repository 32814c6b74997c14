//! `polygram plan` as a user sees it.

mod common;

use common::{file, polygram, polygram_in, repository};
use serde_json::json;

/// The published sizes of LongCat-Flash-Lite (arXiv 2601.21204): 68.5 B parameters, 2.9–4.5 B activated.
#[test]
fn the_full_size_model_has_its_published_numbers() {
    let plan = polygram(&["plan", "configs/longcat-flash-lite.toml", "-o", "json"]).json();
    let parameters = &plan["parameters"];
    assert_eq!(parameters["total"], json!(68_562_459_648u64));
    assert_eq!(parameters["ngram_tables"], json!(31_406_985_216u64));
    assert_eq!(parameters["embedding"], json!(402_653_184u64));
    assert_eq!(parameters["experts"], json!(33_822_867_456u64));
    assert_eq!(parameters["activated_min"], json!(2_920_516_608u64));
    assert_eq!(parameters["activated_max"], json!(4_505_963_520u64));
    assert_eq!(plan["tokens_per_step"], json!(4_194_304u64));
    assert!(plan["memory"]["shard_all_rows_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn low_merit_is_a_warning_that_names_the_cure() {
    let said = polygram(&["plan", "configs/longcat-flash-lite.toml"]);
    assert!(said.stdout.contains("68,562,459,648"), "{}", said.stdout);
    assert!(
        said.stderr.contains("warning: ") && said.stderr.contains("ngram.base_rows = 10232743"),
        "{}",
        said.stderr
    );
    let plan = polygram(&["plan", "configs/longcat-flash-lite.toml", "-o", "json"]).json();
    assert_eq!(plan["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn the_demo_is_mostly_tables_and_sound() {
    let plan = polygram(&["plan", "configs/demo.toml", "-o", "json"]).json();
    let count = |key: &str| plan["parameters"][key].as_u64().unwrap();
    assert!(count("total") >= 20_000_000, "{}", count("total"));
    assert!(2 * count("ngram_tables") > count("total"));
    assert!(plan["tables"].as_u64().unwrap() >= 12);
    assert_eq!(plan["warnings"], json!([]));
}

#[test]
fn overrides_are_followed() {
    let args = [
        "plan",
        "configs/tiny.toml",
        "--set",
        "training.cells=8",
        "--set",
        "topology.shards=3",
        "-o",
        "jsonl",
    ];
    let said = polygram(&args);
    assert_eq!(said.stdout.lines().count(), 1);
    let plan = said.json();
    assert_eq!(plan["topology"]["shards"], json!(3));
    assert_eq!(plan["tokens_per_step"], json!(8 * 2 * 32));
}

#[test]
fn bad_run_files_are_refused_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = std::fs::read_to_string(repository().join("configs/tiny.toml")).unwrap();
    let plan = |text: &str, more: &[&str]| {
        let path = file(folder.path(), "run.toml", text);
        polygram_in(folder.path(), &[&["plan", &path], more].concat())
    };
    plan(&tiny.replace("hidden_size = 48", "hiden_size = 48"), &[]).refused(&[
        "run.toml",
        "hiden_size",
        "did you mean `hidden_size`",
    ]);
    plan(&tiny, &["--set", "trainning.steps=3"]).refused(&["trainning", "did you mean `training`"]);
    plan(&tiny, &["--set", "steps"]).refused(&["section.key=value"]);
    plan(&tiny.replace("hidden_size = 48", "hidden_size = 50"), &[]).refused(&["model.hidden_size = 50"]);
    plan("[run\n", &[]).refused(&["run.toml", "line 1"]);
    plan(&tiny, &["--set", "checkpoint.keep=1"]).refused(&["checkpoint.keep"]);
    polygram_in(folder.path(), &["plan", "absent.toml"]).refused(&["cannot read", "absent.toml"]);
    polygram_in(folder.path(), &["plan", "."]).refused(&["cannot read"]);
    std::fs::write(folder.path().join("binary.toml"), [0xff, 0xfe, 0x00]).unwrap();
    polygram_in(folder.path(), &["plan", "binary.toml"]).refused(&["binary.toml"]);
}
