//! The words two ranks exchange before they are connected.
//!
//! ```text
//! magic u32 | body bytes u32 | body | CRC32C of the body u32
//! hello body: version u32 | generation u64 | sender u32 | receiver u32 | world size u32 | short bytes u64 |
//!             link detection ms u64, 0: none | purpose: messages 0, pulse 1 u8 | run | group
//! challenge body: nonce, 32 bytes
//! response body: nonce, 32 bytes | proof, 32 bytes
//! reply body: refused 0, accepted 1, accepted with an offer 2 u8 | sender u32 | reason | proof, 32 bytes, and offer,
//!             16 u32, where accepted
//! ```
//! Hello, challenge, response, reply: both sides prove that they know the run's token (see [`polygram_handshake`]).
//! Integers are little-endian; a text is a u16 length and UTF-8. The version comes first and never moves.

use std::io;

use polygram_domain::{Generation, Rank};
use polygram_handshake::{GREETING_BYTES, Handshake, LinkKey, NONCE_BYTES, Nonce, PROOF_BYTES, Proof, Side};
use polygram_same_host::{OFFER_WORDS, Offer};

use super::membership::Membership;
use crate::group::Options;
use crate::members::Members;
use crate::wire::Fields;

const HELLO: u32 = u32::from_le_bytes(*b"PGh1");
const CHALLENGE: u32 = u32::from_le_bytes(*b"PGc1");
const RESPONSE: u32 = u32::from_le_bytes(*b"PGp1");
const REPLY: u32 = u32::from_le_bytes(*b"PGr1");
const HEAD_BYTES: usize = 8;
/// Name of this protocol in proofs.
const PROTOCOL: &str = "ranks";
/// The longest run token or group name.
pub(super) const NAME_LIMIT: usize = 1024;

/// Which of the messages is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    Hello,
    Challenge,
    Response,
    Reply,
    /// Of a listener that has been greeted: a challenge, or a reply that refuses.
    Answer,
}

impl Words {
    fn magic(self) -> u32 {
        match self {
            Words::Hello => HELLO,
            Words::Challenge | Words::Answer => CHALLENGE,
            Words::Response => RESPONSE,
            Words::Reply => REPLY,
        }
    }

    fn is(self, magic: u32) -> bool {
        magic == self.magic() || self == Words::Answer && magic == REPLY
    }

    fn frame(self, body: &[u8]) -> Vec<u8> {
        let mut bytes = self.magic().to_le_bytes().to_vec();
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
        bytes
    }

    /// How many more bytes are known to belong to the message that begins with `bytes`; 0 when it is complete.
    pub(super) fn missing(self, bytes: &[u8]) -> Result<usize, String> {
        let Some((head, _)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(HEAD_BYTES - bytes.len());
        };
        let mut fields = Fields { bytes: head };
        let (magic, length) = (fields.u32()?, fields.u32()? as usize);
        if !self.is(magic) || length > GREETING_BYTES {
            return Err("the other side does not speak this protocol".to_string());
        }
        Ok((HEAD_BYTES + length + 4).saturating_sub(bytes.len()))
    }

