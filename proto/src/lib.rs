//! The gRPC wire: schemas (control, pool, reading rows) with validated conversions and typed clients.

pub mod accept;
pub mod control;
pub mod pool;
pub mod rows;
