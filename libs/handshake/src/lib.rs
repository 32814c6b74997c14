//! What comes before the first message on a connection of the data plane, whatever its protocol: row connections between
//! workers and shards, and connections between ranks.
//!
//! * [`LinkKey`], [`Nonce`], [`Proof`]: both sides prove that they know the run's token, without sending it.
//! * [`Waiting`]: connections that have not passed the handshake, limited in number.
//! * [`Strangers`]: who did not pass, each address logged once.
//!
//! What always holds:
//! * A proof is of one connection and one direction: it covers both nonces and everything that the dialling side said
//!   of itself. A recorded handshake proves nothing on another connection.
//! * Before a peer has passed, it costs at most [`GREETING_BYTES`] a message, for at most [`GREETING_TIMEOUT`].

mod challenge;
mod strangers;
mod waiting;

use std::time::Duration;

pub use challenge::{Handshake, LinkKey, NONCE_BYTES, Nonce, PROOF_BYTES, Proof, Side};
pub use strangers::Strangers;
pub use waiting::{Progress, Waiting};

/// The longest message that is read of a peer that has not passed the handshake.
pub const GREETING_BYTES: usize = 4 << 10;
/// A peer has this long to pass the handshake.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that may be in the middle of the handshake at once, where no more members are expected.
pub const MOST_WAITING: usize = 128;

/// Connections that may be in the middle of the handshake at once, where members make `expected` of them.
pub fn most_waiting(expected: usize) -> usize {
    expected.saturating_mul(2).max(MOST_WAITING)
}
