//! The other programs of Polygram, looked for beside this one, and kept open for as long as a run lives: a program that is
//! replaced on disk meanwhile must not come into the run with the next process that is started again.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::exit::{Failure, Outcome};

/// A program that stands beside `polygram`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Measures collectives.
    Collective,
    /// Decides membership, steps and commits.
    Coordinator,
    /// Holds table rows.
    EmbeddingShard,
    /// Holds the model.
    Worker,
}

impl Program {
    /// Its file name.
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Program::Collective => "polygram-collective",
            Program::Coordinator => "polygram-coordinator",
            Program::EmbeddingShard => "polygram-embedding-shard",
            Program::Worker => "polygram-worker",
        }
    }

    /// Its path, in the folder of the running program.
    pub(crate) fn find(self) -> Outcome<PathBuf> {
        let own = std::env::current_exe()
            .map_err(|error| Failure::failed("cannot tell where this program lies").because(error))?;
        let folder = own.parent().unwrap_or(Path::new("/"));
        self.find_in(folder)
    }

    fn find_in(self, folder: &Path) -> Outcome<PathBuf> {
        let path = folder.join(self.file_name());
        if path.is_file() {
            return Ok(path);
        }
        Err(Failure::usage(format!("{} is not beside polygram in {}", self.file_name(), folder.display()))
            .hint("build all programs with `make build` and keep them in one folder"))
    }
}

/// A program as it was when it was first looked at.
#[derive(Debug)]
pub(crate) struct Executable {
    path: PathBuf,
    file: File,
    seen: Stamp,
}

/// Identity, size and time of a file: two states of it differ in one of them.
#[derive(Debug, PartialEq, Eq)]
struct Stamp([i64; 5]);

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        let number = |value: u64| value as i64;
        let (mtime, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        Stamp([number(metadata.dev()), number(metadata.ino()), number(metadata.size()), mtime, nanoseconds])
    }
}

/// How a program is started now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Startable {
    /// What is executed.
    pub(crate) path: PathBuf,
    /// Another program lies under its name by now, or none.
    pub(crate) is_replaced: bool,
}

impl Executable {
    /// Opens the program at `path`.
    pub(crate) fn open(path: PathBuf) -> io::Result<Executable> {
        let file = File::open(&path)?;
        let seen = Stamp::of(&file.metadata()?);
        Ok(Executable { path, file, seen })
    }

    /// Where it lay.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The program as it was: under its name while it lies there unchanged, else the file that is still open here.
    pub(crate) fn startable(&self) -> Startable {
        let now = std::fs::metadata(&self.path).map(|metadata| Stamp::of(&metadata));
        if now.is_ok_and(|now| now == self.seen) {
            return Startable { path: self.path.clone(), is_replaced: false };
        }
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        Startable { path: path.into(), is_replaced: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_replaced_or_removed_is_started_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        // Another process copies it, so that no child of a parallel test holds it open for writing.
        let copy = |from: &str| std::process::Command::new("cp").arg(from).arg(&path).status().unwrap();
        assert!(copy("/bin/true").success());
        let program = Executable::open(path.clone()).unwrap();
        assert_eq!(program.startable(), Startable { path: path.clone(), is_replaced: false });
        std::fs::remove_file(&path).unwrap();
        let ends_well = |program: &Executable| {
            let Startable { path, is_replaced } = program.startable();
            assert!(is_replaced);
            std::process::Command::new(path).status().unwrap().success()
        };
        assert!(ends_well(&program), "removed");
        assert!(copy("/bin/false").success());
        assert!(ends_well(&program), "replaced");
    }

    #[test]
    fn a_missing_program_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let text = Program::Worker.find_in(folder.path()).unwrap_err().to_string();
        assert!(text.contains("polygram-worker") && text.contains("make build"), "{text}");
        std::fs::write(folder.path().join("polygram-worker"), "").unwrap();
        assert!(Program::Worker.find_in(folder.path()).is_ok());
    }
}
