//! What can go wrong between a reader and a shard.

use tonic::{Code, Status};

use crate::control::Malformed;

/// Why a read did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Nobody answers there.
    #[error("cannot reach a shard at {address}: {message}")]
    Connect {
        /// `host:port`.
        address: String,
        /// The transport's words.
        message: String,
    },
    /// The token is missing or not the run's.
    #[error("the shard at {address} does not accept the token: {message}")]
    Unauthenticated {
        /// `host:port`.
        address: String,
        /// Its reason.
        message: String,
    },
    /// The request makes no sense to this shard; another might understand it.
    #[error("the shard refused {call}: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// Its reason.
        message: String,
    },
    /// It does not serve now; trying again later may help.
    #[error("the shard at {address} does not serve {call} now: {message}")]
    Unavailable {
        /// `host:port`.
        address: String,
        /// The call.
        call: &'static str,
        /// Its reason.
        message: String,
    },
    /// No answer in time.
    #[error("the shard at {address} did not answer {call} within {deadline_seconds:.0} s")]
    Deadline {
        /// `host:port`.
        address: String,
        /// The call.
        call: &'static str,
        /// Time given.
        deadline_seconds: f64,
    },
    /// A message that does not mean anything.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl ReadError {
    pub(crate) fn of_status(
        call: &'static str,
        address: &str,
        status: &Status,
        deadline_seconds: f64,
    ) -> ReadError {
        let (address, message) = (address.to_owned(), status.message().to_owned());
        match status.code() {
            Code::Unauthenticated => ReadError::Unauthenticated { address, message },
            Code::DeadlineExceeded | Code::Cancelled => {
                ReadError::Deadline { address, call, deadline_seconds }
            }
            Code::Unavailable | Code::Unknown | Code::ResourceExhausted | Code::Aborted => {
                ReadError::Unavailable { address, call, message }
            }
            _ => ReadError::Refused { call, message },
        }
    }
}
