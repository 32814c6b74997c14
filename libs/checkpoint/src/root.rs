//! A root as an operator writes it, and the open store behind it.
//!
//! | root | store |
//! |---|---|
//! | `file:///absolute/path`, a plain path | a folder of this machine |
//! | `s3://bucket/prefix` | Amazon S3, or what speaks its protocol |
//! | `gs://bucket/prefix` | Google Cloud Storage |
//! | `az://container/prefix` | Azure Blob Storage |
//! | `memory://` | a store of its own at every call, for tests |
//!
//! Durability: on local disk every write is complete only after the file and the folders that name it were synced
//! (`fsync`), and appears under its name at once or not at all. Deletions are not synced: after a power cut a deleted
//! object may be back, which retention repairs. Data objects have no name while they are written, so that a process killed
//! meanwhile leaves nothing (where a file system knows no such files: a staging file with `#` and digits at its end, which no
//! listing shows). Cloud stores answer when they hold the object.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use polygram_domain::RunName;
use tokio::sync::Semaphore;
use url::Url;

use crate::blocks::BLOCK_BYTES;
use crate::cloud::{Cloud, Variables};
use crate::disk::Disk;
use crate::error::CheckpointError;
use crate::patience::{Patience, RETRY_SECONDS_VARIABLE};
use crate::problem::is_full_kind;
use crate::waits::Waits;

/// Bytes that uploads of one root may have under way; more wait their turn.
pub(crate) const UPLOAD_WINDOW_BYTES: usize = 64 << 20;

/// An object to a cloud store goes in parts of this size.
const PART_BYTES: usize = 8 << 20;

#[derive(Debug)]
enum Address {
    Local(PathBuf),
    Memory,
    Cloud { cloud: Cloud, bucket: String, prefix: Path },
}

fn parse(root: &str) -> Result<Address, CheckpointError> {
    let bad = |reason: String| CheckpointError::BadRoot { root: root.to_owned(), reason };
    if root.is_empty() {
        return Err(bad("empty; give a folder or a URL such as file:///path or s3://bucket/prefix".into()));
    }
    let Some((scheme, _)) = root.split_once("://") else {
        return Ok(Address::Local(PathBuf::from(root)));
    };
    let url = || Url::parse(root).map_err(|e| bad(format!("not a URL: {e}")));
    if scheme == "file" {
        let path = url()?
            .to_file_path()
            .map_err(|()| bad("a file URL has three slashes and an absolute path: file:///path".into()))?;
        return Ok(Address::Local(path));
    }
    if scheme == "memory" {
        return Ok(Address::Memory);
    }
    let Some(cloud) = Cloud::of_scheme(scheme) else {
        return Err(CheckpointError::UnknownScheme { root: root.to_owned(), scheme: scheme.to_owned() });
    };
    let url = url()?;
    let bucket = url.host_str().unwrap_or_default().to_owned();
    if bucket.is_empty() {
        return Err(bad(format!("no bucket; write {scheme}://bucket/prefix")));
    }
    if url.query().is_some() || url.fragment().is_some() || url.port().is_some() || url.username() != "" {
        return Err(bad(format!(
            "only {scheme}://bucket/prefix is understood; the endpoint and credentials come from the environment"
        )));
    }
    let prefix = Path::from_url_path(url.path()).map_err(|e| bad(format!("not a legal prefix: {e}")))?;
    Ok(Address::Cloud { cloud, bucket, prefix })
}

/// An open root: an object store, how patiently it is asked and how much is sent to it at once. Cheap to clone; clones
/// share the connections and the upload window.
#[derive(Clone, Debug)]
pub struct Root {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) name: Arc<str>,
    pub(crate) cloud: Option<Cloud>,
    pub(crate) patience: Patience,
    pub(crate) answered: Arc<AtomicBool>,
    /// Where waits are told.
    pub(crate) waits: Option<Waits>,
    pub(crate) uploading: Arc<Semaphore>,
    pub(crate) part_bytes: Option<usize>,
    /// A folder's own way for data objects.
    pub(crate) disk: Option<Disk>,
    /// Whether others on this machine read the same at the same time.
    pub(crate) is_shared: bool,
}

/// How an object is read in parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grain {
    /// Bytes of one read, whole blocks.
    pub(crate) bytes: u64,
    /// Reads on their way at a time.
    pub(crate) at_once: usize,
}

impl Root {
    /// A store that is already open, named by how it shows itself.
    pub fn of(store: Arc<dyn ObjectStore>) -> Root {
        let name = store.to_string();
        Root::named(store, &name)
    }

    fn named(store: Arc<dyn ObjectStore>, name: &str) -> Root {
        Root {
            store,
            name: name.into(),
            cloud: None,
            patience: Patience::default(),
            answered: Arc::default(),
            waits: None,
            uploading: Arc::new(Semaphore::new(UPLOAD_WINDOW_BYTES)),
            part_bytes: None,
            disk: None,
            is_shared: false,
        }
    }

    /// The same root, asked with another patience.
    pub fn with_patience(self, patience: Patience) -> Root {
        Root { patience, ..self }
    }

    /// The same root; objects longer than `bytes` are written in parts of so many. S3 takes no less than 5 MiB.
    pub fn with_part_bytes(self, bytes: usize) -> Root {
        Root { part_bytes: Some(bytes.clamp(1, UPLOAD_WINDOW_BYTES)), ..self }
    }

    /// The same root, for one of several processes of a machine that read the same objects: the first one's reads should
    /// serve the others, and so go through the page cache.
    pub fn shared(self) -> Root {
        Root { is_shared: true, ..self }
    }

