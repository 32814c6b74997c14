//! Reading a segment: both files mapped, the index checked in full.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::dtype::Dtype;
use super::index::IndexLayout;
use super::pair_of;
use crate::error::DataError;
use crate::source::{TokenSource, checked_range};

/// Tokens decoded at a time when a whole segment is scanned.
const SCAN_TOKENS: u64 = 1 << 16;

/// An open `.bin`/`.idx` pair. Its tokens are all sequences one after another.
#[derive(Debug)]
pub struct Segment {
    name: String,
    bin: Option<Mmap>,
    idx: Option<Mmap>,
    layout: IndexLayout,
    idx_path: PathBuf,
    /// Of the `.idx` that is open.
    place: Place,
}

impl Segment {
    /// Opens the pair at `path` (without extension, or with either) and checks the whole index and the size
    /// of the `.bin`. Values of tokens are checked when they are read, or by [`Segment::check_tokens`].
    pub fn open(path: &str) -> Result<Segment, DataError> {
        let (bin_path, idx_path) = pair_of(path);
        let (idx, place) = map(&idx_path)?;
        let layout = IndexLayout::parse(bytes_of(&idx))
            .map_err(|problem| DataError::Index { path: idx_path.clone(), problem })?;
        let (bin, _) = map(&bin_path)?;
        let (actual, expected) =
            (bytes_of(&bin).len() as u64, layout.tokens.checked_mul(layout.dtype.bytes() as u64));
        if expected != Some(actual) {
            let expected = expected.unwrap_or(u64::MAX);
            return Err(DataError::BinSize { path: bin_path, actual, expected });
        }
        let segment = Segment { name: bin_path.display().to_string(), bin, idx, layout, idx_path, place };
        segment.check_current()?;
        Ok(segment)
    }

    /// Refuses a segment that was replaced since it was opened. A pair that is replaced loses its old index
    /// before the new `.bin` comes: an index that is still there belongs to the `.bin` that was opened after
    /// it.
    pub(crate) fn check_current(&self) -> Result<(), DataError> {
        let now = std::fs::metadata(&self.idx_path).map(|metadata| (metadata.dev(), metadata.ino()));
        if now.ok() == Some(self.place) {
            return Ok(());
        }
        Err(DataError::Replaced { path: self.idx_path.clone() })
    }

    /// Type of the stored tokens.
    pub fn dtype(&self) -> Dtype {
        self.layout.dtype
    }

    /// Documents, as the index marks them.
    pub fn documents(&self) -> usize {
        self.layout.documents
    }

    /// Sequences, as the index lists them.
    pub fn sequences(&self) -> usize {
        self.layout.sequences
    }

    /// The whole `.idx`.
    pub(crate) fn index_bytes(&self) -> &[u8] {
        bytes_of(&self.idx)
    }

    /// The whole `.bin`.
    pub(crate) fn token_bytes(&self) -> &[u8] {
        bytes_of(&self.bin)
    }

    /// Reads every token and checks it against the vocabulary; free of cost where the type cannot exceed it.
    pub fn check_tokens(&self, vocab: u32) -> Result<(), DataError> {
        if self.dtype() == Dtype::U16 && vocab > u32::from(u16::MAX)
            || self.dtype() == Dtype::U8 && vocab > u32::from(u8::MAX)
        {
            return Ok(());
        }
        self.scan(|start, values| match values.iter().position(|&v| !(0..i64::from(vocab)).contains(&v)) {
            None => Ok(()),
            Some(i) => Err(self.out_of_range(start + i as u64, values[i], vocab)),
        })
    }

    /// The largest token; `None` of an empty segment. Refuses negative tokens and those above 32 bits.
    pub fn largest_token(&self) -> Result<Option<u32>, DataError> {
        let mut largest = None;
        self.scan(|start, values| {
            for (position, &value) in (start..).zip(values) {
                let token = u32::try_from(value).map_err(|_| self.out_of_range(position, value, u32::MAX))?;
                largest = largest.max(Some(token));
            }
            Ok(())
        })?;
        Ok(largest)
    }

    /// Calls `visit` with the first position and the raw values of each run of tokens.
    fn scan(&self, mut visit: impl FnMut(u64, &[i64]) -> Result<(), DataError>) -> Result<(), DataError> {
        let mut values = Vec::new();
        let mut start = 0;
        while start < self.layout.tokens {
            let end = (start + SCAN_TOKENS).min(self.layout.tokens);
            values.clear();
            self.decode(start..end, &mut values);
            visit(start, &values)?;
            start = end;
        }
        Ok(())
    }

    /// Raw values of a range that was checked.
    fn decode(&self, range: Range<u64>, out: &mut Vec<i64>) {
        let size = self.dtype().bytes();
        let bytes = &bytes_of(&self.bin)[range.start as usize * size..range.end as usize * size];
        self.dtype().decode(bytes, out);
    }

    fn out_of_range(&self, position: u64, token: i64, vocab: u32) -> DataError {
        let document = self.document_of(position);
        DataError::TokenRange { source_name: self.name.clone(), document, position, token, vocab }
    }
}

impl TokenSource for Segment {
    fn name(&self) -> &str {
        &self.name
    }

    fn token_count(&self) -> u64 {
        self.layout.tokens
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u32>, DataError> {
        checked_range(self, &range)?;
        let mut values = Vec::with_capacity((range.end - range.start) as usize);
        self.decode(range.clone(), &mut values);
        (range.start..)
            .zip(values)
            .map(|(position, v)| u32::try_from(v).map_err(|_| self.out_of_range(position, v, u32::MAX)))
            .collect()
    }

    fn document_of(&self, position: u64) -> u64 {
        self.layout.document_of(bytes_of(&self.idx), position)
    }
}

fn bytes_of(map: &Option<Mmap>) -> &[u8] {
    map.as_deref().unwrap_or_default()
}

/// Device and inode of a file.
type Place = (u64, u64);

/// Maps a whole file; `None` when it is empty.
fn map(path: &Path) -> Result<(Option<Mmap>, Place), DataError> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(DataError::io("read the size of", path))?;
    let place = (metadata.dev(), metadata.ino());
    if metadata.len() == 0 {
        return Ok((None, place));
    }
    // SAFETY: the map is read-only and private to this process. Bytes may change under it if another process
    // writes the file; every value is then decoded as whatever integer it is and checked after decoding,
    // never trusted for memory safety. Truncation by another process would raise SIGBUS, as for every reader
    // of mapped files; data files are written under another name and renamed, so no program of ours does
    // that.
    let map = unsafe { Mmap::map(&file) }.map_err(DataError::io("map", path))?;
    Ok((Some(map), place))
}

fn open(path: &Path) -> Result<File, DataError> {
    File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => DataError::Missing {
            path: path.to_owned(),
            hint: "data.train and data.held_out name a .bin/.idx pair by its path without extension, relative to the \
                   current directory; `prepare` makes one",
        },
        _ => DataError::Io { action: "open", path: path.to_owned(), source },
    })
}
