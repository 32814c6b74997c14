//! Preparation end to end: every kind of input, the same output each time, nothing half-written.

#![allow(clippy::unwrap_used)] // a test's own files

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use polygram_data::prepare::TokenizerChoice;
use polygram_data::segment::Existing;
use polygram_data::{DataError, DataIdentity, PrepareOptions, PrepareReport, Segment, TokenSource, prepare};
use proptest::prelude::*;
use tokenizers::Tokenizer;

/// A sentence of its own for every number; every 16 of them spell a special token.
fn text(i: usize) -> String {
    let words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "naïve", "日本語"];
    let mut text: Vec<&str> =
        (0..20 + i % 7).map(|j| words[(i * 7 + j * (j + i % 3)) % words.len()]).collect();
    if i.is_multiple_of(16) {
        text.push("<eos>");
    }
    format!("{} {i}\n", text.join(" "))
}

fn corpus(folder: &Path) {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for i in 0..40 {
        write(&format!("docs/{i:02}.txt"), text(i).as_bytes());
    }
    write("docs/binary.txt", b"abc\0def");
    write("docs/latin.txt", b"caf\xe9");
    write("docs/empty.md", b" \n");
    write("docs/picture.png", b"not taken");
    let lines = |from: usize| -> String {
        (from..from + 10).map(|i| serde_json::json!({"id": i, "text": text(i)}).to_string() + "\n").collect()
    };
    write("lines/a.jsonl", (lines(40) + "\n{\"text\": null}\n").as_bytes());
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(lines(50).as_bytes()).unwrap();
    write("lines/b.jsonl.gz", &gz.finish().unwrap());
    write("lines/c.jsonl.zst", &zstd::encode_all(lines(60).as_bytes(), 1).unwrap());
    let rows: Vec<String> = (70..80).map(text).collect();
    let columns: [(&str, ArrayRef); 2] = [
        ("n", Arc::new(Int64Array::from_iter_values(0..10))),
        ("text", Arc::new(StringArray::from(rows.clone()))),
    ];
    parquet(&folder.join("lines/d.parquet"), RecordBatch::try_from_iter(columns).unwrap());
    let columns: [(&str, ArrayRef); 1] = [("text", Arc::new(LargeStringArray::from(rows)))];
    parquet(&folder.join("lines/e.parquet"), RecordBatch::try_from_iter(columns).unwrap());
}

fn parquet(path: &Path, batch: RecordBatch) {
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn options(inputs: &Path, output: PathBuf) -> PrepareOptions {
    let mut options = PrepareOptions::new(vec![inputs.to_owned()], output);
    options.tokenizer = TokenizerChoice::Train { vocab_size: 300, sample_bytes: 1 << 20 };
    options.held_out_share = 0.1;
    options
}

/// Documents of a part, EOS taken off.
fn documents(path: &str) -> Vec<Vec<u32>> {
    let segment = Segment::open(path).unwrap();
    let tokens = segment.read(0..segment.token_count()).unwrap();
    let documents: Vec<Vec<u32>> =
        tokens.split_inclusive(|&t| t == 2).map(|d| d.strip_suffix(&[2]).unwrap().to_vec()).collect();
    assert_eq!(documents.len(), segment.documents());
    documents
}

#[test]
fn every_format_is_prepared_and_decodes_back() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    corpus(&input);
    let output = folder.path().join("out");
    let report = prepare(&options(&input, output.clone())).unwrap();

    assert_eq!((report.vocab_size, report.bos_token_id, report.eos_token_id), (300, 1, 2));
    assert_eq!(report.dtype, "u16");
    let held_out = report.held_out.as_ref().unwrap();
    assert_eq!(report.train.documents + held_out.documents, 90);
    let txt = report.sources["txt"];
    assert_eq!((txt.files, txt.skipped_files, txt.documents), (40, 2, 40));
    assert_eq!(report.sources["md"].skipped_files, 1);
    let left_out: Vec<(&str, u64)> =
        report.left_out.iter().map(|(kind, count)| (kind.as_str(), count.files)).collect();
    assert_eq!(left_out, [(".png", 1), ("binary", 1), ("empty", 1), ("not UTF-8 text", 1)]);
    assert!(report.left_out["binary"].example.ends_with("binary.txt"));
    let identity = DataIdentity::of_path(&report.train.path).unwrap();
    assert_eq!(report.train.identity.as_ref(), Some(&identity));
    assert_eq!(identity.tokens, report.train.tokens);
    for (kind, documents) in [("jsonl", 10), ("jsonl.gz", 10), ("jsonl.zst", 10), ("parquet", 20)] {
        assert_eq!(report.sources[kind].documents, documents, "{kind}");
    }
    assert!(report.train.unigram_entropy_nats > 1.0 && report.train.unigram_entropy_nats < 300f64.ln());
    assert!(held_out.train_unigram_cross_entropy_nats >= held_out.unigram_entropy_nats);
    assert_eq!(PrepareReport::read(&output.join("meta.json")).unwrap(), Some(report.clone()));
    assert_eq!(PrepareReport::read(&output.join("other.json")).unwrap(), None);

    let tokenizer = Tokenizer::from_file(output.join("tokenizer.json")).unwrap();
    let mut decoded: Vec<String> = documents(&report.train.path)
        .iter()
        .chain(&documents(&held_out.path))
        .map(|tokens| {
            assert!(tokens.iter().all(|t| (3..300).contains(t)), "no special token inside a document");
            tokenizer.decode(tokens, false).unwrap()
        })
        .collect();
    decoded.sort();
    let mut wanted: Vec<String> = (0..80).chain(70..80).map(text).collect();
    wanted.sort();
    assert_eq!(decoded, wanted);
    assert_eq!(fs::read_dir(&output).unwrap().count(), 6, "no temporary file is left");
}

