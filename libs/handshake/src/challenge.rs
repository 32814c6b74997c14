//! The keyed challenge: BLAKE3 in keyed mode (O'Connor, Aumasson, Neves, Wilcox-O'Hearn: "BLAKE3", 2020, §5.1) over
//! everything that the two sides have said.
//!
//! ```text
//!  dialler                                          listener
//!  hello: who I am, whom I call      ────────────►
//!                                    ◄────────────  nonce
//!  nonce, proof                      ────────────►  refuses who cannot prove
//!                                    ◄────────────  proof
//! ```
//! The dialling side proves first, so that a listener computes nothing under the key for strangers.

use std::fmt;
use std::io;

use blake3::Hasher;
use rustix::rand::{GetRandomFlags, getrandom};

/// Bytes of a [`Nonce`].
pub const NONCE_BYTES: usize = 32;
/// Bytes of a [`Proof`].
pub const PROOF_BYTES: usize = 32;

/// Separates this key from every other use of the same token.
const CONTEXT: &str = "Polygram data plane, keyed challenge of row and rank connections, version 1";

/// The key of a run's data plane, derived from the run's token. Never shown by `Debug`.
#[derive(Clone, Copy)]
pub struct LinkKey([u8; 32]);

impl LinkKey {
    /// The key of the run whose token is `secret`.
    pub fn of_secret(secret: &[u8]) -> LinkKey {
        LinkKey(blake3::derive_key(CONTEXT, secret))
    }
}

impl fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkKey(…)")
    }
}

/// A random number of one side, used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub [u8; NONCE_BYTES]);

impl Nonce {
    /// A fresh one from the operating system.
    pub fn random() -> io::Result<Nonce> {
        let mut bytes = [0; NONCE_BYTES];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
        }
        Ok(Nonce(bytes))
    }
}

/// Which side proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that connected.
    Dialler = 1,
    /// The side that accepted.
    Listener = 2,
}

/// What one side proves: that it knows the key and what was said on this connection. Compared in constant time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof(blake3::Hash);

impl Proof {
    /// As it came over the wire.
    pub fn from_bytes(bytes: [u8; PROOF_BYTES]) -> Proof {
        Proof(blake3::Hash::from_bytes(bytes))
    }

    /// As it is sent.
    pub fn as_bytes(&self) -> &[u8; PROOF_BYTES] {
        self.0.as_bytes()
    }
}

/// What was said on one connection.
#[derive(Clone, Copy, Debug)]
pub struct Handshake<'a> {
    /// Name of the protocol, so that no proof of one is a proof of another.
    pub protocol: &'static str,
    /// The dialler's hello as it went over the wire: run, generation, ranks and roles are in it.
    pub hello: &'a [u8],
    /// The listener's nonce.
    pub listener: Nonce,
    /// The dialler's nonce.
    pub dialler: Nonce,
}

impl Handshake<'_> {
    /// The proof of `side` under `key`.
    pub fn proof(&self, key: &LinkKey, side: Side) -> Proof {
        let mut hasher = Hasher::new_keyed(&key.0);
        hasher.update(&[side as u8]);
        for part in [self.protocol.as_bytes(), &self.listener.0, &self.dialler.0, self.hello] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Proof(hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &[u8] = b"run demo, generation 4, worker 1";

    fn handshake() -> Handshake<'static> {
        let (listener, dialler) = (Nonce([1; NONCE_BYTES]), Nonce([2; NONCE_BYTES]));
        Handshake { protocol: "rows", hello: HELLO, listener, dialler }
    }

    #[test]
    fn a_proof_is_of_one_key_side_and_connection() {
        let key = LinkKey::of_secret(b"a secret of this test");
        let proof = handshake().proof(&key, Side::Dialler);
        assert_eq!(Proof::from_bytes(*proof.as_bytes()), proof);
        let others = [
            handshake().proof(&LinkKey::of_secret(b"a secret of this tess"), Side::Dialler),
            handshake().proof(&key, Side::Listener),
            Handshake { protocol: "ranks", ..handshake() }.proof(&key, Side::Dialler),
            Handshake { hello: &HELLO[1..], ..handshake() }.proof(&key, Side::Dialler),
            Handshake { listener: Nonce([3; NONCE_BYTES]), ..handshake() }.proof(&key, Side::Dialler),
            Handshake { dialler: Nonce([3; NONCE_BYTES]), ..handshake() }.proof(&key, Side::Dialler),
        ];
        assert!(others.iter().all(|other| *other != proof));
        let swapped =
            Handshake { listener: handshake().dialler, dialler: handshake().listener, ..handshake() };
        assert_ne!(swapped.proof(&key, Side::Dialler), proof);
    }

    #[test]
    fn nonces_differ_and_keys_are_not_shown() {
        assert_ne!(Nonce::random().unwrap(), Nonce::random().unwrap());
        assert_eq!(format!("{:?}", LinkKey::of_secret(b"x")), "LinkKey(…)");
    }
}
