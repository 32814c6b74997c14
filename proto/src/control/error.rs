//! What can go wrong between a member or operator and the coordinator.

use std::time::Duration;

use tonic::{Code, Status};

/// A message that does not mean anything: a field is missing or out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {message}: {what}")]
pub struct Malformed {
    /// The message's name in the schema.
    pub message: &'static str,
    /// Which field, and what is wrong with it.
    pub what: String,
}

/// Why a control call or the attendance of a member ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody answers at the coordinator's address.
    #[error("cannot reach the coordinator at {address}: {message} ({attempts} attempts in {seconds:.1} s)")]
    Connect {
        /// `host:port`.
        address: String,
        /// The last attempt's error.
        message: String,
        /// Attempts made.
        attempts: u32,
        /// Time they took.
        seconds: f64,
    },
    /// The coordinator understood and said no; trying again is of no use.
    #[error("the coordinator refused {call}: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// Its reason.
        message: String,
    },
    /// The coordinator has no place for the member yet, and still had none when patience was over.
    #[error("the coordinator had no place yet: {message} ({attempts} attempts in {seconds:.1} s)")]
    NotYet {
        /// Its reason.
        message: String,
        /// Attempts made.
        attempts: u32,
        /// Time they took.
        seconds: f64,
    },
    /// The token is missing or not the run's.
    #[error("the coordinator at {address} does not accept the token: {message}")]
    Unauthenticated {
        /// `host:port`.
        address: String,
        /// Its reason.
        message: String,
    },
    /// No answer in time.
    #[error("the coordinator did not answer {call} within {deadline_seconds:.1} s ({attempts} attempts)")]
    Deadline {
        /// The call.
        call: &'static str,
        /// Time given.
        deadline_seconds: f64,
        /// Attempts made.
        attempts: u32,
    },
    /// The stream to the coordinator broke: it is dead, or cut off.
    #[error("lost the coordinator at {address}: {message}")]
    Lost {
        /// `host:port`.
        address: String,
        /// How it showed.
        message: String,
    },
    /// The session is over: it was left, or the coordinator said Exit or Abort before.
    #[error("the session with the coordinator is over")]
    Closed,
    /// Whoever placed this member takes it away from its run.
    #[error("recalled by the pool")]
    Recalled,
    /// A message that does not mean anything.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A file of the control plane (token, announcement) cannot be used.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}

impl ControlError {
    /// Whether a member that lost its session this way may well join again: the coordinator was lost or cut off, or it
    /// leads another generation by now.
    pub fn may_rejoin(&self) -> bool {
        matches!(
            self,
            ControlError::Lost { .. }
                | ControlError::Connect { .. }
                | ControlError::Deadline { .. }
                | ControlError::NotYet { .. }
                | ControlError::Closed
        )
    }

    /// What a gRPC status of `call` to `address` means, after `attempts` within `deadline`.
    pub(crate) fn of_status(
        call: &'static str,
        address: &str,
        status: &Status,
        tried: Tried,
    ) -> ControlError {
        let message = status.message().to_owned();
        match status.code() {
            Code::Unauthenticated => ControlError::Unauthenticated { address: address.to_owned(), message },
            Code::DeadlineExceeded | Code::Cancelled => ControlError::Deadline {
                call,
                deadline_seconds: tried.elapsed.as_secs_f64(),
                attempts: tried.attempts,
            },
            Code::Unavailable | Code::Unknown => ControlError::Connect {
                address: address.to_owned(),
                message: deepest(status),
                attempts: tried.attempts,
                seconds: tried.elapsed.as_secs_f64(),
            },
            // What the coordinator answers where another try may succeed.
            Code::Aborted => ControlError::NotYet {
                message,
                attempts: tried.attempts,
                seconds: tried.elapsed.as_secs_f64(),
            },
            _ => ControlError::Refused { call, message },
        }
    }
}

/// How hard a call was tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tried {
    pub(crate) attempts: u32,
    pub(crate) elapsed: Duration,
}

/// The innermost cause's text: transport errors wrap the one thing worth reading several times.
pub(crate) fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => cause.to_string(),
    }
}
