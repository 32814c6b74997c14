//! The words two ranks exchange before they are connected.
//!
//! ```text
//! magic u32 | body bytes u32 | body | CRC32C of the body u32
//! hello body: schema u32 | generation u64 | sender u32 | receiver u32 | world size u32 | short bytes u64 | run | group
//! reply body: refused 0, accepted 1, accepted with an offer 2 u8 | sender u32 | reason | offer, 16 u32
//! ```
//! Integers are little-endian; a text is a u16 length and UTF-8. The schema version comes first and never moves.

use polygram_domain::{Generation, Rank};
use polygram_same_host::{OFFER_WORDS, Offer};

use super::Membership;
use crate::group::Options;
use crate::members::Members;
use crate::wire::Fields;

const HELLO: u32 = u32::from_le_bytes(*b"PGh1");
const REPLY: u32 = u32::from_le_bytes(*b"PGr1");
const HEAD_BYTES: usize = 8;
const BODY_LIMIT: usize = 4096;
/// The longest run token or group name.
pub(super) const NAME_LIMIT: usize = 1024;

/// Which of the two messages is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    Hello,
    Reply,
}

impl Words {
    fn magic(self) -> u32 {
        match self {
            Words::Hello => HELLO,
            Words::Reply => REPLY,
        }
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
        if magic != self.magic() || length > BODY_LIMIT {
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

/// What the dialling rank says of itself and of the group it believes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) member: Membership,
    pub(super) receiver: Rank,
    pub(super) world_size: u32,
    pub(super) short_bytes: u64,
    pub(super) group: String,
}

impl Hello {
    pub(super) fn new(member: &Membership, receiver: Rank, world_size: u32, options: &Options) -> Hello {
        let (short_bytes, group) = (options.short_bytes as u64, options.group.clone());
        Hello { member: member.clone(), receiver, world_size, short_bytes, group }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = self.member.schema.to_le_bytes().to_vec();
        body.extend_from_slice(&self.member.generation.0.to_le_bytes());
        body.extend_from_slice(&self.member.rank.0.to_le_bytes());
        body.extend_from_slice(&self.receiver.0.to_le_bytes());
        body.extend_from_slice(&self.world_size.to_le_bytes());
        body.extend_from_slice(&self.short_bytes.to_le_bytes());
        put_text(&mut body, &self.member.run);
        put_text(&mut body, &self.group);
        Words::Hello.frame(&body)
    }

    /// Reads a complete hello sent to a member that speaks `schema`; the error is the reason to refuse it.
    pub(super) fn decode(bytes: &[u8], schema: u32) -> Result<Hello, String> {
        let mut fields = Fields { bytes: Words::Hello.body(bytes)? };
        let theirs = fields.u32()?;
        if theirs != schema {
            return Err(format!(
                "schema version {theirs} instead of {schema}; all members must be the same build"
            ));
        }
        let generation = Generation(fields.u64()?);
        let (rank, receiver) = (Rank(fields.u32()?), Rank(fields.u32()?));
        let (world_size, short_bytes) = (fields.u32()?, fields.u64()?);
        let (run, group) = (fields.text()?, fields.text()?);
        let member = Membership { run, generation, rank, schema: theirs };
        Ok(Hello { member, receiver, world_size, short_bytes, group })
    }

    /// Whether the rank that said this belongs to the group of which `own` is what this rank would say to it.
    /// The error is the reason to refuse it, in which `members` name the ranks.
    pub(super) fn check(&self, own: &Hello, members: &Members) -> Result<(), String> {
        let differs = |what: &str, theirs: String, ours: String| {
            if theirs == ours { Ok(()) } else { Err(format!("{what} {theirs} instead of {ours}")) }
        };
        let quoted = |text: &str| format!("{text:?}");
        differs("run", quoted(&self.member.run), quoted(&own.member.run))?;
        differs("group", quoted(&self.group), quoted(&own.group))?;
        differs("generation", self.member.generation.to_string(), format!("{}", own.member.generation))?;
        differs("a group of size", self.world_size.to_string(), own.world_size.to_string())?;
        differs("options with short_bytes", self.short_bytes.to_string(), own.short_bytes.to_string())?;
        let name = |seat| members.name(seat);
        differs("a call for rank", name(self.receiver).to_string(), name(own.member.rank).to_string())?;
        if self.member.rank <= own.member.rank || self.member.rank.0 >= own.world_size {
            return Err(format!(
                "rank {} has no reason to dial rank {} in a group of {}",
                name(self.member.rank),
                name(own.member.rank),
                own.world_size
            ));
        }
        Ok(())
    }
}

/// What the dialled rank answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) sender: Rank,
    /// Accepted, perhaps with an offer to share memory, or the reason for refusing.
    pub(super) verdict: Result<Option<Offer>, String>,
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (code, reason, offer) = match &self.verdict {
            Err(reason) => (0, reason.as_str(), None),
            Ok(offer) => (1 + u8::from(offer.is_some()), "", *offer),
        };
        let mut body = vec![code];
        body.extend_from_slice(&self.sender.0.to_le_bytes());
        put_text(&mut body, reason);
        body.extend(offer.iter().flat_map(Offer::encode).flat_map(u32::to_le_bytes));
        Words::Reply.frame(&body)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Reply, String> {
        let mut fields = Fields { bytes: Words::Reply.body(bytes)? };
        let (code, sender) = (fields.u8()?, Rank(fields.u32()?));
        let reason = fields.text()?;
        let verdict = match code {
            1 => Ok(None),
            2 => {
                let mut words = [0; OFFER_WORDS];
                for word in &mut words {
                    *word = fields.u32()?;
                }
                Ok(Some(Offer::decode(&words)))
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

    fn hello() -> Hello {
        let options = Options::new("data-parallel", Duration::from_secs(1));
        Hello::new(&Membership::new("demo", Generation(4), Rank(2)), Rank(1), 4, &options)
    }

    #[test]
    fn greetings_read_back() {
        let bytes = hello().encode();
        assert_eq!(Words::Hello.missing(&bytes).unwrap(), 0);
        assert_eq!(Words::Hello.missing(&bytes[..3]).unwrap(), 5);
        assert_eq!(Words::Hello.missing(&bytes[..20]).unwrap(), bytes.len() - 20);
        assert_eq!(Hello::decode(&bytes, hello().member.schema).unwrap(), hello());
        let offer = Offer::decode(&std::array::from_fn(|index| index as u32));
        for verdict in [Ok(None), Ok(Some(offer)), Err("no".to_string())] {
            let reply = Reply { sender: Rank(7), verdict };
            assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
        }
    }

    #[test]
    fn strangers_are_told_why() {
        let own =
            Hello { member: Membership { rank: Rank(1), ..hello().member }, receiver: Rank(2), ..hello() };
        let members = Members::all(4);
        hello().check(&own, &members).unwrap();
        let refused = |change: fn(&mut Hello)| {
            let mut theirs = hello();
            change(&mut theirs);
            theirs.check(&own, &Members::all(4)).unwrap_err()
        };
        assert_eq!(refused(|hello| hello.member.run = "x".into()), "run \"x\" instead of \"demo\"");
        assert_eq!(refused(|hello| hello.member.generation.0 = 3), "generation 3 instead of 4");
        assert_eq!(refused(|hello| hello.world_size = 8), "a group of size 8 instead of 4");
        assert_eq!(refused(|hello| hello.receiver = Rank(0)), "a call for rank 0 instead of 1");
        assert!(refused(|hello| hello.group = "ep".into()).contains("group \"ep\""));
        assert!(refused(|hello| hello.short_bytes = 1).contains("short_bytes"));
        for rank in [0, 1, 4] {
            let mut theirs = hello();
            theirs.member.rank = Rank(rank);
            assert!(theirs.check(&own, &members).unwrap_err().contains("no reason"), "rank {rank}");
        }
        assert!(Hello::decode(&hello().encode(), 77).unwrap_err().contains("instead of 77"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for words in [Words::Hello, Words::Reply] {
                let _ = words.missing(&bytes);
                let _ = Hello::decode(&words.frame(&bytes), 1);
                let _ = Reply::decode(&words.frame(&bytes));
                let _ = Hello::decode(&bytes, 1);
            }
        }
    }
}
