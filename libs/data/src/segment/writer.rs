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

/// A segment being written, one document (of one sequence) at a time. Dropped unfinished, it leaves nothing
/// behind.
#[derive(Debug)]
pub struct SegmentWriter {
    bin: PartialFile,
    idx: PartialFile,
    dtype: Dtype,
    lengths: Vec<i32>,
    tokens: u64,
    /// Tokens of whole documents.
    ended: u64,
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
            ended: 0,
            buffer: Vec::new(),
        })
    }

    /// Appends a document, its closing EOS included.
    pub fn push(&mut self, document: &[u32]) -> Result<(), DataError> {
        self.push_part(document)?;
        self.end_document()
    }

    /// Appends a part of a document, which goes on until [`SegmentWriter::end_document`].
    pub fn push_part(&mut self, tokens: &[u32]) -> Result<(), DataError> {
        self.buffer.clear();
        for &token in tokens {
            self.dtype.encode(token, &mut self.buffer).map_err(|token| DataError::IllegalOption {
                option: "a token",
                value: token.to_string(),
                wanted: format!("at most {} to be stored as {}", self.dtype.max(), self.dtype),
            })?;
        }
        self.bin.write(&self.buffer)?;
        self.tokens += tokens.len() as u64;
        Ok(())
    }

    /// Ends the document whose parts were pushed.
    pub fn end_document(&mut self) -> Result<(), DataError> {
        let length = self.tokens - self.ended;
        self.lengths.push(i32::try_from(length).map_err(|_| DataError::IllegalOption {
            option: "the length of a document",
            value: length.to_string(),
            wanted: "below 2^31 tokens; divide it into several documents".into(),
        })?);
        self.ended = self.tokens;
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

    /// Writes the index, syncs both files and gives them their names, the index last. An open document is
    /// refused.
    pub fn finish(mut self) -> Result<(), DataError> {
        if self.ended != self.tokens {
            return Err(DataError::IllegalOption {
                option: "the last document",
                value: "open".into(),
                wanted: "ended before the segment is".into(),
            });
        }
        let count = self.lengths.len() as u64;
        self.idx.write(MAGIC)?;
        self.idx.write(&VERSION.to_le_bytes())?;
        self.idx.write(&[self.dtype.code()])?;
        self.idx.write(&count.to_le_bytes())?;
        self.idx.write(&(count + 1).to_le_bytes())?;
        for length in &self.lengths {
            self.idx.write(&length.to_le_bytes())?;
        }
        let mut pointer = 0u64;
        for length in &self.lengths {
            self.idx.write(&pointer.to_le_bytes())?;
            pointer += u64::from(length.unsigned_abs()) * self.dtype.bytes() as u64;
        }
        for mark in 0..=count {
            self.idx.write(&mark.to_le_bytes())?;
        }
        self.bin.finish()?;
        self.idx.finish()
    }
}

/// A file under a temporary name beside its final one. Dropped unfinished, it is removed.
#[derive(Debug)]
struct PartialFile {
    target: PathBuf,
    partial: PathBuf,
    existing: Existing,
    file: Option<BufWriter<File>>,
}

impl PartialFile {
    fn create(target: PathBuf, existing: Existing) -> Result<PartialFile, DataError> {
        refuse_existing(&target, existing)?;
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let partial = target.with_file_name(name);
        let file = File::create(&partial).map_err(DataError::io("create", &partial))?;
        let file = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(PartialFile { target, partial, existing, file })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(DataError::io("write", &self.partial)),
            None => Ok(()),
        }
    }

    /// Syncs the file and gives it its name.
    fn finish(mut self) -> Result<(), DataError> {
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

/// Refuses a file that is there where it must not be, and in any case what is no regular file: a rename would
/// put a file in the place of a link, a pipe or a device.
fn refuse_existing(path: &Path, existing: Existing) -> Result<(), DataError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            let what = if metadata.is_symlink() { "a symbolic link" } else { "no regular file" };
            Err(DataError::NotAFile { path: path.to_owned(), what })
        }
        Ok(_) if existing == Existing::Refuse => Err(DataError::Exists { path: path.to_owned() }),
        _ => Ok(()),
    }
}
