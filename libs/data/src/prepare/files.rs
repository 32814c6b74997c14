//! Which files a corpus consists of, what each of them is, and what is left out.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::OUTPUTS;
use super::json_line::{self, Line};
use super::meta::LeftOutCount;
use crate::error::DataError;

/// Extensions of text files that are taken from folders unless others are asked for.
pub const DEFAULT_EXTENSIONS: [&str; 37] = [
    "txt", "text", "md", "markdown", "rst", "adoc", "tex", "org", "html", "htm", "xml", "csv", "tsv", "json",
    "yaml", "yml", "toml", "ini", "rs", "py", "c", "h", "cc", "cpp", "hpp", "java", "go", "js", "ts", "rb",
    "sh", "sql", "lua", "hs", "ml", "proto", "cu",
];

/// Bytes of a `.json` that are read to see whether it holds JSON lines.
const SNIFFED_BYTES: u64 = 1 << 20;

/// How a file holds its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One document.
    Text(Compression),
    /// One JSON object a line.
    JsonLines(Compression),
    /// Rows of a table.
    Parquet,
}

/// Compression of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What must stay the same while a file is read, and between the first and the second reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileState {
    /// A regular file.
    Regular {
        /// Its device and inode.
        place: (u64, u64),
        /// Its bytes.
        length: u64,
        /// Seconds and nanoseconds of its last change.
        modified: (i64, i64),
    },
    /// A pipe or the like, which can be read once.
    Stream,
}

impl FileState {
    /// Device and inode of a regular file.
    fn place(&self) -> Option<(u64, u64)> {
        match self {
            FileState::Regular { place, .. } => Some(*place),
            FileState::Stream => None,
        }
    }

    /// Of a file, links followed; the error says what it is otherwise, with an article.
    fn of(metadata: &Metadata) -> Result<FileState, &'static str> {
        let kind = metadata.file_type();
        if kind.is_file() {
            Ok(FileState::Regular {
                place: (metadata.dev(), metadata.ino()),
                length: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            })
        } else if kind.is_fifo() || kind.is_char_device() {
            Ok(FileState::Stream)
        } else if kind.is_dir() {
            Err("a folder")
        } else {
            Err(if kind.is_socket() { "a socket" } else { "a device" })
        }
    }

    /// Of the file at `path` now.
    fn now(path: &Path) -> Result<FileState, DataError> {
        let metadata = fs::metadata(path).map_err(DataError::io("look at", path))?;
        FileState::of(&metadata).map_err(|what| DataError::InputChanged {
            path: path.to_owned(),
            change: format!("it is {what} now"),
        })
    }

    pub(crate) fn length(&self) -> u64 {
        match self {
            FileState::Regular { length, .. } => *length,
            FileState::Stream => 0,
        }
    }
}

/// A file of the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InputFile {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) state: FileState,
    /// It was named as an input, not found in a folder.
    pub(crate) named: bool,
}

impl InputFile {
    /// The name under which it is counted: its extension as it is written.
    pub(crate) fn kind(&self) -> String {
        extension_of(&self.path).unwrap_or_else(|| "no extension".into())
    }

    /// Refuses a file that is not as it was when the inputs were listed. A pipe has no state.
    pub(crate) fn check_unchanged(&self) -> Result<(), DataError> {
        if self.state == FileState::Stream {
            return Ok(());
        }
        let now = FileState::now(&self.path)?;
        if now == self.state {
            return Ok(());
        }
        let change = match (&self.state, &now) {
            (FileState::Regular { place: before, .. }, FileState::Regular { place, .. })
                if before != place =>
            {
                "another file has its name now".to_owned()
            }
            (before, now) if before.length() != now.length() => {
                format!("it had {} bytes and has {} now", before.length(), now.length())
            }
            _ => "it was written to".to_owned(),
        };
        Err(DataError::InputChanged { path: self.path.clone(), change })
    }

    pub(crate) fn unusable(&self, problem: impl Into<String>) -> DataError {
        DataError::UnusableInput { path: self.path.clone(), problem: problem.into() }
    }
}

