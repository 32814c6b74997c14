//! Megatron's indexed dataset: `<path>.bin` with the tokens, `<path>.idx` with sequences and documents.

pub mod dtype;
pub mod index;
pub mod reader;
pub(crate) mod token_file;
pub mod writer;

pub use dtype::Dtype;
pub use reader::Segment;
pub use writer::{Existing, SegmentWriter};

use std::path::PathBuf;

/// The two files of a segment, `.bin` and `.idx`, given by their path without extension (an extension of either is taken off).
pub fn pair_of(path: &str) -> (PathBuf, PathBuf) {
    let stem = path.strip_suffix(".bin").or_else(|| path.strip_suffix(".idx")).unwrap_or(path);
    (format!("{stem}.bin").into(), format!("{stem}.idx").into())
}
