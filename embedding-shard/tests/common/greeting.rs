//! The handshake of a connection that a test makes or accepts by itself.

use polygram_domain::embedding::RowType;
use polygram_handshake::{Handshake, Nonce, Side};
use polygram_row_exchange::block::BlockShape;
use polygram_row_exchange::codec::{FrameReader, FrameWriter};
use polygram_row_exchange::frame::{HEADER_BYTES, Header, Outgoing};
use polygram_row_exchange::handshake::{Challenge, greet};
use polygram_row_exchange::message::{HelloBody, Message};
use polygram_row_exchange::response::Response;
use tokio::net::TcpStream;

use super::cluster::{DEADLINE, key};

const NO_ROWS: BlockShape = BlockShape { sites: 1, width: 1, kind: RowType::F32 };

/// Says `hello` to a shard under the right key, up to the shard's own proof.
pub(crate) async fn admit(stream: &mut TcpStream, header: &Header, hello: &HelloBody) {
    let (read, write) = stream.split();
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write, DEADLINE));
    let hello = Message::Hello(*hello);
    greet((&mut reader, &mut writer), &key(), (header, &hello), NO_ROWS).await.unwrap();
}

/// Plays a shard that knows the key, up to its proof.
pub(crate) async fn prove(stream: &mut TcpStream, header: &Header) {
    let (read, write) = stream.split();
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write, DEADLINE));
    let (incoming, words) = reader.read().await.unwrap();
    let challenge = Challenge::to(&incoming, &words).unwrap();
    writer.write(&sealed(header, &challenge.message())).await.unwrap();
    let (incoming, words) = reader.read().await.unwrap();
    let Message::Response(response) = Message::decode(incoming.header.kind, words, NO_ROWS).unwrap() else {
        panic!("{:?} is no response", incoming.header)
    };
    let vouch = challenge.verify(&key(), &response).unwrap();
    writer.write(&sealed(header, &vouch)).await.unwrap();
}

/// The answer to a challenge of whoever knows the key and has sent `hello`, a frame as it went over the wire.
pub(crate) fn response_to(hello: &[u8], nonce: Nonce) -> Message {
    let said = [&hello[..48], &hello[HEADER_BYTES..]].concat();
    let own = Nonce([3; 32]);
    let handshake = Handshake { protocol: "rows", hello: &said, listener: nonce, dialler: own };
    Message::Response(Response { nonce: own, proof: handshake.proof(&key(), Side::Dialler) })
}

/// A whole frame.
pub(crate) fn sealed(header: &Header, message: &Message) -> Outgoing {
    let (kind, pieces) = message.encode();
    Outgoing::seal(&Header { kind, ..*header }, pieces).unwrap()
}
