//! Reading a segment: the index checked in full when it is opened, tokens read where they are wanted.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::dtype::Dtype;
use super::index::IndexLayout;
use super::pair_of;
use super::token_file::{TokenFile, open};
use crate::error::DataError;
use crate::source::{TokenSource, checked_range};

/// Tokens decoded at a time when a whole segment is scanned.
const SCAN_TOKENS: u64 = 1 << 16;

/// An open `.bin`/`.idx` pair. Its tokens are all sequences one after another.
#[derive(Debug)]
pub struct Segment {
    name: String,
    bin: TokenFile,
    idx: File,
    idx_path: PathBuf,
    layout: IndexLayout,
}

impl Segment {
    /// Opens the pair at `path` (without extension, or with either) and checks the whole index and the size
    /// of the `.bin`. Values of tokens are checked when they are read, or by [`Segment::check_tokens`].
    pub fn open(path: &str) -> Result<Segment, DataError> {
        let (bin_path, idx_path) = pair_of(path);
        let idx = open(&idx_path)?;
        let layout = parse(&idx, &idx_path)?;
        let bin = TokenFile::open(&bin_path)?;
        let (actual, expected) = (bin.length(), layout.tokens.checked_mul(layout.dtype.bytes() as u64));
        if expected != Some(actual) {
            let expected = expected.unwrap_or(u64::MAX);
            return Err(DataError::BinSize { path: bin_path, actual, expected });
        }
        let segment = Segment { name: bin_path.display().to_string(), bin, idx, idx_path, layout };
        segment.check_current()?;
        Ok(segment)
    }

    /// Refuses a segment that was replaced since it was opened. A pair that is replaced loses its old index
    /// before the new `.bin` comes: an index that is still there belongs to the `.bin` that was opened after
    /// it.
    pub(crate) fn check_current(&self) -> Result<(), DataError> {
        let place = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let opened = self.idx.metadata().map_err(DataError::io("look at", &self.idx_path))?;
        if std::fs::metadata(&self.idx_path).ok().map(place) == Some(place(opened)) {
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

    /// BLAKE3 of the whole `.idx`: 64 hexadecimal digits.
    pub(crate) fn index_hash(&self) -> Result<String, DataError> {
        let mut hasher = blake3::Hasher::new();
        let (mut start, mut bytes) = (0, vec![0; SCAN_TOKENS as usize]);
        loop {
            let read = self.idx.read_at(&mut bytes, start);
            match read.map_err(DataError::io("read", &self.idx_path))? {
                0 => return Ok(hasher.finalize().to_hex().to_string()),
                count => {
                    hasher.update(&bytes[..count]);
                    start += count as u64;
                }
            }
        }
    }

    /// The hash of a sample of the `.bin`.
    pub(crate) fn sample_hash(&self) -> &str {
        self.bin.sample()
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
            self.decode(start..end, &mut values)?;
            visit(start, &values)?;
            start = end;
        }
        Ok(())
    }

    /// Raw values of a range that was checked.
    fn decode(&self, range: Range<u64>, out: &mut Vec<i64>) -> Result<(), DataError> {
        let size = self.dtype().bytes() as u64;
        let mut bytes = vec![0; ((range.end - range.start) * size) as usize];
        self.bin.read(range.start * size, &mut bytes)?;
        self.dtype().decode(&bytes, out);
        Ok(())
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
        self.decode(range.clone(), &mut values)?;
        (range.start..)
            .zip(values)
            .map(|(position, v)| u32::try_from(v).map_err(|_| self.out_of_range(position, v, u32::MAX)))
            .collect()
    }

    fn document_of(&self, position: u64) -> u64 {
        // For messages: where the index cannot be read any more, the first document will do.
        self.layout.find_document(position, |at| {
            let mut bytes = [0; 8];
            self.idx.read_exact_at(&mut bytes, at as u64).ok().map(|()| i64::from_le_bytes(bytes))
        })
    }
}

/// Checks a whole index.
fn parse(idx: &File, path: &Path) -> Result<IndexLayout, DataError> {
    let wrong = |problem| DataError::Index { path: path.to_owned(), problem };
    let length = idx.metadata().map_err(DataError::io("read the size of", path))?.len();
    if length == 0 {
        return IndexLayout::parse(&[]).map_err(wrong);
    }
    // SAFETY: the map is read-only, private to this process and gone when this function returns. Bytes may
    // change under it if another process writes the file; every value is decoded as whatever integer it is
    // and checked after decoding, never trusted for memory safety. Truncation in this moment would raise
    // SIGBUS, as for every reader of mapped files; the next open names the file.
    let map = unsafe { Mmap::map(idx) }.map_err(DataError::io("map", path))?;
    IndexLayout::parse(&map).map_err(wrong)
}
