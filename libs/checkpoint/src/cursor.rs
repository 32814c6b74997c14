//! Where a run is in its data.

use serde::{Deserialize, Serialize};

/// Position in the data after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Samples consumed since the start of the run.
    pub samples: u64,
    /// Tokens trained on since the start of the run.
    pub tokens: u64,
}
