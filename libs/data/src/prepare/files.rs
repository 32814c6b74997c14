//! Which files a corpus consists of, what each of them is, and what is left out.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::meta::LeftOutCount;
use super::output::OUTPUTS;
use crate::error::DataError;
use crate::local_path::problem_of;

/// Extensions of text files that are taken from folders unless others are asked for.
pub const DEFAULT_EXTENSIONS: [&str; 37] = [
    "txt", "text", "md", "markdown", "rst", "adoc", "tex", "org", "html", "htm", "xml", "csv", "tsv", "json",
    "yaml", "yml", "toml", "ini", "rs", "py", "c", "h", "cc", "cpp", "hpp", "java", "go", "js", "ts", "rb",
    "sh", "sql", "lua", "hs", "ml", "proto", "cu",
];

/// Kind under which files and folders are left out that this user may not read.
pub const UNREADABLE: &str = "without permission to read";

/// How a file holds its documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// It is one document.
    Text,
    /// One JSON object a line.
    JsonLines,
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

impl Compression {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Compression::None => "plain",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
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
    /// The format that its name promises; `None` where its content decides.
    pub(crate) promised: Option<Format>,
    /// The compression that its name promises.
    pub(crate) compression: Compression,
    pub(crate) state: FileState,
    /// It was named as an input, not found in a folder.
    pub(crate) named: bool,
}

impl InputFile {
    /// The name under which it is counted: its extension as it is written.
    pub(crate) fn kind(&self) -> String {
        extension_of(&self.path).unwrap_or_else(|| "no extension".into())
    }

    /// Whether its name says that it is JSON, in one piece or in lines.
    pub(crate) fn is_json(&self) -> bool {
        self.kind().starts_with("json")
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
        unusable(&self.path, &problem.into())
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
            seen: HashSet::new(),
            above: Vec::new(),
            found: Inputs::default(),
        };
        for input in self.inputs {
            let metadata = fs::metadata(input).map_err(|error| cannot_look_at(input, error))?;
            if metadata.is_dir() {
                walk.folder(input, &metadata, self.output)?;
            } else {
                walk.named(input, &metadata, self.output)?;
            }
        }
        Ok(walk.found)
    }
}

struct Walk {
    extensions: Vec<String>,
    /// Device and inode of every file that was taken.
    seen: HashSet<(u64, u64)>,
    /// Device and inode of the folders that are being walked.
    above: Vec<(u64, u64)>,
    found: Inputs,
}