#[test]
fn output_is_the_same_each_time_and_never_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    corpus(&input);
    let read = |output: &Path| -> Vec<Vec<u8>> {
        ["train.bin", "train.idx", "held_out.bin", "held_out.idx", "tokenizer.json"]
            .map(|name| fs::read(output.join(name)).unwrap())
            .into()
    };
    let mut first = options(&input, folder.path().join("a"));
    first.threads = NonZeroUsize::new(1).unwrap();
    prepare(&first).unwrap();
    let mut second = options(&input, folder.path().join("b"));
    second.threads = NonZeroUsize::new(5).unwrap();
    prepare(&second).unwrap();
    assert!(read(&first.output) == read(&second.output));

    let error = prepare(&first).unwrap_err();
    assert!(matches!(error, DataError::Exists { .. }), "{error}");
    first.existing = Existing::Replace;
    first.held_out_share = 0.0;
    let report = prepare(&first).unwrap();
    assert_eq!((report.held_out, report.train.documents), (None, 90));
    assert!(!first.output.join("held_out.bin").exists() && !first.output.join("held_out.idx").exists());

    // The tokenizer that was made serves a second corpus.
    let mut given = options(&input, folder.path().join("c"));
    given.tokenizer = TokenizerChoice::Given { path: second.output.join("tokenizer.json"), eos: None };
    prepare(&given).unwrap();
    assert!(read(&given.output)[..4] == read(&second.output)[..4]);
    given.output = folder.path().join("d");
    given.tokenizer =
        TokenizerChoice::Given { path: second.output.join("tokenizer.json"), eos: Some("<end>".into()) };
    assert!(prepare(&given).unwrap_err().to_string().contains("<end>"));
}

#[test]
fn limits_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    corpus(&input);
    let mut limited = options(&input.join("docs"), folder.path().join("out"));
    limited.max_bytes = Some(1000);
    let report = prepare(&limited).unwrap();
    let bytes = report.sources.values().map(|count| count.bytes).sum::<u64>();
    assert!((996..=1000).contains(&bytes), "{bytes}");

    let single = folder.path().join("one.text");
    fs::write(&single, text(1).repeat(50)).unwrap();
    let report = prepare(&options(&single, folder.path().join("one"))).unwrap();
    assert_eq!((report.train.documents, &report.held_out), (1, &None), "a share of 0.1 misses this one");
    assert!(report.notes.iter().any(|note| note.contains("no document is held out")), "{:?}", report.notes);
}

