//! The wire: gRPC schemas (control, reading rows) with validated conversions, and the framed bulk protocol of the
//! embedding shards.

pub mod bulk;
pub mod control;
pub mod rows;
