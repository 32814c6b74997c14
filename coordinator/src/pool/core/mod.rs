//! The pool as a pure state machine: `apply(state, event, now) → actions`.
//!
//! Nothing here opens a socket, reads a clock or touches a file. What always holds, and what the simulation checks:
//! * a member serves one job at a time, and a seat has one member;
//! * a job is given all its seats at once or none, and one that is queued or over holds no member;
//! * jobs start in the order of priority, then of submission; nobody overtakes a job that the pool has members for;
//! * every admitted job ends, if its run does and enough members stay;
//! * a member that says that it lives, and does nothing of what it is told, is waited for no longer than is stated;
//! * what is saved is what is so: a coordinator that is started again from the saved records has the same queue.

pub mod event;
pub mod job;
pub mod state;

mod jobs;
mod late;
mod members;
mod schedule;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use event::{Action, Event, Reply, SessionEnd};
pub use job::{JobRecord, Needs, Progress};
pub use state::{Rules, State, Tallies};

use crate::core::Time;

/// Applies `event` at `now` and says what is to be done, in order.
pub fn apply(state: &mut State, event: Event, now: Time) -> Vec<Action> {
    let mut turn = state::Turn { state, now, actions: Vec::new() };
    match event {
        Event::Submit { ticket, admission } => turn.submit(ticket, admission),
        Event::Cancel { ticket, job } => turn.cancel(ticket, job),
        Event::Offered(offering) => turn.offered(offering),
        Event::Alive { member } => turn.alive(member),
        Event::Released { member, seat, failure } => turn.released(member, seat, failure),
        Event::Gone { member, message } => turn.gone(member, &message),
        Event::Opened { job, session, address } => turn.opened(job, session, address),
        Event::Awaited { job, session, slots } => turn.awaited(job, session, slots),
        Event::RunStarted { job, session } => turn.run_started(job, session),
        Event::Progressed { job, progress } => turn.progressed(job, progress),
        Event::RunOver { job, session } => turn.run_over(job, session),
        Event::SessionEnded { job, session, end } => turn.session_ended(job, session, end),
        Event::Interrupt { reason } => turn.interrupt(&reason),
        Event::Tick => turn.tick(),
    }
    turn.schedule();
    turn.actions
}
