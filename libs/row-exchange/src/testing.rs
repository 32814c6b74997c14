//! What the tests of this module share.

use polygram_domain::{RunFile, TableSet};

/// The tables of the smallest run file: one site, four tables.
pub(crate) fn tiny_tables() -> TableSet {
    let text = include_str!("../../../configs/tiny.toml");
    RunFile::parse(text, "tiny", &[]).and_then(|file| file.resolve()).unwrap().tables()
}
