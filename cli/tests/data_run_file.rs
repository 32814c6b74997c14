//! From prepared data to a run: what `data prepare` prints for the run file works, and advice about data that
//! does not fit leads to a run.
#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

mod common;

use std::path::Path;

use common::{Said, file, polygram_in, repository};

/// A tokenizer of whole words, numbered in this order, among which EOS has the number `eos`.
fn tokenizer(folder: &Path, name: &str, eos: u32, order: [&str; 3]) -> String {
    let mut words = order.map(str::to_owned).to_vec();
    words.insert(eos as usize, "</s>".into());
    let vocab: serde_json::Map<String, serde_json::Value> =
        words.iter().enumerate().map(|(id, word)| (word.clone(), id.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    });
    file(folder, name, &json.to_string())
}

/// `data prepare` of some documents into `output`.
fn prepare(folder: &Path, output: &str, more: &[&str]) -> Said {
    let texts = folder.join("texts");
    std::fs::create_dir_all(&texts).unwrap();
    for number in 0..40 {
        file(&texts, &format!("{number}.txt"), &format!("red blue {number} red ").repeat(60));
    }
    let said = polygram_in(folder, &[&["data", "prepare", "texts", "--output", output], more].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    said
}

/// The tiny run file with `sections` in the place of its data, evaluation and vocabulary.
fn run_file(folder: &Path, sections: &str) -> String {
    let tiny = std::fs::read_to_string(repository().join("configs/tiny.toml")).unwrap();
    let mut text = sections.to_owned();
    for section in tiny.split("\n[").skip(1) {
        let (name, keys) = section.split_once("]\n").unwrap();
        match name {
            "data" | "evaluation" => {}
            "model" => {
                let others: Vec<&str> = keys.lines().filter(|line| !line.starts_with("vocab_size")).collect();
                text = text.replacen("[model]\n", &format!("[model]\n{}\n", others.join("\n")), 1);
            }
            _ => text.push_str(&format!("\n[{name}]\n{keys}\n")),
        }
    }
    file(folder, "run.toml", &text)
}

#[test]
fn the_printed_sections_make_a_run_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for held_out in ["0.3", "0"] {
        let options = ["--vocab-size", "300", "--held-out", held_out, "--replace"];
        let said = prepare(folder, "odd \"name\" é", &options);
        let (_, sections) = said.stdout.split_once("for the run file:\n\n").unwrap();
        assert_eq!(sections.contains("[evaluation]"), held_out != "0", "{sections}");
        let run_file = run_file(folder, sections);
        let text = std::fs::read_to_string(&run_file).unwrap();
        let planned = polygram_in(folder, &["plan", &run_file]);
        assert_eq!(planned.code, Some(0), "{}\n{text}", planned.stderr);
        // A small corpus may give a smaller vocabulary than was asked for.
        let meta = std::fs::read(folder.join("odd \"name\" é/meta.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
        let vocabulary = format!("vocab_size = {}  # or more", meta["vocab_size"]);
        assert!(text.contains(&vocabulary) && text.contains("eos_token_id = 2"), "{text}");
    }
}

#[test]
fn sets_of_different_tokenizers_are_refused_without_circular_advice() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let one = tokenizer(folder, "one.json", 0, ["<unk>", "red", "blue"]);
    let other_eos = tokenizer(folder, "eos.json", 2, ["<unk>", "red", "blue"]);
    let other_words = tokenizer(folder, "words.json", 0, ["<unk>", "blue", "red"]);
    for (output, tokenizer) in [("one", &one), ("eos", &other_eos), ("words", &other_words), ("same", &one)] {
        prepare(folder, output, &["--tokenizer", tokenizer, "--held-out", "0.3"]);
    }
    let sections = "[data]\ntrain = \"one/train\"\nheld_out = \"one/held_out\"\n\n[model]\nvocab_size = 128\n\n\
                    [evaluation]\nevery_steps = 30\ncells = 1\n";
    let run_file = run_file(folder, sections);
    let ids = |eos: u32| {
        [
            "--set".to_owned(),
            format!("model.eos_token_id={eos}"),
            "--set".into(),
            format!("model.bos_token_id={eos}"),
        ]
    };
    let train = |held_out: &str, eos: u32, command: &str| {
        let mut args = vec![command.to_owned(), run_file.clone(), "--set".into(), held_out.to_owned()];
        args.extend(ids(eos));
        polygram_in(folder, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for held_out in ["eos", "words"] {
        // Whatever the model takes for EOS, the advice is the same and ends in data of one tokenizer.
        for eos in [0, 2] {
            let set = format!("data.held_out=\"{held_out}/held_out\"");
            let said = train(&set, eos, "train");
            said.refused(&[
                "data.train and data.held_out were made by different tokenizers",
                &format!("{held_out}/tokenizer.json"),
                "--tokenizer one/tokenizer.json",
            ]);
            assert!(!said.stderr.contains("--set"), "{}", said.stderr);
            let planned = train(&set, eos, "plan");
            assert!(planned.stderr.contains("made by different tokenizers"), "{}", planned.stderr);
        }
        // Of several sets, the one that differs is named.
        let both = format!("data.held_out={{a=\"same/held_out\", b=\"{held_out}/held_out\"}}");
        train(&both, 0, "train")
            .refused(&["data.train and data.held_out.b were made by different tokenizers"]);
    }
    // The advice is followed.
    let advised = ["--tokenizer", "one/tokenizer.json", "--held-out", "0.3", "--seed", "1"];
    prepare(folder, "again", &advised);
    let planned = train("data.held_out=\"again/held_out\"", 0, "plan");
    assert!(!planned.stderr.contains("different tokenizers"), "{}", planned.stderr);
    // One tokenizer, and a model of other special tokens and too small a vocabulary: the advice names all.
    let mut args = vec!["train", run_file.as_str(), "--set", "data.train=\"eos/train\"", "--set"];
    args.extend([
        "data.held_out=\"eos/held_out\"",
        "--set",
        "model.vocab_size=2",
        "--set",
        "model.eos_token_id=1",
    ]);
    args.extend(["--set", "model.bos_token_id=1"]);
    polygram_in(folder, &args).refused(&[
        "closed by token 2",
        "--set model.eos_token_id=2",
        "--set model.vocab_size=4",
    ]);
    // Notes that cannot be read are said, not passed over.
    std::fs::write(folder.join("one/meta.json"), "{").unwrap();
    let said = polygram_in(folder, &["data", "inspect", "one/train"]);
    assert_eq!(said.code, Some(0));
    assert!(said.stderr.contains("warning: ") && said.stderr.contains("one/meta.json"), "{}", said.stderr);
}

#[test]
fn what_is_no_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    file(folder, "a.txt", "some words");
    let snapshot = folder.join("snapshot");
    std::fs::create_dir(&snapshot).unwrap();
    tokenizer(&snapshot, "tokenizer.json", 0, ["<unk>", "red", "blue"]);
    file(&snapshot, "vocab.json", "{\"<unk>\":0,\"red\":1}");
    file(&snapshot, "tokenizer_config.json", "{\"tokenizer_class\":\"GPT2Tokenizer\"}");
    let file_in_it = "--tokenizer snapshot/tokenizer.json";
    for (given, words) in [
        ("snapshot", &["snapshot: it is a folder", file_in_it][..]),
        ("snapshot/vocab.json", &["it is a vocabulary alone", file_in_it]),
        ("snapshot/tokenizer_config.json", &["it is a tokenizer_config.json", file_in_it]),
        ("a.txt", &["a.txt: not a tokenizer.json: it is not JSON"]),
    ] {
        let said =
            polygram_in(folder, &["data", "prepare", "a.txt", "--output", "out", "--tokenizer", given]);
        said.refused(words);
        assert!(!said.stderr.contains("os error") && !said.stderr.contains("expected"), "{}", said.stderr);
    }
    let given = ["data", "prepare", "a.txt", "--output", "out", "--tokenizer", "snapshot/tokenizer.json"];
    assert_eq!(polygram_in(folder, &given).code, Some(0));
}

#[test]
fn texts_without_a_word_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    file(
        folder,
        "nul.jsonl",
        "{\"text\":null}\n{\"text\":\"\"}\n{\"text\":\"abc def\"}\n\n{\"text\":\"x\"}\n",
    );
    let prepare =
        ["data", "prepare", "nul.jsonl", "--output", "out", "--vocab-size", "300", "--held-out", "0"];
    let said = polygram_in(folder, &prepare);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("left out: in jsonl: 1 null text, 1 empty text\n"), "{}", said.stderr);
    let lines: Vec<Vec<&str>> = said.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["file", "documents", "without", "text", "read", "skipped", "files"]);
    assert_eq!(lines[1], ["jsonl", "2", "2", "8", "B", "0"]);
}
