//! What every program of a run says about itself: logs, metrics, and the estimates behind some of them.
//!
//! Logs go to stderr, for people or as one JSON object a line; every line carries the run, the role and the rank of
//! its process. The level comes as an argument; the environment is not read. Metrics ([`metrics`]) are asked for, never
//! pushed: [`endpoint`] answers `GET /metrics`, and whoever owns a number says it then. [`sketch`] counts what is too
//! much to keep, [`collisions`] judges a table by it. Beside that, settings that programs
//! share: [`allocator`], [`passive_waits`].

pub mod allocator;
pub mod collisions;
pub mod endpoint;
mod format;
pub mod identity;
pub mod logging;
pub mod metrics;
pub mod names;
pub mod passive_waits;
pub mod sketch;
pub mod stderr;

pub use allocator::keep_freed_memory;
pub use collisions::Collisions;
pub use identity::{Identity, Role};
pub use logging::{Format, Logging, TelemetryError, init};
pub use metrics::{Histogram, Metric, Metrics, Page, Sample, Source};
pub use sketch::HyperLogLog;
pub use stderr::lossy_stderr;
