//! Signals as requests to stop. A signal that the parent left ignored (`nohup`, background jobs of a shell) stays ignored.

use std::io;
use std::mem::MaybeUninit;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A stream of one kind of signal; empty for a signal that this process inherited as ignored.
#[derive(Debug)]
pub struct StopSignal {
    signal: Option<Signal>,
}

impl StopSignal {
    /// Listens from now on. Must run on a tokio runtime.
    pub fn listen(kind: SignalKind) -> io::Result<StopSignal> {
        if is_ignored(kind)? {
            return Ok(StopSignal { signal: None });
        }
        Ok(StopSignal { signal: Some(signal(kind)?) })
    }

    /// The next signal; never resolves where it is ignored. Dropping the future loses nothing.
    pub async fn recv(&mut self) {
        if let Some(signal) = &mut self.signal
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}

/// SIGINT and SIGTERM, counted from the beginning: once tokio listens, the system's own answer is gone for good.
#[derive(Debug)]
pub struct StopSignals {
    count: watch::Receiver<u32>,
    listening: JoinHandle<()>,
}

impl StopSignals {
    /// Listens from now on. Must run on a tokio runtime.
    pub fn listen() -> io::Result<StopSignals> {
        let mut interrupt = StopSignal::listen(SignalKind::interrupt())?;
        let mut terminate = StopSignal::listen(SignalKind::terminate())?;
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
        Ok(StopSignals { count, listening })
    }

    /// Signals so far.
    pub fn count(&self) -> u32 {
        *self.count.borrow()
    }

    /// Resolves once there were at least `times` signals. Dropping the future loses nothing.
    pub async fn at_least(&mut self, times: u32) {
        if self.count.wait_for(|count| *count >= times).await.is_err() {
            // The listener is gone, and with it the runtime.
            std::future::pending().await
        }
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Whether this process ignores the signal. False once somebody in it listens.
pub fn is_ignored(kind: SignalKind) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action changes nothing; the old one is written to `action`, which has its size.
    let failed = unsafe { libc::sigaction(kind.as_raw_value(), std::ptr::null(), action.as_mut_ptr()) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a legal `sigaction`, and the call has filled it.
    let action = unsafe { action.assume_init() };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Both cases in one test: dispositions belong to the whole process.
    #[tokio::test]
    async fn an_ignored_signal_stays_ignored_and_another_arrives() {
        let (ignored, other) = (SignalKind::user_defined1(), SignalKind::user_defined2());
        // SAFETY: no handler is installed, and nobody else in this test program uses these signals.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        assert!(is_ignored(ignored).unwrap() && !is_ignored(other).unwrap());
        let mut never = StopSignal::listen(ignored).unwrap();
        let mut once = StopSignal::listen(other).unwrap();
        assert!(is_ignored(ignored).unwrap(), "listening does not undo it");
        for number in [libc::SIGUSR1, libc::SIGUSR2] {
            // SAFETY: a signal to this very process, which handles or ignores it.
            assert_eq!(unsafe { libc::raise(number) }, 0);
        }
        tokio::time::timeout(Duration::from_secs(10), once.recv()).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), never.recv()).await.is_err());
    }
}
