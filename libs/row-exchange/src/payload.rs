//! The bodies that messages carry, each decoded with every rule of its own checked.
//!
//! Legend: C = tables per site. A *position* is a row's place in the request that a shard received: 0.. over its site
//! tables in order. Greetings are in [`super::greeting`], row blocks in [`super::block`].

use polygram_domain::{BucketIndex, Step, TableIndex};

use super::frame::WireError;

/// A rule of `message` that does not hold.
pub(super) fn malformed<T>(message: &'static str, rule: impl Into<String>) -> Result<T, WireError> {
    Err(WireError::Malformed { message, rule: rule.into() })
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

    /// The payload's words.
    pub(super) fn encode(&self) -> Vec<u32> {
        let mut words = Vec::with_capacity(self.offsets.len() + self.rows.len());
        words.push(self.offsets.len().saturating_sub(1) as u32);
        words.extend(self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as u32));
        words.extend_from_slice(&self.rows);
        words
    }

    pub(super) fn decode(words: &[u32]) -> Result<Request, WireError> {
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

    pub(super) fn decode(words: &[u32]) -> Result<PreparedBody, WireError> {
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
    /// Whether the shards must write their rows as they are after this step.
    pub snapshot: SnapshotOrder,
}

/// What is to be written of the rows that a step leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotOrder {
    /// Nothing.
    #[default]
    None,
    /// All rows, into the run's root.
    Commit,
    /// A recovery point.
    Point {
        /// The newest recovery point that is kept, as far as this generation has made it or begun from it: a shard may
        /// write what changed since.
        after: Option<Step>,
    },
}

impl SnapshotOrder {
    /// Whether anything is to be written.
    pub fn is_some(self) -> bool {
        self != SnapshotOrder::None
    }

    pub(super) fn encode(self) -> Vec<u32> {
        match self {
            SnapshotOrder::None => vec![0],
            SnapshotOrder::Commit => vec![1],
            SnapshotOrder::Point { after: None } => vec![2],
            SnapshotOrder::Point { after: Some(Step(step)) } => vec![3, step as u32, (step >> 32) as u32],
        }
    }

    pub(super) fn decode(words: &[u32]) -> Option<SnapshotOrder> {
        Some(match words {
            [0] => SnapshotOrder::None,
            [1] => SnapshotOrder::Commit,
            [2] => SnapshotOrder::Point { after: None },
            [3, low, high] => {
                SnapshotOrder::Point { after: Some(Step(u64::from(*low) | u64::from(*high) << 32)) }
            }
            _ => return None,
        })
    }
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
    /// The peer did not prove that it knows the run's token.
    Stranger = 10,
    /// The peer was not heard for too long.
    Silent = 11,
}

impl Reason {
    fn of(code: u32) -> Option<Reason> {
        use Reason::*;
        [
            Malformed,
            Schema,
            WrongRun,
            Generation,
            Step,
            Conflict,
            Disagreement,
            Memory,
            Failed,
            Stranger,
            Silent,
        ]
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

    pub(super) fn encode(&self) -> Vec<u32> {
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

    pub(super) fn decode(words: &[u32]) -> Result<Refusal, WireError> {
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
