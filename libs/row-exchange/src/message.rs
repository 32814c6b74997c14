//! Messages: what a frame says, encoded to payload words and decoded strictly.

use polygram_handshake::{Nonce, Proof};

use super::block::BlockShape;
pub use super::block::RowBlock;
use super::frame::{Kind, Piece, WireError};
pub use super::greeting::{HelloBody, WelcomeBody, tables_hash};
use super::payload::malformed;
pub use super::payload::{Commit, PreparedBody, Reason, Refusal, Request, SnapshotOrder};
use super::pool::PooledWords;
pub use super::response::Response;
use super::response::{bytes_of, words_of};

/// A decoded payload. The header says which run, generation, step and cell it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// First frame of a connection.
    Hello(HelloBody),
    /// Admission.
    Welcome(WelcomeBody),
    /// No admission.
    Refused(Refusal),
    /// Declares rows and asks for them.
    Lookup(Request),
    /// Asks for rows only.
    Read(Request),
    /// Rows of a lookup.
    Rows(RowBlock),
    /// Rows of a read.
    ReadRows(RowBlock),
    /// Row gradients of a cell.
    Push(RowBlock),
    /// Asks for the step's sums.
    Prepare,
    /// The step's sums.
    Prepared(PreparedBody),
    /// Vote to apply.
    Commit(Commit),
    /// Applied; the sum of the hashes of all rows that the shard has updated.
    Committed(u64),
    /// Vote to skip; what is to be written all the same.
    Abort {
        /// As in [`Commit::snapshot`].
        snapshot: SnapshotOrder,
    },
    /// Skipped.
    Aborted,
    /// Refusal of a request.
    Nack(Refusal),
    /// So many payload bytes of rows or gradients have been taken: as many more may come.
    Credit(u32),
    /// The first frame on the path that the worker has chosen.
    Path,
    /// To be answered under the run's key.
    Challenge(Nonce),
    /// The worker's proof.
    Response(Response),
    /// The shard's proof.
    Vouch(Proof),
    /// A heartbeat.
    Heartbeat,
}