#[test]
fn refusals_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = || folder.path().join("out");
    let refuse = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        prepare(&options(&path, output())).unwrap_err().to_string()
    };
    assert!(refuse("a.txt", b"").contains("a.txt: the file is empty"));
    assert!(
        refuse("b.jsonl", b"{\"text\": \"x\"}\n{\"body\": \"x\"}\n")
            .contains("line 2: it has no \"text\"; name the field")
    );
    assert!(refuse("c.jsonl", b"[1]\n").contains("line 1: not a JSON object"));
    assert!(refuse("d.jsonl", b"{\"text\": 5}\n").contains("its \"text\" is a number"));
    assert!(refuse("e.jsonl.gz", b"\x1f\x8bnot gzip").contains("e.jsonl.gz: its gzip data is damaged"));
    assert!(
        refuse("f.jsonl.zst", b"\x28\xb5\x2f\xfdnot zstd").contains("f.jsonl.zst: its zstd data is damaged")
    );
    assert!(refuse("latin.txt", b"caf\xe9").contains("latin.txt cannot be used: byte 3 is not UTF-8 text"));
    assert!(refuse("picture", b"a\0b").contains("picture cannot be used: it is binary: byte 1 is NUL"));
    assert!(refuse("g.parquet", b"PAR1 not parquet").contains("not a readable parquet file"));
    let path = folder.path().join("h.parquet");
    let columns: [(&str, ArrayRef); 1] = [("n", Arc::new(Int64Array::from_iter_values(0..3)))];
    parquet(&path, RecordBatch::try_from_iter(columns).unwrap());
    let mut number = options(&path, output());
    assert!(prepare(&number).unwrap_err().to_string().contains("no column \"text\"; name the one"));
    number.text_key = "n".into();
    assert!(prepare(&number).unwrap_err().to_string().contains("text is needed"));

    let missing = options(&folder.path().join("nowhere"), output());
    assert!(matches!(prepare(&missing), Err(DataError::Missing { .. })));
    fs::write(folder.path().join("t.txt"), "some text").unwrap();
    let good = options(&folder.path().join("t.txt"), output());
    for share in [-0.1, 1.0, f64::NAN] {
        let bad = PrepareOptions { held_out_share: share, ..good.clone() };
        assert!(matches!(prepare(&bad), Err(DataError::IllegalOption { .. })), "{share}");
    }
    for vocab_size in [258, (1 << 22) + 1, u32::MAX] {
        let tokenizer = TokenizerChoice::Train { vocab_size, sample_bytes: 100 };
        let error = prepare(&PrepareOptions { tokenizer, ..good.clone() }).unwrap_err().to_string();
        assert!(error.contains("259") && error.contains("4194304"), "{error}");
    }
    for max_bytes in [0, 3] {
        let error = prepare(&PrepareOptions { max_bytes: Some(max_bytes), ..good.clone() }).unwrap_err();
        assert!(error.to_string().contains("limit of bytes"), "{error}");
    }
    let all = PrepareOptions { held_out_share: 1.0 - 1e-9, ..good.clone() };
    assert!(prepare(&all).unwrap_err().to_string().contains("the only document is held out"));
    let json = folder.path().join("t.txt");
    let given = TokenizerChoice::Given { path: json, eos: None };
    assert!(
        prepare(&PrepareOptions { tokenizer: given, ..good.clone() })
            .unwrap_err()
            .to_string()
            .contains("tokenizer.json")
    );
    let leftovers: Vec<_> = fs::read_dir(output()).map_or(Vec::new(), Iterator::collect);
    assert!(leftovers.is_empty(), "{leftovers:?}");
    prepare(&good).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Damaged input of any kind is prepared or refused, never a panic, and a refusal leaves nothing behind.
    #[test]
    fn damaged_files_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5), cut in prop::option::of(any::<prop::sample::Index>())) {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in");
        corpus(&input);
        for (i, name) in ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"].iter().enumerate() {
            let path = input.join("lines").join(name);
            let mut bytes = fs::read(&path).unwrap();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            fs::write(&path, bytes).unwrap();
            let output = folder.path().join(format!("out{i}"));
            if prepare(&options(&path, output.clone())).is_err() {
                prop_assert!(!output.exists());
            }
        }
    }
}
