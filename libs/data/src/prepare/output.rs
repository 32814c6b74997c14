//! The output folder: one preparation at a time, and its files as a set.
//!
//! Everything is written into the hidden folder `.preparing` of the output and moved out of it when all is
//! whole. A lock there keeps a second preparation out; what a dead one left is removed by the next. Files are
//! installed in an order in which no reader takes old and new ones for a set: the old `meta.json` and indexes
//! go first, the new indexes come after their `.bin`, and `meta.json` comes last. A reader of a segment looks
//! at the index again after it has opened the `.bin` ([`crate::Segment::open`]).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::segment::Existing;

/// Everything a preparation may leave in its folder.
pub(crate) const OUTPUTS: [&str; 6] =
    ["train.bin", "train.idx", "held_out.bin", "held_out.idx", "tokenizer.json", "meta.json"];
const STAGING: &str = ".preparing";
const LOCK: &str = "lock";
/// The files in the order in which they get their names.
const INSTALLED: [&str; 6] =
    ["train.bin", "held_out.bin", "train.idx", "held_out.idx", "tokenizer.json", "meta.json"];
/// Those that are removed before: what remains is no longer a set that can be read.
const REMOVED_FIRST: [&str; 5] = ["meta.json", "train.idx", "held_out.idx", "held_out.bin", "tokenizer.json"];

/// What a preparation that does not complete has to remove: its unfinished files, and the folders that it
/// made for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers {
    staging: PathBuf,
    /// The output folder and those above it, as far as they did not exist; the deepest first.
    made: Vec<PathBuf>,
}

impl Leftovers {
    /// Of a preparation into `output` that is about to begin.
    pub fn of(output: &Path) -> Leftovers {
        let is_missing =
            |folder: &&Path| !folder.as_os_str().is_empty() && fs::symlink_metadata(folder).is_err();
        let made = output.ancestors().take_while(is_missing).map(Path::to_owned).collect();
        Leftovers { staging: output.join(STAGING), made }
    }

    /// Removes them. Folders that hold anything else stay.
    ///
    /// # Errors
    /// The unfinished files cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.remove_folders();
        Ok(())
    }

    /// Removes the folders that are empty.
    fn remove_folders(&self) {
        for folder in &self.made {
            // One that is not empty is in use, and so are those above it; one that was not made is not there.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The files of a preparation at work. Dropped, it removes all of them, unless they were installed.
#[derive(Debug)]
pub(crate) struct Staging {
    output: PathBuf,
    folder: PathBuf,
    existing: Existing,
    /// What is removed at the end.
    leftovers: Leftovers,
    /// Locked as long as it is open.
    _lock: File,
}

impl Staging {
    /// Locks `output`, which is made where needed, and removes what a dead preparation left there.
    pub(crate) fn begin(output: &Path, existing: Existing) -> Result<Staging, DataError> {
        check_outputs(output, existing)?;
        let leftovers = Leftovers::of(output);
        let folder = output.join(STAGING);
        let locked = fs::create_dir_all(output)
            .map_err(DataError::io("create", output))
            .and_then(|()| lock(output, &folder));
        let lock = locked.inspect_err(|_| leftovers.remove_folders())?;
        let staging = Staging { output: output.to_owned(), folder, existing, leftovers, _lock: lock };
        for entry in fs::read_dir(&staging.folder).map_err(DataError::io("list", &staging.folder))? {
            let path = entry.map_err(DataError::io("list", &staging.folder))?.path();
            if path.file_name().is_some_and(|name| name != LOCK) {
                remove(&path)?;
            }
        }
        staging.remove_old_partials()?;
        check_outputs(output, existing)?;
        Ok(staging)
    }

    /// Where the file `name` is to be written.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the whole file `name` and syncs it.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), DataError> {
        let path = self.path(name);
        File::create(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .map_err(DataError::io("write", &path))
    }

    /// Moves all files that were written to their names, replacing older ones as a set.
    pub(crate) fn install(self) -> Result<(), DataError> {
        check_outputs(&self.output, self.existing)?;
        for name in REMOVED_FIRST {
            remove(&self.output.join(name))?;
        }
        for name in INSTALLED {
            let (from, to) = (self.folder.join(name), self.output.join(name));
            match fs::rename(&from, &to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed.map_err(DataError::io("rename to", &to))?,
            }
        }
        sync_folder(&self.output)
    }

    /// Versions before the staging folder wrote `train.bin.partial-<process>` beside the output.
    fn remove_old_partials(&self) -> Result<(), DataError> {
        for entry in fs::read_dir(&self.output).map_err(DataError::io("list", &self.output))? {
            let path = entry.map_err(DataError::io("list", &self.output))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let of_ours = name.split_once(".partial-").is_some_and(|(own, process)| {
                OUTPUTS.contains(&own) && !process.is_empty() && process.bytes().all(|b| b.is_ascii_digit())
            });
            if of_ours {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The next preparation removes what remains, and there is nobody to report it to. A folder with
        // installed files is not empty and stays.
        let _ = self.leftovers.remove();
    }
}

/// Refuses output that is there where it must not be, and what is no regular file in any case.
pub(crate) fn check_outputs(output: &Path, existing: Existing) -> Result<(), DataError> {
    DataError::check_local("the output folder", output)?;
    match fs::metadata(output) {
        Ok(metadata) if !metadata.is_dir() => {
            return Err(DataError::IllegalOption {
                option: "the output folder",
                value: output.display().to_string(),
                wanted: "a folder, or a name that is free; it is a file or a device".into(),
            });
        }
        _ => {}
    }
    for name in OUTPUTS {
        let path = output.join(name);
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let kind = metadata.file_type();
        let what = match kind {
            kind if kind.is_file() => None,
            kind if kind.is_symlink() => Some("a symbolic link"),
            kind if kind.is_dir() => Some("a folder"),
            kind if kind.is_fifo() => Some("a pipe"),
            kind if kind.is_socket() => Some("a socket"),
            _ => Some("a device"),
        };
        match what {
            Some(what) => return Err(DataError::NotAFile { path, what }),
            None if existing == Existing::Refuse => return Err(DataError::Exists { path }),
            None => {}
        }
    }
    Ok(())
}

/// Locks the staging folder. Its holder removes the folder at the end, so the lock counts only if it is still
/// there.
fn lock(output: &Path, folder: &Path) -> Result<File, DataError> {
    let path = folder.join(LOCK);
    for _ in 0..100 {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(DataError::io("create", folder)(error));
            }
            _ => {}
        }
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(DataError::io("create", &path))?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataError::Busy { folder: output.to_owned() }),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::warn!(path = %path.display(), "this file system has no locks: a second preparation is not noticed");
            }
            Err(TryLockError::Error(error)) => return Err(DataError::io("lock", &path)(error)),
        }
        let own = file.metadata().map_err(DataError::io("look at", &path))?;
        match fs::metadata(&path) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => return Ok(file),
            _ => continue,
        }
    }
    Err(DataError::Busy { folder: output.to_owned() })
}

