//! Payloads of the frames: what each message carries, encoded to words and decoded with every rule checked.
//!
//! Legend: C = tables per site, n = rows of one message, w = values per row. A *position* is a row's place in the
//! request that a shard received: 0..n over its site tables in order.

use std::ops::Range;

use polygram_domain::{BucketIndex, Rank, ShardIndex, Step, TableIndex, TableSet};

use super::frame::{Kind, Piece, WireError, fnv1a};

fn malformed<T>(message: &'static str, rule: impl Into<String>) -> Result<T, WireError> {
    Err(WireError::Malformed { message, rule: rule.into() })
}

/// Hash of the tables' sizes, so that a worker and a shard of different models refuse each other.
pub fn tables_hash(tables: &TableSet) -> u64 {
    let mut words = vec![tables.tables_per_site()];
    for table in tables.iter() {
        words.extend([table.index.0, table.site_table, table.rows, table.width]);
    }
    fnv1a(bytemuck::cast_slice(&words))
}

/// Who a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloBody {
    /// The worker.
    pub rank: Rank,
    /// Workers in the run.
    pub workers: u32,
    /// [`tables_hash`] of its model.
    pub tables: u64,
}

/// Who a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WelcomeBody {
    /// The shard.
    pub shard: ShardIndex,
    /// Shards in the run.
    pub shards: u32,
    /// Its version: updates in its rows.
    pub version: Step,
}

/// Rows that a cell asks of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bounds of each site table's rows in `rows` (C + 1).
    pub offsets: Vec<usize>,
    /// Row ids, strictly ascending within each site table.
    pub rows: Vec<u32>,
}

impl Request {
    /// Rows of site table `table`.
    pub fn rows_of(&self, table: usize) -> &[u32] {
        &self.rows[self.offsets[table]..self.offsets[table + 1]]
    }

    fn decode(words: Vec<u32>) -> Result<Request, WireError> {
        const NAME: &str = "lookup";
        let Some((&tables, rest)) = words.split_first() else { return malformed(NAME, "it is empty") };
        let Some((counts, rows)) = rest.split_at_checked(tables as usize) else {
            return malformed(NAME, format!("it ends within the counts of {tables} tables"));
        };
        let mut offsets = vec![0usize];
        let mut total = 0u64;
        for &count in counts {
            total += u64::from(count);
            if total > rows.len() as u64 {
                break;
            }
            offsets.push(total as usize);
        }
        if total != rows.len() as u64 {
            return malformed(NAME, format!("its counts give at least {total} rows, it has {}", rows.len()));
        }
        let request = Request { offsets, rows: rows.to_vec() };
        for table in 0..tables as usize {
            if let Some(pair) = request.rows_of(table).windows(2).find(|pair| pair[0] >= pair[1]) {
                let (a, b) = (pair[0], pair[1]);
                return malformed(NAME, format!("rows of table {table} are not ascending: {a} then {b}"));
            }
        }
        Ok(request)
    }
}

/// Values of some positions of a request: `[sites, n, w]`, row-major, behind runs of positions.
#[derive(Clone, Debug, PartialEq)]
pub struct RowBlock {
    runs: Vec<Range<u32>>,
    rows: usize,
    words: Vec<u32>,
    values_at: usize,
}

impl RowBlock {
    /// Runs of positions, ascending and apart.
    pub fn runs(&self) -> &[Range<u32>] {
        &self.runs
    }