impl Message {
    /// Decodes the payload of a frame of `kind`; row blocks are of `shape`.
    pub fn decode(
        kind: Kind,
        words: impl Into<PooledWords>,
        shape: BlockShape,
    ) -> Result<Message, WireError> {
        let words: PooledWords = words.into();
        let empty = |name: &'static str, message: Message| {
            if words.is_empty() { Ok(message) } else { malformed(name, "it has a payload") }
        };
        Ok(match kind {
            Kind::Hello => Message::Hello(HelloBody::decode(&words)?),
            Kind::Welcome => Message::Welcome(WelcomeBody::decode(&words)?),
            Kind::Refused => Message::Refused(Refusal::decode(&words)?),
            Kind::Nack => Message::Nack(Refusal::decode(&words)?),
            Kind::Lookup => Message::Lookup(Request::decode(&words)?),
            Kind::Read => Message::Read(Request::decode(&words)?),
            Kind::Rows => Message::Rows(RowBlock::decode(words, shape)?),
            Kind::ReadRows => Message::ReadRows(RowBlock::decode(words, shape)?),
            Kind::Push => Message::Push(RowBlock::decode(words, shape)?),
            Kind::Prepare => empty("prepare", Message::Prepare)?,
            Kind::Prepared => Message::Prepared(PreparedBody::decode(&words)?),
            Kind::Commit => {
                let rates = words.split_first_chunk::<2>();
                let order = rates.and_then(|(rates, order)| Some((rates, SnapshotOrder::decode(order)?)));
                let Some((rates, snapshot)) = order else {
                    return malformed("commit", "it is not scale, lr and what to write");
                };
                let [scale, lr] = rates.map(f32::from_bits);
                if ![scale, lr].iter().all(|value| value.is_finite() && *value >= 0.0) {
                    return malformed("commit", format!("scale {scale} or lr {lr} is not a finite rate"));
                }
                Message::Commit(Commit { scale, lr, snapshot })
            }
            Kind::Committed => match words[..] {
                [low, high] => Message::Committed(u64::from(low) | u64::from(high) << 32),
                _ => return malformed("committed", "it is not a fingerprint of two words"),
            },
            Kind::Abort => match SnapshotOrder::decode(&words) {
                Some(snapshot) => Message::Abort { snapshot },
                None => return malformed("abort", "it does not say what to write"),
            },
            Kind::Aborted => empty("aborted", Message::Aborted)?,
            Kind::Credit => match words[..] {
                [bytes @ (1..)] => Message::Credit(bytes),
                _ => return malformed("credit", "it is not a number of bytes above 0"),
            },
            Kind::Path => empty("path", Message::Path)?,
            Kind::Challenge => match bytes_of(&words) {
                Some(nonce) => Message::Challenge(Nonce(nonce)),
                None => return malformed("challenge", format!("it has {} words", words.len())),
            },
            Kind::Response => match Response::decode(&words) {
                Some(response) => Message::Response(response),
                None => return malformed("response", format!("it has {} words", words.len())),
            },
            Kind::Vouch => match bytes_of(&words) {
                Some(proof) => Message::Vouch(Proof::from_bytes(proof)),
                None => return malformed("vouch", format!("it has {} words", words.len())),
            },
            Kind::Heartbeat => empty("heartbeat", Message::Heartbeat)?,
        })
    }

    /// The frame kind and payload of a message. Row blocks are better built from [`RowBlock::head`] and
    /// shared pieces.
    pub fn encode(&self) -> (Kind, Vec<Piece>) {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let (kind, words) = match self {
            Message::Hello(hello) => (Kind::Hello, hello.encode()),
            Message::Welcome(welcome) => (Kind::Welcome, welcome.encode()),
            Message::Refused(refusal) => (Kind::Refused, refusal.encode()),
            Message::Nack(refusal) => (Kind::Nack, refusal.encode()),
            Message::Lookup(request) => (Kind::Lookup, request.encode()),
            Message::Read(request) => (Kind::Read, request.encode()),
            Message::Rows(block) => (Kind::Rows, block.words().to_vec()),
            Message::ReadRows(block) => (Kind::ReadRows, block.words().to_vec()),
            Message::Push(block) => (Kind::Push, block.words().to_vec()),
            Message::Prepare => (Kind::Prepare, Vec::new()),
            Message::Prepared(PreparedBody { finite, total, sums }) => {
                let mut words = vec![u32::from(*finite), *total];
                for (table, bucket, sum) in sums {
                    let [low, high] = halves(sum.to_bits());
                    words.extend([table.0, bucket.0, low, high]);
                }
                (Kind::Prepared, words)
            }
            Message::Commit(Commit { scale, lr, snapshot }) => {
                (Kind::Commit, [vec![scale.to_bits(), lr.to_bits()], snapshot.encode()].concat())
            }
            Message::Committed(fingerprint) => (Kind::Committed, halves(*fingerprint).to_vec()),
            Message::Abort { snapshot } => (Kind::Abort, snapshot.encode()),
            Message::Aborted => (Kind::Aborted, Vec::new()),
            Message::Credit(bytes) => (Kind::Credit, vec![*bytes]),
            Message::Path => (Kind::Path, Vec::new()),
            Message::Challenge(nonce) => (Kind::Challenge, words_of(&nonce.0)),
            Message::Response(response) => (Kind::Response, response.encode()),
            Message::Vouch(proof) => (Kind::Vouch, words_of(proof.as_bytes())),
            Message::Heartbeat => (Kind::Heartbeat, Vec::new()),
        };
        (kind, vec![Piece::Words(words)])
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use polygram_domain::embedding::{RowType, SameHost, WireSpec};
    use polygram_domain::{BucketIndex, Rank, ShardIndex, Step, TableIndex};

    use super::*;
    use crate::same_host::{OFFER_WORDS, Offer};
    use polygram_domain::philox::{Purpose, Stream};

    const SHAPE: BlockShape = BlockShape { sites: 1, width: 2, kind: RowType::F32 };

    fn every_message() -> Vec<Message> {
        let block = |runs: &[Range<u32>]| {
            let mut words = RowBlock::head(runs);
            let rows: usize = runs.iter().map(|run| run.len()).sum();
            words.extend((0..rows * SHAPE.stride()).map(|i| (i as f32).to_bits()));
            RowBlock::decode(words.into(), SHAPE).unwrap()
        };
        let welcome = |offer| {
            let (shard, version) = (ShardIndex(1), Step(1 << 40));
            Message::Welcome(WelcomeBody { shard, shards: 3, version, window_bytes: 9, silence_ms: 8, offer })
        };
        let request = Request { offsets: vec![0, 2, 2, 5], rows: vec![3, 9, 0, 1, 4] };
        vec![
            Message::Hello(HelloBody {
                rank: Rank(1),
                workers: 4,
                tables: u64::MAX - 3,
                incarnation: u64::MAX - 4,
                connection: 2,
                connections: 3,
                wire: WireSpec { rows: RowType::F32, gradients: RowType::Bf16 },
                same_host: SameHost::Auto,
                window_bytes: 1 << 20,
                silence_ms: 3000,
            }),
            welcome(None),
            welcome(Some(Offer::decode(&std::array::from_fn::<u32, OFFER_WORDS, _>(|i| i as u32)))),
            Message::Refused(Refusal::new(Reason::Schema, "another build")),
            Message::Nack(Refusal::new(Reason::Memory, "ö".repeat(9))),
            Message::Lookup(request.clone()),
            Message::Read(request),
            Message::Rows(block(&[0..2, 5..6])),
            Message::ReadRows(block(&[])),
            Message::Push(block(std::slice::from_ref(&(7..10)))),
            Message::Prepare,
            Message::Prepared(PreparedBody {
                finite: false,
                total: 3,
                sums: vec![(TableIndex(1), BucketIndex(2), 0.5), (TableIndex(1), BucketIndex(9), 1e300)],
            }),
            Message::Commit(Commit { scale: 0.25, lr: 1e-3, snapshot: SnapshotOrder::Commit }),
            Message::Commit(Commit {
                scale: 0.25,
                lr: 1e-3,
                snapshot: SnapshotOrder::Point { after: Some(Step(1 << 40)) },
            }),
            Message::Committed(u64::MAX - 7),
            Message::Abort { snapshot: SnapshotOrder::None },
            Message::Abort { snapshot: SnapshotOrder::Point { after: None } },
            Message::Aborted,
            Message::Credit(1),
            Message::Path,
            Message::Challenge(Nonce([7; 32])),
            Message::Response(Response { nonce: Nonce([8; 32]), proof: Proof::from_bytes([9; 32]) }),
            Message::Vouch(Proof::from_bytes([10; 32])),
            Message::Heartbeat,
        ]
    }

    fn words_of(message: &Message) -> (Kind, Vec<u32>) {
        let (kind, pieces) = message.encode();
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes()).copied().collect();
        (kind, bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    #[test]
    fn messages_survive_the_trip() {
        for message in every_message() {
            let (kind, words) = words_of(&message);
            assert_eq!(Message::decode(kind, words, SHAPE).unwrap(), message);
        }
    }

    /// Truncated, lengthened and mutated payloads decode to a message or to an error, and never panic.
    #[test]
    fn garbage_never_panics() {
        let seed = 0x9e37;
        let random = Stream::new(seed, Purpose::SyntheticData);
        let mut refused = 0;
        for (which, message) in every_message().iter().enumerate() {
            let (kind, good) = words_of(message);
            for round in 0..3000u64 {
                let [a, b, c, d] = random.words(which as u64, round);
                let mut words = good.clone();
                match a % 4 {
                    0 => words.truncate(b as usize % (words.len() + 1)),
                    1 => words.extend([b; 3]),
                    _ => {}
                }
                if !words.is_empty() && a % 8 > 1 {
                    let at = c as usize % words.len();
                    words[at] = match b % 4 {
                        0 => d,
                        1 => u32::MAX,
                        2 => words[at] ^ (1 << (d % 32)),
                        _ => 0,
                    };
                }
                refused += u32::from(Message::decode(kind, words, SHAPE).is_err());
            }
        }
        assert!(refused > 10_000, "seed {seed:#x}: only {refused} were refused");
    }

    #[test]
    fn broken_rules_are_named() {
        let rule = |kind, words: &[u32]| match Message::decode(kind, words.to_vec(), SHAPE) {
            Err(WireError::Malformed { rule, .. }) => rule,
            other => panic!("{kind:?} {words:?} gave {other:?}"),
        };
        assert!(rule(Kind::Lookup, &[2, 1, 1, 5]).contains("it has 1"));
        assert!(rule(Kind::Lookup, &[u32::MAX, 1]).contains("4294967295"));
        assert!(rule(Kind::Lookup, &[2, u32::MAX, u32::MAX, 5, 6]).contains("rows"));
        assert!(rule(Kind::Lookup, &[1, 2, 6, 6]).contains("6 then 6"));
        assert!(rule(Kind::Push, &[1, 0, 3, 0]).contains("3 rows of 2 values"));
        assert!(rule(Kind::Push, &[2, 5, 1, 5, 1, 0, 0, 0, 0]).contains("after 6"));
        assert!(rule(Kind::Push, &[1, u32::MAX, 2]).contains("4294967295"));
        assert!(rule(Kind::Commit, &[f32::NAN.to_bits(), 0, 0]).contains("NaN"));
        assert!(rule(Kind::Commit, &[0, 0, 4]).contains("what to write"));
        assert!(rule(Kind::Commit, &[0, 0, 3, 1]).contains("what to write"));
        assert!(rule(Kind::Abort, &[1, 0]).contains("what to write"));
        assert!(rule(Kind::Prepared, &[1, 0, 0, 0, 0, 0]).contains("total of 0"));
    }
}
