//! Where the programs and the repository are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The built program `name`, beside the folder of the running test. The error says how to build it.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("cannot tell which test this is")?;
    // target/release/deps/<test>
    let folder = test.parent().and_then(Path::parent).context("the test lies in no target folder")?;
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{} is missing: the end-to-end tests run the built programs; `make build` makes them",
        path.display()
    );
    Ok(path)
}
