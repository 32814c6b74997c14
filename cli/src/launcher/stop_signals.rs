//! The operator's requests to stop.

use polygram_process::StopSignal;
use tokio::signal::unix::SignalKind;

use crate::exit::{Failure, Outcome};

/// Requests to stop: SIGINT, SIGTERM, and SIGHUP of a closing terminal. What the caller ignores (`nohup`) stays ignored.
pub(crate) struct StopSignals {
    signals: [StopSignal; 3],
}

impl StopSignals {
    pub(crate) fn listen() -> Outcome<StopSignals> {
        let listen = |kind| {
            StopSignal::listen(kind)
                .map_err(|error| Failure::failed("cannot listen for signals").because(error))
        };
        let signals = [
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ];
        Ok(StopSignals { signals })
    }

    /// The next one. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            () = interrupt.recv() => {}
            () = terminate.recv() => {}
            () = hangup.recv() => {}
        }
    }
}
