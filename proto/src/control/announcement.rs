//! How a coordinator tells its launcher where it listens: one small file, written at once.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::control::error::ControlError;
use crate::control::token::file_error;
use polygram_domain::control::RunState;

/// A coordinator that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process.
    pub pid: u32,
    /// The run.
    pub run: String,
    /// Which start of the run this is, from 1.
    pub attempt: u32,
    /// The state it begins in; one that is over means that nothing is left to do.
    pub state: RunState,
    /// Why, for people.
    pub message: String,
    /// Updates that are already applied and committed; 0 for a fresh run.
    pub resume_step: u64,
}

impl Announcement {
    /// Writes the file beside its name first and renames it, so that a reader sees all of it or nothing.
    pub fn write(&self, path: &Path) -> Result<(), ControlError> {
        write_whole(path, self)
    }

    /// Reads the file; `None` while it is not there yet.
    pub fn read(path: &Path) -> Result<Option<Announcement>, ControlError> {
        read_whole(path)
    }
}

/// Writes `value` as JSON beside the file's name first and renames it.
pub(crate) fn write_whole<T: Serialize>(path: &Path, value: &T) -> Result<(), ControlError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}", std::process::id()));
    let text = serde_json::to_string(value).map_err(|e| file_error(path, e))?;
    std::fs::File::create(&partial)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(|e| file_error(path, e))
}

/// Reads what [`write_whole`] wrote; `None` while it is not there yet.
pub(crate) fn read_whole<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ControlError> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|e| file_error(path, e)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file_error(path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("announce.json");
        assert_eq!(Announcement::read(&path).unwrap(), None);
        let announcement = Announcement {
            address: "127.0.0.1:4000".parse().unwrap(),
            pid: 7,
            run: "demo".into(),
            attempt: 2,
            state: RunState::Pending,
            message: "waiting".into(),
            resume_step: 20,
        };
        announcement.write(&path).unwrap();
        assert_eq!(Announcement::read(&path).unwrap(), Some(announcement));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::write(&path, "{").unwrap();
        assert!(Announcement::read(&path).is_err());
    }
}
