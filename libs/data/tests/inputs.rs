//! Inputs as users have them: containers, links, pipes, files that change, state of other tools, long texts.

#![allow(clippy::unwrap_used)] // a test's own files

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, BinaryArray, DictionaryArray, RecordBatch};
use parquet::arrow::ArrowWriter;
use polygram_data::prepare::{Monitor, Progress, Stage, TokenizerChoice};
use polygram_data::segment::Existing;
use polygram_data::{DataError, PrepareOptions, PrepareReport, Segment, TokenSource, prepare, prepare_with};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

fn options(input: &Path, output: PathBuf) -> PrepareOptions {
    let mut options = PrepareOptions::new(vec![input.to_owned()], output);
    options.tokenizer = TokenizerChoice::Train { vocab_size: 300, sample_bytes: 1 << 20 };
    options.held_out_share = 0.0;
    options
}

fn put(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn lines(texts: &[String]) -> String {
    texts.iter().map(|text| json!({"text": text}).to_string() + "\n").collect()
}

fn texts() -> Vec<String> {
    (0..40).map(|i| format!("the quick brown fox {i} jumps over the lazy dog\n").repeat(3)).collect()
}

/// A tokenizer as another tool leaves it.
fn given(folder: &Path, change: impl FnOnce(&mut Value)) -> TokenizerChoice {
    let input = put(folder, "for-tokenizer.txt", texts().concat());
    let mut options = options(&input, folder.join("for-tokenizer"));
    options.existing = Existing::Replace;
    let report = prepare(&options).unwrap();
    let mut json: Value = serde_json::from_slice(&fs::read(&report.tokenizer).unwrap()).unwrap();
    change(&mut json);
    let path = put(folder, "given.json", json.to_string());
    TokenizerChoice::Given { path, eos: Some("<eos>".into()) }
}

fn tokens(report: &PrepareReport) -> Vec<u32> {
    let segment = Segment::open(&report.train.path).unwrap();
    segment.read(0..segment.token_count()).unwrap()
}

/// What the library makes of whole documents, without what a tokenizer file stores beside.
fn wanted(choice: &TokenizerChoice, documents: &[String]) -> Vec<u32> {
    let TokenizerChoice::Given { path, .. } = choice else { panic!("not a given tokenizer") };
    let mut tokenizer = Tokenizer::from_file(path).unwrap();
    tokenizer.with_truncation(None).unwrap().with_padding(None);
    tokenizer.set_encode_special_tokens(true);
    let eos = tokenizer.token_to_id("<eos>").unwrap();
    let encode = |text: &String| {
        let encoding = tokenizer.encode(text.as_str(), false).unwrap();
        encoding.get_ids().iter().copied().chain([eos]).collect::<Vec<u32>>()
    };
    documents.iter().flat_map(encode).collect()
}

#[test]
fn state_of_other_tools_is_not_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut documents = texts();
    documents.push("a document spells <eos> and <bos>".into());
    let input = put(folder, "in.jsonl", lines(&documents));
    let truncation = json!({"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0});
    let padding = json!({"strategy": {"Fixed": 500}, "direction": "Left", "pad_to_multiple_of": null,
                         "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"});
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}}});
    let cases: [(&str, &str, Value, bool); 4] = [
        ("truncation", "/truncation", truncation, true),
        ("padding", "/padding", padding, true),
        ("post-processor", "/post_processor", template, false),
        ("closing token", "/added_tokens/2/special", json!(false), true),
    ];
    let wanted = wanted(&given(folder, |_| {}), &documents);
    for (name, pointer, value, noted) in cases {
        let choice = given(folder, |json| *json.pointer_mut(pointer).unwrap() = value);
        let mut options = options(&input, folder.join(name));
        options.tokenizer = choice;
        let report = prepare(&options).unwrap();
        assert_eq!(tokens(&report), wanted, "{name}");
        assert_eq!(!report.notes.is_empty(), noted, "{name}: {:?}", report.notes);
        let saved: Value = serde_json::from_slice(&fs::read(&report.tokenizer).unwrap()).unwrap();
        assert!(saved["truncation"].is_null() && saved["padding"].is_null());
    }
    // Dropout makes the crate's tokens random; ours are those without it.
    let choice = given(folder, |json| json["model"]["dropout"] = json!(0.5));
    let mut options = options(&input, folder.join("dropout"));
    options.tokenizer = choice;
    let report = prepare(&options).unwrap();
    assert_eq!(tokens(&report), wanted);
    assert!(report.notes[0].contains("dropout"), "{:?}", report.notes);
}

