//! Something that was read and is not what was written.

use serde::Serialize;

/// An object that is missing, cut, altered, or not where it belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The object.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}