    /// The body of a complete message.
    fn body(self, bytes: &[u8]) -> Result<&[u8], String> {
        let rest = bytes.get(HEAD_BYTES..).unwrap_or_default();
        let (body, sum) = rest.split_last_chunk::<4>().ok_or("a greeting is cut short")?;
        if u32::from_le_bytes(*sum) == crc32c::crc32c(body) {
            Ok(body)
        } else {
            Err("a greeting's checksum does not fit".to_string())
        }
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(NAME_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    bytes.extend_from_slice(&(end as u16).to_le_bytes());
    bytes.extend_from_slice(&text.as_bytes()[..end]);
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Messages of calls.
    Messages,
    /// Heartbeats.
    Pulse,
}

/// What the dialling rank says of itself and of the group it believes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) run: String,
    pub(super) generation: Generation,
    pub(super) sender: Rank,
    pub(super) version: u32,
    pub(super) receiver: Rank,
    pub(super) world_size: u32,
    pub(super) short_bytes: u64,
    pub(super) detection_ms: u64,
    pub(super) purpose: Purpose,
    pub(super) group: String,
}

impl Hello {
    pub(super) fn new(member: &Membership, receiver: Rank, world_size: u32, options: &Options) -> Hello {
        let detection = options.link_detection.unwrap_or_default();
        Hello {
            run: member.run.clone(),
            generation: member.generation,
            sender: member.rank,
            version: member.version,
            receiver,
            world_size,
            short_bytes: options.short_bytes as u64,
            detection_ms: u64::try_from(detection.as_millis()).unwrap_or(u64::MAX),
            purpose: Purpose::Messages,
            group: options.group.clone(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = self.version.to_le_bytes().to_vec();
        body.extend_from_slice(&self.generation.0.to_le_bytes());
        body.extend_from_slice(&self.sender.0.to_le_bytes());
        body.extend_from_slice(&self.receiver.0.to_le_bytes());
        body.extend_from_slice(&self.world_size.to_le_bytes());
        body.extend_from_slice(&self.short_bytes.to_le_bytes());
        body.extend_from_slice(&self.detection_ms.to_le_bytes());
        body.push(u8::from(self.purpose == Purpose::Pulse));
        put_text(&mut body, &self.run);
        put_text(&mut body, &self.group);
        Words::Hello.frame(&body)
    }

    /// Reads a complete hello sent to a member that speaks `version`; the error is the reason to refuse it.
    pub(super) fn decode(bytes: &[u8], version: u32) -> Result<Hello, String> {
        let mut fields = Fields { bytes: Words::Hello.body(bytes)? };
        let theirs = fields.u32()?;
        if theirs != version {
            return Err(format!(
                "protocol version {theirs} instead of {version}; all members must be the same build"
            ));
        }
        let generation = Generation(fields.u64()?);
        let (sender, receiver) = (Rank(fields.u32()?), Rank(fields.u32()?));
        let (world_size, short_bytes, detection_ms) = (fields.u32()?, fields.u64()?, fields.u64()?);
        let purpose = match fields.u8()? {
            0 => Purpose::Messages,
            1 => Purpose::Pulse,
            other => return Err(format!("unknown purpose {other} of a connection")),
        };
        let (run, group) = (fields.text()?, fields.text()?);
        let version = theirs;
        Ok(Hello {
            run,
            generation,
            sender,
            version,
            receiver,
            world_size,
            short_bytes,
            detection_ms,
            purpose,
            group,
        })
    }

    /// Whether the rank that said this belongs to the group of which `own` is what this rank would say to it.
    /// The error is the reason to refuse it, in which `members` name the ranks.
    pub(super) fn check(&self, own: &Hello, members: &Members) -> Result<(), String> {
        let differs = |what: &str, theirs: String, ours: String| {
            if theirs == ours { Ok(()) } else { Err(format!("{what} {theirs} instead of {ours}")) }
        };
        let quoted = |text: &str| format!("{text:?}");
        differs("run", quoted(&self.run), quoted(&own.run))?;
        differs("group", quoted(&self.group), quoted(&own.group))?;
        differs("generation", self.generation.to_string(), own.generation.to_string())?;
        differs("a group of size", self.world_size.to_string(), own.world_size.to_string())?;
        differs("options with short_bytes", self.short_bytes.to_string(), own.short_bytes.to_string())?;
        let milliseconds = |value: u64| value.to_string();
        differs(
            "options with a link detection in ms of",
            milliseconds(self.detection_ms),
            milliseconds(own.detection_ms),
        )?;
        let name = |seat| members.name(seat);
        differs("a call for rank", name(self.receiver).to_string(), name(own.sender).to_string())?;
        if self.sender <= own.sender || self.sender.0 >= own.world_size {
            return Err(format!(
                "rank {} has no reason to dial rank {} in a group of {}",
                name(self.sender),
                name(own.sender),
                own.world_size
            ));
        }
        Ok(())
    }
}

/// The listener's challenge to whoever has said a hello.
#[derive(Clone, Debug)]
pub(super) struct Challenge {
    nonce: Nonce,
    /// The hello's bytes.
    hello: Vec<u8>,
}

impl Challenge {
    /// To the sender of `hello`.
    pub(super) fn to(hello: Vec<u8>) -> io::Result<Challenge> {
        Ok(Challenge { nonce: Nonce::random()?, hello })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        Words::Challenge.frame(&self.nonce.0)
    }

    /// The listener's own proof, if the complete response `bytes` is right. The error is the reason to refuse it.
    pub(super) fn verify(&self, key: &LinkKey, bytes: &[u8]) -> Result<Proof, String> {
        let mut fields = Fields { bytes: Words::Response.body(bytes)? };
        let (dialler, proof) = (Nonce(fields.take()?), Proof::from_bytes(fields.take()?));
        let said = Handshake { protocol: PROTOCOL, hello: &self.hello, listener: self.nonce, dialler };
        if said.proof(key, Side::Dialler) == proof {
            Ok(said.proof(key, Side::Listener))
        } else {
            Err("it does not know the run's token: give every member the token file of this run".to_string())
        }
    }
}

/// Answers the complete challenge `bytes` to `hello`: what to send, and the proof that is expected in turn.
pub(super) fn respond(key: &LinkKey, hello: &[u8], bytes: &[u8]) -> Result<(Vec<u8>, Proof), String> {
    let mut fields = Fields { bytes: Words::Challenge.body(bytes)? };
    let listener = Nonce(fields.take()?);
    let dialler = Nonce::random().map_err(|error| error.to_string())?;
    let said = Handshake { protocol: PROTOCOL, hello, listener, dialler };
    let mut body = [0; NONCE_BYTES + PROOF_BYTES];
    body[..NONCE_BYTES].copy_from_slice(&dialler.0);
    body[NONCE_BYTES..].copy_from_slice(said.proof(key, Side::Dialler).as_bytes());
    Ok((Words::Response.frame(&body), said.proof(key, Side::Listener)))
}

/// Whether a complete answer is a reply already.
pub(super) fn is_reply(bytes: &[u8]) -> bool {
    bytes.starts_with(&REPLY.to_le_bytes())
}

/// What the dialled rank answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) sender: Rank,
    /// Accepted, with the listener's proof and perhaps an offer to share memory, or the reason for refusing.
    pub(super) verdict: Result<(Proof, Option<Offer>), String>,
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (code, reason) = match &self.verdict {
            Err(reason) => (0, reason.as_str()),
            Ok((_, offer)) => (1 + u8::from(offer.is_some()), ""),
        };
        let mut body = vec![code];
        body.extend_from_slice(&self.sender.0.to_le_bytes());
        put_text(&mut body, reason);
        if let Ok((proof, offer)) = &self.verdict {
            body.extend_from_slice(proof.as_bytes());
            body.extend(offer.iter().flat_map(Offer::encode).flat_map(u32::to_le_bytes));
        }
        Words::Reply.frame(&body)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Reply, String> {
        let mut fields = Fields { bytes: Words::Reply.body(bytes)? };
        let (code, sender) = (fields.u8()?, Rank(fields.u32()?));
        let reason = fields.text()?;
        let verdict = match code {
            1 => Ok((Proof::from_bytes(fields.take()?), None)),
            2 => {
                let proof = Proof::from_bytes(fields.take()?);
                let mut words = [0; OFFER_WORDS];
                for word in &mut words {
                    *word = fields.u32()?;
                }
                Ok((proof, Some(Offer::decode(&words))))
            }
            _ => Err(reason),
        };
        Ok(Reply { sender, verdict })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn key() -> LinkKey {
        LinkKey::of_secret(b"a secret of these tests")
    }

    fn hello() -> Hello {
        let options = Options::new("data-parallel", Duration::from_secs(1));
        Hello::new(&Membership::new("demo", Generation(4), Rank(2), key()), Rank(1), 4, &options)
    }

    #[test]
    fn greetings_read_back() {
        let bytes = hello().encode();
        assert_eq!(Words::Hello.missing(&bytes).unwrap(), 0);
        assert_eq!(Words::Hello.missing(&bytes[..3]).unwrap(), 5);
        assert_eq!(Words::Hello.missing(&bytes[..20]).unwrap(), bytes.len() - 20);
        assert_eq!(Hello::decode(&bytes, hello().version).unwrap(), hello());
        let offer = Offer::decode(&std::array::from_fn(|index| index as u32));
        let proof = Proof::from_bytes([7; PROOF_BYTES]);
        for verdict in [Ok((proof, None)), Ok((proof, Some(offer))), Err("no".to_string())] {
            let reply = Reply { sender: Rank(7), verdict };
            assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
        }
    }

    #[test]
    fn only_the_key_answers_a_challenge() {
        let bytes = hello().encode();
        let challenge = Challenge::to(bytes.clone()).unwrap();
        let words = challenge.encode();
        assert_eq!(Words::Answer.missing(&words).unwrap(), 0);
        assert!(!is_reply(&words) && Words::Reply.missing(&words).is_err());
        let (response, expected) = respond(&key(), &bytes, &words).unwrap();
        assert_eq!(challenge.verify(&key(), &response).unwrap(), expected);
        let other = LinkKey::of_secret(b"another secret of these tests");
        assert!(challenge.verify(&other, &response).unwrap_err().contains("token"));
        // Recorded, it proves nothing on another connection, nor of another hello.
        assert!(Challenge::to(bytes.clone()).unwrap().verify(&key(), &response).is_err());
        let lie = Hello { sender: Rank(3), ..hello() }.encode();
        assert!(Challenge { hello: lie, ..challenge }.verify(&key(), &response).is_err());
    }

    #[test]
    fn strangers_are_told_why() {
        let own = Hello { sender: Rank(1), receiver: Rank(2), ..hello() };
        let members = Members::all(4);
        hello().check(&own, &members).unwrap();
        let refused = |change: fn(&mut Hello)| {
            let mut theirs = hello();
            change(&mut theirs);
            theirs.check(&own, &Members::all(4)).unwrap_err()
        };
        assert_eq!(refused(|hello| hello.run = "x".into()), "run \"x\" instead of \"demo\"");
        assert_eq!(refused(|hello| hello.generation.0 = 3), "generation 3 instead of 4");
        assert_eq!(refused(|hello| hello.world_size = 8), "a group of size 8 instead of 4");
        assert_eq!(refused(|hello| hello.receiver = Rank(0)), "a call for rank 0 instead of 1");
        assert!(refused(|hello| hello.group = "ep".into()).contains("group \"ep\""));
        assert!(refused(|hello| hello.short_bytes = 1).contains("short_bytes"));
        for rank in [0, 1, 4] {
            let mut theirs = hello();
            theirs.sender = Rank(rank);
            assert!(theirs.check(&own, &members).unwrap_err().contains("no reason"), "rank {rank}");
        }
        assert!(Hello::decode(&hello().encode(), 77).unwrap_err().contains("instead of 77"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let challenge = Challenge { nonce: Nonce([1; NONCE_BYTES]), hello: bytes.clone() };
            for words in [Words::Hello, Words::Challenge, Words::Response, Words::Reply, Words::Answer] {
                let _ = words.missing(&bytes);
                let _ = challenge.verify(&key(), &words.frame(&bytes));
                let _ = respond(&key(), &bytes, &words.frame(&bytes));
                let _ = Hello::decode(&words.frame(&bytes), 1);
                let _ = Reply::decode(&words.frame(&bytes));
                let _ = Hello::decode(&bytes, 1);
            }
        }
    }
}
