//! `polygram data` on a small corpus, and what it refuses.
#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

mod common;

use common::{file, polygram_in};
use serde_json::json;

#[test]
fn text_becomes_token_files_that_can_be_inspected() {
    let folder = tempfile::tempdir().unwrap();
    let texts = folder.path().join("texts");
    std::fs::create_dir(&texts).unwrap();
    for number in 0..60 {
        let text = format!("Document {number} speaks of rows and tables. ").repeat(20);
        file(&texts, &format!("{number}.txt"), &text);
    }
    let prepare = ["data", "prepare", "texts", "--output", "out", "--vocab-size", "300", "--held-out", "0.2"];
    let report = polygram_in(folder.path(), &[&prepare[..], &["-o", "json"]].concat()).json();
    assert_eq!(report["eos_token_id"], json!(2));
    let held_out = report["held_out"]["documents"].as_u64().unwrap();
    assert!(held_out > 0 && held_out < 30, "{held_out}");
    assert_eq!(report["train"]["documents"].as_u64().unwrap() + held_out, 60);

    let inspection = polygram_in(folder.path(), &["data", "inspect", "out/train", "-o", "json"]).json();
    assert_eq!(inspection["tokens"], report["train"]["tokens"]);
    assert!(inspection["max_token"].as_u64().unwrap() < report["vocab_size"].as_u64().unwrap());
    let text = inspection["first_text"].as_str().unwrap();
    assert!(text.starts_with("Document ") && text.contains(" speaks of rows and tables. "), "{text}");
    let shown = polygram_in(folder.path(), &["data", "inspect", "out/train"]).stdout;
    assert!(shown.contains("as text:\n  | Document "), "{shown}");

    // A second preparation never replaces the first unasked.
    polygram_in(folder.path(), &prepare).refused(&["exists already"]);
    assert_eq!(polygram_in(folder.path(), &[&prepare[..], &["--replace"]].concat()).code, Some(0));

    let idx = folder.path().join("out/train.idx");
    let whole = std::fs::read(&idx).unwrap();
    std::fs::write(&idx, &whole[..whole.len() - 5]).unwrap();
    polygram_in(folder.path(), &["data", "inspect", "out/train"])
        .refused(&["train.idx", "not a usable index"]);
}

#[test]
fn bad_options_are_refused_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let text = file(folder.path(), "a.txt", "words");
    let prepare = |more: &[&str]| {
        polygram_in(folder.path(), &[&["data", "prepare", &text, "--output", "out"], more].concat())
    };
    prepare(&["--held-out", "1.5"]).refused(&["held-out share", "1.5"]);
    prepare(&["--vocab-size", "7"]).refused(&["vocabulary size"]);
    prepare(&["--tokenizer", "absent.json"]).refused(&["absent.json"]);
    prepare(&["--tokenizer", "absent.json", "--vocab-size", "300"]).refused(&["--vocab-size"]);
}
