//! What a file holds, by its content: the same decision for named files, files of folders, pipes and
//! compressed files.
//!
//! A name may promise a format (`.jsonl`, `.parquet`, `.gz`); the content must then have it. Every other file
//! holds JSON lines where its first line is a JSON object with the text field and the next one begins an
//! object too, and else it is one text. What looks like records and would become one text is a [`Doubt`]: a
//! named file is refused, a file of a folder is reported.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Cursor, Read};

use super::files::{Compression, Format, InputFile};
use super::json_line::{FirstObject, first_object};
use super::text::NotText;
use crate::error::DataError;

/// Stored bytes that are read to tell a compression.
const START_BYTES: u64 = 512;
/// Plain bytes that are read to tell a format.
const HEAD_BYTES: u64 = 64 << 10;
/// The same, where they may belong to a long line of JSON.
const MOST_HEAD_BYTES: usize = 64 << 20;
/// Plain bytes that are kept to tell what a file is that is not text.
const KEPT_BYTES: usize = 4 << 10;

/// First line of what Git leaves in the place of a large file that was not downloaded.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const PDF: &[u8] = b"%PDF-";
const PARQUET: &[u8] = b"PAR1";
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Formats that the `infer` crate does not know or does not name plainly.
const KNOWN: [(&[u8], &str); 9] = [
    (LFS_POINTER, "a Git LFS pointer, whose file was not downloaded (`git lfs pull`)"),
    (PDF, "a PDF document"),
    (PARQUET, "a parquet file"),
    (b"MMIDIDX\0\0", "an index of token files, which needs no preparation: data.train names it"),
    (b"ARROW1\0\0", "an Arrow file; write its rows as parquet or JSON lines"),
    (b"\xff\xff\xff\xff", "an Arrow stream; write its rows as parquet or JSON lines"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\xff\xfe", "UTF-16 text; convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16 text; convert it to UTF-8"),
];

/// What files other than parquet hold, where the user says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextFormat {
    /// Name and content decide.
    #[default]
    Auto,
    /// Each file is one text.
    Text,
    /// One JSON object a line.
    JsonLines,
}

/// How the user says that inputs are read.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    /// Field or column that holds the text.
    pub(crate) text_key: String,
    pub(crate) format: TextFormat,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Documents in this format.
    Documents(Format),
    /// It may hold records, and is taken as one text.
    Doubtful(Doubt),
    /// No documents; the kind under which it is left out.
    Foreign(&'static str),
}

/// Why a file that is taken as one text may hold records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Lines of JSON objects without the text field; the fields that they have.
    NoField(Vec<String>),
    /// One JSON array of objects with the text field.
    Array,
    /// A first line that begins as a JSON object and is too long to be looked at.
    LongLine,
}

impl Doubt {
    /// A clause about files, for a report.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Doubt::NoField(_) => "look like JSON lines without the text field (--text-key)",
            Doubt::Array => "are JSON arrays of records; JSON lines have one object a line",
            Doubt::LongLine => "begin as a JSON object whose line is very long",
        }
    }

    /// What is wrong with a named file, and what to do.
    fn problem(&self, key: &str) -> String {
        match self {
            Doubt::NoField(fields) => format!(
                "it looks like JSON lines, but its first object has no text in field {key:?}; name the field \
                 that holds the text (--text-key), one of: {}, or read the file as one text (--format text)",
                fields.join(", ")
            ),
            Doubt::Array => {
                "it is one JSON array of records; write one object a line (`jq -c '.[]'`), or read it as \
                             one text (--format text)"
                    .into()
            }
            Doubt::LongLine => format!(
                "its first line begins as a JSON object and is longer than {} MiB; say what it is (--format jsonl or \
                 --format text)",
                MOST_HEAD_BYTES >> 20
            ),
        }
    }
}

/// A file that was opened, and the first of its plain bytes.
pub(crate) struct Opened<'a> {
    head: Vec<u8>,
    rest: Box<dyn Read + 'a>,
    /// Nothing comes after the head.
    is_whole: bool,
    pub(crate) compression: Compression,
}

