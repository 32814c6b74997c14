//! What is said while the store does not take what a run gives it: once that it is so, and once that it is over.

use polygram_proto::control::{Reason, RunStatus};
use tokio::time::Instant;

use crate::printer::Printer;

/// Whether the store is in trouble, as far as the status says.
#[derive(Debug, Default)]
pub(super) struct StoreTrouble {
    since: Option<Instant>,
}

impl StoreTrouble {
    /// Says what is new in `status`.
    pub(super) fn see(&mut self, status: &RunStatus, printer: &mut Printer) {
        match (status.reason == Reason::StoreTrouble, self.since) {
            (true, None) => {
                self.since = Some(Instant::now());
                printer.warn(&status.message);
            }
            (false, Some(since)) => {
                self.since = None;
                if !status.state.is_over() {
                    let seconds = since.elapsed().as_secs();
                    printer.say(format!("the store works again, after {seconds} s; the run goes on"));
                }
            }
            (true, Some(_)) | (false, None) => {}
        }
    }
}
