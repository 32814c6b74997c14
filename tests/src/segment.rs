//! Megatron token files, written here a second time and independently of the reader under test, so that damaged ones
//! can be made.
//!
//! `.idx`: the magic `MMIDIDX\0\0`, version 1 (u64), type code (u8; 8 is u16), sequences (u64), documents + 1 (u64),
//! then per sequence its length (i32) and byte offset (i64), then the first sequence of each document (i64).
//! Everything is little-endian. (Megatron-LM, `indexed_dataset.py`.) `.bin`: the tokens.

use std::fs;
use std::path::Path;

use anyhow::Result;

/// Writes `documents` as `<prefix>.bin` and `<prefix>.idx`, u16 tokens.
pub fn write(prefix: &Path, documents: &[Vec<u16>]) -> Result<()> {
    let tokens: Vec<u8> = documents.iter().flatten().flat_map(|token| token.to_le_bytes()).collect();
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1u64.to_le_bytes());
    index.push(8);
    index.extend((documents.len() as u64).to_le_bytes());
    index.extend((documents.len() as u64 + 1).to_le_bytes());
    for document in documents {
        index.extend((document.len() as i32).to_le_bytes());
    }
    let mut offset = 0i64;
    for document in documents {
        index.extend(offset.to_le_bytes());
        offset += 2 * document.len() as i64;
    }
    for document in 0..=documents.len() as i64 {
        index.extend(document.to_le_bytes());
    }
    fs::write(prefix.with_extension("bin"), tokens)?;
    fs::write(prefix.with_extension("idx"), index)?;
    Ok(())
}

/// Documents of 64 tokens below `vocabulary`, each closed by token 2: enough for a few steps of the tiny run.
pub fn documents(vocabulary: u16) -> Vec<Vec<u16>> {
    let token = |document: u64, position: u64| {
        let mixed = (document * 64 + position).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        3 + (mixed % (u64::from(vocabulary) - 3)) as u16
    };
    (0..256).map(|document| (0..63).map(|p| token(document, p)).chain([2]).collect()).collect()
}
