//! The coordinator's clock: wall time at the start, then only forward.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::core::Time;

/// Tells [`Time`]; changes of the system clock do not move it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    started_unix_ms: u64,
}

impl Clock {
    /// A clock that starts with the system's time. A system clock before 1970 counts as 1970.
    pub(crate) fn start() -> Clock {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { started: Instant::now(), started_unix_ms: since.as_millis() as u64 }
    }

    /// Now.
    pub(crate) fn now(&self) -> Time {
        Time(self.started_unix_ms.saturating_add(self.started.elapsed().as_millis() as u64))
    }
}
