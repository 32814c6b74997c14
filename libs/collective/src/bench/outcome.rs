//! How the parts of this program end.

/// What can go wrong here is for a person to read.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
