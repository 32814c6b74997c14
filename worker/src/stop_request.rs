//! The request to stop at the next step boundary: set by the session, read by the compute thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once and never unset. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// Asks the compute thread to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
