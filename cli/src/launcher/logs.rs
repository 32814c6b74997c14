//! The log files of one launch: a folder per attempt, a file per process, nothing ever overwritten. A log that cannot be
//! written never keeps a process from being started.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use polygram_domain::RunName;

use crate::exit::{Failure, Outcome};
use crate::settings::{Root, state_folder};

/// Bytes from a log's end that are looked at for its tail.
const TAIL_BYTES: u64 = 16 * 1024;

/// The folder of one launch's logs.
#[derive(Debug)]
pub(crate) struct LogFolder {
    folder: PathBuf,
}

/// Where a process's output goes.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) file: File,
    /// Why it is not kept, if it is not.
    pub(crate) lost: Option<String>,
}

impl LogFolder {
    /// Makes `<root>/runs/<run>/logs/<number>` with the first number that is free; where the root is no folder of this
    /// machine, the same where this user's programs keep their state.
    pub(crate) fn create(root: &Root, run: &RunName) -> Outcome<LogFolder> {
        let base = match root.folder() {
            Some(folder) => folder.join("runs").join(run.as_str()).join("logs"),
            None => state_folder()?.join("logs").join(run.as_str()),
        };
        LogFolder::under(&base)
    }

    /// Makes `<base>/<number>` with the first number that is free.
    pub(crate) fn under(base: &Path) -> Outcome<LogFolder> {
        LogFolder::create_in(base).map_err(|error| {
            Failure::failed(format!("cannot make a log folder in {}", base.display())).because(error)
        })
    }

    fn create_in(base: &Path) -> io::Result<LogFolder> {
        std::fs::create_dir_all(base)?;
        let taken = |name: &std::ffi::OsStr| name.to_str().and_then(|name| name.parse::<u32>().ok());
        let mut number = std::fs::read_dir(base)?
            .filter_map(|entry| taken(&entry.ok()?.file_name()))
            .max()
            .map_or(1, |highest| highest.saturating_add(1));
        loop {
            let folder = base.join(format!("{number:04}"));
            match std::fs::create_dir(&folder) {
                Ok(()) => return Ok(LogFolder { folder }),
                // Another launch took it in this moment.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => {
                    number += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// The log of the process called `name`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}.log", name.replace(' ', "-")))
    }

    /// Opens the log of the process called `name`, whose folder may have been removed meanwhile. One that is started again
    /// goes on where the one before it ended. Where the log cannot be written, what the process says is lost.
    pub(crate) fn open(&self, name: &str) -> Outcome<Log> {
        let path = self.file(name);
        let opened = std::fs::create_dir_all(&self.folder)
            .and_then(|()| File::options().append(true).create(true).open(&path));
        match opened {
            Ok(file) => Ok(Log { file, lost: None }),
            Err(error) => {
                let nowhere = File::options().write(true).open("/dev/null").map_err(|null| {
                    Failure::failed(format!("cannot make {} ({error}), nor open /dev/null", path.display()))
                        .because(null)
                })?;
                let lost =
                    format!("{} cannot be written ({error}): what {name} says is lost", path.display());
                Ok(Log { file: nowhere, lost: Some(lost) })
            }
        }
    }

    /// The last `lines` lines that the process called `name` has written, without terminal colours; empty when
    /// there are none.
    pub(crate) fn tail(&self, name: &str, lines: usize) -> Vec<String> {
        read_tail(&self.file(name)).map(|text| last_lines(&text, lines)).unwrap_or_default()
    }
}

fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(text: &str, lines: usize) -> Vec<String> {
    let mut last: Vec<String> =
        text.lines().rev().filter(|line| !line.trim().is_empty()).take(lines).map(without_escapes).collect();
    last.reverse();
    last
}

fn without_escapes(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                let _ = chars.by_ref().find(char::is_ascii_alphabetic);
            }
            c if c.is_control() && c != '\t' => {}
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn attempts_never_share_a_folder() {
        let base = tempfile::tempdir().unwrap();
        let first = LogFolder::create_in(base.path()).unwrap();
        let second = LogFolder::create_in(base.path()).unwrap();
        assert!(first.path().ends_with("0001") && second.path().ends_with("0002"));
    }

    #[test]
    fn a_log_that_is_taken_away_begins_again_and_one_that_cannot_be_written_is_told() {
        let base = tempfile::tempdir().unwrap();
        let logs = LogFolder::create_in(base.path()).unwrap();
        std::fs::remove_dir_all(base.path().join("0001")).unwrap();
        let mut log = logs.open("worker 0").unwrap();
        writeln!(log.file, "again").unwrap();
        assert!(log.lost.is_none() && logs.tail("worker 0", 1) == ["again"]);
        std::fs::create_dir(logs.file("shard 0")).unwrap();
        let mut log = logs.open("shard 0").unwrap();
        writeln!(log.file, "to nobody").unwrap();
        assert!(log.lost.unwrap().contains("shard-0.log"));
    }

    #[test]
    fn tails_are_short_and_plain() {
        let base = tempfile::tempdir().unwrap();
        let logs = LogFolder::create_in(base.path()).unwrap();
        assert!(logs.tail("worker 0", 3).is_empty());
        let mut file = logs.open("worker 0").unwrap().file;
        for line in 0..10_000 {
            writeln!(file, "\x1b[31mline {line}\x1b[0m\n").unwrap();
        }
        assert_eq!(logs.tail("worker 0", 2), ["line 9998", "line 9999"]);
        writeln!(logs.open("worker 0").unwrap().file, "once more").unwrap();
        assert_eq!(logs.tail("worker 0", 2), ["line 9999", "once more"]);
    }
}
