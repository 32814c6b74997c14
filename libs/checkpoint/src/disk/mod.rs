//! Data objects in a folder of this machine, past the page cache.
//!
//! A checkpoint is written once and read once, hours later if at all. Through the page cache it would evict what others
//! need, be copied once more, and be written back by the kernel whenever it likes; so it goes between our buffers and the
//! disk directly (`O_DIRECT`), several pieces at a time. File systems that cannot do that are used as they are.

mod buffers;
mod read;
mod sizes;
mod write;

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use object_store::Error;
use object_store::local::LocalFileSystem;

use buffers::Buffers;
pub(crate) use read::Read;

/// A folder that is a store, and the buffers that go between it and us. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Knows which file an object is.
    store: Arc<LocalFileSystem>,
    buffers: Arc<Buffers>,
}

impl Disk {
    pub(crate) fn of(store: Arc<LocalFileSystem>) -> Disk {
        Disk { store, buffers: Arc::default() }
    }
}

/// Adds "past the page cache".
fn direct(options: &mut std::fs::OpenOptions) -> &mut std::fs::OpenOptions {
    options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
}

/// Whether the file system cannot do what was asked, and should be asked for less.
fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::INVAL, Errno::OPNOTSUPP, Errno::ISDIR, Errno::NOSYS];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// The error in the words of the store that this is a part of.
fn store_error(path: &Path, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::NotFound { path: path.display().to_string(), source: error.into() };
    }
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Error::PermissionDenied { path: path.display().to_string(), source: error.into() };
    }
    Error::Generic { store: "LocalFileSystem", source: error.into() }
}
