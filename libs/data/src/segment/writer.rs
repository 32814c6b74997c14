//! Writing a segment: under temporary names, renamed when whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::dtype::Dtype;
use super::index::{MAGIC, VERSION};
use super::pair_of;
use crate::error::DataError;

/// What to do about output that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    #[default]
    Refuse,
    /// Replace it, file by file, each atomically.
    Replace,
}

/// A segment being written, one document (of one sequence) at a time. Dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub struct SegmentWriter {
    bin: PartialFile,
    idx: PartialFile,
    dtype: Dtype,
    lengths: Vec<i32>,
    tokens: u64,
    buffer: Vec<u8>,
}

impl SegmentWriter {
    /// Begins the pair at `path` (without extension).
    pub fn create(path: &str, dtype: Dtype, existing: Existing) -> Result<SegmentWriter, DataError> {
        let (bin, idx) = pair_of(path);
        Ok(SegmentWriter {
            bin: PartialFile::create(bin, existing)?,
            idx: PartialFile::create(idx, existing)?,
            dtype,
            lengths: Vec::new(),
            tokens: 0,
            buffer: Vec::new(),
        })
    }

    /// Appends a document, its closing EOS included.
    pub fn push(&mut self, document: &[u32]) -> Result<(), DataError> {
        let illegal =
            |option, value: String, wanted: String| DataError::IllegalOption { option, value, wanted };
        let length = i32::try_from(document.len()).map_err(|_| {
            illegal("the length of a document", document.len().to_string(), "below 2^31 tokens".into())
        })?;
        self.buffer.clear();
        for &token in document {
            self.dtype.encode(token, &mut self.buffer).map_err(|token| {
                illegal(
                    "a token",
                    token.to_string(),
                    format!("at most {} to be stored as {}", self.dtype.max(), self.dtype),
                )
            })?;
        }
        self.bin.write(&self.buffer)?;
        self.lengths.push(length);
        self.tokens += document.len() as u64;
        Ok(())
    }

    /// Documents so far.
    pub fn documents(&self) -> u64 {
        self.lengths.len() as u64
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Writes the index, syncs both files and gives them their names, the index last.
    pub fn finish(mut self) -> Result<(), DataError> {
        let count = self.lengths.len() as u64;
        let mut bytes = Vec::with_capacity(34 + self.lengths.len() * 20 + 8);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(self.dtype.code());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&(count + 1).to_le_bytes());
        bytes.extend(self.lengths.iter().flat_map(|length| length.to_le_bytes()));
        let mut pointer = 0u64;
        for length in &self.lengths {
            bytes.extend_from_slice(&pointer.to_le_bytes());
            pointer += u64::from(length.unsigned_abs()) * self.dtype.bytes() as u64;
        }
        bytes.extend((0..=count).flat_map(|mark| mark.to_le_bytes()));
        self.idx.write(&bytes)?;
        self.bin.finish()?;
        self.idx.finish()
    }
}

/// A file under a temporary name beside its final one. Dropped unfinished, it is removed.
#[derive(Debug)]
pub(crate) struct PartialFile {
    target: PathBuf,
    partial: PathBuf,
    existing: Existing,
    file: Option<BufWriter<File>>,
}

impl PartialFile {
    pub(crate) fn create(target: PathBuf, existing: Existing) -> Result<PartialFile, DataError> {
        refuse_existing(&target, existing)?;
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let partial = target.with_file_name(name);
        let file = File::create(&partial).map_err(DataError::io("create", &partial))?;
        let file = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(PartialFile { target, partial, existing, file })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(DataError::io("write", &self.partial)),
            None => Ok(()),
        }
    }

    /// Syncs the file and gives it its name.
    pub(crate) fn finish(mut self) -> Result<(), DataError> {
        if let Some(file) = self.file.take() {
            let written =
                file.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all());
            let renamed = written
                .map_err(DataError::io("write", &self.partial))
                .and_then(|()| refuse_existing(&self.target, self.existing))
                .and_then(|()| {
                    fs::rename(&self.partial, &self.target).map_err(DataError::io("rename to", &self.target))
                });
            if renamed.is_err() {
                // The first error is the one to report.
                let _ = fs::remove_file(&self.partial);
            }
            return renamed;
        }
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing depends on the leftover, and there is nobody to tell.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

pub(crate) fn refuse_existing(path: &Path, existing: Existing) -> Result<(), DataError> {
    match existing {
        Existing::Refuse if path.exists() => Err(DataError::Exists { path: path.to_owned() }),
        _ => Ok(()),
    }
}
