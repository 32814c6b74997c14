//! A worker's answer to a challenge, and nonces and proofs as words of frames.

use polygram_handshake::{NONCE_BYTES, Nonce, PROOF_BYTES, Proof};

/// Words of a nonce and of a proof.
const WORDS: usize = NONCE_BYTES / 4;
const _: () = assert!(NONCE_BYTES == PROOF_BYTES);

/// A worker's answer to a challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The worker's own random number.
    pub nonce: Nonce,
    /// That it knows the key.
    pub proof: Proof,
}

impl Response {
    pub(super) fn encode(&self) -> Vec<u32> {
        [words_of(&self.nonce.0), words_of(self.proof.as_bytes())].concat()
    }

    pub(super) fn decode(words: &[u32]) -> Option<Response> {
        let (nonce, proof) = words.split_at_checked(WORDS)?;
        Some(Response { nonce: Nonce(bytes_of(nonce)?), proof: Proof::from_bytes(bytes_of(proof)?) })
    }
}

pub(super) fn words_of(bytes: &[u8; 4 * WORDS]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

pub(super) fn bytes_of(words: &[u32]) -> Option<[u8; 4 * WORDS]> {
    let words: &[u32; WORDS] = words.try_into().ok()?;
    Some(std::array::from_fn(|at| words[at / 4].to_le_bytes()[at % 4]))
}