#[test]
fn long_documents_give_the_tokens_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Longer than several pieces, with all that parts pieces from wholes: empty lines, runs of spaces, long
    // words.
    let mut long = String::new();
    for i in 0..60_000usize {
        let part = ["fox ", "jumps\n\n", "  over", "\n \n", "the lazy", "dog's ", "日本。\n", "\t\t", " x"]
            [i * i % 9];
        long.push_str(part);
    }
    let documents = vec![long.repeat(3), "a".repeat(700_000), "short".to_owned()];
    let as_lines = put(folder, "in.jsonl", lines(&documents));
    let byte_level = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
    };
    let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let gpt2 =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let spaced =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let by_line = byte_level(r"[^\n]*\n|[^\n]+");
    for (name, pre_tokenizer) in [
        ("gpt2", gpt2),
        ("spaced", spaced),
        ("llama", byte_level(llama)),
        ("metaspace", metaspace),
        ("by-line", by_line),
    ] {
        let mut options = options(&as_lines, folder.join(name));
        options.tokenizer = given(folder, |json| json["pre_tokenizer"] = pre_tokenizer);
        options.threads = NonZeroUsize::new(3).unwrap();
        let wanted = wanted(&options.tokenizer, &documents);
        let report = prepare(&options).unwrap();
        assert!(tokens(&report) == wanted, "{name}");

        // The same text as files, which are read in chunks.
        let texts = folder.join(format!("{name}-texts"));
        for (i, document) in documents.iter().enumerate() {
            put(&texts, &format!("{i}.txt"), document);
        }
        options.inputs = vec![texts];
        options.output = folder.join(format!("{name}-of-texts"));
        assert!(tokens(&prepare(&options).unwrap()) == wanted, "{name} as files");
    }
}

#[test]
fn containers_of_every_kind_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let texts = texts();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(31).unwrap();
    encoder.long_distance_matching(true).unwrap();
    encoder.write_all(lines(&texts).as_bytes()).unwrap();
    let long_zstd = encoder.finish().unwrap();
    let table = |name: &str, column: ArrayRef| {
        let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
        let path = folder.join(name);
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        path
    };
    let dictionary: DictionaryArray<Int32Type> = texts.iter().map(|text| Some(text.as_str())).collect();
    let two_members =
        [gzip(&lines(&texts[..20]).into_bytes()), gzip(&lines(&texts[20..]).into_bytes())].concat();
    let strange = format!(
        "{{\"score\":NaN,\"text\":\"first\"}}\n{{\"m\":{}{},\"text\":\"second\"}}\n",
        "[".repeat(300),
        "]".repeat(300)
    );
    for (path, documents, repaired) in [
        (put(folder, "bom.jsonl", [b"\xef\xbb\xbf", lines(&texts).as_bytes()].concat()), 40, 0),
        (put(folder, "crlf.jsonl", lines(&texts).replace('\n', "\r\n")), 40, 0),
        (put(folder, "strange.jsonl", strange), 2, 0),
        (put(folder, "half.jsonl", "{\"text\":\"bad \\ud83d here\"}\n{\"text\":\"good\"}\n"), 2, 1),
        (put(folder, "bytes.jsonl", b"{\"text\":\"caf\xe9\"}\n{\"text\":\"good\"}\n"), 2, 1),
        (put(folder, "long.jsonl.zst", long_zstd), 40, 0),
        (put(folder, "c4-train.00000.json.gz", gzip(lines(&texts).as_bytes())), 40, 0),
        (put(folder, "members.jsonl.gz", two_members), 40, 0),
        (put(folder, "lines.json", lines(&texts)), 40, 0),
        (put(folder, "whole.json", "{\n\"text\": 1\n}\n"), 1, 0),
        (put(folder, "bom.txt", b"\xef\xbb\xbfsome notes"), 1, 0),
        (put(folder, "notes.txt.gz", gzip(b"some notes")), 1, 0),
        (table("dictionary.parquet", Arc::new(dictionary)), 40, 0),
        (
            table(
                "bytes.parquet",
                Arc::new(BinaryArray::from_vec(vec![b"plain".as_slice(), b"caf\xe9".as_slice()])),
            ),
            2,
            1,
        ),
    ] {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let report = prepare(&options(&path, folder.join("out").join(&name))).unwrap();
        assert_eq!(report.train.documents, documents, "{name}");
        let found: u64 = report.sources.values().map(|count| count.repaired_documents).sum();
        assert_eq!(found, repaired, "{name}");
        assert_eq!(report.notes.iter().any(|note| note.contains("U+FFFD")), repaired > 0, "{name}");
    }
    let bytes = |name: &str| {
        let report = PrepareReport::read(&folder.join("out").join(name).join("meta.json")).unwrap().unwrap();
        report.sources.values().map(|count| count.bytes).sum::<u64>()
    };
    assert_eq!(bytes("bom.txt"), 10, "the byte order mark is no text");
    assert_eq!(bytes("bom.jsonl"), texts.iter().map(|text| text.len() as u64).sum::<u64>());
    let cut = gzip(lines(&texts).as_bytes());
    let cut = put(folder, "cut.jsonl.gz", &cut[..cut.len() - 9]);
    let error = prepare(&options(&cut, folder.join("cut"))).unwrap_err().to_string();
    assert!(error.contains("cut.jsonl.gz: its gzip data is damaged or cut short"), "{error}");
}

