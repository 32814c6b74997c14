//! Ranks that are processes, joined by one TCP connection between every two of them, and by shared memory where both
//! are on one host.
//!
//! A rank binds a port ([`Tcp::bind`]), learns everybody's address from whoever started it, and joins
//! ([`Tcp::connect`]): it dials all lower ranks and is dialled by all higher ones. Both sides of a connection
//! state run, generation, schema version, group and ranks before anything else is said, and refuse what does not
//! fit, in words.
//!
//! One thread moves all bytes: sockets do not block, and sending and receiving take turns until the round is
//! complete, so no message is too large for two ranks to send each other at once. Messages to ranks of this host go
//! through [`ring`]s; their sockets then carry notices only, and the end of a rank.

mod handshake;
mod inbound;
mod join;
mod link;
mod meet;
mod outbound;
mod ring;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use polygram_domain::{Generation, Rank, SCHEMA_VERSION};

use crate::error::JoinError;
use crate::group::{Group, Options};

pub use link::TcpLink;

/// A rank of a group of processes.
pub type Tcp = Group<TcpLink>;

/// A port to which the group's higher ranks will connect.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// The address to give to the other ranks.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Who a rank is, as its peers check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The run: its name, or any token that tells it from others.
    pub run: String,
    /// The membership's fencing number; all ranks have the same.
    pub generation: Generation,
    /// This rank.
    pub rank: Rank,
    /// Version of the wire format.
    pub schema: u32,
}

impl Membership {
    /// `rank` of `run` in `generation`, speaking this build's wire format.
    pub fn new(run: impl Into<String>, generation: Generation, rank: Rank) -> Membership {
        Membership { run: run.into(), generation, rank, schema: SCHEMA_VERSION }
    }
}

impl Group<TcpLink> {
    /// Binds a listening port; port 0 lets the system choose.
    pub fn bind(address: SocketAddr) -> io::Result<Bound> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        Ok(Bound { listener, address })
    }

    /// Joins the group whose ranks listen at `addresses`, by rank, and returns when this rank is connected to all
    /// others, or with an error after `deadline`.
    ///
    /// All ranks give the same addresses (a rank's own is not used) and the same options.
    pub fn connect(
        bound: Bound,
        membership: &Membership,
        addresses: &[SocketAddr],
        options: Options,
        deadline: Duration,
    ) -> Result<Tcp, JoinError> {
        let joined = join::mesh(bound.listener, membership, addresses, &options, deadline)?;
        let source = |source| JoinError::Io { rank: membership.rank, doing: "preparing its sockets", source };
        for joined in joined.iter().flatten() {
            tune(&joined.socket).map_err(source)?;
        }
        let link = TcpLink::new(joined, membership, options.failure_detection).map_err(source)?;
        Ok(Group::over(link, options))
    }
}

/// No delay, no blocking, and buffers that the system grows with the traffic (a fixed size would stop it from
/// growing them further). On connections inside one host a congestion control that does not pace (a host whose
/// default is BBR would slow loopback down by a third or more).
fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    let (own, peer) = (socket.local_addr()?.ip(), socket.peer_addr()?.ip());
    if own == peer || peer.is_loopback() {
        plain_congestion_control(socket);
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn plain_congestion_control(socket: &TcpStream) {
    if let Err(error) = rustix::net::sockopt::set_tcp_congestion(socket, "reno") {
        tracing::debug!(%error, "loopback keeps the system's congestion control");
    }
}

#[cfg(not(target_os = "linux"))]
fn plain_congestion_control(_socket: &TcpStream) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn loopback_is_not_paced() {
        let bound = Tcp::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let socket = TcpStream::connect(bound.address()).unwrap();
        tune(&socket).unwrap();
        assert!(socket.nodelay().unwrap());
        let available = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
        if available.is_ok_and(|names| names.split_whitespace().any(|name| name == "reno")) {
            assert_eq!(rustix::net::sockopt::tcp_congestion(&socket).unwrap(), "reno");
        }
    }
}
