//! Which files a corpus consists of, and what each of them is.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::DataError;

/// Extensions of text files that are taken from folders unless others are asked for.
pub const DEFAULT_EXTENSIONS: [&str; 37] = [
    "txt", "text", "md", "markdown", "rst", "adoc", "tex", "org", "html", "htm", "xml", "csv", "tsv", "json",
    "yaml", "yml", "toml", "ini", "rs", "py", "c", "h", "cc", "cpp", "hpp", "java", "go", "js", "ts", "rb",
    "sh", "sql", "lua", "hs", "ml", "proto", "cu",
];

/// How a file holds its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One document.
    Text,
    /// One JSON object a line.
    JsonLines(Compression),
    /// Rows of a table.
    Parquet,
}

/// Compression of a file of JSON lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A file of the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextFile {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
}

impl TextFile {
    /// The name under which it is counted: its extension.
    pub(crate) fn kind(&self) -> String {
        match self.format {
            Format::JsonLines(Compression::None) => "jsonl".into(),
            Format::JsonLines(Compression::Gzip) => "jsonl.gz".into(),
            Format::JsonLines(Compression::Zstd) => "jsonl.zst".into(),
            Format::Parquet => "parquet".into(),
            Format::Text => extension_of(&self.path).unwrap_or_else(|| "no extension".into()),
        }
    }
}

/// The format that a file's name announces; `None` when it announces none of ours.
fn announced_format(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let endings = [
        (".jsonl", Format::JsonLines(Compression::None)),
        (".ndjson", Format::JsonLines(Compression::None)),
        (".jsonl.gz", Format::JsonLines(Compression::Gzip)),
        (".jsonl.zst", Format::JsonLines(Compression::Zstd)),
        (".parquet", Format::Parquet),
    ];
    endings.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, format)| format)
}

fn extension_of(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// All files of `inputs`, in their order; those of a folder sorted by path. Hidden files and folders and links inside
/// folders are left out.
pub(crate) fn find_files(inputs: &[PathBuf], extensions: &[String]) -> Result<Vec<TextFile>, DataError> {
    let extensions: Vec<String> =
        extensions.iter().map(|e| e.trim_start_matches('.').to_ascii_lowercase()).collect();
    let mut files = Vec::new();
    for input in inputs {
        let metadata = fs::metadata(input).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                DataError::Missing { path: input.clone(), hint: "name files or folders of text that exist" }
            }
            _ => DataError::Io { action: "look at", path: input.clone(), source },
        })?;
        if metadata.is_dir() {
            walk(input, &extensions, &mut files)?;
        } else {
            let format = announced_format(input).unwrap_or(Format::Text);
            files.push(TextFile { path: input.clone(), format });
        }
    }
    Ok(files)
}

fn walk(folder: &Path, extensions: &[String], files: &mut Vec<TextFile>) -> Result<(), DataError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io("list", folder))? {
        let entry = entry.map_err(DataError::io("list", folder))?;
        let kind = entry.file_type().map_err(DataError::io("look at", &entry.path()))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            entries.push((entry.path(), kind));
        }
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (path, kind) in entries {
        if kind.is_dir() {
            walk(&path, extensions, files)?;
        } else if kind.is_file() {
            let wanted = || extension_of(&path).is_some_and(|e| extensions.contains(&e));
            if let Some(format) = announced_format(&path).or_else(|| wanted().then_some(Format::Text)) {
                files.push(TextFile { path, format });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_walked_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a/z.MD", "a/y.bin", ".git/c.txt", "d.jsonl.zst", "e.parquet", "noext", "a.rs"]
        {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let extensions: Vec<String> = ["txt", ".md", "rs"].map(String::from).into();
        let found = find_files(&[folder.path().to_owned()], &extensions).unwrap();
        let names: Vec<String> = found
            .iter()
            .map(|f| f.path.strip_prefix(folder.path()).unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["a/z.MD", "a.rs", "b.txt", "d.jsonl.zst", "e.parquet"]);
        let kinds: Vec<String> = found.iter().map(TextFile::kind).collect();
        assert_eq!(kinds, ["md", "rs", "txt", "jsonl.zst", "parquet"]);

        let named = find_files(&[folder.path().join("noext")], &extensions).unwrap();
        assert_eq!((named.len(), named[0].format), (1, Format::Text));
        let missing = find_files(&[folder.path().join("nowhere")], &extensions).unwrap_err();
        assert!(missing.to_string().contains("nowhere does not exist"), "{missing}");
    }
}
