//! Waiting for a time that may not be known.

use std::time::Instant;

/// Waits until `time`; never resolves where there is none.
pub(super) async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