/// The files of a corpus, and what is left out of its folders, by kind.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) files: Vec<InputFile>,
    pub(crate) left_out: BTreeMap<String, LeftOutCount>,
}

/// How inputs are looked for.
#[derive(Debug)]
pub(crate) struct Search<'a> {
    /// Files and folders.
    pub(crate) inputs: &'a [PathBuf],
    /// Extensions of text files that are taken from folders.
    pub(crate) extensions: &'a [String],
    /// The field that holds the text of a JSON line.
    pub(crate) text_key: &'a str,
    /// The output folder, whose own files are no inputs.
    pub(crate) output: &'a Path,
}

impl Search<'_> {
    /// All files of the inputs, in their order; those of a folder sorted by path. Links are followed. A file
    /// that is reached twice is taken once.
    pub(crate) fn find(&self) -> Result<Inputs, DataError> {
        let mut walk = Walk {
            extensions: self
                .extensions
                .iter()
                .map(|e| e.trim_start_matches('.').to_ascii_lowercase())
                .collect(),
            text_key: self.text_key,
            seen: HashSet::new(),
            above: Vec::new(),
            found: Inputs::default(),
        };
        for input in self.inputs {
            let metadata = fs::metadata(input).map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound => DataError::Missing {
                    path: input.clone(),
                    hint: "name files or folders of text that exist",
                },
                _ => DataError::Io { action: "look at", path: input.clone(), source },
            })?;
            if metadata.is_dir() {
                walk.folder(input, &metadata, self.output)?;
            } else {
                let refused = |problem: &str| DataError::UnusableInput {
                    path: input.clone(),
                    problem: problem.to_owned(),
                };
                if is_own_output(input, self.output) {
                    return Err(refused("this preparation writes it; choose another output folder"));
                }
                let state = FileState::of(&metadata)
                    .map_err(|what| refused(&format!("it is {what}, not a file of text")))?;
                let format = walk
                    .format_of(input, &state)
                    .unwrap_or_else(|| Format::Text(compression_of(&lower_name(input)).1));
                if let Some(place) = state.place()
                    && !walk.seen.insert(place)
                {
                    // It must be usable all the same.
                    if let Some(taken) =
                        walk.found.files.iter_mut().find(|file| file.state.place() == Some(place))
                    {
                        taken.named = true;
                    }
                    walk.leave_out("second names of a file", input);
                    continue;
                }
                walk.found.files.push(InputFile { path: input.clone(), format, state, named: true });
            }
        }
        Ok(walk.found)
    }
}

struct Walk<'a> {
    extensions: Vec<String>,
    text_key: &'a str,
    /// Device and inode of every file that was taken.
    seen: HashSet<(u64, u64)>,
    /// Device and inode of the folders that are being walked.
    above: Vec<(u64, u64)>,
    found: Inputs,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, metadata: &Metadata, output: &Path) -> Result<(), DataError> {
        let place = (metadata.dev(), metadata.ino());
        if self.above.contains(&place) {
            self.leave_out("links to a folder above", folder);
            return Ok(());
        }
        self.above.push(place);
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder).map_err(DataError::io("list", folder))? {
            entries.push(entry.map_err(DataError::io("list", folder))?.path());
        }
        entries.sort();
        let prepared = is_same_folder(folder, output)
            || ["train.idx", "meta.json"].iter().all(|name| folder.join(name).is_file());
        for path in entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') {
                self.leave_out("hidden", &path);
            } else if prepared && OUTPUTS.contains(&name.as_str()) {
                self.leave_out("files of a preparation", &path);
            } else {
                match fs::metadata(&path) {
                    Ok(metadata) if metadata.is_dir() => self.folder(&path, &metadata, output)?,
                    Ok(metadata) => self.file(path, &metadata),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        self.leave_out("broken links", &path);
                    }
                    Err(error) => return Err(DataError::io("look at", &path)(error)),
                }
            }
        }
        self.above.pop();
        Ok(())
    }

    fn file(&mut self, path: PathBuf, metadata: &Metadata) {
        let Ok(state @ FileState::Regular { place, .. }) = FileState::of(metadata) else {
            return self.leave_out("pipes and devices", &path);
        };
        let Some(format) = self.format_of(&path, &state) else {
            return self.leave_out(&left_out_kind(&path), &path);
        };
        if !self.seen.insert(place) {
            return self.leave_out("second names of a file", &path);
        }
        self.found.files.push(InputFile { path, format, state, named: false });
    }

    /// The format of a file whose name is one of ours.
    fn format_of(&self, path: &Path, state: &FileState) -> Option<Format> {
        let name = lower_name(path);
        let (inner, compression) = compression_of(&name);
        if name.ends_with(".parquet") {
            return Some(Format::Parquet);
        }
        let extension = inner.rsplit_once('.').map(|(_, extension)| extension)?;
        let lines = match extension {
            "jsonl" | "ndjson" => true,
            "json" if compression != Compression::None => true,
            "json" => *state != FileState::Stream && holds_json_lines(path, self.text_key),
            _ => false,
        };
        if lines {
            return Some(Format::JsonLines(compression));
        }
        self.extensions.iter().any(|known| known == extension).then_some(Format::Text(compression))
    }

    fn leave_out(&mut self, kind: &str, path: &Path) {
        self.found.left_out.entry(kind.to_owned()).or_default().add(path);
    }
}

