//! Timeouts as the system takes them.

use std::time::Duration;

use rustix::event::Timespec;

/// `time` as the system takes it.
pub(super) fn timespec(time: Duration) -> Timespec {
    const DAY: Duration = Duration::from_secs(86_400);
    Timespec { tv_sec: time.min(DAY).as_secs() as _, tv_nsec: time.subsec_nanos() as _ }
}