    pub(crate) fn grain(&self) -> Grain {
        match &self.disk {
            // A disk has no way to go first, and answers many small requests as fast as few large ones.
            Some(_) => Grain { bytes: 2 * BLOCK_BYTES, at_once: 8 },
            None => Grain { bytes: 8 * BLOCK_BYTES, at_once: 4 },
        }
    }

    /// The object store itself, past everything that this crate does about it.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The root in words, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Opens an existing root. A missing folder is an error: reading commands create nothing. Of a cloud store nothing is
/// asked yet, so that a missing bucket is found by the first request; how it is reached is in the environment.
pub fn open_root(root: &str) -> Result<Root, CheckpointError> {
    open_root_with(root, &Variables::of_process())
}

/// The same; cloud stores are reached as `variables` say.
pub fn open_root_with(root: &str, variables: &Variables) -> Result<Root, CheckpointError> {
    let bad = |reason: String| CheckpointError::BadRoot { root: root.to_owned(), reason };
    let patience = Patience::from_text(variables.get(RETRY_SECONDS_VARIABLE)).map_err(bad)?;
    match parse(root)? {
        Address::Memory => Ok(Root::named(Arc::new(InMemory::new()), root)),
        Address::Local(path) => {
            check_folder(&path).map_err(bad)?;
            let local = LocalFileSystem::new_with_prefix(&path).map_err(|e| bad(e.to_string()))?;
            let local = Arc::new(local.with_fsync(true));
            let disk = Some(Disk::of(Arc::clone(&local)));
            Ok(Root { disk, patience, ..Root::named(local, root) })
        }
        Address::Cloud { cloud, bucket, prefix } => {
            let store = cloud
                .open(&bucket, &prefix, variables)
                .map_err(|e| bad(format!("{e}; set {} in the environment", cloud.variables())))?;
            let opened = Root::named(store, root).with_part_bytes(PART_BYTES);
            Ok(Root { cloud: Some(cloud), patience, ..opened })
        }
    }
}

/// Whether `path` is a folder that can be read and searched; the error is one sentence.
fn check_folder(path: &std::path::Path) -> Result<(), String> {
    let shown = path.display();
    let unreadable = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{shown} does not exist; `polygram train` makes it, or correct the path")
        }
        io::ErrorKind::PermissionDenied => format!(
            "this user may not read {shown} (permission denied); give it read, write and search permission there and on the \
             folders above, or use another folder"
        ),
        io::ErrorKind::NotADirectory => {
            format!("a part of {shown} is a file and not a folder; give a folder")
        }
        _ => format!("{shown} cannot be read: {error}"),
    };
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !metadata.is_dir() {
        return Err(format!("{shown} is a file and not a folder; give a folder"));
    }
    let readable = std::fs::read_dir(path).and_then(|_| std::fs::metadata(path.join(".")));
    readable.map(drop).map_err(|error| unreadable(&error))
}

/// Why the folder `path` cannot be made, and what to do.
fn unmakeable(path: &std::path::Path, error: &io::Error) -> String {
    let shown = path.display();
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "this user may not write in the folder above it; give it that permission, or use another folder"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a part of the path is a file and not a folder; use another path"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "the file system is read-only; mount it writable, or use another folder"
        }
        kind if is_full_kind(kind) => {
            "the disk is full, or the quota used up; make room, or use another folder"
        }
        _ => "use another folder",
    };
    format!("the folder {shown} cannot be made ({error}): {remedy}")
}

/// Opens a root, making the folder of a local one if it is missing.
pub fn create_root(root: &str) -> Result<Root, CheckpointError> {
    if let Address::Local(path) = parse(root)? {
        let bad = |reason| CheckpointError::BadRoot { root: root.to_owned(), reason };
        if let Err(error) = std::fs::create_dir_all(&path) {
            // What is there and is no folder has a sentence of its own.
            if path.exists() {
                check_folder(&path).map_err(bad)?;
            }
            return Err(bad(unmakeable(&path, &error)));
        }
    }
    open_root(root)
}

/// The runs under a root, sorted. Folders that are no legal run names are left out.
pub async fn list_runs(root: &Root) -> Result<Vec<RunName>, CheckpointError> {
    let folders = root.folders("runs").await?;
    let mut runs: Vec<RunName> = folders.into_iter().filter_map(|folder| RunName::new(folder).ok()).collect();
    runs.sort();
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_told_apart() {
        let local = |root: &str, path: &str| matches!(parse(root), Ok(Address::Local(p)) if p == std::path::Path::new(path));
        assert!(local("checkpoints/here", "checkpoints/here"));
        assert!(local("file:///a%20b/c", "/a b/c"));
        assert!(matches!(parse("memory://"), Ok(Address::Memory)));
        for (root, kind, in_bucket) in [
            ("s3://bucket/a/b/", Cloud::S3, "a/b"),
            ("gs://bucket", Cloud::Google, ""),
            ("az://bucket/a%20b", Cloud::Azure, "a b"),
        ] {
            let Ok(Address::Cloud { cloud, bucket, prefix }) = parse(root) else { panic!("{root}") };
            assert_eq!((cloud, bucket.as_str(), prefix.as_ref()), (kind, "bucket", in_bucket));
        }
    }

    #[test]
    fn unusable_roots_say_why() {
        let message = |root: &str| open_root(root).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message("ftp://bucket/x").contains("no backend for ftp://"));
        assert!(message("file://host/path").contains("file:///path"));
        assert!(message("").contains("empty"));
        assert!(message("/surely/not/here").contains("/surely/not/here"));
        assert!(message("s3:///x").contains("s3://bucket/prefix"), "{}", message("s3:///x"));
        for root in ["s3://bucket/x?region=y", "s3://bucket:9000/x", "s3://key@bucket/x"] {
            assert!(message(root).contains("environment"), "{root}: {}", message(root));
        }
    }
}