/// Whether the first line of a file is a JSON object with text. A file that cannot be read is refused later.
fn holds_json_lines(path: &Path, key: &str) -> bool {
    let mut start = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(SNIFFED_BYTES).read_to_end(&mut start));
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    read.is_ok() && matches!(json_line::text_of(line, key), Ok(Line::Text { .. }))
}

fn lower_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

/// A name without the extension of a compression, and which one it is.
fn compression_of(name: &str) -> (&str, Compression) {
    if let Some(inner) = name.strip_suffix(".gz") {
        (inner, Compression::Gzip)
    } else if let Some(inner) = name.strip_suffix(".zst") {
        (inner, Compression::Zstd)
    } else {
        (name, Compression::None)
    }
}

fn extension_of(path: &Path) -> Option<String> {
    let name = lower_name(path);
    let stem = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    let (_, extension) = stem.rsplit_once('.').filter(|(before, _)| !before.is_empty())?;
    Some(format!("{extension}{}", &name[stem.len()..]))
}

/// How a file that is left out for its name is counted: `.png`, `.tar.gz`.
fn left_out_kind(path: &Path) -> String {
    extension_of(path).map_or_else(|| "no extension".into(), |extension| format!(".{extension}"))
}

fn is_same_folder(folder: &Path, other: &Path) -> bool {
    let place = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    place(folder).is_some_and(|found| Some(found) == place(other))
}