impl<'a> Opened<'a> {
    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// The first plain bytes, enough to tell what is not text.
    pub(crate) fn start(&self) -> Vec<u8> {
        self.head[..self.head.len().min(KEPT_BYTES)].to_vec()
    }

    /// All plain bytes.
    pub(crate) fn into_reader(self) -> impl Read + 'a {
        Cursor::new(self.head).chain(self.rest)
    }

    /// Reads on until the head is twice as long.
    fn grow(&mut self) -> io::Result<()> {
        let more = (self.head.len() as u64).max(HEAD_BYTES);
        self.is_whole = self.rest.by_ref().take(more).read_to_end(&mut self.head)? == 0;
        Ok(())
    }
}

/// Opens a file; its compression is that of its content. `bytes` counts what is read of it.
pub(crate) fn open<'a>(file: &InputFile, bytes: &'a Cell<u64>) -> Result<Opened<'a>, DataError> {
    file.check_unchanged()?;
    let mut counted =
        Counted { file: File::open(&file.path).map_err(DataError::io("open", &file.path))?, bytes };
    let mut start = Vec::new();
    let read = counted.by_ref().take(START_BYTES).read_to_end(&mut start);
    read.map_err(DataError::io("read", &file.path))?;
    let compression = match (file.compression, compression_of(&start)) {
        (Compression::None, found) | (_, found @ (Compression::Gzip | Compression::Zstd)) => found,
        (_, Compression::None) if start.is_empty() => Compression::None,
        (named, Compression::None) => {
            let found = what_is(&start).map_or(String::new(), |what| format!(" but {what}"));
            return Err(file.unusable(format!(
                "its name says {}, and it holds no such data{found}; give it the name of what it is",
                named.name()
            )));
        }
    };
    let stored = Cursor::new(start).chain(counted);
    let mut rest: Box<dyn Read + 'a> = match compression {
        Compression::None => Box::new(stored),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(stored)),
        Compression::Zstd => {
            let failed = |error| reading_failed(file, compression, error);
            let mut decoder = zstd::stream::read::Decoder::new(stored).map_err(failed)?;
            // Windows of `zstd --long=31`, the largest there are.
            decoder.window_log_max(31).map_err(failed)?;
            Box::new(decoder)
        }
    };
    let mut head = Vec::new();
    let read = rest.by_ref().take(HEAD_BYTES).read_to_end(&mut head);
    read.map_err(|error| reading_failed(file, compression, error))?;
    Ok(Opened { head, rest, is_whole: false, compression })
}

/// Decides what a file holds. Refuses a file that was named, or whose name promises something, and that
/// does not hold it.
pub(crate) fn content_of(
    file: &InputFile,
    opened: &mut Opened<'_>,
    records: &Records,
) -> Result<Content, DataError> {
    let is_plain = opened.compression == Compression::None;
    let foreign = |kind, what: &str| match file.named || file.promised.is_some() {
        true => Err(file.unusable(format!("it is {what}"))),
        false => Ok(Content::Foreign(kind)),
    };
    for (magic, what) in &KNOWN[..2] {
        if opened.head.starts_with(magic) {
            return foreign(if *magic == PDF { "binary" } else { "Git LFS pointers" }, what);
        }
    }
    if is_plain && opened.head.starts_with(PARQUET) {
        return Ok(Content::Documents(Format::Parquet));
    }
    match (file.promised, records.format) {
        (Some(Format::Parquet), _) => {
            let found = what_is(&opened.head).map_or("it is none".to_owned(), |what| format!("it is {what}"));
            Err(file.unusable(format!("its name says parquet, but {found}; give it the name of what it is")))
        }
        (_, TextFormat::Text) => Ok(Content::Documents(Format::Text)),
        (_, TextFormat::JsonLines) | (Some(Format::JsonLines), _) => {
            Ok(Content::Documents(Format::JsonLines))
        }
        _ => match undecided(file, opened, &records.text_key)? {
            Content::Doubtful(doubt) if file.named => Err(file.unusable(doubt.problem(&records.text_key))),
            content => Ok(content),
        },
    }
}

