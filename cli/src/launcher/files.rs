//! The private files of one launch: token, effective configuration, announcement of the coordinator.
//!
//! They lie where no cleaner of temporary files looks, in a folder that only this user can read. Processes that are started
//! again read them hours later, so they are looked at before each start and written again from memory where they are gone.
//! The folder is removed when the value is dropped; a killed launcher's is removed by the next launch of the run.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use polygram_domain::RunName;
use polygram_proto::control::{Announcement, Token};

use super::claim::Claim;
use crate::exit::{Failure, Outcome};
use crate::settings::{Configuration, Root, state_folder};

/// Held locked for as long as the launch lives.
const LOCK: &str = "lock";

/// The files of one launch.
#[derive(Debug)]
pub(crate) struct LaunchFiles {
    folder: PathBuf,
    configuration_toml: String,
    token: Token,
    /// Says to other launches that this folder is in use.
    _lock: File,
}

impl LaunchFiles {
    /// Makes a folder for a launch of `configuration` under `root`: beside the run where the root is a folder of this
    /// machine that has room, else where this user's programs keep their state. (A launch may be what makes room.)
    pub(crate) fn create(root: &Root, configuration: &Configuration) -> Outcome<LaunchFiles> {
        let run = &configuration.spec.name;
        let token = Token::generate()
            .map_err(|error| Failure::failed("cannot make the run's token").because(error))?;
        let mut base = launch_folder(root, run)?;
        let mut made = LaunchFiles::create_in(&base, configuration, token.clone());
        if made.as_ref().is_err_and(is_full) {
            base = folder_of_state(run)?;
            made = LaunchFiles::create_in(&base, configuration, token);
        }
        made.map_err(|error| cannot_write(&base, error))
    }

    fn create_in(base: &Path, configuration: &Configuration, token: Token) -> io::Result<LaunchFiles> {
        remove_abandoned(base);
        let folder = make_private_folder(base)?;
        let lock = File::create(folder.join(LOCK))?;
        // A file system without locks leaves abandoned folders behind, which is no reason to refuse.
        let _is_locked = lock.try_lock();
        let configuration_toml = configuration.effective_toml.clone();
        let files = LaunchFiles { folder, configuration_toml, token, _lock: lock };
        files.write()?;
        Ok(files)
    }

    /// Writes the files again that are gone or were changed. To be called before a process is started that reads them.
    pub(crate) fn restore(&self) -> Outcome<()> {
        self.write().map_err(|error| cannot_write(&self.folder, error))
    }

    fn write(&self) -> io::Result<()> {
        if !self.folder.is_dir() {
            if let Some(base) = self.folder.parent() {
                std::fs::create_dir_all(base)?;
            }
            DirBuilder::new().mode(0o700).create(&self.folder)?;
        }
        keep_private_file(&self.configuration(), &self.configuration_toml)?;
        keep_private_file(&self.token_file(), &self.token.line())
    }

    /// The run's token.
    pub(crate) fn token(&self) -> &Token {
        &self.token
    }

    /// Where the coordinator announces itself.
    pub(crate) fn announcement(&self) -> PathBuf {
        self.folder.join("announcement.json")
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("run.toml")
    }

    fn token_file(&self) -> PathBuf {
        self.folder.join("token")
    }

    /// Removes what an earlier coordinator has announced.
    pub(crate) fn forget_announcement(&self) -> Outcome<()> {
        match std::fs::remove_file(self.announcement()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let what = format!("cannot remove {}", self.announcement().display());
                Err(Failure::failed(what).because(error))
            }
            _ => Ok(()),
        }
    }

    /// The coordinator's arguments.
    pub(crate) fn coordinator_args(&self, root: &Root, listen: SocketAddr, claim: Claim) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![
            "--config".into(),
            self.configuration().into(),
            "--root".into(),
            root.address().into(),
            "--listen".into(),
            listen.to_string().into(),
            "--token-file".into(),
            self.token_file().into(),
            "--announce-file".into(),
            self.announcement().into(),
        ];
        if claim == Claim::TakeOver {
            args.push("--take-over".into());
        }
        args
    }

    /// The arguments of the member number `number` of its role.
    pub(crate) fn member_args(&self, coordinator: &Announcement, slot: &str, number: u32) -> Vec<OsString> {
        vec![
            "--coordinator".into(),
            coordinator.address.to_string().into(),
            slot.into(),
            number.to_string().into(),
            "--run".into(),
            coordinator.run.clone().into(),
            "--token-file".into(),
            self.token_file().into(),
        ]
    }
}