fn is_own_output(input: &Path, output: &Path) -> bool {
    let folder = match input.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return false,
    };
    OUTPUTS.iter().any(|name| input.file_name().is_some_and(|own| own == *name))
        && is_same_folder(folder, output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn find(inputs: &[PathBuf], output: &Path) -> Result<Inputs, DataError> {
        let extensions: Vec<String> = ["txt", ".md", "rs", "json"].map(String::from).into();
        Search { inputs, extensions: &extensions, text_key: "text", output }.find()
    }

    fn put(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn names(inputs: &Inputs, folder: &Path) -> Vec<String> {
        let relative =
            |file: &InputFile| file.path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
        inputs.files.iter().map(relative).collect()
    }

    #[test]
    fn a_file_that_is_named_twice_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in ["a.txt", "b.txt"] {
            put(folder, name, name);
        }
        let (a, b) = (folder.join("a.txt"), folder.join("b.txt"));
        for inputs in [vec![a.clone(), a.clone(), b.clone()], vec![a, folder.to_owned()]] {
            let found = find(&inputs, &folder.join("out")).unwrap();
            assert_eq!(names(&found, folder), ["a.txt", "b.txt"]);
            assert_eq!(found.left_out["second names of a file"].files, 1);
        }
    }

    #[test]
    fn folders_are_walked_in_order_and_the_rest_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in ["b.txt", "a/z.MD", "a/y.bin", ".git/c.txt", "d.jsonl.zst", "e.parquet", "noext", "a.rs"]
        {
            put(folder, name, "x");
        }
        for name in ["c4-train.00000.json.gz", "t.txt.gz", "x.tar.gz", "y.bin"] {
            put(folder, name, name);
        }
        put(folder, "whole.json", "{\n \"text\": \"one document\"\n}\n");
        put(folder, "lines.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
        symlink("nowhere", folder.join("gone.txt")).unwrap();
        let found = find(&[folder.to_owned()], &folder.join("out")).unwrap();
        assert_eq!(
            names(&found, folder),
            [
                "a/z.MD",
                "a.rs",
                "b.txt",
                "c4-train.00000.json.gz",
                "d.jsonl.zst",
                "e.parquet",
                "lines.json",
                "t.txt.gz",
                "whole.json"
            ]
        );
        let kinds: Vec<String> = found.files.iter().map(InputFile::kind).collect();
        assert_eq!(kinds, ["md", "rs", "txt", "json.gz", "jsonl.zst", "parquet", "json", "txt.gz", "json"]);
        let left_out: Vec<(&str, u64)> =
            found.left_out.iter().map(|(kind, count)| (kind.as_str(), count.files)).collect();
        assert_eq!(
            left_out,
            [(".bin", 2), (".tar.gz", 1), ("broken links", 1), ("hidden", 1), ("no extension", 1)]
        );
        assert!(found.left_out[".tar.gz"].example.ends_with("x.tar.gz"));

        let named = find(&[folder.join("noext")], &folder.join("out")).unwrap();
        assert_eq!((named.files.len(), named.files[0].format), (1, Format::Text(Compression::None)));
        let missing = find(&[folder.join("nowhere")], &folder.join("out")).unwrap_err();
        assert!(missing.to_string().contains("nowhere does not exist"), "{missing}");
    }

    /// The layout of a Hugging Face snapshot: links with names to files without.
    #[test]
    fn links_are_followed_once_and_loops_end() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        put(folder, "blobs/0af3", "rows");
        put(folder, "snapshots/1/own.txt", "x");
        symlink("../../blobs/0af3", folder.join("snapshots/1/a.parquet")).unwrap();
        symlink("../../blobs/0af3", folder.join("snapshots/1/b.parquet")).unwrap();
        symlink("..", folder.join("snapshots/1/up")).unwrap();
        let found = find(&[folder.join("snapshots/1")], &folder.join("out")).unwrap();
        assert_eq!(names(&found, &folder.join("snapshots/1")), ["a.parquet", "own.txt"]);
        assert_eq!(found.files[0].format, Format::Parquet);
        assert_eq!(found.left_out["second names of a file"].files, 1);
        assert_eq!(found.left_out.keys().filter(|kind| kind.contains("folder above")).count(), 1);
    }

    #[test]
    fn prepared_files_are_no_inputs() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in
            ["a.txt", "out/meta.json", "out/tokenizer.json", "out/notes.md", "old/train.idx", "old/meta.json"]
        {
            put(folder, name, "{}");
        }
        let output = folder.join("out");
        let found = find(&[folder.to_owned()], &output).unwrap();
        assert_eq!(names(&found, folder), ["a.txt", "out/notes.md"]);
        assert_eq!(found.left_out["files of a preparation"].files, 4);
        let error = find(&[output.join("meta.json")], &output).unwrap_err();
        assert!(error.to_string().contains("this preparation writes it"), "{error}");
    }

    #[test]
    fn every_kind_of_change_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        put(folder, "a.txt", "text");
        let file = find(&[folder.join("a.txt")], folder).unwrap().files.remove(0);
        file.check_unchanged().unwrap();
        put(folder, "a.txt", "text and more");
        assert!(file.check_unchanged().unwrap_err().to_string().contains("had 4 bytes and has 13 now"));
        put(folder, "b.txt", "text");
        fs::rename(folder.join("b.txt"), folder.join("a.txt")).unwrap();
        assert!(file.check_unchanged().unwrap_err().to_string().contains("another file has its name"));
        fs::remove_file(folder.join("a.txt")).unwrap();
        fs::create_dir(folder.join("a.txt")).unwrap();
        assert!(file.check_unchanged().unwrap_err().to_string().contains("it is a folder now"));
    }
}