impl Walk {
    fn folder(&mut self, folder: &Path, metadata: &Metadata, output: &Path) -> Result<(), DataError> {
        let place = (metadata.dev(), metadata.ino());
        if self.above.contains(&place) {
            self.leave_out("links to a folder above", folder);
            return Ok(());
        }
        let listed = fs::read_dir(folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        let mut entries: Vec<PathBuf> = match listed {
            Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == ErrorKind::PermissionDenied && !self.above.is_empty() => {
                self.leave_out(UNREADABLE, folder);
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(no_permission(folder)),
            Err(error) => return Err(DataError::io("list", folder)(error)),
        };
        self.above.push(place);
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
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                        self.leave_out(UNREADABLE, &path);
                    }
                    // Whatever is wrong with a link, or a file that is gone by now.
                    Err(error) if error.kind() == ErrorKind::NotFound || path.is_symlink() => {
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
            return self.leave_out("pipes, sockets and devices", &path);
        };
        let Some((promised, compression)) = self.promised_by(&path) else {
            return self.leave_out(&left_out_kind(&path), &path);
        };
        if !self.seen.insert(place) {
            return self.leave_out("second names of a file", &path);
        }
        self.found.files.push(InputFile { path, promised, compression, state, named: false });
    }

    /// A file that is given as an input. It must be usable.
    fn named(&mut self, input: &Path, metadata: &Metadata, output: &Path) -> Result<(), DataError> {
        let refused = |problem: &str| unusable(input, problem);
        if is_own_output(input, output) {
            return Err(refused("this preparation writes it; choose another output folder"));
        }
        let state =
            FileState::of(metadata).map_err(|what| refused(&format!("it is {what}, not a file of text")))?;
        let (promised, compression) =
            self.promised_by(input).unwrap_or_else(|| (None, compression_of(&lower_name(input)).1));
        if let Some(place) = state.place()
            && !self.seen.insert(place)
        {
            if let Some(taken) = self.found.files.iter_mut().find(|file| file.state.place() == Some(place)) {
                taken.named = true;
            }
            self.leave_out("second names of a file", input);
            return Ok(());
        }
        self.found.files.push(InputFile {
            path: input.to_owned(),
            promised,
            compression,
            state,
            named: true,
        });
        Ok(())
    }

    /// What the name of a file promises; `None` where a folder's file of that name is not taken.
    fn promised_by(&self, path: &Path) -> Option<(Option<Format>, Compression)> {
        let name = lower_name(path);
        let (inner, compression) = compression_of(&name);
        if name.ends_with(".parquet") {
            return Some((Some(Format::Parquet), Compression::None));
        }
        let extension = inner.rsplit_once('.').map(|(_, extension)| extension)?;
        match extension {
            "jsonl" | "ndjson" => Some((Some(Format::JsonLines), compression)),
            "json" if compression != Compression::None => Some((Some(Format::JsonLines), compression)),
            _ => self.extensions.iter().any(|known| known == extension).then_some((None, compression)),
        }
    }

    fn leave_out(&mut self, kind: &str, path: &Path) {
        self.found.left_out.entry(kind.to_owned()).or_default().add(path);
    }
}

/// Refuses an input that cannot be looked at.
fn cannot_look_at(input: &Path, error: std::io::Error) -> DataError {
    match (error.kind(), fs::read_link(input)) {
        (ErrorKind::PermissionDenied, _) => no_permission(input),
        (ErrorKind::NotFound, Ok(target)) => {
            unusable(input, &format!("it is a link to {}, which does not exist", target.display()))
        }
        (_, Ok(target)) => {
            unusable(input, &format!("it is a link to {}, which leads nowhere: {error}", target.display()))
        }
        (kind, _) => match problem_of(input) {
            Some(problem) => unusable(input, &problem),
            None if kind == ErrorKind::NotFound => DataError::Missing {
                path: input.to_owned(),
                hint: "name files or folders of text that exist",
            },
            None => DataError::io("look at", input)(error),
        },
    }
}

fn no_permission(input: &Path) -> DataError {
    unusable(input, "permission to read it is missing; give it (chmod, or as its owner), or do not name it")
}

fn unusable(input: &Path, problem: &str) -> DataError {
    DataError::UnusableInput { path: input.to_owned(), problem: problem.to_owned() }
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
        Search { inputs, extensions: &extensions, output }.find()
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
        assert_eq!((named.files.len(), named.files[0].promised), (1, None));
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
        assert_eq!(found.files[0].promised, Some(Format::Parquet));
        assert_eq!(found.left_out["second names of a file"].files, 1);
        assert_eq!(found.left_out.keys().filter(|kind| kind.contains("folder above")).count(), 1);
    }

    #[test]
    fn links_that_lead_nowhere_and_sockets_are_left_out_or_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        put(folder, "own.txt", "x");
        symlink("b.txt", folder.join("a.txt")).unwrap();
        symlink("a.txt", folder.join("b.txt")).unwrap();
        symlink("own.txt/inside", folder.join("c.txt")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("d.txt")).unwrap();
        let found = find(&[folder.to_owned()], &folder.join("out")).unwrap();
        assert_eq!(names(&found, folder), ["own.txt"]);
        assert_eq!(found.left_out["broken links"].files, 3);
        assert_eq!(found.left_out["pipes, sockets and devices"].files, 1);
        symlink("absent", folder.join("e.txt")).unwrap();
        for (name, words) in [
            ("a.txt", "it is a link to b.txt, which leads nowhere"),
            ("c.txt", "it is a link to own.txt/inside, which leads nowhere"),
            ("d.txt", "it is a socket"),
            ("e.txt", "it is a link to absent, which does not exist"),
        ] {
            let error = find(&[folder.join(name)], &folder.join("out")).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(words), "{error}");
        }
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
