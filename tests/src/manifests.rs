//! The checkpoints in a folder, by the names of their manifests.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Steps and manifests of the checkpoints of the run at `run`, ascending. A file whose name goes on behind `.json` is a
/// manifest that was being written when its writer died: the store does not list it, so it is none.
pub fn manifests(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join("ckpt/commit");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let step = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let step = step.with_context(|| format!("{} is no manifest", path.display()))?;
        found.push((step, path));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_manifests_are_none() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(manifests(run.path()).unwrap(), []);
        let folder = run.path().join("ckpt/commit");
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["000000000020.json", "000000000003.json", "000000000062.json#1"] {
            std::fs::write(folder.join(name), "{}").unwrap();
        }
        let steps: Vec<u64> = manifests(run.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [3, 20]);
        std::fs::write(folder.join("x.json"), "{}").unwrap();
        assert!(manifests(run.path()).unwrap_err().to_string().contains("x.json is no manifest"));
    }
}
