//! Addresses that peers are given: one that they can reach, or a refusal that says which flag to give.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Why an address cannot be given to peers.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The coordinator's address does not resolve.
    #[error("{address} does not resolve: {source}")]
    Unresolved {
        /// As given.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// There is no route to it.
    #[error("there is no route to {peer}: {source}; say by --advertise where peers reach this process")]
    NoRoute {
        /// The coordinator.
        peer: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Peers on other machines would connect to themselves.
    #[error(
        "peers would be given {address}, which leads to their own machine, while the coordinator at {peer} is on another \
         one: give --listen an address of this machine that peers reach, or 0.0.0.0"
    )]
    Loopback {
        /// What would be given.
        address: SocketAddr,
        /// The coordinator.
        peer: SocketAddr,
    },
}

/// The address that peers are given of a listener bound to `bound`, by a member of the run whose coordinator is at
/// `coordinator` (`host:port`). An unspecified address becomes the one on the route to the coordinator.
///
/// # Errors
/// [`AddressError::Loopback`] where that address is of use on this machine only and the coordinator is on another.
pub async fn for_peers(bound: SocketAddr, coordinator: &str) -> Result<SocketAddr, AddressError> {
    let unresolved = |source| AddressError::Unresolved { address: coordinator.to_owned(), source };
    if !bound.ip().is_unspecified() && !bound.ip().is_loopback() {
        return Ok(bound);
    }
    let mut found = tokio::net::lookup_host(coordinator).await.map_err(unresolved)?;
    let peer = found
        .next()
        .ok_or_else(|| unresolved(io::Error::new(io::ErrorKind::NotFound, "no address of that name")))?;
    if bound.ip().is_unspecified() {
        let ip = route_to(peer).map_err(|source| AddressError::NoRoute { peer, source })?;
        return Ok(SocketAddr::new(ip, bound.port()));
    }
    if is_of_this_machine(peer.ip()) {
        return Ok(bound);
    }
    Err(AddressError::Loopback { address: bound, peer })
}

/// This machine's address on the route to `peer`. Nothing is sent.
fn route_to(peer: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((any_like(peer.ip()), 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// Whether the address belongs to this machine: only such a one can be bound.
pub fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

fn any_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn peers_are_given_what_they_can_reach() {
        let here = "127.0.0.1:7000";
        // An address of its own is given as it is, wherever the coordinator is.
        for own in ["192.0.2.7:5000", "[2001:db8::7]:5000"] {
            assert_eq!(for_peers(at(own), "192.0.2.1:7000").await.unwrap(), at(own));
        }
        assert_eq!(for_peers(at("127.0.0.1:5000"), here).await.unwrap(), at("127.0.0.1:5000"));
        assert_eq!(for_peers(at("0.0.0.0:5000"), here).await.unwrap(), at("127.0.0.1:5000"));
        assert_eq!(for_peers(at("[::]:5000"), "[::1]:7000").await.unwrap(), at("[::1]:5000"));
    }

    #[tokio::test]
    async fn an_address_that_leads_peers_to_themselves_is_refused() {
        // TEST-NET-1 (RFC 5737) and the documentation prefix (RFC 3849) are nobody's addresses.
        for (own, coordinator) in [
            ("127.0.0.1:5000", "192.0.2.1:7000"),
            ("[::1]:5000", "[2001:db8::1]:7000"),
            ("127.0.3.1:1", "192.0.2.1:7"),
        ] {
            let text = for_peers(at(own), coordinator).await.unwrap_err().to_string();
            assert!(text.contains(own) && text.contains(coordinator) && text.contains("--listen"), "{text}");
        }
        let text = for_peers(at("0.0.0.0:1"), "no such host:1").await.unwrap_err().to_string();
        assert!(text.contains("does not resolve"), "{text}");
    }

    #[test]
    fn own_addresses_are_told_from_others() {
        assert!(is_of_this_machine(at("127.0.0.9:1").ip()));
        assert!(!is_of_this_machine(at("192.0.2.1:1").ip()));
    }
}
