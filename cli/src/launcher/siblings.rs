//! The other programs of Polygram, looked for beside this one.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let text = Program::Worker.find_in(folder.path()).unwrap_err().to_string();
        assert!(text.contains("polygram-worker") && text.contains("make build"), "{text}");
        std::fs::write(folder.path().join("polygram-worker"), "").unwrap();
        assert!(Program::Worker.find_in(folder.path()).is_ok());
    }
}
