//! How a run is ended from outside.

/// How a run is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Commit at the next step boundary, then stop.
    Commit,
    /// Stop at once; what is not committed is lost.
    Abort,
}
