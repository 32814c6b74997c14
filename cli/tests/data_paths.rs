//! Paths of `polygram data` that name nothing on this machine are refused; no folder is made of them.
#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

mod common;

use std::path::Path;
use std::process::Command;

use common::{Said, file, polygram_in, repository};

/// Every entry below `folder`, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    found
}

#[test]
fn addresses_homes_and_dashes_are_no_folders() {
    let folder = tempfile::tempdir().unwrap();
    file(folder.path(), "a.txt", "some words");
    // What an earlier version made of such a path.
    std::fs::create_dir_all(folder.path().join("s3:/made")).unwrap();
    std::fs::create_dir(folder.path().join("~")).unwrap();
    let before = listing(folder.path());
    let in_folder = |args: &[&str]| polygram_in(folder.path(), args);
    for (path, words) in [
        ("s3://bucket/x", "it is an address (s3:)"),
        ("s3:/bucket/x", "./s3:/bucket/x"),
        ("gs://bucket/x", "(gs:)"),
        ("file:///tmp/x", "without file://"),
        ("~/x", "~ is not expanded"),
        ("~", "write the whole path"),
        ("-", "it is not taken for standard input or output"),
    ] {
        in_folder(&["data", "prepare", "a.txt", &format!("--output={path}")]).refused(&[path, words]);
    }
    for (path, words) in [
        ("hf://datasets/x", "it is an address (hf:)"),
        ("https://x.org/a.txt", "(https:)"),
        ("s3://bucket/x", "files of this machine only"),
        ("~/texts", "~ is not expanded"),
        ("-", "standard input is /dev/stdin"),
    ] {
        in_folder(&["data", "prepare", path, "--output", "out"]).refused(&[path, words]);
        in_folder(&["data", "prepare", "a.txt", "--output", "out", "--tokenizer", path])
            .refused(&[path, words]);
        in_folder(&["data", "inspect", path]).refused(&[path, words]);
        let run_file = repository().join("configs/tiny.toml");
        let text = std::fs::read_to_string(run_file).unwrap();
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("synthetic_")).collect();
        let data = format!("[data]\ntrain = {path:?}\nheld_out = {path:?}");
        let run_file = file(folder.path(), "run.toml", &kept.join("\n").replacen("[data]", &data, 1));
        in_folder(&["train", &run_file]).refused(&["data.train", path, words]);
        std::fs::remove_file(run_file).unwrap();
    }
    assert_eq!(listing(folder.path()), before);
    // With a dot before it such a name is a name.
    let options = ["--vocab-size", "300", "--held-out", "0"];
    let prepare = ["data", "prepare", "a.txt", "--output", "./s3:/made/there"];
    let said = in_folder(&[&prepare[..], &options].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(folder.path().join("s3:/made/there/train.bin").is_file());
}

#[test]
fn a_removed_current_directory_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = file(folder.path(), "a.txt", &"some words to learn\n".repeat(50));
    let gone = folder.path().join("gone");
    let run = |arguments: &[&str]| {
        std::fs::create_dir(&gone).unwrap();
        // The shell stands in the folder when it is removed.
        let output = Command::new("sh")
            .args(["-c", "rmdir ../gone && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_polygram")])
            .args(arguments)
            .current_dir(&gone)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    };
    let out = folder.path().join("out").display().to_string();
    let words = "the current directory cannot be used: it may have been removed";
    for arguments in [
        &["data", "prepare", &text, "--output", "x"][..],
        &["data", "prepare", "a.txt", "--output", &out],
        &["data", "prepare", &text, "--output", &out, "--tokenizer", "tok.json"],
        &["data", "inspect", "x/train"],
    ] {
        run(arguments).refused(&[words, "absolute paths"]);
    }
    assert!(!folder.path().join("out").exists());
    // Absolute paths do.
    let said = run(&["data", "prepare", &text, "--output", &out, "--vocab-size", "300", "--held-out", "0"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}
