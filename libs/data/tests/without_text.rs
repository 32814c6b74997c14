//! Inputs without text, and with texts that are null or empty: counted, named, never blamed on something
//! else.

#![allow(clippy::unwrap_used)] // a test's own files

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use polygram_data::prepare::TokenizerChoice;
use polygram_data::{DataError, PrepareOptions, PrepareReport, prepare};
use serde_json::json;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn table(&self, name: &str, columns: Vec<(&str, ArrayRef)>) -> PathBuf {
        let path = self.path(name);
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        path
    }

    fn options(&self, inputs: &[&Path]) -> PrepareOptions {
        let inputs: Vec<PathBuf> = inputs.iter().map(|&path| path.to_owned()).collect();
        let mut options = PrepareOptions::new(inputs, self.path("out"));
        options.tokenizer = TokenizerChoice::Train { vocab_size: 300, sample_bytes: 1 << 20 };
        options.held_out_share = 0.0;
        options.existing = polygram_data::segment::Existing::Replace;
        options
    }

    fn prepared(&self, inputs: &[&Path]) -> Result<PrepareReport, DataError> {
        prepare(&self.options(inputs))
    }

    /// The refusal of one input.
    fn refused(&self, input: &Path) -> String {
        let error = self.prepared(&[input]).unwrap_err().to_string();
        assert!(!self.path("out").exists(), "{error}: nothing is left of a refused preparation");
        error
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const MIXED: [Option<&str>; 6] = [None, Some(""), Some("abc def"), Some(" \n\t "), None, Some("x")];

#[test]
fn null_and_empty_texts_are_counted() {
    let folder = Folder::new();
    let lines: String = MIXED.iter().map(|text| json!({"text": text}).to_string() + "\n\n").collect();
    let rows: StringArray = MIXED.into_iter().collect();
    for path in [
        folder.put("mixed.jsonl", &lines),
        folder.put("mixed.log", &lines),
        folder.put("mixed.jsonl.gz", gzip(lines.as_bytes())),
        folder.table("mixed.parquet", vec![("text", Arc::new(rows))]),
    ] {
        let report = folder.prepared(&[&path]).unwrap();
        let name = path.display();
        let count = report.sources.values().next().unwrap();
        assert_eq!((count.documents, count.null_texts, count.empty_texts), (2, 2, 2), "{name}");
        assert_eq!((count.files, count.skipped_files), (1, 0), "{name}");
        let noted = PrepareReport::read(&folder.path("out/meta.json")).unwrap().unwrap();
        assert_eq!(noted.sources, report.sources, "{name}: kept in meta.json");
    }
    // What older versions wrote has neither.
    let text = fs::read_to_string(folder.path("out/meta.json")).unwrap();
    let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
    for count in old["sources"].as_object_mut().unwrap().values_mut() {
        count.as_object_mut().unwrap().retain(|key, _| !key.ends_with("_texts"));
    }
    old.as_object_mut().unwrap().remove("tokenizer_hash").unwrap();
    let old = folder.put("old.json", old.to_string());
    let old = PrepareReport::read(&old).unwrap().unwrap();
    assert_eq!(old.sources.values().map(|count| count.null_texts + count.empty_texts).sum::<u64>(), 0);
    assert_eq!(old.tokenizer_hash, None);
}

#[test]
fn an_empty_file_is_called_empty_under_any_name() {
    let folder = Folder::new();
    for name in ["a.txt", "a.jsonl", "a.jsonl.gz", "a.txt.zst", "a.parquet", "a.json", "noext"] {
        let error = folder.refused(&folder.put(name, ""));
        assert!(error.contains(&format!("{name}: the file is empty; name files")), "{error}");
    }
    for (name, bytes) in [("b.jsonl.gz", gzip(b"")), ("b.txt.zst", zstd(b"")), ("b.txt", b" \n".to_vec())] {
        let error = folder.refused(&folder.put(name, bytes));
        assert!(error.contains(&format!("{name}: the file is empty; name files")), "{error}");
    }
    // Beside text they are left out, and counted.
    let text = folder.put("in/words.txt", "some words");
    for name in ["in/a.jsonl.gz", "in/b.parquet", "in/c.txt", "in/d.jsonl.zst"] {
        folder.put(name, "");
    }
    let named = folder.put("named.parquet", "");
    for inputs in [vec![folder.path("in")], vec![text, named]] {
        let paths: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
        let report = folder.prepared(&paths).unwrap();
        assert_eq!(report.train.documents, 1);
        let wanted = if inputs.len() == 1 { 4 } else { 1 };
        assert_eq!(report.left_out["empty"].files, wanted, "{:?}", report.left_out);
    }
}

#[test]
fn what_was_found_in_the_place_of_text_is_said() {
    let folder = Folder::new();
    let error =
        folder.refused(&folder.put("null.jsonl", "{\"text\":null}\n{\"text\":\"\"}\n{\"text\":\"\"}\n"));
    assert!(
        error.contains("null.jsonl: 1 file read, 1 null text, 2 empty texts, left out: empty: 1;"),
        "{error}"
    );
    folder.put("in/a.txt", "");
    folder.put("in/b.txt", "");
    folder.put("in/c.png", "x");
    let error = folder.refused(&folder.path("in"));
    assert!(error.contains("in: 2 files read, left out: .png: 1, empty: 2;"), "{error}");
}

/// A flipped bit shows in what is decompressed long before the checksum.
#[test]
fn damage_of_a_compressed_file_is_not_blamed_on_its_content() {
    let folder = Folder::new();
    let lines: String = (0..20_000u64)
        .map(|i| {
            json!({"id": i, "text": format!("{:x} and {:x}", i * 2_654_435_761, i * 40_503)}).to_string()
                + "\n"
        })
        .collect();
    let plain: String = (0..20_000u64).map(|i| format!("{:x} ", i * 2_654_435_761)).collect();
    let (mut blamed, mut tried) = (Vec::new(), 0);
    for (name, bytes) in [
        ("a.jsonl.gz", gzip(lines.as_bytes())),
        ("a.jsonl.zst", zstd(lines.as_bytes())),
        ("a.txt.gz", gzip(plain.as_bytes())),
        ("packed", gzip(lines.as_bytes())),
    ] {
        for part in 1..8 {
            let mut damaged = bytes.clone();
            let at = bytes.len() * part / 8;
            damaged[at] ^= 0x10;
            let error = folder.refused(&folder.put(name, damaged));
            tried += 1;
            if !error.contains(&format!("{name}: its ")) || !error.contains("data is damaged or cut short") {
                blamed.push(error);
            }
        }
    }
    assert!(blamed.is_empty(), "{} of {tried}: {blamed:#?}", blamed.len());
    // A whole file is still blamed for its content.
    let error = folder.refused(&folder.put("whole.jsonl.gz", gzip(b"{\"text\":\"a\"}\n{\"text\" 1}\n")));
    assert!(error.contains("whole.jsonl.gz, line 2: not a JSON object"), "{error}");
}

#[test]
fn a_column_or_field_that_is_no_text_is_named_in_plain_words() {
    let folder = Folder::new();
    let mut lists = ListBuilder::new(StringBuilder::new());
    lists.append_value([Some("a"), Some("b")]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", Arc::new(lists.finish())),
        ("score", Arc::new(Float64Array::from(vec![0.5]))),
        ("kept", Arc::new(BooleanArray::from(vec![true]))),
        ("title", Arc::new(StringArray::from(vec!["words"]))),
    ];
    let path = folder.table("t.parquet", columns);
    for (key, words) in [
        ("text", "its column \"text\" holds lists, and text is needed"),
        ("score", "holds numbers"),
        ("kept", "holds true or false"),
    ] {
        let mut options = folder.options(&[&path]);
        options.text_key = key.into();
        let error = prepare(&options).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("(--text-key): title"), "{error}");
        assert!(!error.contains("Utf8") && !error.contains("Float"), "{error}");
    }
    let path = folder.table("none.parquet", vec![("text", Arc::new(Float64Array::from(vec![0.5])))]);
    assert!(folder.refused(&path).contains("no column of it holds text"));
    for (value, words) in
        [("[1]", "a list"), ("{\"a\":1}", "an object"), ("5", "a number"), ("true", "true or false")]
    {
        let error = folder.refused(&folder.put("v.jsonl", format!("{{\"text\":{value}}}\n")));
        assert!(
            error.contains(&format!("v.jsonl, line 1: its \"text\" is {words}, and text is needed")),
            "{error}"
        );
    }
}
