//! `polygram data` on a small corpus, and what it refuses.
#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

mod common;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use common::{Said, file, polygram_in, until};
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

#[test]
fn what_is_left_out_is_named_and_what_was_named_must_be_usable() {
    let folder = tempfile::tempdir().unwrap();
    let texts = folder.path().join("texts");
    std::fs::create_dir(&texts).unwrap();
    for number in 0..30 {
        file(&texts, &format!("{number}.txt"), &format!("Document {number} of several. ").repeat(9));
    }
    file(&texts, "picture.png", "x");
    file(&texts, "other.PNG", "x");
    file(&texts, "binary.txt", "a\0b");
    std::os::unix::fs::symlink("nowhere", texts.join("gone.txt")).unwrap();
    let prepare = |more: &[&str]| {
        let command = [
            "data",
            "prepare",
            "texts",
            "--output",
            "texts/out",
            "--vocab-size",
            "300",
            "--held-out",
            "0",
            "-o",
            "json",
        ];
        polygram_in(folder.path(), &[&command[..], more].concat())
    };
    let first = prepare(&[]);
    assert_eq!(first.json()["left_out"][".png"]["files"], json!(2));
    for line in [
        "left out: .png: 2 (texts/other.PNG and others)",
        "left out: binary: 1 (",
        "left out: broken links: 1 (",
    ] {
        assert!(first.stderr.contains(line), "{line:?}: {}", first.stderr);
    }
    // The output lies inside the input, and is none.
    let second = prepare(&["--replace"]);
    assert_eq!(second.json()["sources"], first.json()["sources"]);
    assert_eq!(second.json()["left_out"]["files of a preparation"]["files"], json!(4));

    std::fs::write(folder.path().join("latin1.txt"), b"caf\xe9\n").unwrap();
    for (name, words) in [
        ("latin1.txt", "byte 3 is not UTF-8 text"),
        ("texts/binary.txt", "it is binary"),
        ("absent", "does not exist"),
    ] {
        polygram_in(folder.path(), &["data", "prepare", "texts", name, "--output", "none/deep"])
            .refused(&[name, words]);
        assert!(!folder.path().join("none").exists(), "{name}: an empty folder is left");
    }
    std::fs::write(folder.path().join("cut.json"), "{\"version\":\"1.0\",\"decoder\":{\"type\":").unwrap();
    polygram_in(folder.path(), &["data", "prepare", "texts", "--output", "none", "--tokenizer", "cut.json"])
        .refused(&["cut.json", "not a tokenizer.json"]);
    polygram_in(folder.path(), &["data", "prepare", "texts", "--output", "none", "--held-out", "0.9999999"])
        .refused(&["all 30 documents are held out", "smaller share"]);
    assert!(!folder.path().join("none").exists());
    std::fs::create_dir(folder.path().join("linked")).unwrap();
    std::os::unix::fs::symlink("/dev/null", folder.path().join("linked/train.bin")).unwrap();
    polygram_in(folder.path(), &["data", "prepare", "texts", "--output", "linked", "--replace"])
        .refused(&["linked/train.bin is a symbolic link"]);
}

/// Runs the program as a user who is not root, whom permissions do not bind.
fn polygram_as_a_user(folder: &Path, args: &[&str]) -> Said {
    let program = folder.join("polygram");
    let mut install = Command::new("install");
    install.args(["-m", "755", env!("CARGO_BIN_EXE_polygram")]).arg(&program);
    assert!(install.status().unwrap().success());
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = if is_root { Command::new("setpriv") } else { Command::new(&program) };
    if is_root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    }
    let output = command.args(args).current_dir(folder).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn what_may_not_be_read_is_left_out_of_a_folder_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let texts = folder.path().join("texts");
    for inner in ["private", "unlisted", "deep/private"] {
        std::fs::create_dir_all(texts.join(inner)).unwrap();
        file(&texts.join(inner), "inside.txt", "not to be read");
    }
    for number in 0..9 {
        file(&texts, &format!("{number}.txt"), &format!("Document {number} of several. ").repeat(9));
    }
    file(&texts, "secret.txt", "not to be read");
    let modes = [("private", 0), ("unlisted", 0o444), ("deep/private", 0), ("secret.txt", 0)];
    let mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(folder.path(), 0o777);
    modes.iter().for_each(|(name, bits)| mode(&texts.join(name), *bits));
    let prepare = |input: &str, output: &str| {
        let options = ["--vocab-size", "280", "--held-out", "0", "-o", "json"];
        let command = ["data", "prepare", input, "--output", output];
        polygram_as_a_user(folder.path(), &[&command[..], &options].concat())
    };
    let said = prepare("texts", "out");
    let refusals =
        [("texts/private", "permission to read it is missing"), ("texts/secret.txt", "ermission denied")]
            .map(|(name, words)| (prepare(name, "none"), name, words));
    modes.iter().for_each(|(name, _)| mode(&texts.join(name), 0o755));
    let report = said.json();
    assert_eq!(report["train"]["documents"], json!(9));
    assert_eq!(report["left_out"]["without permission to read"]["files"], json!(4));
    let told = "without permission to read were left out: 4 (texts/deep/private and others)";
    assert_eq!(said.stderr.matches(told).count(), 1, "{}", said.stderr);
    assert_eq!(said.stderr.matches("texts/deep/private").count(), 1, "told once: {}", said.stderr);
    for (said, name, words) in refusals {
        said.refused(&[name, words]);
    }
}

