//! The keyed challenge on row connections: what each side says between HELLO and WELCOME (see [`polygram_handshake`]).

use std::io;

use polygram_handshake::{Handshake, LinkKey, Nonce, Proof, Side};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::block::BlockShape;
use super::codec::{FrameReader, FrameWriter, LinkError};
use super::frame::{Header, Incoming, Kind, Outgoing};
use super::message::{Message, Refusal};
use super::response::Response;

/// Name of this protocol in proofs.
const PROTOCOL: &str = "rows";

/// A shard's challenge to one connection.
#[derive(Debug)]
pub struct Challenge {
    nonce: Nonce,
    hello: Vec<u8>,
}

impl Challenge {
    /// To the worker that said `hello`, whose payload is `words`.
    ///
    /// # Errors
    /// A system without random numbers.
    pub fn to(hello: &Incoming, words: &[u32]) -> io::Result<Challenge> {
        Ok(Challenge { nonce: Nonce::random()?, hello: hello.transcript(words) })
    }

    /// What the worker is sent.
    pub fn message(&self) -> Message {
        Message::Challenge(self.nonce)
    }

    /// The shard's own proof, for a worker whose response is right; `None` for any other.
    pub fn verify(&self, key: &LinkKey, response: &Response) -> Option<Message> {
        let said = Handshake {
            protocol: PROTOCOL,
            hello: &self.hello,
            listener: self.nonce,
            dialler: response.nonce,
        };
        (said.proof(key, Side::Dialler) == response.proof)
            .then(|| Message::Vouch(said.proof(key, Side::Listener)))
    }
}

/// A worker's answer to `challenge`, after it has said `hello`, and the proof that it expects of the shard.
///
/// # Errors
/// A system without random numbers.
pub fn respond(key: &LinkKey, hello: &Outgoing, challenge: Nonce) -> io::Result<(Message, Proof)> {
    let (nonce, hello) = (Nonce::random()?, hello.transcript());
    let said = Handshake { protocol: PROTOCOL, hello: &hello, listener: challenge, dialler: nonce };
    let response = Response { nonce, proof: said.proof(key, Side::Dialler) };
    Ok((Message::Response(response), said.proof(key, Side::Listener)))
}

/// Why a worker did not get through a shard's handshake.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The connection ended.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The shard refused the worker.
    #[error("refused: {}", .0.text)]
    Refused(Refusal),
    /// The other side said something else.
    #[error("a {0:?} frame in the middle of the handshake")]
    Unexpected(Kind),
    /// Whoever listens there does not know the run's token.
    #[error(
        "it does not know the run's token: it is no shard of this run, or was started with another token file"
    )]
    Stranger,
}

/// Says `hello` and goes through the handshake, up to the shard's proof. The caller sets the deadline.
///
/// # Errors
/// A shard that refuses, or does not know the key.
pub async fn greet<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    (reader, writer): (&mut FrameReader<R>, &mut FrameWriter<W>),
    key: &LinkKey,
    (header, hello): (&Header, &Message),
    shape: BlockShape,
) -> Result<(), HandshakeError> {
    let seal = |message: &Message| {
        let (kind, pieces) = message.encode();
        Outgoing::seal(&Header { kind, ..*header }, pieces).map_err(LinkError::from)
    };
    let hello = seal(hello)?;
    writer.write(&hello).await?;
    let nonce = match answer(reader, shape).await? {
        Message::Challenge(nonce) => nonce,
        other => return Err(HandshakeError::Unexpected(other.encode().0)),
    };
    let (response, expected) = respond(key, &hello, nonce).map_err(LinkError::from)?;
    writer.write(&seal(&response)?).await?;
    match answer(reader, shape).await? {
        Message::Vouch(proof) if proof == expected => Ok(()),
        Message::Vouch(_) => Err(HandshakeError::Stranger),
        other => Err(HandshakeError::Unexpected(other.encode().0)),
    }
}

async fn answer<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    shape: BlockShape,
) -> Result<Message, HandshakeError> {
    let (incoming, payload) = reader.read().await?;
    match Message::decode(incoming.header.kind, payload, shape).map_err(LinkError::from)? {
        Message::Refused(refusal) | Message::Nack(refusal) => Err(HandshakeError::Refused(refusal)),
        message => Ok(message),
    }
}
