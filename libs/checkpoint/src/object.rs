//! What members report about the objects they have written: the vocabulary of parts and manifests (JSON).

use std::ops::Range;

use bytes::Bytes;
use polygram_domain::Step;
use serde::{Deserialize, Serialize};

use crate::blocks::{BlockSummer, BlockSums};
use crate::cursor::Cursor;
use crate::error::CheckpointError;

/// Everything that one member has written for one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Who wrote it: `worker-<rank>` or `shard-<index>`.
    pub member: String,
    /// State version: updates applied so far.
    pub step: Step,
    /// The objects.
    pub objects: Vec<ObjectEntry>,
    /// Position in the data; at least one part of a checkpoint carries it, and all that do must agree.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// How far table rows have decayed that no step touched, in units of 2⁻⁴⁸ of −Σ log(1 − lr·wd). Shards of a run whose
    /// rows all decay carry it, and must agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_decay: Option<u64>,
}

/// The part of a checkpoint that one member writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartRef<'a> {
    /// State version.
    pub step: Step,
    /// Who writes it: `worker-<rank>` or `shard-<index>`.
    pub member: &'a str,
}

/// One data object and how to believe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectEntry {
    /// Name relative to the run.
    pub key: String,
    /// Length.
    pub bytes: u64,
    /// CRC-32C (Castagnoli) of all bytes.
    pub crc32c: u32,
    /// BLAKE3 of all bytes, 64 hex digits.
    pub blake3: String,
    /// CRC-32C of each MiB.
    pub blocks: BlockSums,
    /// What the bytes are.
    pub content: Content,
}

/// What an object holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Content {
    /// A safetensors file ([`crate::tensors`]).
    Tensors {
        /// Its tensors or slices of tensors, in file order.
        tensors: Vec<TensorEntry>,
    },
    /// Written rows of one table ([`crate::rows`]).
    Rows {
        /// Number of the table.
        table: u32,
        /// Rows the table could have.
        table_rows: u32,
        /// Weights per row.
        width: u32,
        /// Optimizer values per row.
        state_values: u32,
        /// Buckets that the object answers for, written rows or none.
        buckets: Range<u32>,
        /// Written rows.
        rows: u64,
        /// Which of them.
        #[serde(default, skip_serializing_if = "RowScope::is_all")]
        scope: RowScope,
    },
}

/// Which written rows of its buckets a row object holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowScope {
    /// All of them.
    #[default]
    All,
    /// Those that changed since the objects of the same manifest that hold all: of a row that both have, this one counts.
    Changed,
}

impl RowScope {
    fn is_all(&self) -> bool {
        *self == RowScope::All
    }

    /// As the header of a row object says it.
    pub(crate) fn word(self) -> u32 {
        match self {
            RowScope::All => 0,
            RowScope::Changed => 1,
        }
    }

    /// The way back from [`RowScope::word`].
    pub(crate) fn of_word(word: u32) -> Option<RowScope> {
        [RowScope::All, RowScope::Changed].into_iter().find(|scope| scope.word() == word)
    }
}

/// A run of consecutive elements of one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Global name.
    pub name: String,
    /// Type of an element.
    pub dtype: DType,
    /// Shape of the whole tensor.
    pub shape: Vec<u64>,
    /// Which elements, in row-major order.
    pub elements: Range<u64>,
    /// Where they begin in the object, in bytes.
    pub offset: u64,
}

impl TensorEntry {
    /// Name inside the file: the tensor's own if whole, else with the elements, `name[start..end]`.
    pub(crate) fn name_in_file(&self) -> String {
        if Some(self.elements.end) == element_count(&self.shape) && self.elements.start == 0 {
            self.name.clone()
        } else {
            format!("{}[{}..{}]", self.name, self.elements.start, self.elements.end)
        }
    }
}

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DType {
    /// IEEE single, little-endian.
    F32,
}

/// Elements of a tensor of this shape, or `None` beyond 64 bits.
pub(crate) fn element_count(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))
}

/// Length and checksums of the concatenation of some chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checksums {
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
    pub(crate) blake3: String,
    pub(crate) blocks: BlockSums,
}

impl Checksums {
    pub(crate) fn of(chunks: &[Bytes]) -> Checksums {
        let mut summer = Summer::default();
        chunks.iter().for_each(|chunk| summer.update(chunk));
        summer.finish()
    }
}

/// Makes the checksums of bytes that come in any number of pieces.
#[derive(Debug, Default)]
pub(crate) struct Summer {
    bytes: u64,
    blocks: BlockSummer,
    hasher: blake3::Hasher,
}

impl Summer {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.blocks.update(bytes);
        self.hasher.update(bytes);
    }

    pub(crate) fn finish(self) -> Checksums {
        let Summer { bytes, blocks, hasher } = self;
        let blocks = blocks.finish();
        let crc32c = blocks.whole(bytes);
        Checksums { bytes, crc32c, blake3: hasher.finalize().to_hex().to_string(), blocks }
    }
}

impl ObjectEntry {
    /// Whether an object whose blocks are what was written, and that has this BLAKE3, is what was written.
    pub(crate) fn believe(&self, blake3: &blake3::Hash) -> Result<(), CheckpointError> {
        let damaged = |reason| Err(CheckpointError::damaged(&self.key, reason));
        let crc32c = self.blocks.whole(self.bytes);
        if crc32c != self.crc32c {
            return damaged(format!("CRC-32C is {crc32c:08x}, {:08x} was written", self.crc32c));
        }
        let blake3 = blake3.to_hex();
        if blake3.as_str() != self.blake3 {
            return damaged(format!("BLAKE3 is {blake3}, {} was written", self.blake3));
        }
        Ok(())
    }
}

/// `values` as little-endian bytes at the end of `bytes`.
pub(crate) fn extend_f32(bytes: &mut Vec<u8>, values: &[f32]) {
    if cfg!(target_endian = "little") {
        bytes.extend_from_slice(bytemuck::cast_slice(values));
    } else {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
}

/// Little-endian bytes as values, into `values` (replaced). A remainder below 4 bytes is ignored: lengths are checked
/// before.
pub(crate) fn decode_f32(bytes: &[u8], values: &mut Vec<f32>) {
    values.clear();
    values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
}