#[test]
fn an_input_is_what_its_content_is() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (0..30).map(|i| format!("{{\"body\": \"record {i}\"}}\n")).collect();
    file(folder.path(), "events.log", &lines);
    let prepare = |more: &[&str]| {
        let options = ["--vocab-size", "4000", "--held-out", "0", "-o", "json", "--replace"];
        let command = ["data", "prepare", "events.log", "--output", "out"];
        polygram_in(folder.path(), &[&command[..], &options, more].concat())
    };
    prepare(&[]).refused(&["events.log", "looks like JSON lines", "--text-key", "body", "--format text"]);
    prepare(&["--format", "jsonl"]).refused(&["events.log, line 1", "--text-key"]);
    let said = prepare(&["--text-key", "body"]);
    assert_eq!(said.json()["train"]["documents"], json!(30));
    assert!(said.stderr.contains("tokens, not 4,000 (--vocab-size)"), "{}", said.stderr);
    assert_eq!(prepare(&["--format", "text"]).json()["train"]["documents"], json!(1));
    // The folder in the place of the files in it.
    polygram_in(folder.path(), &["data", "inspect", "out"]).refused(&[
        "out.idx",
        "did you mean",
        "\"out/train\"",
    ]);
}

/// Runs a preparation that cannot end, sends it a signal and gives its status; the output folder must be
/// gone then.
fn stop(folder: &std::path::Path, input: &str, more: &[&str], signal: &str) -> Option<i32> {
    let output = folder.join("out");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_polygram"))
        .args(["data", "prepare", input, "--output", "out"])
        .args(more)
        .current_dir(folder)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the preparation begins", || output.join(".preparing/lock").exists());
    let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let code = child.wait().unwrap().code();
    assert!(!output.exists(), "{signal}");
    code
}

#[test]
fn a_signal_ends_a_preparation_with_status_3_and_nothing_left() {
    let folder = tempfile::tempdir().unwrap();
    let small = file(folder.path(), "small.txt", &"some words to learn\n".repeat(200));
    polygram_in(folder.path(), &["data", "prepare", &small, "--output", "given", "--held-out", "0"]);
    // Encoding takes long; so does waiting for a pipe that nobody writes to.
    let long: String = (0..600_000).map(|i: u64| format!("w{:x} ", i * 2_654_435_761 % 1_000_003)).collect();
    let long = file(folder.path(), "long.txt", &long.repeat(12));
    assert_eq!(stop(folder.path(), &long, &[], "-TERM"), Some(3));
    assert_eq!(stop(folder.path(), &long, &[], "-INT"), Some(3));
    assert!(std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    assert_eq!(stop(folder.path(), "pipe", &["--tokenizer", "given/tokenizer.json"], "-TERM"), Some(3));
    // After a death without warning the next preparation cleans up.
    let code = {
        let dead = folder.path().join("out/.preparing");
        std::fs::create_dir_all(&dead).unwrap();
        std::fs::write(dead.join("train.bin"), "left").unwrap();
        polygram_in(folder.path(), &["data", "prepare", &small, "--output", "out", "--held-out", "0"]).code
    };
    assert_eq!(code, Some(0));
    assert_eq!(std::fs::read_dir(folder.path().join("out")).unwrap().count(), 4);
}
