//! Whole files from chunks of memory: written without a name, summed on the way, named when every byte is on the disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::Error;
use object_store::path::Path as Key;
use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags};

use super::sizes::{ALIGNMENT, PIECE_BYTES};
use super::{Disk, direct, is_unsupported, store_error};
use crate::object::{Checksums, Summer};

/// A file that is on the disk and has no name yet. Dropped without one, it is gone.
#[derive(Debug)]
pub(crate) struct Draft {
    disk: Disk,
    file: File,
    /// Its preliminary name, where the file system knows no files without.
    staged: Option<PathBuf>,
    /// Length and checksums of what was written.
    pub(crate) sums: Checksums,
}

impl Disk {
    /// Writes `chunks` to a file below the folder `near`, and syncs it.
    pub(crate) fn draft(&self, near: &Key, chunks: &[Bytes]) -> Result<Draft, Error> {
        let folder = self.store.path_to_filesystem(near)?;
        self.write(&folder, chunks).map_err(|error| store_error(&folder, error))
    }

    fn write(&self, folder: &Path, chunks: &[Bytes]) -> io::Result<Draft> {
        make_folder(folder)?;
        let (file, staged) = nameless(folder)?;
        let mut draft = Draft { disk: self.clone(), file, staged, sums: Checksums::default() };
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if bytes > 0 {
            // A full disk shows at once, and the file lies in one piece.
            match rustix::fs::fallocate(&draft.file, FallocateFlags::empty(), 0, bytes) {
                Err(error) if !is_unsupported(&error.into()) => return Err(error.into()),
                _ => {}
            }
        }
        let mut summer = Summer::default();
        let mut buffer = self.buffers.take();
        let (mut filled, mut at) = (0, 0);
        for chunk in chunks {
            let mut chunk = &chunk[..];
            while !chunk.is_empty() {
                let (now, later) = chunk.split_at(chunk.len().min(PIECE_BYTES - filled));
                buffer.all()[filled..filled + now.len()].copy_from_slice(now);
                (filled, chunk) = (filled + now.len(), later);
                if filled == PIECE_BYTES {
                    summer.update(&buffer.all()[..filled]);
                    draft.put(&buffer.all()[..filled], at)?;
                    (filled, at) = (0, at + filled as u64);
                }
            }
        }
        if filled > 0 {
            summer.update(&buffer.all()[..filled]);
            let units = filled.next_multiple_of(ALIGNMENT);
            buffer.all()[filled..units].fill(0);
            draft.put(&buffer.all()[..units], at)?;
        }
        draft.file.set_len(bytes)?;
        draft.file.sync_all()?;
        draft.sums = summer.finish();
        Ok(draft)
    }
}

impl Draft {
    fn put(&self, piece: &[u8], at: u64) -> io::Result<()> {
        match self.file.write_all_at(piece, at) {
            Err(error) if is_unsupported(&error) => {
                // This file system opens files for direct transfers and then refuses ours.
                let flags = rustix::fs::fcntl_getfl(&self.file)?;
                if !flags.contains(OFlags::DIRECT) {
                    return Err(error);
                }
                rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                self.file.write_all_at(piece, at)
            }
            done => done,
        }
    }

    /// Gives the file its name, in place of one that has it, and syncs the name.
    pub(crate) fn publish(mut self, key: &Key) -> Result<(), Error> {
        let path = self.disk.store.path_to_filesystem(key)?;
        self.name(&path).map_err(|error| store_error(&path, error))
    }

    fn name(&mut self, path: &Path) -> io::Result<()> {
        let folder = path.parent().ok_or_else(|| io::Error::other("a file in no folder"))?;
        make_folder(folder)?;
        let staged = match self.staged.clone() {
            Some(staged) => staged,
            None => {
                let staged = staging_name(folder);
                let open = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
                rustix::fs::linkat(CWD, open, CWD, &staged, AtFlags::SYMLINK_FOLLOW)?;
                self.staged = Some(staged.clone());
                staged
            }
        };
        std::fs::rename(staged, path)?;
        self.staged = None;
        File::open(folder)?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(staged) = self.staged.take()
            && let Err(error) = std::fs::remove_file(&staged)
        {
            tracing::warn!(path = %staged.display(), %error, "an unfinished file is left");
        }
    }
}

/// Makes a folder and those above it that are missing, each synced into the one above it.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(above) = folder.parent() else { return Ok(()) };
    make_folder(above)?;
    match std::fs::create_dir(folder) {
        // Somebody else makes it at the same time.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    File::open(above)?.sync_all()
}

/// A file without a name below `folder`, or one with a preliminary name where there is no other way.
fn nameless(folder: &Path) -> io::Result<(File, Option<PathBuf>)> {
    for extra in [OFlags::DIRECT, OFlags::empty()] {
        let flags = (OFlags::TMPFILE | extra).bits() as i32;
        match OpenOptions::new().write(true).custom_flags(flags).open(folder) {
            Err(error) if is_unsupported(&error) => {}
            opened => return Ok((opened?, None)),
        }
    }
    let staged = staging_name(folder);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    match direct(&mut options.clone()).open(&staged) {
        Err(error) if is_unsupported(&error) => Ok((options.open(&staged)?, Some(staged))),
        opened => Ok((opened?, Some(staged))),
    }
}

/// A name that nobody has and no listing of the store shows: `#` and digits at the end.
fn staging_name(folder: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    folder.join(format!("draft-{process}#{number}"))
}
