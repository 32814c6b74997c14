//! From a root as an operator writes it to an object store.
//!
//! A root is `file:///absolute/path`, a plain absolute or relative path, or `memory://` (a store of its own at every
//! call; for tests that share one, see [`crate::RunStore::with_store`]). Other schemes are refused by name; a backend
//! is added with a feature of `object_store` and an arm in [`open_root`].
//!
//! Durability: on local disk every write is complete only after the file and the folders that name it were synced
//! (`fsync`), and appears under its name at once or not at all. Deletions are not synced: after a power cut a deleted
//! object may be back, which retention repairs. A process killed while writing may leave a staging file `name#1`,
//! which no listing shows.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use polygram_domain::RunName;
use url::Url;

use crate::error::CheckpointError;

enum Root {
    Local(PathBuf),
    Memory,
}

fn parse_root(root: &str) -> Result<Root, CheckpointError> {
    let bad = |reason: String| CheckpointError::BadRoot { root: root.to_owned(), reason };
    if root.is_empty() {
        return Err(bad("empty; give a folder or a file:// URL".into()));
    }
    let Some((scheme, _)) = root.split_once("://") else {
        return Ok(Root::Local(PathBuf::from(root)));
    };
    match scheme {
        "file" => {
            let url = Url::parse(root).map_err(|e| bad(format!("not a URL: {e}")))?;
            let path = url.to_file_path().map_err(|()| {
                bad("a file URL has three slashes and an absolute path: file:///path".into())
            })?;
            Ok(Root::Local(path))
        }
        "memory" => Ok(Root::Memory),
        other => Err(CheckpointError::UnknownScheme { root: root.to_owned(), scheme: other.to_owned() }),
    }
}

/// Opens the store of an existing root. A missing folder is an error: reading commands create nothing.
pub fn open_root(root: &str) -> Result<Arc<dyn ObjectStore>, CheckpointError> {
    let path = match parse_root(root)? {
        Root::Memory => return Ok(Arc::new(InMemory::new())),
        Root::Local(path) => path,
    };
    let bad = |reason: String| CheckpointError::BadRoot { root: root.to_owned(), reason };
    if !path.is_dir() {
        return Err(bad(format!("{} is not a folder", path.display())));
    }
    let local = LocalFileSystem::new_with_prefix(&path).map_err(|e| bad(e.to_string()))?;
    Ok(Arc::new(local.with_fsync(true)))
}

/// Opens the store of a root, making the folder of a local one if it is missing.
pub fn create_root(root: &str) -> Result<Arc<dyn ObjectStore>, CheckpointError> {
    if let Root::Local(path) = parse_root(root)? {
        std::fs::create_dir_all(&path).map_err(|e| CheckpointError::BadRoot {
            root: root.to_owned(),
            reason: format!("cannot make the folder {}: {e}", path.display()),
        })?;
    }
    open_root(root)
}

/// The runs under a root, sorted. Folders that are no legal run names are left out.
pub async fn list_runs(store: &Arc<dyn ObjectStore>) -> Result<Vec<RunName>, CheckpointError> {
    let listing = store
        .list_with_delimiter(Some(&Path::from("runs")))
        .await
        .map_err(|source| CheckpointError::Store { action: "list", key: "runs".into(), source })?;
    let mut runs: Vec<RunName> = listing
        .common_prefixes
        .iter()
        .filter_map(|prefix| RunName::new(prefix.filename()?.to_owned()).ok())
        .collect();
    runs.sort();
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_told_apart() {
        assert!(
            matches!(parse_root("checkpoints/here"), Ok(Root::Local(p)) if p == std::path::Path::new("checkpoints/here"))
        );
        assert!(
            matches!(parse_root("file:///a%20b/c"), Ok(Root::Local(p)) if p == std::path::Path::new("/a b/c"))
        );
        assert!(matches!(parse_root("memory://"), Ok(Root::Memory)));
    }

    #[test]
    fn unusable_roots_say_why() {
        let message = |root: &str| open_root(root).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message("s3://bucket/x").contains("no backend for s3://"));
        assert!(message("file://host/path").contains("file:///path"));
        assert!(message("").contains("empty"));
        assert!(message("/surely/not/here").contains("/surely/not/here"));
    }
}
