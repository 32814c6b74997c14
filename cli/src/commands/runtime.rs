//! The I/O runtime of a command.

use std::future::Future;

use crate::exit::{Failure, Outcome};

/// Drives `work` on this thread. Children are started from it, and must not die with a pool thread.
pub(super) fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("cannot start the I/O runtime").because(error))?
        .block_on(work)
}
