//! One event being applied: what each file here decides, it changes through the owners of the state.

use polygram_checkpoint::FailureLine;
use polygram_domain::control::{Directive, Reason, RunState};

use super::event::{Action, Level, Record, Reply, Ticket, Time};
use super::state::State;

mod advance;
mod checkpoints;
mod end;
mod failures;
mod members;
mod reports;
mod rollback;

/// One event being applied.
pub(super) struct Turn<'a> {
    pub(super) state: &'a mut State,
    pub(super) now: Time,
    pub(super) actions: Vec<Action>,
}

impl Turn<'_> {
    pub(super) fn reply(&mut self, ticket: Ticket, answer: Result<Reply, String>) {
        self.actions.push(Action::Reply { ticket, answer });
    }

    fn log(&mut self, level: Level, message: String) {
        self.actions.push(Action::Log(level, message));
    }

    /// Keeps a line of the failure log.
    fn record(&mut self, line: FailureLine) {
        self.actions.push(Action::Record(Record::Failure(line)));
    }

    /// Sends `directive` to every member whose stream is open.
    fn direct_all(&mut self, directive: &Directive) {
        let open = self.state.membership.open();
        let directed = open.map(|m| Action::Direct { member: m.id, directive: directive.clone() });
        self.actions.extend(directed);
    }

    /// The coordinator waits for the store, or does not any more.
    pub(super) fn store_wait(&mut self, sentence: Option<String>) {
        self.state.lifecycle.set_store_wait(sentence);
    }

    /// Enters `run` for `reason`. Later turns may refine reason and message within the state.
    fn enter(&mut self, run: RunState, reason: Reason, message: String) {
        let (reason, message) = match self.state.store_trouble() {
            // Where members are waited for, that is the reason: the store is in nobody's way yet.
            Some(trouble)
                if !run.is_over() && !matches!(reason, Reason::WaitingForMembers | Reason::BackingOff) =>
            {
                (Reason::StoreTrouble, trouble)
            }
            _ => (reason, message),
        };
        let line = format!("{run}: {message}");
        if !self.state.lifecycle.enter(self.now, (run, reason, message)) {
            return;
        }
        let level = match run {
            RunState::Failed => Level::Error,
            RunState::Recovering => Level::Warn,
            _ if reason == Reason::StoreTrouble => Level::Warn,
            _ => Level::Info,
        };
        self.log(level, line);
        self.actions.push(Action::StatusChanged);
    }
}
