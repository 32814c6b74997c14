//! What inputs hold is decided by their content, alike for files, folders, pipes and compressed files.

#![allow(clippy::unwrap_used)] // a test's own files

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use polygram_data::prepare::{TextFormat, TokenizerChoice};
use polygram_data::{PrepareOptions, PrepareReport, prepare};
use polygram_domain::words::grouped;
use serde_json::json;

/// Inputs and a tokenizer, in a temporary folder.
struct Bench {
    folder: tempfile::TempDir,
    tokenizer: TokenizerChoice,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("for-tokenizer.txt");
        fs::write(&input, texts().concat()).unwrap();
        let mut options = PrepareOptions::new(vec![input], folder.path().join("for-tokenizer"));
        options.tokenizer = TokenizerChoice::Train { vocab_size: 300, sample_bytes: 1 << 20 };
        options.held_out_share = 0.0;
        let path = PathBuf::from(prepare(&options).unwrap().tokenizer);
        Bench { folder, tokenizer: TokenizerChoice::Given { path, eos: None } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn options(&self, input: &Path) -> PrepareOptions {
        let name = input.file_name().unwrap().to_string_lossy().into_owned();
        let mut options = PrepareOptions::new(vec![input.to_owned()], self.path("out").join(name));
        options.tokenizer = self.tokenizer.clone();
        options.held_out_share = 0.0;
        options.existing = polygram_data::segment::Existing::Replace;
        options
    }

    fn prepared(&self, input: &Path) -> Result<PrepareReport, String> {
        prepare(&self.options(input)).map_err(|error| error.to_string())
    }
}

fn texts() -> Vec<String> {
    (0..40).map(|i| format!("the quick brown fox {i} jumps over the lazy dog\n").repeat(3)).collect()
}

fn lines(key: &str) -> String {
    texts().iter().enumerate().map(|(id, text)| json!({"id": id, key: text}).to_string() + "\n").collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn table(path: &Path) {
    let column: Arc<StringArray> = Arc::new(texts().into_iter().map(Some).collect());
    let batch = RecordBatch::try_from_iter([("text", column as _)]).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn json_lines_are_found_under_any_name() {
    let bench = Bench::new();
    let wanted = bench.prepared(&bench.put("in.jsonl", lines("text"))).unwrap().train;
    assert_eq!(wanted.documents, 40);
    let zstd = zstd::stream::encode_all(lines("text").as_bytes(), 1).unwrap();
    for (path, kind) in [
        (bench.put("service.log", lines("text")), "log (JSON lines)"),
        (bench.put("noextension", lines("text")), "no extension (JSON lines)"),
        (bench.put("notes.txt", format!("\u{feff}\n  {}", lines("text"))), "txt (JSON lines)"),
        (bench.put("dump.json", lines("text")), "json"),
        (bench.put("dump.txt.gz", gzip(lines("text").as_bytes())), "txt.gz (JSON lines)"),
        (bench.put("packed", gzip(lines("text").as_bytes())), "no extension (JSON lines)"),
        (bench.put("packed.jsonl", zstd), "jsonl"),
    ] {
        let report = bench.prepared(&path).unwrap();
        assert_eq!(report.train.identity, wanted.identity, "{kind}");
        assert_eq!(report.sources.keys().collect::<Vec<_>>(), [kind]);
        assert_eq!(report.notes, Vec::<String>::new(), "{kind}");
    }
    // The same files in a folder, where names decide only which are taken.
    let folder = bench.path("folder");
    for name in ["a.txt", "b.json", "c.jsonl", "d.md.gz"] {
        let bytes = lines("text").into_bytes();
        bench.put(&format!("folder/{name}"), if name.ends_with("gz") { gzip(&bytes) } else { bytes });
    }
    let report = bench.prepared(&folder).unwrap();
    assert_eq!(report.train.documents, 160, "{:?}", report.sources);
}

#[test]
fn json_lines_are_found_in_a_pipe() {
    let bench = Bench::new();
    let wanted = bench.prepared(&bench.put("in.jsonl", lines("text"))).unwrap().train;
    let write = |bytes: Vec<u8>| {
        let pipe = bench.path("pipe");
        let _ = fs::remove_file(&pipe);
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let to = pipe.clone();
        (pipe, std::thread::spawn(move || drop(fs::write(to, bytes))))
    };
    for bytes in [lines("text").into_bytes(), gzip(lines("text").as_bytes())] {
        let (pipe, writer) = write(bytes);
        let report = bench.prepared(&pipe).unwrap();
        writer.join().unwrap();
        assert_eq!(report.train.identity, wanted.identity);
    }
    let (pipe, writer) = write(lines("body").into_bytes());
    let error = bench.prepared(&pipe).unwrap_err();
    writer.join().unwrap();
    assert!(error.contains("pipe cannot be used: it looks like JSON lines"), "{error}");
    let (pipe, writer) = write(texts().concat().into_bytes());
    assert_eq!(bench.prepared(&pipe).unwrap().train.documents, 1);
    writer.join().unwrap();
}

#[test]
fn records_never_become_one_text_in_silence() {
    let bench = Bench::new();
    let array = format!("[{}]", lines("text").trim_end().replace('\n', ",\n"));
    for (name, bytes, words) in [
        (
            "events.log",
            lines("body"),
            "--text-key), one of: body, id, or read the file as one text (--format text)",
        ),
        ("noextension", lines("body"), "its first object has no text in field \"text\""),
        ("other.json", lines("body"), "it looks like JSON lines"),
        ("single.log", "{\"body\": \"one record\"}\n".into(), "it looks like JSON lines"),
        ("array.json", array.clone(), "it is one JSON array of records"),
    ] {
        let path = bench.put(name, &bytes);
        let error = bench.prepared(&path).unwrap_err();
        assert!(error.contains(name) && error.contains(words), "{error}");
        let mut options = bench.options(&path);
        options.format = TextFormat::Text;
        assert_eq!(prepare(&options).unwrap().train.documents, 1, "{name}: told to be one text");
        if name == "events.log" {
            options.format = TextFormat::Auto;
            options.text_key = "body".into();
            assert_eq!(prepare(&options).unwrap().train.documents, 40);
            options.format = TextFormat::JsonLines;
            options.text_key = "absent".into();
            let error = prepare(&options).unwrap_err().to_string();
            assert!(error.contains("events.log, line 1: it has no \"absent\""), "{error}");
        }
    }
    // In a folder they are read as text, and reported.
    for (name, bytes) in [("a.json", lines("body")), ("b.txt", lines("body")), ("c.json", array)] {
        bench.put(&format!("folder/{name}"), bytes);
    }
    let report = bench.prepared(&bench.path("folder")).unwrap();
    assert_eq!((report.train.documents, report.notes.len()), (3, 2), "{:?}", report.notes);
    let notes = report.notes.join("\n");
    for words in
        ["look like JSON lines without the text field", "2 (", "a.json and others", "JSON arrays", "c.json)"]
    {
        assert!(notes.contains(words), "{words}: {notes}");
    }
    // What is said to be JSON lines must be that.
    let mut options = bench.options(&bench.put("plain.txt", "plain words\n"));
    options.format = TextFormat::JsonLines;
    assert!(prepare(&options).unwrap_err().to_string().contains("plain.txt, line 1: not a JSON object"));
}

#[test]
fn text_that_begins_like_json_stays_text() {
    let bench = Bench::new();
    for (name, text) in [
        ("whole.json", "{\n  \"text\": \"a\"\n}\n"),
        ("one-line.json", "{\"version\": 1, \"list\": [1, 2]}\n"),
        ("empty.log", "{}\n"),
        ("quote.txt", "{\"text\": \"a quotation\"}\nis what the server said.\n"),
        ("code.rs", "{ let x = 1; }\n{ let y = 2; }\n"),
        ("list.md", "[link](x)\n[{not json}]\n"),
        ("numbers.json", "[{\"id\": 1}, {\"id\": 2}]\n"),
        ("bmw.txt", "BMW and II* and MZ are no pictures\n"),
        ("mail.txt", "version https://example.org is out\n"),
    ] {
        let report = bench.prepared(&bench.put(name, text)).unwrap();
        assert_eq!((report.train.documents, report.notes.len()), (1, 0), "{name}: {:?}", report.notes);
    }
}

#[test]
fn a_long_first_line_is_looked_at_as_a_whole() {
    let bench = Bench::new();
    let long = json!({"text": "words and more words\n".repeat(20_000)}).to_string();
    assert!(long.len() > 400_000);
    for (name, text, documents) in [
        ("two.log", format!("{long}\n{long}\n"), 2),
        ("one.log", long.clone(), 1),
        ("blank.log", format!("{}{long}\n\n\n{long}", "\n".repeat(100_000)), 2),
    ] {
        let report = bench.prepared(&bench.put(name, text)).unwrap();
        assert_eq!(report.train.documents, documents, "{name}");
        assert!(report.sources.contains_key("log (JSON lines)"), "{name}");
    }
}

#[test]
fn a_first_line_that_is_too_long_to_be_looked_at_is_asked_about() {
    let bench = Bench::new();
    let path = bench.put("endless.log", format!("{{\"text\": \"{}\"}}\n", "words ".repeat(11_500_000)));
    let error = bench.prepared(&path).unwrap_err();
    let words = "is longer than 64 MiB; say what it is (--format jsonl or --format text)";
    assert!(error.contains("endless.log") && error.contains(words), "{error}");
}

#[test]
fn a_file_that_is_not_text_is_named_by_what_it_is() {
    let bench = Bench::new();
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0".to_vec();
    let zip = b"PK\x03\x04\x14\0\0\0\0\0\0\0!\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0a.txt".to_vec();
    let elf = fs::read("/proc/self/exe").unwrap()[..4096].to_vec();
    let mut tar = vec![0; 1024];
    tar[..5].copy_from_slice(b"a.txt");
    tar[257..262].copy_from_slice(b"ustar");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n".to_vec();
    let utf16: Vec<u8> = "\u{feff}some words".encode_utf16().flat_map(|unit| unit.to_le_bytes()).collect();
    let (gz, parquet) = ("its name says gzip", "its name says parquet");
    for (name, bytes, words) in [
        ("picture.txt", png.clone(), "it is not text but a .png file (image/png)"),
        ("archive", zip.clone(), "(application/zip); unpack it"),
        ("program.md", elf, "(application/x-executable)"),
        ("archive.tar.gz", gzip(&tar), "(application/x-tar); unpack it"),
        ("paper.txt", b"%PDF-1.7 all of it ASCII\n".to_vec(), "it is a PDF document"),
        ("array.txt", b"\x93NUMPY\x01\0v\0".to_vec(), "it is not text but a NumPy array"),
        ("cache.arrow", b"\xff\xff\xff\xff\x10\0\0\0".to_vec(), "an Arrow stream; write its rows as parquet"),
        ("train.idx", b"MMIDIDX\0\0\x01\0\0".to_vec(), "needs no preparation: data.train names it"),
        ("wide.txt", utf16, "UTF-16 text; convert it to UTF-8"),
        ("pointer.txt", pointer.clone(), "it is a Git LFS pointer, whose file was not downloaded"),
        ("pointer.jsonl", pointer.clone(), "it is a Git LFS pointer"),
        ("pointer.parquet", pointer.clone(), "it is a Git LFS pointer"),
        ("pointer.jsonl.gz", pointer.clone(), "no such data but a Git LFS pointer"),
        ("plain.txt.gz", b"plain words".to_vec(), gz),
        ("picture.txt.gz", png.clone(), "its name says gzip, and it holds no such data but a .png file"),
        ("words.parquet", b"plain words".to_vec(), parquet),
        ("picture.parquet", png.clone(), "its name says parquet, but it is a .png file"),
        ("latin1.txt", b"BM caf\xe9\n".to_vec(), "byte 6 is not UTF-8 text"),
        ("nul.txt", b"words and a NUL\0".to_vec(), "it is binary: byte 15 is NUL"),
    ] {
        let error = bench.prepared(&bench.put(name, bytes)).unwrap_err();
        assert!(error.contains(&format!("{name} cannot be used: ")) && error.contains(words), "{error}");
    }
    // In a folder they are left out by kind.
    for (name, bytes) in
        [("a.txt", png), ("b.txt", pointer), ("c.md", b"%PDF-1.7 ASCII".to_vec()), ("d.txt", zip)]
    {
        bench.put(&format!("folder/{name}"), bytes);
    }
    bench.put("folder/words.txt", "some words");
    let report = bench.prepared(&bench.path("folder")).unwrap();
    let left_out: Vec<(&str, u64)> =
        report.left_out.iter().map(|(kind, count)| (kind.as_str(), count.files)).collect();
    assert_eq!(left_out, [("Git LFS pointers", 1), ("binary", 2), ("not UTF-8 text", 1)]);
    assert_eq!(report.train.documents, 1);
}

#[test]
fn a_table_is_one_under_any_name() {
    let bench = Bench::new();
    for name in ["rows.log", "rows", "folder/rows.txt"] {
        let path = bench.put(name, "");
        table(&path);
        let input = if name.starts_with("folder") { bench.path("folder") } else { path };
        let report = bench.prepared(&input).unwrap();
        assert_eq!(report.train.documents, 40, "{name}");
        assert!(report.sources.keys().all(|kind| kind.ends_with("(parquet)")), "{:?}", report.sources);
    }
}

#[test]
fn a_smaller_vocabulary_than_asked_for_is_said() {
    let bench = Bench::new();
    let input = bench.put("in.txt", texts().concat());
    let train = |vocab_size, sample_bytes| {
        let mut options = bench.options(&input);
        options.tokenizer = TokenizerChoice::Train { vocab_size, sample_bytes };
        prepare(&options).unwrap()
    };
    let report = train(5000, 1 << 20);
    let bytes = texts().concat().len();
    assert!(report.vocab_size < 5000);
    let note = report.notes.iter().find(|note| note.contains("--vocab-size")).unwrap();
    for words in
        [format!("{} tokens, not 5,000", report.vocab_size), format!("{} bytes", grouped(bytes as u64))]
    {
        assert!(note.contains(&words), "{note}");
    }
    let whole = train(report.vocab_size, 1 << 20);
    assert_eq!((whole.vocab_size, whole.notes), (report.vocab_size, Vec::new()));
}
