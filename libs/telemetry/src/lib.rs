//! What every program of a run says about itself: log set-up and the names of metrics.
//!
//! Logs go to stderr, for people or as one JSON object a line; every line carries the run, the role and the rank of
//! its process. The level comes as an argument; the environment is not read.

mod format;
pub mod logging;
pub mod names;

pub use logging::{Format, Identity, Logging, Role, TelemetryError, init};
