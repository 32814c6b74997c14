//! The files of a segment as a run reads them: at any place, without a map, so that a file which is cut while
//! it is read is an error with its name and no signal. A change under the run is noticed at the next read.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::DataError;

/// Bytes of a `.bin` that are hashed at most.
pub(crate) const SAMPLE_BYTES: usize = 1 << 20;
/// Bytes of one piece of the sample.
pub(crate) const PIECE_BYTES: usize = 4 << 10;

/// An open `.bin`, which holds what it held when it was opened.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    file: File,
    length: u64,
    sample: String,
    /// When it was last written, as last seen: seconds and nanoseconds.
    written: Mutex<(i64, i64)>,
}

impl TokenFile {
    pub(crate) fn open(path: &Path) -> Result<TokenFile, DataError> {
        let file = open(path)?;
        let (length, written) = stamp(&file, path)?;
        let sample = hash_of(&file, length, path)?;
        Ok(TokenFile { path: path.to_owned(), file, length, sample, written: Mutex::new(written) })
    }

    /// Bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// [`sample_hash`] of the whole file.
    pub(crate) fn sample(&self) -> &str {
        &self.sample
    }

    /// Fills `out` from `start` on.
    pub(crate) fn read(&self, start: u64, out: &mut [u8]) -> Result<(), DataError> {
        self.check_unchanged()?;
        self.file.read_exact_at(out, start).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.changed(),
            _ => DataError::Io { action: "read", path: self.path.clone(), source },
        })
    }

    /// A file that was written since, with the sample that it had, was only touched.
    fn check_unchanged(&self) -> Result<(), DataError> {
        let (length, written) = stamp(&self.file, &self.path)?;
        let mut seen = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if length == self.length && written == *seen {
            return Ok(());
        }
        if length != self.length || hash_of(&self.file, length, &self.path)? != self.sample {
            return Err(self.changed());
        }
        *seen = written;
        Ok(())
    }

    fn changed(&self) -> DataError {
        DataError::SegmentChanged { path: self.path.clone() }
    }
}

/// Length, and when the file was last written.
fn stamp(file: &File, path: &Path) -> Result<(u64, (i64, i64)), DataError> {
    let metadata = file.metadata().map_err(DataError::io("read the size of", path))?;
    Ok((metadata.len(), (metadata.mtime(), metadata.mtime_nsec())))
}

fn hash_of(file: &File, length: u64, path: &Path) -> Result<String, DataError> {
    sample_hash(length, |start, piece| file.read_exact_at(piece, start)).map_err(|source| {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => DataError::SegmentChanged { path: path.to_owned() },
            _ => DataError::Io { action: "read", path: path.to_owned(), source },
        }
    })
}

/// Hashes the length and a sample of what `read` reads; the pieces follow from the length alone. BLAKE3, 64
/// hexadecimal digits.
pub(crate) fn sample_hash(
    length: u64,
    read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&length.to_le_bytes());
    if length <= SAMPLE_BYTES as u64 {
        let mut whole = vec![0; length as usize];
        read(0, &mut whole)?;
        hasher.update(&whole);
    } else {
        let pieces = (SAMPLE_BYTES / PIECE_BYTES) as u128;
        let last_start = u128::from(length - PIECE_BYTES as u64);
        let mut bytes = [0; PIECE_BYTES];
        for piece in 0..pieces {
            read((last_start * piece / (pieces - 1)) as u64, &mut bytes)?;
            hasher.update(&bytes);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Opens a file of a segment.
pub(crate) fn open(path: &Path) -> Result<File, DataError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DataError::Missing {
            path: path.to_owned(),
            hint: "data.train and data.held_out name a .bin/.idx pair by its path without extension, relative to the \
                   current directory; `prepare` makes one",
        },
        _ => DataError::Io { action: "open", path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn opened(length: usize) -> (tempfile::TempDir, PathBuf, TokenFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = TokenFile::open(&path).unwrap();
        (folder, path, file)
    }

    fn read(file: &TokenFile) -> Result<[u8; 4], DataError> {
        let mut bytes = [0; 4];
        file.read(100, &mut bytes).map(|()| bytes)
    }

    fn is_later(path: &Path) {
        let file = File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_file_that_changes_under_a_reader_is_an_error_with_its_name() {
        for change in ["cut", "grown", "overwritten"] {
            let (_folder, path, file) = opened(2000);
            assert_eq!(read(&file).unwrap(), [100, 101, 102, 103]);
            let written = File::options().write(true).open(&path).unwrap();
            match change {
                "cut" => written.set_len(50).unwrap(),
                "grown" => written.set_len(2001).unwrap(),
                _ => {
                    written.write_all_at(b"other", 1500).unwrap();
                    is_later(&path);
                }
            }
            let error = read(&file).unwrap_err();
            assert!(
                matches!(&error, DataError::SegmentChanged { path: named } if *named == path),
                "{change}: {error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_touched_or_replaced_by_name_reads_on() {
        let (_folder, path, file) = opened(3 << 20);
        is_later(&path);
        assert_eq!(read(&file).unwrap(), [100, 101, 102, 103]);
        let other = path.with_extension("other");
        std::fs::write(&other, vec![7; 500]).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(read(&file).unwrap(), [100, 101, 102, 103]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&file).unwrap(), [100, 101, 102, 103]);
    }
}
