//! Work that must not hold up the runtime's threads.

use tokio::sync::oneshot;

use crate::error::CheckpointError;

/// How much work beside training gives way to it: a thread of this niceness gets about a tenth of a busy processor, and all
/// of an idle one.
const NICENESS: i32 = 10;

/// What an error of the runtime calls its store.
pub(crate) const STOPPED: &str = "runtime";

/// The runtime ended before the work did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

impl From<Stopped> for CheckpointError {
    fn from(_: Stopped) -> CheckpointError {
        CheckpointError::ShuttingDown
    }
}

impl From<Stopped> for object_store::Error {
    fn from(_: Stopped) -> object_store::Error {
        let text = CheckpointError::ShuttingDown.to_string();
        object_store::Error::Generic { store: STOPPED, source: text.into() }
    }
}

/// Runs `work` on one of the runtime's threads for such work.
pub(crate) async fn off_thread<T, F>(work: F) -> Result<T, Stopped>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => Ok(value),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Stopped),
    }
}

/// Runs `work` on a thread of its own that gives way to everything else: writing a checkpoint must not slow the training
/// that it keeps.
pub(crate) async fn beside<T, F>(work: F) -> Result<T, Stopped>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (sender, result) = oneshot::channel();
    let body = move || {
        // For this thread alone. Where it may not, the work is done all the same.
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, "a thread that writes checkpoints has the priority of all others");
        }
        sender.send(work()).ok();
    };
    std::thread::Builder::new().name("checkpoint".into()).spawn(body).map_err(|error| {
        tracing::error!(%error, "cannot start a thread that writes checkpoints");
        Stopped
    })?;
    // A panic has told itself on its thread.
    result.await.map_err(|_| Stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_beside_gives_way_and_other_threads_do_not() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        assert_eq!(beside(niceness).await, Ok(NICENESS.max(before)));
        assert_eq!(niceness(), before);
        assert_eq!(off_thread(niceness).await, Ok(before));
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        assert_eq!(beside(|| panic!("on purpose")).await, Err::<(), _>(Stopped));
    }
}
