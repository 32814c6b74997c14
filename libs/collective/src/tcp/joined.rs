//! A connection between two ranks that have found each other.

use std::net::TcpStream;

use super::meet::Ends;

/// A connection to another rank, and what may go with it: rings, or a connection for heartbeats.
pub(super) struct Joined {
    pub(super) socket: TcpStream,
    pub(super) ends: Option<Ends>,
    pub(super) pulse: Option<TcpStream>,
}
