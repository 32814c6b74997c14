//! The run as a pure state machine: `apply(state, event, now) → actions`.
//!
//! Nothing here opens a socket, reads a clock or touches a store; everything the coordinator decides is decided here,
//! and the tests drive it through thousands of schedules. What always holds:
//! * one generation is active, and messages of another change nothing;
//! * members are assigned once all of them attend, and started once all of them acknowledged the same table;
//! * a step is committed only with the parts of every worker and every shard, steps in ascending order;
//! * the root cause of a generation's end is its culprit for good, other failures are secondary;
//! * a generation begins from the newest commit or recovery point, and only after what its forerunner had begun to commit or
//!   keep has ended;
//! * no generation begins from a checkpoint that is known to be damaged, nor afresh where there was one;
//! * a state that is over is never left, and the end comes once, in bounded time.
//!
//! The state has an owner for each of its parts, whose fields only its own file writes: `lifecycle`, `membership`,
//! `checkpoints`, `root_cause`, `restart_budget`, `rollback`, `reported`. What an event changes is decided in `turn`.

pub mod event;
pub mod settings;
pub mod state;

mod checkpoints;
mod counts;
mod lifecycle;
mod membership;
mod reported;
mod restart_budget;
mod rollback;
mod root_cause;
mod sentence;
mod stall;
mod status;
mod turn;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use event::{
    Action, Event, Level, Outcome, Record, Reply, RollbackId, RollbackRequest, RollbackResolution,
    RollbackTarget, Ticket, Time, Uploaded,
};
pub use settings::{Earlier, Resume, Settings, Timeouts};
pub use state::State;

use polygram_domain::control::Reason;

/// Applies `event` at `now` and says what is to be done, in order.
pub fn apply(state: &mut State, event: Event, now: Time) -> Vec<Action> {
    let mut turn = turn::Turn { state, now, actions: Vec::new() };
    match event {
        Event::Join { ticket, request } => turn.join(ticket, request),
        Event::Attend { ticket, member, generation } => turn.attend(ticket, member, generation),
        Event::Report(envelope) => turn.report(envelope),
        Event::StreamEnded { member, message } => turn.stream_ended(member, message),
        Event::Upload { ticket, member, generation, step, uploaded } => {
            let answer = turn.upload((member, generation), step, uploaded);
            turn.reply(ticket, answer);
        }
        Event::CommitDone { step, result } => turn.commit_done(step, result),
        Event::PointDone { step, result } => turn.point_done(step, result),
        Event::RollbackResolved { id, result } => turn.rollback_resolved(id, result),
        Event::StoreFailed { message } => turn.fail(Reason::StoreFailed, message),
        Event::StoreWait { sentence } => turn.store_wait(sentence),
        Event::TakenOver { message } => turn.fail(Reason::TakenOver, message),
        Event::Stop { ticket, mode, reason } => {
            let message = turn.stop(mode, reason);
            turn.reply(ticket, Ok(Reply::Stopping(message)));
        }
        Event::Interrupt { reason } => turn.interrupt(reason),
        Event::Tick => turn.tick(),
    }
    turn.advance();
    turn.actions
}
