//! The output file that a user names for a result.
//!
//! A regular file appears whole or not at all: its bytes are written to a temporary file of the same folder,
//! synced, and renamed. A symbolic link stays a link, and the file that it leads to is written. A pipe or a
//! character device is written to. Folders, sockets and block devices are refused. [`OutputFile::new`] checks
//! this before the work starts.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Links in a row that are followed, as Linux does.
const MOST_LINKS: usize = 40;

/// Why an output file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Something is there that is not written over.
    #[error("cannot write {}: it is {what}; name a file", path.display())]
    NotAFile {
        /// As the user named it.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// The place cannot be written to; detected before the work starts.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// As the user named it.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// As the user named it.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// The checked place for the result of a command. Nothing is written yet.
#[derive(Debug)]
pub struct OutputFile {
    /// As the user named it.
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// A regular file, or a free name: this one, links followed.
    Regular { target: PathBuf },
    /// A pipe or a character device: bytes go into it.
    Stream,
    /// The standard output of this process.
    StandardOutput,
}

impl OutputFile {
    /// Checks that `path` can be written, and writes nothing. A temporary file is made and removed.
    pub fn new(path: &Path) -> Result<OutputFile, OutputError> {
        let place = Place::of(path).map_err(|error| error.at(path))?;
        Ok(OutputFile { path: path.to_owned(), place })
    }

    /// Writes all of `bytes`. After an error a regular file is as it was before.
    pub fn write(&self, bytes: &[u8]) -> Result<(), OutputError> {
        let written = match &self.place {
            Place::Regular { target } => replace(target, bytes),
            // Opening a pipe waits for its reader.
            Place::Stream => {
                OpenOptions::new().write(true).open(&self.path).and_then(|mut stream| stream.write_all(bytes))
            }
            Place::StandardOutput => {
                let mut output = io::stdout().lock();
                output.write_all(bytes).and_then(|()| output.flush())
            }
        };
        written.map_err(|source| OutputError::Write { path: self.path.clone(), source })
    }
}

enum Refused {
    NotAFile(&'static str),
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::Io(error)
    }
}

impl Refused {
    fn at(self, path: &Path) -> OutputError {
        let path = path.to_owned();
        match self {
            Refused::NotAFile(what) => OutputError::NotAFile { path, what },
            Refused::Io(source) => OutputError::Io { path, source },
        }
    }
}

impl Place {
    fn of(path: &Path) -> Result<Place, Refused> {
        let kind = match fs::metadata(path) {
            Ok(there) if is_standard_output(&there) => return Ok(Place::StandardOutput),
            Ok(there) => Some(there.file_type()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        match kind {
            Some(kind) if kind.is_dir() => return Err(Refused::NotAFile("a folder")),
            Some(kind) if kind.is_socket() => return Err(Refused::NotAFile("a socket")),
            Some(kind) if kind.is_block_device() => return Err(Refused::NotAFile("a block device")),
            Some(kind) if !kind.is_file() => return Ok(Place::Stream),
            _ => {}
        }
        let target = follow(path)?;
        if target.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(Refused::NotAFile("the name of a folder"));
        }
        // The folder must take new files, and an old file must not be write-protected: renaming would not
        // notice.
        tempfile::tempfile_in(folder_of(&target))?;
        if kind.is_some() {
            OpenOptions::new().write(true).open(&target)?;
        }
        Ok(Place::Regular { target })
    }
}

/// Whether the file is the one that standard output goes to, as `/dev/stdout` is.
fn is_standard_output(file: &Metadata) -> bool {
    let own = io::stdout().as_fd().try_clone_to_owned().and_then(|own| File::from(own).metadata());
    own.is_ok_and(|own| (own.dev(), own.ino(), own.rdev()) == (file.dev(), file.ino(), file.rdev()))
}

/// The name that a chain of symbolic links ends with; nothing needs to be there.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(next) => path = folder_of(&path).join(next),
            // EINVAL: there is something, and it is no link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("more than {MOST_LINKS} symbolic links in a row")))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Writes beside `target` and renames, so that no half file is ever seen under that name. An old file's
/// permissions stay.
fn replace(target: &Path, bytes: &[u8]) -> io::Result<()> {
    // As for any new file, the process's mask of permissions applies to these.
    let permissions = fs::Permissions::from_mode(0o666);
    let folder = folder_of(target);
    let mut draft =
        tempfile::Builder::new().prefix(".draft-").permissions(permissions).tempfile_in(folder)?;
    draft.write_all(bytes)?;
    match fs::metadata(target) {
        Ok(old) => draft.as_file().set_permissions(old.permissions())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    draft.as_file().sync_all()?;
    draft.persist(target).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
