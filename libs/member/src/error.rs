//! Failures of a membership that every role can have.

use std::io;
use std::net::SocketAddr;

use polygram_domain::control::{Abort, AbortKind};
use polygram_domain::{ConfigError, FailureKind};
use polygram_faults::FaultError;
use polygram_process::Panicked;
use polygram_process::address::AddressError;
use polygram_proto::control::ControlError;
use thiserror::Error;
use tokio::net::TcpListener;

use crate::failure::{FailureCause, FailureOrigin, MemberFailure};

/// An error of a role: it says where it comes from and what it is.
pub trait RoleError: std::error::Error + From<MemberError> + Send + Sync + 'static {
    /// The failure that is reported and decides what the member does next.
    fn failure(&self) -> MemberFailure;
}

/// Why a membership ended, whatever the role.
#[derive(Debug, Error)]
pub enum MemberError {
    /// Neither a run nor a pool was named.
    #[error("give --coordinator and the place in the run, or --pool; see --help")]
    NoPlace,
    /// The faults that a test orders are not faults.
    #[error(transparent)]
    Faults(#[from] FaultError),
    /// A listener was not bound.
    #[error("cannot listen on {address}: {source}; choose another address, or port 0 for a free port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// No address can be given to the peers.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Signals cannot be listened for.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The coordinator refused this member, or is lost.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The configuration that the coordinator sent does not resolve here.
    #[error("configuration from the coordinator: {0}")]
    Config(#[from] ConfigError),
    /// The coordinator ended the run.
    #[error("the run was aborted: {}", .0.reason)]
    RunEnded(Abort),
    /// The run resumes from its last checkpoint with another generation of members.
    #[error("the run resumes from its last checkpoint: {}", .0.reason)]
    RunRestarts(Abort),
    /// A second signal came, or the run could not be asked to stop.
    #[error(
        "ended by a signal, without a commit; steps since the last commit are done again when the run goes on"
    )]
    Signalled,
    /// A task of this process panicked: a bug.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl MemberError {
    /// Where the error comes from, and what it is.
    pub fn failure(&self) -> MemberFailure {
        let (origin, cause) = match self {
            MemberError::RunEnded(_) => (FailureOrigin::Coordinator, FailureCause::RunEnded),
            MemberError::RunRestarts(_) => (FailureOrigin::Coordinator, FailureCause::RunRestarts),
            MemberError::Control(ControlError::Recalled) => (FailureOrigin::Operator, FailureCause::RunEnded),
            MemberError::Control(error) if error.may_rejoin() => {
                (FailureOrigin::Coordinator, FailureCause::SessionLost)
            }
            MemberError::Control(_) => (FailureOrigin::Coordinator, FailureCause::Refused),
            MemberError::Signalled => (FailureOrigin::Operator, FailureCause::Fault(FailureKind::Signal)),
            MemberError::NoPlace
            | MemberError::Faults(_)
            | MemberError::Listen { .. }
            | MemberError::Address(_)
            | MemberError::Signals(_)
            | MemberError::Config(_)
            | MemberError::Panicked(_) => (FailureOrigin::Own, FailureCause::Fault(FailureKind::Program)),
        };
        MemberFailure { origin, cause, message: self.to_string() }
    }

    /// The end of a run whose coordinator told this member to exit before its work was done.
    pub fn exit_too_early() -> MemberError {
        let reason = "told to exit before the last step".into();
        MemberError::RunEnded(Abort { reason, culprit: None, kind: AbortKind::End })
    }
}

impl From<Abort> for MemberError {
    fn from(abort: Abort) -> MemberError {
        match abort.kind {
            AbortKind::End => MemberError::RunEnded(abort),
            AbortKind::Rejoin { .. } => MemberError::RunRestarts(abort),
        }
    }
}

/// A listener and the address it got.
///
/// # Errors
/// [`MemberError::Listen`] with what the system says.
pub async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), MemberError> {
    let unbound = |source| MemberError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(unbound)?;
    let bound = listener.local_addr().map_err(unbound)?;
    Ok((listener, bound))
}
