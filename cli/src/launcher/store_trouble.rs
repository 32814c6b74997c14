//! What is said while the store does not take what a run gives it: once that it is so, and once that it is over.

use std::time::Instant;

use polygram_domain::control::{Reason, RunStatus};

use super::messages::Action;

/// Whether the store is in trouble, as far as the status says.
#[derive(Debug, Default)]
pub(super) struct StoreTrouble {
    since: Option<Instant>,
}

impl StoreTrouble {
    /// Says what is new in `status`.
    pub(super) fn see(&mut self, status: &RunStatus, now: Instant) -> Option<Action> {
        match (status.reason == Reason::StoreTrouble, self.since) {
            (true, None) => {
                self.since = Some(now);
                Some(Action::Warn(status.message.clone()))
            }
            (false, Some(since)) => {
                self.since = None;
                let seconds = now.saturating_duration_since(since).as_secs();
                let text = format!("the store works again, after {seconds} s; the run goes on");
                (!status.state.is_over()).then_some(Action::Say(text))
            }
            (true, Some(_)) | (false, None) => None,
        }
    }
}
