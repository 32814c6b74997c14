//! The wire: gRPC control schema with validated conversions, and the framed bulk protocol of the embedding shards.

pub mod bulk;
pub mod control;