    /// Positions in all runs (n).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values `[sites, n, w]`.
    pub fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.words[self.values_at..])
    }

    /// The words before the values: how many runs, then first and count of each.
    pub fn head(runs: &[Range<u32>]) -> Vec<u32> {
        let mut words = Vec::with_capacity(1 + 2 * runs.len());
        words.push(runs.len() as u32);
        words.extend(runs.iter().flat_map(|run| [run.start, run.end - run.start]));
        words
    }

    fn decode(words: Vec<u32>, stride: usize) -> Result<RowBlock, WireError> {
        const NAME: &str = "rows";
        let Some((&count, rest)) = words.split_first() else { return malformed(NAME, "it is empty") };
        let Some(head) = (count as usize).checked_mul(2).and_then(|words| rest.get(..words)) else {
            return malformed(NAME, format!("it ends within its {count} runs"));
        };
        let mut runs = Vec::with_capacity(count as usize);
        let (mut rows, mut end) = (0u64, 0u32);
        for pair in head.chunks_exact(2) {
            let (first, length) = (pair[0], pair[1]);
            let Some(after) = first.checked_add(length).filter(|_| length > 0 && first >= end) else {
                return malformed(NAME, format!("run {first}+{length} is empty or not after {end}"));
            };
            runs.push(first..after);
            rows += u64::from(length);
            end = after;
        }
        let values_at = 1 + head.len();
        let values = (words.len() - values_at) as u64;
        if rows.checked_mul(stride as u64) != Some(values) {
            return malformed(NAME, format!("{rows} rows of {stride} values do not make {values} values"));
        }
        Ok(RowBlock { runs, rows: rows as usize, words, values_at })
    }
}

/// A part of a shard's answer to PREPARE.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedBody {
    /// Whether every gradient sum of the shard is finite.
    pub finite: bool,
    /// Sums of squares in all parts.
    pub total: u32,
    /// Sums of squares of this part, ascending by (table, bucket).
    pub sums: Vec<(TableIndex, BucketIndex, f64)>,
}

impl PreparedBody {
    /// Sums of squares in one frame at most.
    pub const SUMS_PER_PART: usize = 1 << 18;

    fn decode(words: &[u32]) -> Result<PreparedBody, WireError> {
        const NAME: &str = "prepared";
        let [finite @ (0 | 1), total, entries @ ..] = words else {
            return malformed(NAME, "its head is short or its flag is not 0 or 1");
        };
        let (sums, rest) = entries.as_chunks::<4>();
        if !rest.is_empty() || sums.len() as u64 > u64::from(*total) {
            let found = entries.len();
            return malformed(NAME, format!("{found} words do not make sums of a total of {total}"));
        }
        let sum = |&[table, bucket, low, high]: &[u32; 4]| {
            let bits = u64::from(low) | (u64::from(high) << 32);
            (TableIndex(table), BucketIndex(bucket), f64::from_bits(bits))
        };
        Ok(PreparedBody { finite: *finite == 1, total: *total, sums: sums.iter().map(sum).collect() })
    }
}

/// How a step is applied; all workers must send the same bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Commit {
    /// Clip scale of the summed row gradients.
    pub scale: f32,
    /// Learning rate of the tables at this step.
    pub lr: f32,
    /// Whether the shards must write their rows, as they are after this step, to the run's store.
    pub snapshot: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// The frame is damaged or breaks a rule of its message.
    Malformed = 1,
    /// The peer is built with another schema.
    Schema = 2,
    /// Another run, or another model.
    WrongRun = 3,
    /// Another generation of the membership.
    Generation = 4,
    /// The step is committed already, too far ahead, or not ready for this request.
    Step = 5,
    /// It contradicts what was said before.
    Conflict = 6,
    /// Workers disagree on a commit.
    Disagreement = 7,
    /// The memory ceiling would be passed.
    Memory = 8,
    /// The shard failed.
    Failed = 9,
}

impl Reason {
    fn of(code: u32) -> Option<Reason> {
        use Reason::*;
        [Malformed, Schema, WrongRun, Generation, Step, Conflict, Disagreement, Memory, Failed]
            .into_iter()
            .find(|reason| *reason as u32 == code)
    }
}

/// A refusal: a reason that a program can act on, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind.
    pub reason: Reason,
    /// What happened, with values.
    pub text: String,
}

impl Refusal {
    /// A refusal of `reason` that says `text`.
    pub fn new(reason: Reason, text: impl Into<String>) -> Refusal {
        Refusal { reason, text: text.into() }
    }