fn remove(path: &Path) -> Result<(), DataError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DataError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes renames in a folder last.
fn sync_folder(folder: &Path) -> Result<(), DataError> {
    File::open(folder).and_then(|opened| opened.sync_all()).map_err(DataError::io("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_preparation_at_a_time_and_leftovers_go() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        fs::create_dir_all(output.join(STAGING)).unwrap();
        fs::write(output.join(STAGING).join("train.bin.partial-7"), "dead").unwrap();
        fs::write(output.join("train.bin.partial-12"), "older version").unwrap();
        fs::write(output.join("mine.partial-12"), "of the user").unwrap();
        let first = Staging::begin(&output, Existing::Refuse).unwrap();
        assert_eq!(fs::read_dir(output.join(STAGING)).unwrap().count(), 1, "the lock");
        let second = Staging::begin(&output, Existing::Replace).unwrap_err();
        assert!(matches!(second, DataError::Busy { .. }), "{second}");
        drop(first);
        let names: Vec<_> = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["mine.partial-12"]);
        Staging::begin(&output, Existing::Refuse).unwrap();
    }

    #[test]
    fn folders_that_were_made_in_vain_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        fs::create_dir(&there).unwrap();
        for output in [there.join("a/b/c"), there.join("a"), there.clone()] {
            drop(Staging::begin(&output, Existing::Refuse).unwrap());
            assert_eq!(fs::read_dir(&there).unwrap().count(), 0, "{}", output.display());
        }
        // What somebody else put there stays, and the folders that it is in.
        let staging = Staging::begin(&there.join("a/b/c"), Existing::Refuse).unwrap();
        fs::write(there.join("a/notes"), "of the user").unwrap();
        drop(staging);
        assert!(there.join("a/notes").exists() && !there.join("a/b").exists());
        // Whoever ends the process instead removes the same.
        let leftovers = Leftovers::of(&there.join("d/e"));
        std::mem::forget(Staging::begin(&there.join("d/e"), Existing::Refuse).unwrap());
        leftovers.remove().unwrap();
        assert!(!there.join("d").exists());
        // A folder that cannot be made leaves none above it.
        fs::write(there.join("file"), "x").unwrap();
        assert!(Staging::begin(&there.join("file/b"), Existing::Refuse).is_err());
        let long = "x".repeat(300);
        assert!(Staging::begin(&there.join("g/h").join(long), Existing::Refuse).is_err());
        assert!(!there.join("g").exists());
    }

    #[test]
    fn files_are_replaced_as_a_set() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path();
        for name in OUTPUTS {
            fs::write(output.join(name), "old").unwrap();
        }
        assert!(matches!(Staging::begin(output, Existing::Refuse), Err(DataError::Exists { .. })));
        let staging = Staging::begin(output, Existing::Replace).unwrap();
        for name in ["train.bin", "train.idx", "tokenizer.json", "meta.json"] {
            staging.write(name, "new").unwrap();
        }
        staging.install().unwrap();
        let mut names: Vec<String> = fs::read_dir(output)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["meta.json", "tokenizer.json", "train.bin", "train.idx"]);
        for name in names {
            assert_eq!(fs::read_to_string(output.join(name)).unwrap(), "new");
        }
    }

    #[test]
    fn what_is_no_regular_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        fs::create_dir(&output).unwrap();
        let refused = |words: &str| {
            let error = Staging::begin(&output, Existing::Replace).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        std::os::unix::fs::symlink("nowhere", output.join("train.idx")).unwrap();
        refused("train.idx is a symbolic link");
        fs::remove_file(output.join("train.idx")).unwrap();
        let pipe = output.join("meta.json");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        refused("meta.json is a pipe");
        fs::remove_file(&pipe).unwrap();
        fs::create_dir(output.join("train.bin")).unwrap();
        refused("train.bin is a folder");
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(check_outputs(&file, Existing::Replace), Err(DataError::IllegalOption { .. })));
    }
}