/// Decides by content alone.
fn undecided(file: &InputFile, opened: &mut Opened<'_>, key: &str) -> Result<Content, DataError> {
    loop {
        match look(opened, key) {
            Look::More if opened.head.len() >= MOST_HEAD_BYTES => {
                let is_blank = opened.head.trim_ascii_start().is_empty();
                let text = Content::Documents(Format::Text);
                return Ok(if is_blank { text } else { Content::Doubtful(Doubt::LongLine) });
            }
            Look::More => {
                opened.grow().map_err(|error| reading_failed(file, opened.compression, error))?;
            }
            // A file of one object is one text by the name `.json`; otherwise it may be the first record.
            Look::OneObject(fields) if file.is_json() || fields.is_empty() => {
                return Ok(Content::Documents(Format::Text));
            }
            Look::OneObject(fields) => return Ok(Content::Doubtful(Doubt::NoField(fields))),
            Look::Is(content) => return Ok(content),
        }
    }
}

enum Look {
    Is(Content),
    /// All is one object without the text field, on one line.
    OneObject(Vec<String>),
    /// More bytes decide.
    More,
}

fn look(opened: &Opened<'_>, key: &str) -> Look {
    let Opened { head, is_whole, .. } = opened;
    let text = Look::Is(Content::Documents(Format::Text));
    let head = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head).trim_ascii_start();
    match head {
        [] if !*is_whole => return Look::More,
        [b'[', rest @ ..] => {
            let has_text = first_object(rest, key).is_some_and(|object| object.has_text);
            return if has_text { Look::Is(Content::Doubtful(Doubt::Array)) } else { text };
        }
        [b'{', rest @ ..] if matches!(rest.trim_ascii_start().first(), Some(b'"' | b'}') | None) => {}
        _ => return text,
    }
    let (line, after) = match head.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&head[..end], head[end..].trim_ascii_start()),
        None if *is_whole => (head, &[][..]),
        None => return Look::More,
    };
    let Some(FirstObject { has_text, fields, length }) = first_object(line, key) else { return text };
    if !line[length..].trim_ascii().is_empty() {
        return text;
    }
    match (after.first(), has_text) {
        (None, _) if !*is_whole => Look::More,
        (None, false) => Look::OneObject(fields),
        (Some(b'{') | None, true) => Look::Is(Content::Documents(Format::JsonLines)),
        (Some(b'{'), false) => Look::Is(Content::Doubtful(Doubt::NoField(fields))),
        (Some(_), _) => text,
    }
}

/// What a named file that is not text is, and what to do.
pub(crate) fn not_text(problem: NotText, start: &[u8]) -> String {
    match what_is(start) {
        Some(what) => format!("it is not text but {what}"),
        None => problem.problem(),
    }
}

/// What bytes that are not text begin, with an article.
fn what_is(start: &[u8]) -> Option<String> {
    if let Some((_, what)) = KNOWN.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some((*what).to_owned());
    }
    // Two letters are enough for some of its formats, and text may begin with them.
    let is_control = |byte: &u8| *byte < 9 || (0x0e..0x1b).contains(byte);
    let is_binary = start.first()? >= &0x80 || start.iter().take(512).any(is_control);
    let kind = infer::get(start).filter(|_| is_binary)?;
    let what = format!("a .{} file ({})", kind.extension(), kind.mime_type());
    match kind.matcher_type() {
        infer::MatcherType::Text => None,
        infer::MatcherType::Archive => Some(format!("{what}; unpack it")),
        _ => Some(what),
    }
}

fn compression_of(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A frame that is skipped, with which some writers begin.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// What the operating system reports is its failure; what a decompressor reports is wrong with the file.
pub(crate) fn reading_failed(file: &InputFile, compression: Compression, error: io::Error) -> DataError {
    if compression == Compression::None || error.raw_os_error().is_some() {
        return DataError::Io { action: "read", path: file.path.clone(), source: error };
    }
    let place = file.path.display().to_string();
    DataError::Corpus {
        place,
        problem: format!("its {} data is damaged or cut short: {error}", compression.name()),
    }
}

/// A file that counts what is read of it.
struct Counted<'a> {
    file: File,
    bytes: &'a Cell<u64>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.bytes.set(self.bytes.get() + count as u64);
        Ok(count)
    }
}