/// Held out or not follows from a document alone: more documents move none.
#[test]
fn adding_documents_moves_none() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let decide = |documents: &[String], name: &str| -> Vec<Vec<u32>> {
        let mut options = options(&put(folder, "in.jsonl", lines(documents)), folder.join(name));
        options.held_out_share = 0.3;
        options.tokenizer = given(folder, |_| {});
        let report = prepare(&options).unwrap();
        let segment = Segment::open(&report.held_out.unwrap().path).unwrap();
        let tokens = segment.read(0..segment.token_count()).unwrap();
        tokens.split_inclusive(|&token| token == 2).map(<[u32]>::to_vec).collect()
    };
    let first = decide(&texts(), "first");
    assert!((4..=24).contains(&first.len()), "{} of 40", first.len());
    let mut more: Vec<String> = (0..25).map(|i| format!("a new document {i}")).collect();
    more.extend(texts().into_iter().rev());
    more.insert(30, "one more".into());
    let second = decide(&more, "second");
    assert!(first.iter().all(|document| second.contains(document)));
    let old = texts().len() - first.len();
    let moved = second.len() - first.len();
    assert!(moved <= more.len() - 40, "{moved} of {old} old documents moved");
}

fn fifo(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

#[test]
fn a_pipe_is_read_once_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pipe = fifo(folder, "pipe.jsonl");
    let error = prepare(&options(&pipe, folder.join("refused"))).unwrap_err().to_string();
    assert!(
        error.contains("pipe.jsonl cannot be used: it is a pipe") && error.contains("give a tokenizer"),
        "{error}"
    );

    let mut options = options(&pipe, folder.join("out"));
    options.tokenizer = given(folder, |_| {});
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, lines(&texts())).unwrap()
    });
    let report = prepare(&options).unwrap();
    writer.join().unwrap();
    assert_eq!(tokens(&report), wanted(&options.tokenizer, &texts()));

    let table = fifo(folder, "pipe.parquet");
    options.inputs = vec![table];
    options.existing = Existing::Replace;
    assert!(prepare(&options).unwrap_err().to_string().contains("cannot be read from a pipe"));
}

/// Does something once, when a stage is first reported.
struct AtStage<F> {
    stage: Stage,
    act: F,
    done: AtomicBool,
    stop: AtomicBool,
}

impl<F: Fn() -> bool + Sync> AtStage<F> {
    fn new(stage: Stage, act: F) -> AtStage<F> {
        AtStage { stage, act, done: AtomicBool::new(false), stop: AtomicBool::new(false) }
    }
}