impl Drop for LaunchFiles {
    fn drop(&mut self) {
        // What is left is removed by the next launch of the run.
        let _removed = std::fs::remove_dir_all(&self.folder);
    }
}

fn cannot_write(folder: &Path, error: io::Error) -> Failure {
    Failure::failed(format!("cannot write the launch's files in {}", folder.display())).because(error)
}

/// The folder of a run's launches.
fn launch_folder(root: &Root, run: &RunName) -> Outcome<PathBuf> {
    let beside_run = root.folder().map(|folder| folder.join("runs").join(run.as_str()).join("launch"));
    if let Some(folder) = beside_run
        && make_base(&folder).is_ok()
        && is_private(&folder)
    {
        return Ok(folder);
    }
    folder_of_state(run)
}

/// The same, where this user's programs keep their state.
fn folder_of_state(run: &RunName) -> Outcome<PathBuf> {
    let folder = state_folder()?.join("launch").join(run.as_str());
    make_base(&folder).map_err(|error| cannot_write(&folder, error))?;
    Ok(folder)
}

/// Whether a file could not be written for want of room.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn make_base(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Whether nobody else can look into a folder. Some file systems keep no permissions.
fn is_private(folder: &Path) -> bool {
    std::fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & 0o077 == 0)
}

fn make_private_folder(base: &Path) -> io::Result<PathBuf> {
    let mut number = 0u32;
    loop {
        let folder = base.join(format!("{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => number += 1,
            made => return made.map(|()| folder),
        }
    }
}

/// Removes folders of launches that live no more: their lock is free. One that is being made at this very moment may be
/// taken for such; it is written again before its first process is started.
fn remove_abandoned(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let folder = entry.path();
        if File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok()) {
            // Somebody else may be removing it, too.
            let _removed = std::fs::remove_dir_all(&folder);
        }
    }
}

/// Makes sure that a file that only this user can read holds `text`. Written beside its name and renamed, so that a reader
/// sees all of it or nothing.
pub(crate) fn keep_private_file(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    let partial = path.with_extension("new");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    if let Err(error) = written {
        // A part of it is of no use to anybody.
        let _removed = std::fs::remove_file(&partial);
        return Err(error);
    }
    std::fs::rename(partial, path)
}

#[cfg(test)]
mod tests {
    use crate::args::RunFileArgs;

    use super::*;

    fn configuration() -> Configuration {
        let run_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/tiny.toml");
        Configuration::load(&RunFileArgs { run_file, overrides: Vec::new() }, None).unwrap()
    }

    #[test]
    fn files_are_private_and_come_back_when_they_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let files = LaunchFiles::create(&Root::Folder(root.path().to_owned()), &configuration()).unwrap();
        assert!(files.folder.starts_with(root.path().join("runs/tiny/launch")), "{}", files.folder.display());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&files.folder), mode(&files.token_file())), (0o700, 0o600));
        let token = std::fs::read_to_string(files.token_file()).unwrap();
        // A cleaner takes one file, all of them, or the folder with those above it.
        std::fs::remove_file(files.token_file()).unwrap();
        files.restore().unwrap();
        for taken in [files.folder.clone(), root.path().join("runs")] {
            std::fs::remove_dir_all(taken).unwrap();
            files.restore().unwrap();
            assert_eq!(std::fs::read_to_string(files.token_file()).unwrap(), token);
            assert_eq!(std::fs::read_to_string(files.configuration()).unwrap(), files.configuration_toml);
            assert_eq!((mode(&files.folder), mode(&files.token_file())), (0o700, 0o600));
        }
        std::fs::write(files.configuration(), "another").unwrap();
        files.restore().unwrap();
        assert_eq!(std::fs::read_to_string(files.configuration()).unwrap(), files.configuration_toml);
        let folder = files.folder.clone();
        drop(files);
        assert!(!folder.exists());
    }

    #[test]
    fn abandoned_files_are_removed_and_those_in_use_are_not() {
        let root = tempfile::tempdir().unwrap();
        let place = Root::Folder(root.path().to_owned());
        let first = LaunchFiles::create(&place, &configuration()).unwrap();
        let abandoned = root.path().join("runs/tiny/launch/1-0");
        std::fs::create_dir(&abandoned).unwrap();
        std::fs::write(abandoned.join(LOCK), "").unwrap();
        let second = LaunchFiles::create(&place, &configuration()).unwrap();
        assert!(!abandoned.exists() && first.token_file().exists() && second.token_file().exists());
        assert_ne!(first.folder, second.folder);
    }
}
