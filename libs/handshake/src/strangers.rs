//! Peers that did not pass the handshake, for the log.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

/// Addresses that are remembered at most; further ones are not logged.
const ADDRESSES: usize = 64;

/// Logs each address once, so that a peer that tries again and again does not fill the log.
#[derive(Debug, Default)]
pub struct Strangers {
    seen: Mutex<BTreeSet<IpAddr>>,
}

impl Strangers {
    /// A peer at `from` did not pass, for this reason. Answers whether it was logged as a warning.
    pub fn note(&self, from: SocketAddr, reason: &dyn Display) -> bool {
        let is_new = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.len() < ADDRESSES && seen.insert(from.ip().to_canonical())
        };
        match is_new {
            true => tracing::warn!(
                %from,
                %reason,
                "refused a connection that did not prove that it belongs to the run; further ones from this address are \
                 not logged"
            ),
            false => tracing::debug!(%from, %reason, "refused a connection again"),
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_logged_once_and_their_number_is_bounded() {
        let strangers = Strangers::default();
        let at = |host: u8, port| SocketAddr::from(([127, 0, 0, host], port));
        assert!(strangers.note(at(1, 7), &"silent"));
        assert!(!strangers.note(at(1, 8), &"silent"));
        let logged = (0..255).filter(|host| strangers.note(at(*host, 9), &"silent")).count();
        assert_eq!(logged, ADDRESSES - 1);
    }
}