impl<F: Fn() -> bool + Sync> Monitor for AtStage<F> {
    fn progress(&self, progress: &Progress) {
        if progress.stage == self.stage && !self.done.swap(true, Ordering::SeqCst) {
            self.stop.store((self.act)(), Ordering::SeqCst);
        }
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

#[test]
fn inputs_that_change_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    type Change = fn(&Path);
    let grow: Change = |path| {
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(b"{\"text\":\"more\"}\n").unwrap();
    };
    let replace: Change = |path| {
        let other = path.with_extension("other");
        fs::write(&other, fs::read(path).unwrap()).unwrap();
        fs::rename(&other, path).unwrap();
    };
    let rewrite: Change = |path| {
        // As long as before, at the old time of change: only the text tells.
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        let text = fs::read_to_string(path).unwrap().replace("quick", "slow ");
        fs::write(path, text).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    };
    for (name, stage, change, words) in [
        ("grows", Stage::Survey, grow, "bytes and has"),
        ("grows-between", Stage::Encode, grow, "bytes and has"),
        ("replaced", Stage::Encode, replace, "another file has its name now"),
        ("rewritten", Stage::Survey, rewrite, "its text is not what it was at the first reading"),
    ] {
        let input = put(folder, &format!("{name}.jsonl"), lines(&texts()));
        let monitor = AtStage::new(stage, || {
            change(&input);
            false
        });
        let result = prepare_with(&options(&input, folder.join(name)), &monitor);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(&format!("{name}.jsonl changed while it was read")), "{name}: {error}");
        assert!(error.contains(words), "{name}: {error}");
        assert!(!folder.join(name).exists(), "{name}");
    }
}

#[test]
fn a_stop_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let input = put(folder, "in.jsonl", lines(&texts()));
    for stage in [Stage::Survey, Stage::Encode, Stage::Install] {
        let output = folder.join(format!("{stage:?}"));
        let monitor = AtStage::new(stage, || true);
        let result = prepare_with(&options(&input, output.clone()), &monitor);
        assert!(matches!(result, Err(DataError::Stopped)), "{stage:?}: {result:?}");
        assert!(!output.exists(), "{stage:?}");
    }
    // Older output survives a replacement that is stopped.
    let output = folder.join("kept");
    let mut kept = options(&input, output.clone());
    prepare(&kept).unwrap();
    kept.existing = Existing::Replace;
    let result = prepare_with(&kept, &AtStage::new(Stage::Install, || true));
    assert!(matches!(result, Err(DataError::Stopped)));
    assert_eq!(fs::read_dir(&output).unwrap().count(), 4);
    assert!(PrepareReport::read(&output.join("meta.json")).unwrap().is_some());
}

/// Two writers: the second is refused while the first works. A reader never opens old and new files as one
/// segment.
#[test]
fn output_is_replaced_as_a_set() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // The same number of tokens and bytes, so that sizes do not tell old from new.
    let input = |word: &str| put(folder, &format!("{word}.txt"), format!("{word}\n").repeat(500));
    let output = folder.join("out");
    let choice = given(folder, |_| {});
    let with = |word: &str| {
        let mut options = options(&input(word), output.clone());
        options.tokenizer = choice.clone();
        options.existing = Existing::Replace;
        options
    };
    let (first, second) = (with("xyxyx"), with("zwzwz"));
    let (old, new) = (tokens(&prepare(&first).unwrap()), tokens(&prepare(&second).unwrap()));
    assert!(old != new && old.len() == new.len(), "{} and {} tokens", old.len(), new.len());

    let busy = AtStage::new(Stage::Encode, || {
        assert!(matches!(prepare(&second), Err(DataError::Busy { .. })));
        false
    });
    prepare_with(&first, &busy).unwrap();

    let ended = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !ended.load(Ordering::SeqCst) {
                // Absent or replaced for a moment is an answer too; a mixture is not.
                if let Ok(segment) = Segment::open(&output.join("train").to_string_lossy()) {
                    let tokens = segment.read(0..segment.token_count()).unwrap();
                    assert!(tokens == old || tokens == new);
                    seen += 1;
                }
            }
            seen
        });
        for round in 0..30 {
            prepare(if round % 2 == 0 { &second } else { &first }).unwrap();
        }
        ended.store(true, Ordering::SeqCst);
        reader.join().unwrap()
    });
    assert!(seen > 0);
}