    fn encode(&self) -> Vec<u32> {
        const LONGEST: usize = 4096;
        let mut end = self.text.len().min(LONGEST);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = self.text.as_bytes()[..end].to_vec();
        bytes.resize(end.next_multiple_of(4), 0);
        let mut words = vec![self.reason as u32, end as u32];
        words.extend(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
        words
    }

    fn decode(words: &[u32]) -> Result<Refusal, WireError> {
        const NAME: &str = "refusal";
        let [code, bytes, text @ ..] = words else { return malformed(NAME, "its head is short") };
        let Some(reason) = Reason::of(*code) else {
            return malformed(NAME, format!("unknown reason {code}"));
        };
        let text: &[u8] = bytemuck::cast_slice(text);
        match text.get(..*bytes as usize).map(std::str::from_utf8) {
            Some(Ok(text)) => Ok(Refusal { reason, text: text.to_owned() }),
            _ => malformed(NAME, "its text is short or not UTF-8"),
        }
    }
}

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
    /// Applied.
    Committed,
    /// Vote to skip; whether a snapshot is wanted all the same.
    Abort {
        /// As in [`Commit::snapshot`].
        snapshot: bool,
    },
    /// Skipped.
    Aborted,
    /// Refusal of a request.
    Nack(Refusal),
}

impl Message {
    /// Decodes the payload of a frame of `kind`; `stride` = sites · w, the values of one position.
    pub fn decode(kind: Kind, words: Vec<u32>, stride: usize) -> Result<Message, WireError> {
        let empty = |name: &'static str, message: Message| {
            if words.is_empty() { Ok(message) } else { malformed(name, "it has a payload") }
        };
        Ok(match kind {
            Kind::Hello => match words[..] {
                [rank, workers, low, high] => {
                    let tables = u64::from(low) | (u64::from(high) << 32);
                    Message::Hello(HelloBody { rank: Rank(rank), workers, tables })
                }
                _ => return malformed("hello", format!("{} words instead of 4", words.len())),
            },
            Kind::Welcome => match words[..] {
                [shard, shards, low, high] => {
                    let version = Step(u64::from(low) | (u64::from(high) << 32));
                    Message::Welcome(WelcomeBody { shard: ShardIndex(shard), shards, version })
                }
                _ => return malformed("welcome", format!("{} words instead of 4", words.len())),
            },
            Kind::Refused => Message::Refused(Refusal::decode(&words)?),
            Kind::Nack => Message::Nack(Refusal::decode(&words)?),
            Kind::Lookup => Message::Lookup(Request::decode(words)?),
            Kind::Read => Message::Read(Request::decode(words)?),
            Kind::Rows => Message::Rows(RowBlock::decode(words, stride)?),
            Kind::ReadRows => Message::ReadRows(RowBlock::decode(words, stride)?),
            Kind::Push => Message::Push(RowBlock::decode(words, stride)?),
            Kind::Prepare => empty("prepare", Message::Prepare)?,
            Kind::Prepared => Message::Prepared(PreparedBody::decode(&words)?),
            Kind::Commit => match words[..] {
                [scale, lr, snapshot @ (0 | 1)] => {
                    let (scale, lr) = (f32::from_bits(scale), f32::from_bits(lr));
                    if ![scale, lr].iter().all(|value| value.is_finite() && *value >= 0.0) {
                        return malformed("commit", format!("scale {scale} or lr {lr} is not a finite rate"));
                    }
                    Message::Commit(Commit { scale, lr, snapshot: snapshot == 1 })
                }
                _ => return malformed("commit", "it is not scale, lr and a flag of 0 or 1"),
            },
            Kind::Committed => empty("committed", Message::Committed)?,
            Kind::Abort => match words[..] {
                [snapshot @ (0 | 1)] => Message::Abort { snapshot: snapshot == 1 },
                _ => return malformed("abort", "it is not a flag of 0 or 1"),
            },
            Kind::Aborted => empty("aborted", Message::Aborted)?,
        })
    }

    /// The frame kind and payload of a message. Row blocks are better built from [`RowBlock::head`] and
    /// shared pieces.
    pub fn encode(&self) -> (Kind, Vec<Piece>) {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let (kind, words) = match self {
            Message::Hello(HelloBody { rank, workers, tables }) => {
                let [low, high] = halves(*tables);
                (Kind::Hello, vec![rank.0, *workers, low, high])
            }
            Message::Welcome(WelcomeBody { shard, shards, version }) => {
                let [low, high] = halves(version.0);
                (Kind::Welcome, vec![shard.0, *shards, low, high])
            }
            Message::Refused(refusal) => (Kind::Refused, refusal.encode()),
            Message::Nack(refusal) => (Kind::Nack, refusal.encode()),
            Message::Lookup(request) => (Kind::Lookup, request_words(request)),
            Message::Read(request) => (Kind::Read, request_words(request)),
            Message::Rows(block) => (Kind::Rows, block.words.clone()),
            Message::ReadRows(block) => (Kind::ReadRows, block.words.clone()),
            Message::Push(block) => (Kind::Push, block.words.clone()),
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
                (Kind::Commit, vec![scale.to_bits(), lr.to_bits(), u32::from(*snapshot)])
            }
            Message::Committed => (Kind::Committed, Vec::new()),
            Message::Abort { snapshot } => (Kind::Abort, vec![u32::from(*snapshot)]),
            Message::Aborted => (Kind::Aborted, Vec::new()),
        };
        (kind, vec![Piece::Words(words)])
    }
}

