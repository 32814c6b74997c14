//! The tokenizer that made a segment is known beside it: `meta.json` keeps its hash, and an inspection
//! compares.

#![allow(clippy::unwrap_used)] // a test's own files

use std::fs;
use std::path::{Path, PathBuf};

use polygram_data::prepare::TokenizerChoice;
use polygram_data::segment::Existing;
use polygram_data::{PrepareOptions, PrepareReport, inspect, prepare};
use serde_json::{Value, json};

fn texts() -> String {
    (0..40).map(|i| format!("the quick brown fox {i} jumps over the lazy dog\n").repeat(3)).collect()
}

fn prepared(folder: &Path, output: &str, tokenizer: TokenizerChoice) -> PrepareReport {
    let input = folder.join("in.txt");
    fs::write(&input, texts()).unwrap();
    let mut options = PrepareOptions::new(vec![input], folder.join(output));
    options.tokenizer = tokenizer;
    options.held_out_share = 0.0;
    options.existing = Existing::Replace;
    prepare(&options).unwrap()
}

fn trained(folder: &Path, output: &str, vocab_size: u32) -> PrepareReport {
    prepared(folder, output, TokenizerChoice::Train { vocab_size, sample_bytes: 1 << 20 })
}

fn given(folder: &Path, output: &str, path: impl Into<PathBuf>) -> PrepareReport {
    prepared(folder, output, TokenizerChoice::Given { path: path.into(), eos: None })
}

#[test]
fn the_hash_of_the_tokenizer_is_kept_and_handed_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let first = trained(folder, "first", 300);
    let hash = first.tokenizer_hash.clone().unwrap();
    assert_eq!(hash, blake3::hash(&fs::read(&first.tokenizer).unwrap()).to_hex().as_str());
    // A second corpus by the tokenizer of the first has the same one, and a third by that of the second.
    let second = given(folder, "second", &first.tokenizer);
    assert_eq!(second.tokenizer_hash.as_ref(), Some(&hash));
    assert_eq!(given(folder, "third", &second.tokenizer).tokenizer_hash, Some(hash.clone()));
    assert_ne!(trained(folder, "other", 290).tokenizer_hash, Some(hash.clone()));
    // One of another tool, as it writes it and with its closing token not marked as special.
    let mut json: Value = serde_json::from_slice(&fs::read(&first.tokenizer).unwrap()).unwrap();
    *json.pointer_mut("/added_tokens/2/special").unwrap() = json!(false);
    fs::write(folder.join("plain.json"), json.to_string()).unwrap();
    let plain = given(folder, "plain", folder.join("plain.json"));
    assert_eq!(given(folder, "plain2", &plain.tokenizer).tokenizer_hash, plain.tokenizer_hash);
}

#[test]
fn a_tokenizer_that_did_not_make_the_tokens_shows_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let report = trained(folder, "out", 300);
    let path = PathBuf::from(&report.tokenizer);
    let own = fs::read_to_string(&path).unwrap();
    let meta = folder.join("out/meta.json");
    let noted = fs::read_to_string(&meta).unwrap();
    let inspected = || inspect(&report.train.path).unwrap();
    let found = inspected();
    assert!(found.first_text.unwrap().starts_with("the quick brown fox 0 jumps"));
    assert_eq!(found.notes, Vec::<String>::new());

    let other = fs::read_to_string(trained(folder, "other", 290).tokenizer).unwrap();
    // Two merges change places: the same vocabulary size and special tokens, other text.
    let mut swapped: Value = serde_json::from_str(&own).unwrap();
    let vocab = swapped.pointer_mut("/model/vocab").unwrap().as_object_mut().unwrap();
    let ids: Vec<Value> = ["a", "b"].iter().map(|token| vocab[*token].clone()).collect();
    vocab.insert("a".into(), ids[1].clone());
    vocab.insert("b".into(), ids[0].clone());
    let cut = own[..own.len() / 2].to_owned();
    let mut old: Value = serde_json::from_str(&noted).unwrap();
    old.as_object_mut().unwrap().remove("tokenizer_hash").unwrap();
    for (what, tokenizer, meta_text, words) in [
        ("another", Some(&other), Some(&noted), "it was changed or replaced since"),
        ("edited", Some(&swapped.to_string()), Some(&noted), "it was changed or replaced since"),
        ("broken", Some(&cut), Some(&noted), "not a tokenizer.json that can be used, and was changed"),
        ("gone", None, Some(&noted), "is not there"),
        ("another, old notes", Some(&other), Some(&old.to_string()), "it has a vocabulary of 290, not 300"),
        ("broken, old notes", Some(&cut), Some(&old.to_string()), "not a tokenizer.json that can be used;"),
        ("another, no notes", Some(&other), None, "a vocabulary of 290, and the largest token is"),
        ("broken, no notes", Some(&cut), None, "not a tokenizer.json that can be used;"),
    ] {
        for (path, text) in [(&path, tokenizer), (&meta, meta_text)] {
            match text {
                Some(text) => fs::write(path, text).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
        }
        let found = inspected();
        assert_eq!((found.first_text, found.notes.len()), (None, 1), "{what}: {:?}", found.notes);
        assert!(
            found.notes[0].contains(words) && found.notes[0].contains("tokenizer.json"),
            "{:?}",
            found.notes
        );
        fs::write(&path, &own).unwrap();
        fs::write(&meta, &noted).unwrap();
    }
    // Without notes and tokenizer nothing is expected.
    fs::remove_file(&path).unwrap();
    fs::remove_file(&meta).unwrap();
    let found = inspected();
    assert_eq!((found.first_text, found.notes), (None, Vec::new()));
}

#[test]
fn notes_that_are_not_about_the_tokens_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (one, two) = (trained(folder, "one", 300), trained(folder, "two", 290));
    for extension in ["bin", "idx"] {
        let file = |report: &PrepareReport| format!("{}.{extension}", report.train.path);
        fs::copy(file(&two), file(&one)).unwrap();
    }
    let notes = inspect(&one.train.path).unwrap().notes;
    assert!(
        notes[0].contains("train.bin is not what") && notes[0].contains("one/meta.json describes"),
        "{notes:?}"
    );
    fs::write(folder.join("two/meta.json"), "{").unwrap();
    let found = inspect(&two.train.path).unwrap();
    assert!(found.first_text.is_some() && found.notes[0].contains("two/meta.json"), "{:?}", found.notes);
}
