//! A folder's contents at one moment, to show that a refused command changed nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Every file under a folder, with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents(BTreeMap<PathBuf, Vec<u8>>);

impl Contents {
    /// Reads `folder`; a folder that is not there is empty.
    pub fn of(folder: &Path) -> Result<Contents> {
        let mut files = BTreeMap::new();
        let mut open = vec![folder.to_path_buf()];
        while let Some(folder) = open.pop() {
            if !folder.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    files.insert(path.clone(), fs::read(&path)?);
                }
            }
        }
        Ok(Contents(files))
    }

    /// Files of `self` that `later` lacks or holds with other bytes.
    pub fn lost_in(&self, later: &Contents) -> Vec<&Path> {
        let changed = |(path, bytes): &(&PathBuf, &Vec<u8>)| later.0.get(*path) != Some(bytes);
        self.0.iter().filter(changed).map(|(path, _)| path.as_path()).collect()
    }

    /// The files whose path has a folder called `folder`.
    pub fn under(&self, folder: &str) -> Contents {
        let inside = |path: &Path| path.components().any(|part| part.as_os_str() == folder);
        Contents(
            self.0.iter().filter(|(path, _)| inside(path)).map(|(p, b)| (p.clone(), b.clone())).collect(),
        )
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/x"), "1").unwrap();
        let before = Contents::of(folder.path()).unwrap();
        fs::write(folder.path().join("y"), "2").unwrap();
        let more = Contents::of(folder.path()).unwrap();
        assert!(before.lost_in(&more).is_empty());
        assert_eq!((before.len(), more.len(), more.under("a").len()), (1, 2, 1));
        fs::write(folder.path().join("a/x"), "3").unwrap();
        assert_eq!(before.lost_in(&Contents::of(folder.path()).unwrap()).len(), 1);
        assert!(Contents::of(Path::new("/no/such/folder")).unwrap().is_empty());
    }
}
