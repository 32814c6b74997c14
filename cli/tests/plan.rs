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
    assert_eq!(plan["misfit"], json!(null));
}

/// What does not fit is shown part by part all the same; the message has both numbers and the settings that would do.
#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let wide =
        ["plan", "configs/longcat-flash-lite.toml", "--set", "topology.expert_parallel=1", "-o", "json"];
    let said = polygram(&wide);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    let plan: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(plan["misfit"]["needed_bytes"].as_u64() > plan["misfit"]["limit_bytes"].as_u64(), "{plan}");
    assert_eq!(plan["memory"]["worker"].as_array().unwrap().len(), 7);
    for words in ["device memory", "device.memory_gib allows 80.0 GiB", "--set topology.expert_parallel="] {
        assert!(said.stderr.contains(words), "{words:?} is missing: {}", said.stderr);
    }
    assert_eq!(said.stderr.matches("error: ").count(), 1, "{}", said.stderr);
    // The settings that are named do what is said of them.
    let cure = plan["misfit"]["cure"].as_array().unwrap();
    let sets = cure.iter().flat_map(|set| ["--set", set.as_str().unwrap()]);
    let cured = polygram(&wide.into_iter().chain(sets).collect::<Vec<_>>()).json();
    assert_eq!(cured["memory"]["worker_device_bytes"], plan["misfit"]["cured_bytes"]);
}

#[test]
fn absurd_sizes_are_refused_by_their_keys() {
    for (set, key) in [
        ("model.qk_nope_head_dim=4294967295", "model.qk_nope_head_dim"),
        ("model.v_head_dim=4294967295", "model.v_head_dim"),
        ("model.num_layers=4294967295", "model.num_layers"),
        ("model.n_routed_experts=4294967294", "model.n_routed_experts"),
        ("training.seq_len=4294967295", "training.seq_len"),
        ("training.steps=9223372036854775807", "training.steps"),
        ("device.memory_gib=1e300", "device.memory_gib"),
    ] {
        polygram(&["plan", "configs/tiny.toml", "--set", set]).refused(&[key]);
    }
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
    assert_eq!(plan["warnings"].as_array().unwrap().len(), 1, "{}", plan["warnings"]);
}

#[test]
fn the_demo_is_mostly_tables_and_sound() {
    let plan = polygram(&["plan", "configs/demo.toml", "-o", "json"]).json();
    let count = |key: &str| plan["parameters"][key].as_u64().unwrap();
    assert!(count("total") >= 20_000_000, "{}", count("total"));
    assert!(2 * count("ngram_tables") > count("total"));
    assert!(plan["tables"].as_u64().unwrap() >= 12);
    // What this machine lacks is its own matter.
    let is_of_run = |warning: &&serde_json::Value| !warning.as_str().unwrap().contains("this machine");
    let warnings: Vec<_> = plan["warnings"].as_array().unwrap().iter().filter(is_of_run).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].as_str().unwrap().contains("of the parameters; above 50 %"), "{warnings:?}");
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
    plan(&tiny.replace("name = \"tiny\"", "name = first"), &[]).refused(&["line 3", "name = \"first\""]);
    plan(&tiny, &["--set", "device.kind=gpu"]).refused(&["did you mean `cuda`"]);
    plan(&tiny, &["--set", "training.lr=fast"]).refused(&["training.lr", "expected a number"]);
    plan("[run]\nname = \"x\"\n", &[]).refused(&[
        "missing keys",
        "ngram.ratio or ngram.base_rows",
        "data.train or data.synthetic_tokens",
        "polygram keys",
    ]);
    plan(&tiny, &["--set", "steps"]).refused(&["section.key=value"]);
    plan(&tiny.replace("hidden_size = 48", "hidden_size = 50"), &[]).refused(&["model.hidden_size = 50"]);
    plan("[run\n", &[]).refused(&["run.toml", "line 1"]);
    plan(&tiny, &["--set", "checkpoint.keep=1"]).refused(&["checkpoint.keep"]);
    polygram_in(folder.path(), &["plan", "absent.toml"]).refused(&["cannot read", "absent.toml"]);
    polygram_in(folder.path(), &["plan", "."]).refused(&["cannot read .: it is a folder"]);
    std::fs::write(folder.path().join("binary.toml"), [0xff, 0xfe, 0x00]).unwrap();
    polygram_in(folder.path(), &["plan", "binary.toml"]).refused(&["binary.toml is no text in UTF-8"]);
    let ids = ["ngram", "ids", "--config", "binary.toml", "--tokens", "absent"];
    polygram_in(folder.path(), &ids).refused(&["binary.toml is no text in UTF-8"]);
}

/// A plan needs no data; where it is there, what it makes of held-out losses is said.
#[test]
fn held_out_data_that_is_trained_on_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..400).map(|i| format!("some words {i}\n")).collect();
    file(folder.path(), "in.txt", &text);
    let prepare = ["data", "prepare", "in.txt", "--output", "out", "--vocab-size", "300", "--held-out", "0"];
    assert_eq!(polygram_in(folder.path(), &prepare).code, Some(0));
    let tiny = std::fs::read_to_string(repository().join("configs/tiny.toml")).unwrap();
    let kept: Vec<&str> = tiny.lines().filter(|line| !line.starts_with("synthetic_")).collect();
    let plan = |held_out: &str| {
        let data = format!("[data]\ntrain = \"out/train\"\nheld_out = \"{held_out}\"");
        let run_file = file(folder.path(), "run.toml", &kept.join("\n").replacen("[data]", &data, 1));
        polygram_in(folder.path(), &["plan", &run_file, "-o", "json"]).json()["warnings"].to_string()
    };
    let warned = plan("./out/train");
    assert!(
        warned.contains("data.held_out") && warned.contains("is the same data as data.train"),
        "{warned}"
    );
    assert!(!plan("elsewhere").contains("same data"));
}
