//! Ranks that are processes, joined by one TCP connection between every two of them, and by shared memory where both
//! are on one host.
//!
//! A rank binds a port ([`Tcp::bind`]), learns everybody's address from whoever started it, and joins
//! ([`Tcp::connect`]): it dials all lower ranks and is dialled by all higher ones. Both sides of a connection
//! state run, generation, protocol version, group and ranks before anything else is said, prove to each other that they
//! know the run's token, and refuse what does not fit, in words.
//!
//! One thread moves all bytes: sockets do not block, and sending and receiving take turns until the round is
//! complete, so no message is too large for two ranks to send each other at once. Messages to ranks of this host go
//! through [`ring`]s; their sockets then carry notices only, and the end of a rank. Between hosts, another connection of
//! each two ranks carries heartbeats ([`pulse`]), since a rank that computes for minutes says nothing else.

mod handshake;
mod inbound;
mod join;
mod joined;
mod link;
mod local_rank;
mod meet;
mod membership;
mod mesh;
mod outbound;
mod pulse;
mod ring;
mod timeout;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use polygram_domain::Rank;

use crate::collective::Collective;
use crate::error::JoinError;
use crate::group::{Group, Options};
use crate::members::Members;
use crate::split::{self, Split};

pub use link::TcpLink;
use local_rank::Home;
pub use membership::Membership;
use pulse::Pulse;

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
        let ip = bound.address.ip();
        let home = Home { membership: membership.clone(), ip, deadline, pulse: None };
        let members = Members::all(addresses.len() as u32);
        Tcp::meet(Some(bound.listener), home, members, addresses, options)
    }

    /// [`Split::split`] into a group of this kind: of the same run and generation, and formed within the deadline that
    /// this one had. Each rank listens on a new port for it, at the address at which it listens for this group or, where
    /// that was any, at one of its connections' own. A rank alone in its group has no connections.
    ///
    /// # Errors
    /// Those of [`Split::split`].
    pub fn split(&mut self, members: &[Rank], options: Options) -> Result<Tcp, JoinError> {
        let mut home = self.link().home().clone();
        // Heartbeats come over the larger group's connections.
        let options = Options { link_detection: None, ..options };
        let bound = (members.len() > 1).then(|| Tcp::bind((home.ip, 0).into()));
        let (listener, address) = match bound {
            None => (None, None),
            Some(Ok(Bound { listener, address })) => (Some(listener), Some(Ok(address))),
            Some(Err(error)) => (None, Some(Err(error))),
        };
        let addresses = split::agree(self, members, &options, address)?;
        let lower = members.iter().filter(|member| **member < home.membership.rank);
        home.membership.rank = Rank(lower.count() as u32);
        Tcp::meet(listener, home, self.seats().pick(members), &addresses, options)
    }

    /// Joins the others, if there are any, which then needs `listener` and their `addresses`.
    fn meet(
        listener: Option<TcpListener>,
        mut home: Home,
        members: Members,
        addresses: &[SocketAddr],
        options: Options,
    ) -> Result<Tcp, JoinError> {
        let rank = members.name(home.membership.rank);
        let mut joined = match listener {
            Some(listener) => join::mesh(listener, &home, &members, addresses, &options)?,
            None => vec![None],
        };
        let source = |source| JoinError::Io { rank, doing: "preparing its sockets", source };
        let sockets = || joined.iter().flatten().map(|joined| &joined.socket);
        for socket in sockets() {
            tune(socket).map_err(source)?;
        }
        home.ip = reachable(home.ip, sockets()).map_err(source)?;
        let pulses = (0..).map(Rank).zip(&mut joined).filter_map(|(seat, joined)| {
            let pulse = joined.as_mut()?.pulse.take()?;
            Some((members.name(seat), pulse))
        });
        let pulses: Vec<_> = pulses.collect();
        if let (Some(detection), false) = (options.link_detection, pulses.is_empty()) {
            home.pulse = Some(Arc::new(Pulse::start(pulses, detection).map_err(source)?));
        }
        let link = TcpLink::new(joined, home, options.failure_detection).map_err(source)?;
        Ok(Group::of_members(members, link, options))
    }
}

impl Split for Tcp {
    fn split(&mut self, members: &[Rank], options: Options) -> Result<Box<dyn Collective>, JoinError> {
        Ok(Box::new(Tcp::split(self, members, options)?))
    }
}

/// The address at which a rank that listens at `ip` is reached: of one that listens at any, that of a connection, and
/// rather one to another host, since all ranks can reach that.
fn reachable<'a>(ip: IpAddr, sockets: impl Iterator<Item = &'a TcpStream>) -> io::Result<IpAddr> {
    if !ip.is_unspecified() {
        return Ok(ip);
    }
    let mut chosen = ip;
    for socket in sockets {
        let own = socket.local_addr()?.ip().to_canonical();
        if chosen.is_unspecified() || chosen.is_loopback() {
            chosen = own;
        }
    }
    Ok(chosen)
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_rank_that_listens_anywhere_is_reached_where_it_is_connected() {
        let bound = Tcp::bind((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        let any = bound.address().ip();
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, bound.address().port())).unwrap();
        assert_eq!(reachable(any, [&socket].into_iter()).unwrap(), Ipv4Addr::LOCALHOST);
        assert_eq!(reachable(any, [].into_iter()).unwrap(), any);
        let given = IpAddr::from([10, 0, 0, 7]);
        assert_eq!(reachable(given, [&socket].into_iter()).unwrap(), given);
    }

    #[cfg(target_os = "linux")]
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
