//! SIGINT and SIGTERM, counted from the process's start: once tokio listens, the system's own answer is gone for good. What
//! this process inherited as ignored stays ignored.

use polygram_process::StopSignal;
use tokio::signal::unix::SignalKind;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::WorkerError;

/// How often this process was asked to end.
pub struct Signals {
    count: watch::Receiver<u32>,
    listening: JoinHandle<()>,
}

impl Signals {
    /// Listens from now on.
    pub fn listen() -> Result<Signals, WorkerError> {
        let listen = |kind| {
            StopSignal::listen(kind)
                .map_err(|source| WorkerError::Io { what: "cannot listen for signals".into(), source })
        };
        let (mut interrupt, mut terminate) =
            (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        let (sender, count) = watch::channel(0);
        let listening = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = interrupt.recv() => {}
                    () = terminate.recv() => {}
                }
                sender.send_modify(|count| *count += 1);
            }
        });
        Ok(Signals { count, listening })
    }

    /// Whether there was any so far.
    pub fn were_any(&self) -> bool {
        *self.count.borrow() > 0
    }

    /// Resolves once there were at least `times` signals. Dropping the future loses nothing.
    pub async fn at_least(&mut self, times: u32) {
        if self.count.wait_for(|count| *count >= times).await.is_err() {
            // The listener is gone, and with it the runtime.
            std::future::pending().await
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
