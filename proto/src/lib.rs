//! The wire: gRPC schemas (control, pool, reading rows) with validated conversions, and the framed bulk protocol of the
//! embedding shards.

pub mod accept;
pub mod bulk;
pub mod control;
pub mod pool;
pub mod rows;