fn request_words(request: &Request) -> Vec<u32> {
    let mut words = Vec::with_capacity(request.offsets.len() + request.rows.len());
    words.push(request.offsets.len().saturating_sub(1) as u32);
    words.extend(request.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as u32));
    words.extend_from_slice(&request.rows);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use polygram_domain::philox::{Purpose, Stream};

    const STRIDE: usize = 2;

    fn every_message() -> Vec<Message> {
        let block = |runs: &[Range<u32>]| {
            let mut words = RowBlock::head(runs);
            let rows: usize = runs.iter().map(|run| run.len()).sum();
            words.extend((0..rows * STRIDE).map(|i| (i as f32).to_bits()));
            RowBlock::decode(words, STRIDE).unwrap()
        };
        let request = Request { offsets: vec![0, 2, 2, 5], rows: vec![3, 9, 0, 1, 4] };
        vec![
            Message::Hello(HelloBody { rank: Rank(1), workers: 4, tables: u64::MAX - 3 }),
            Message::Welcome(WelcomeBody { shard: ShardIndex(1), shards: 3, version: Step(1 << 40) }),
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
            Message::Commit(Commit { scale: 0.25, lr: 1e-3, snapshot: true }),
            Message::Committed,
            Message::Abort { snapshot: false },
            Message::Aborted,
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
            assert_eq!(Message::decode(kind, words, STRIDE).unwrap(), message);
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
                refused += u32::from(Message::decode(kind, words, STRIDE).is_err());
            }
        }
        assert!(refused > 10_000, "seed {seed:#x}: only {refused} were refused");
    }

    #[test]
    fn broken_rules_are_named() {
        let rule = |kind, words: &[u32]| match Message::decode(kind, words.to_vec(), STRIDE) {
            Err(WireError::Malformed { rule, .. }) => rule,
            other => panic!("{kind:?} {words:?} gave {other:?}"),
        };
        assert!(rule(Kind::Lookup, &[2, 1, 1, 5]).contains("it has 1"));
        assert!(rule(Kind::Lookup, &[u32::MAX, 1]).contains("4294967295"));
        assert!(rule(Kind::Lookup, &[2, u32::MAX, u32::MAX, 5, 6]).contains("rows"));
        assert!(rule(Kind::Lookup, &[1, 2, 6, 6]).contains("6 then 6"));
        assert!(rule(Kind::Push, &[1, 0, 3, 0]).contains("3 rows of 2"));
        assert!(rule(Kind::Push, &[2, 5, 1, 5, 1, 0, 0, 0, 0]).contains("after 6"));
        assert!(rule(Kind::Push, &[1, u32::MAX, 2]).contains("4294967295"));
        assert!(rule(Kind::Commit, &[f32::NAN.to_bits(), 0, 0]).contains("NaN"));
        assert!(rule(Kind::Commit, &[0, 0, 2]).contains("flag"));
        assert!(rule(Kind::Prepared, &[1, 0, 0, 0, 0, 0]).contains("total of 0"));
    }
}
