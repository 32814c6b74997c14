//! Read-only access to one embedding shard: its rows, what it owns, what it has counted.
//!
//! gRPC service `polygram.rows.v1.RowService` (schema/rows.proto). The generated types ([`wire`]) stop here and in the
//! shard's `query` door: everybody else speaks the types of this module, which are checked on receipt. A client holds a
//! [`RowReader`].

pub mod client;
pub mod error;
pub mod types;

mod convert;

pub use client::RowReader;
pub use error::ReadError;
pub use types::{
    Description, Distribution, HotRow, Looked, Lookup, OwnedTable, Stats, TableFingerprint, TableStats,
};

/// Rows of one lookup, at most.
pub const ROWS_LIMIT: usize = 4096;
/// Values of one lookup, at most: 16 MiB.
pub const VALUES_LIMIT: usize = 4 << 20;
/// Largest message either side accepts, in bytes.
pub const MESSAGE_LIMIT_BYTES: usize = 20 << 20;

/// The schema's description, for server reflection: an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rows.bin"));

/// Types generated from the schema. Only the conversions here and the shard's door name them.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    tonic::include_proto!("polygram.rows.v1");
}
