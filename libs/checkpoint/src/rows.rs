//! Row objects: the written rows of a range of buckets of one table, encoded and decoded without I/O.
//!
//! All numbers are little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PGRMROWS` |
//! | 8 | 4 | schema version, u32 |
//! | 12 | 4 | table, u32 |
//! | 16 | 4 | rows the table could have, u32 |
//! | 20 | 4 | width: weights per row, u32 |
//! | 24 | 4 | optimizer values per row, u32 |
//! | 28 | 4 | first bucket, u32 |
//! | 32 | 4 | one past the last bucket, u32 |
//! | 36 | 4 | 0: all written rows of the buckets; 1: those that changed since such an object, u32 |
//! | 40 | 8 | records, u64 |
//! | 48 | 4 · buckets | records of each bucket, u32 |
//! | … | (8 + 4·(width + state)) · records | records |
//!
//! A record is the row id (u32), its update count (u32), its weights and its optimizer values (f32). Rows ascend
//! strictly and lie in the bucket that counts them. Rows never written are not stored: they are a function of the
//! seed.

use std::ops::Range;

use bytes::Bytes;
use polygram_domain::tables::BUCKETS;
use polygram_domain::{BucketIndex, RowId, SCHEMA_VERSION, TableIndex, TableSpec};

use crate::error::CheckpointError;
use crate::object::{Content, ObjectEntry, RowScope, decode_f32, extend_f32};

const MAGIC: &[u8; 8] = b"PGRMROWS";
const HEADER_BYTES: usize = 48;

/// What a table's rows look like in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableShape {
    /// Number of the table.
    pub table: TableIndex,
    /// Rows it could have.
    pub rows: u32,
    /// Weights per row.
    pub width: u32,
    /// Optimizer values per row.
    pub state_values: u32,
}

impl TableShape {
    /// The shape of `table` with so many optimizer values per row
    /// ([`polygram_domain::embedding::EmbeddingSpec::state_values`]).
    pub fn of(table: &TableSpec, state_values: usize) -> TableShape {
        TableShape {
            table: table.index,
            rows: table.rows,
            width: table.width,
            state_values: state_values as u32,
        }
    }

    /// Values of a record: weights and optimizer values.
    pub fn values(&self) -> usize {
        self.width as usize + self.state_values as usize
    }

    /// Bytes of an object of so many records, or `None` beyond 64 bits.
    pub(crate) fn object_bytes(&self, buckets: &Range<u32>, records: u64) -> Option<u64> {
        let head = HEADER_BYTES as u64 + 4 * u64::from(buckets.end.saturating_sub(buckets.start));
        records.checked_mul(self.record_bytes())?.checked_add(head)
    }

    /// Bytes of a record.
    pub(crate) fn record_bytes(&self) -> u64 {
        8 + 4 * (u64::from(self.width) + u64::from(self.state_values))
    }

    /// The bucket of `row`, as [`TableSpec::bucket_of`].
    pub(crate) fn bucket_of(&self, row: u32) -> BucketIndex {
        self.spec().bucket_of(RowId(row))
    }

    /// Rows of some buckets.
    pub(crate) fn rows_of(&self, buckets: &Range<u32>) -> Range<u32> {
        let spec = self.spec();
        spec.rows_of(BucketIndex(buckets.start)).start
            ..spec.rows_of(BucketIndex(buckets.end.saturating_sub(1))).end
    }

    fn spec(&self) -> TableSpec {
        // The bucket arithmetic belongs to the domain; only index, rows and width matter to it.
        TableSpec {
            index: self.table,
            name: String::new(),
            site_table: 0,
            order: 0,
            rows: self.rows.max(1),
            width: self.width,
        }
    }

    pub(crate) fn content(&self, buckets: Range<u32>, rows: u64, scope: RowScope) -> Content {
        Content::Rows {
            table: self.table.0,
            table_rows: self.rows,
            width: self.width,
            state_values: self.state_values,
            buckets,
            rows,
            scope,
        }
    }
}

/// Some rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSet {
    /// The table.
    pub shape: TableShape,
    /// Which of its written rows.
    pub scope: RowScope,
}

/// One written row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowRecord<'a> {
    /// The row.
    pub row: RowId,
    /// Updates it has had.
    pub updates: u32,
    /// Weights, then optimizer values.
    pub values: &'a [f32],
}

/// Collects records of one object.
#[derive(Debug)]
pub(crate) struct RowEncoder {
    shape: TableShape,
    scope: RowScope,
    first_bucket: u32,
    counts: Vec<u32>,
    records: u64,
    data: Vec<u8>,
}

impl RowEncoder {
    pub(crate) fn new(RowSet { shape, scope }: RowSet, first_bucket: u32) -> RowEncoder {
        RowEncoder { shape, scope, first_bucket, counts: Vec::new(), records: 0, data: Vec::new() }
    }

    /// Bytes of records so far.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The bucket that records go into now.
    pub(crate) fn bucket(&self) -> u32 {
        self.first_bucket + (self.counts.len() as u32).saturating_sub(1)
    }

    /// Adds a record of `bucket`, which is not before [`RowEncoder::bucket`]; order and lengths are the caller's.
    pub(crate) fn push(&mut self, bucket: u32, record: RowRecord<'_>) {
        let place = (bucket - self.first_bucket) as usize;
        self.counts.resize(self.counts.len().max(place + 1), 0);
        self.counts[place] += 1;
        self.records += 1;
        self.data.extend(record.row.0.to_le_bytes());
        self.data.extend(record.updates.to_le_bytes());
        extend_f32(&mut self.data, record.values);
    }

    /// The object for all buckets up to `end`, as header and records, and what it holds.
    pub(crate) fn finish(mut self, end: u32) -> (Vec<Bytes>, Content) {
        self.counts.resize((end - self.first_bucket) as usize, 0);
        let buckets = self.first_bucket..end;
        let mut head = Vec::with_capacity(HEADER_BYTES + 4 * self.counts.len());
        head.extend(MAGIC);
        let TableShape { table, rows, width, state_values } = self.shape;
        for field in [SCHEMA_VERSION, table.0, rows, width, state_values, buckets.start, buckets.end] {
            head.extend(field.to_le_bytes());
        }
        head.extend(self.scope.word().to_le_bytes());
        head.extend(self.records.to_le_bytes());
        for count in &self.counts {
            head.extend(count.to_le_bytes());
        }
        let content = self.shape.content(buckets, self.records, self.scope);
        (vec![Bytes::from(head), Bytes::from(self.data)], content)
    }
}

/// What a row object says of itself before its records.
#[derive(Clone, Debug)]
pub(crate) struct RowHead {
    shape: TableShape,
    scope: RowScope,
    buckets: Range<u32>,
    records: u64,
    /// Number of the first record of each bucket, and of all records.
    starts: Vec<u64>,
}

impl RowHead {
    /// Bytes of the head of an object for so many buckets.
    pub(crate) fn bytes(buckets: &Range<u32>) -> u64 {
        HEADER_BYTES as u64 + 4 * u64::from(buckets.end.saturating_sub(buckets.start))
    }

    /// Reads the head of an object that is `length` bytes long; `key` names it in errors. Every field, count and length
    /// is checked.
    pub(crate) fn parse(key: &str, bytes: &[u8], length: u64) -> Result<RowHead, CheckpointError> {
        let damaged = |reason: String| CheckpointError::damaged(key, reason);
        let head = bytes.get(..HEADER_BYTES).ok_or_else(|| damaged("shorter than its header".into()))?;
        if &head[..8] != MAGIC {
            return Err(damaged("does not begin as a row object".into()));
        }
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(8) != SCHEMA_VERSION {
            let (key, found, expected) = (key.to_owned(), word(8), SCHEMA_VERSION);
            return Err(CheckpointError::Schema { key, found, expected });
        }
        let (table, rows) = (TableIndex(word(12)), word(16));
        let shape = TableShape { table, rows, width: word(20), state_values: word(24) };
        let buckets = word(28)..word(32);
        let scope = RowScope::of_word(word(36));
        let Some(scope) = scope.filter(|_| shape.rows > 0 && !buckets.is_empty() && buckets.end <= BUCKETS)
        else {
            let rows = shape.rows;
            return Err(damaged(format!(
                "illegal header: {rows} rows, buckets {buckets:?}, scope {}",
                word(36)
            )));
        };
        let records = u64::from(word(40)) | u64::from(word(44)) << 32;
        let counts = bytes.get(HEADER_BYTES..RowHead::bytes(&buckets) as usize);
        let mut starts = vec![0u64];
        let mut total = 0u64;
        for count in counts.ok_or_else(|| damaged("counts are cut".into()))?.chunks_exact(4) {
            total += u64::from(u32::from_le_bytes([count[0], count[1], count[2], count[3]]));
            starts.push(total);
        }
        if total != records || shape.object_bytes(&buckets, records) != Some(length) {
            return Err(damaged(format!(
                "{length} bytes, {total} records counted in buckets and {records} in all"
            )));
        }
        Ok(RowHead { shape, scope, buckets, records, starts })
    }

    /// Whether `entry` says the same.
    fn check_entry(&self, entry: &ObjectEntry) -> Result<(), CheckpointError> {
        let found = self.shape.content(self.buckets.clone(), self.records, self.scope);
        if found == entry.content {
            return Ok(());
        }
        let reason = format!("its header says {found:?}, its entry {:?}", entry.content);
        Err(CheckpointError::damaged(&entry.key, reason))
    }

    /// Numbers of the records in `buckets`, of which only those of this object count.
    fn span(&self, buckets: &Range<u32>) -> Range<u64> {
        let clamp = |bucket: u32| bucket.clamp(self.buckets.start, self.buckets.end) - self.buckets.start;
        let (start, end) = (clamp(buckets.start), clamp(buckets.end));
        self.starts[start as usize]..self.starts[end.max(start) as usize]
    }

    /// Where the records of `buckets` lie in the object.
    pub(crate) fn place_of(&self, buckets: &Range<u32>) -> Range<u64> {
        let span = self.span(buckets);
        let at = |record: u64| RowHead::bytes(&self.buckets) + record * self.shape.record_bytes();
        at(span.start)..at(span.end)
    }
}

/// A verified row object, or the records of some of its buckets.
#[derive(Clone, Debug)]
pub struct RowObject {
    head: RowHead,
    /// Numbers of the records that are here.
    held: Range<u64>,
    bytes: Bytes,
}

impl RowObject {
    /// Reads `bytes` as the object that `entry` describes; every field, count, length and row id is checked.
    pub fn decode(entry: &ObjectEntry, bytes: Bytes) -> Result<RowObject, CheckpointError> {
        let object = RowObject::parse(&entry.key, bytes)?;
        object.head.check_entry(entry).map(|()| object)
    }

    /// Reads `bytes` by their own header; `key` names them in errors.
    pub fn parse(key: &str, bytes: Bytes) -> Result<RowObject, CheckpointError> {
        let head = RowHead::parse(key, &bytes, bytes.len() as u64)?;
        let records = bytes.slice(RowHead::bytes(&head.buckets) as usize..);
        let object = RowObject { held: 0..head.records, head, bytes: records };
        object.check_rows().map_err(|reason| CheckpointError::damaged(key, reason))?;
        Ok(object)
    }

    /// The records of `buckets` alone, `bytes` being those of [`RowHead::place_of`] them.
    pub(crate) fn part(
        entry: &ObjectEntry,
        head: RowHead,
        buckets: &Range<u32>,
        bytes: Bytes,
    ) -> Result<RowObject, CheckpointError> {
        head.check_entry(entry)?;
        let object = RowObject { held: head.span(buckets), head, bytes };
        object.check_rows().map_err(|reason| CheckpointError::damaged(&entry.key, reason))?;
        Ok(object)
    }

    /// Rows ascend and lie in the bucket that counts them.
    fn check_rows(&self) -> Result<(), String> {
        let expected = (self.held.end - self.held.start) * self.head.shape.record_bytes();
        if self.bytes.len() as u64 != expected {
            return Err(format!("{} bytes of records, {expected} expected", self.bytes.len()));
        }
        let mut previous = None;
        for (bucket, span) in self.head.buckets.clone().zip(self.head.starts.windows(2)) {
            let legal = self.head.shape.rows_of(&(bucket..bucket + 1));
            for record in span[0].max(self.held.start)..span[1].min(self.held.end) {
                let row = self.row_at(record);
                if previous.is_some_and(|p| p >= row) || !legal.contains(&row) {
                    return Err(format!("row {row} after {previous:?} in bucket {bucket} (rows {legal:?})"));
                }
                previous = Some(row);
            }
        }
        Ok(())
    }

    fn record(&self, index: u64) -> &[u8] {
        let stride = self.head.shape.record_bytes() as usize;
        let start = (index - self.held.start) as usize * stride;
        &self.bytes[start..start + stride]
    }

    fn row_at(&self, index: u64) -> u32 {
        let record = self.record(index);
        u32::from_le_bytes([record[0], record[1], record[2], record[3]])
    }

    /// Table, its rows and what a record holds.
    pub fn shape(&self) -> TableShape {
        self.head.shape
    }

    /// Buckets that the object answers for.
    pub fn buckets(&self) -> Range<u32> {
        self.head.buckets.clone()
    }

    /// Records in `buckets`, of which only those that are here count.
    pub fn count(&self, buckets: Range<u32>) -> u64 {
        let span = self.span(buckets);
        span.end.saturating_sub(span.start)
    }

    fn span(&self, buckets: Range<u32>) -> Range<u64> {
        let span = self.head.span(&buckets);
        span.start.max(self.held.start)..span.end.min(self.held.end)
    }

    /// Hands the records of `buckets` to `each`, rows ascending; stops at its first error.
    pub fn records<E>(
        &self,
        buckets: Range<u32>,
        mut each: impl FnMut(RowRecord<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.records_under(&[], buckets, |record, _| each(record))
    }

    /// The same where rows of `changes`, whose buckets ascend, take the place of those here or come between them; `each` is
    /// told which records are theirs.
    pub(crate) fn records_under<E>(
        &self,
        changes: &[RowObject],
        buckets: Range<u32>,
        mut each: impl FnMut(RowRecord<'_>, RowScope) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut values = Vec::with_capacity(self.head.shape.values());
        let mut hand = |object: &RowObject, index: u64| {
            let record = object.record(index);
            decode_f32(&record[8..], &mut values);
            let record = RowRecord {
                row: RowId(u32::from_le_bytes([record[0], record[1], record[2], record[3]])),
                updates: u32::from_le_bytes([record[4], record[5], record[6], record[7]]),
                values: &values,
            };
            each(record, object.head.scope)
        };
        let of_change = |change| RowObject::span(change, buckets.clone()).map(move |index| (change, index));
        let mut changed = changes.iter().flat_map(of_change).peekable();
        for index in self.span(buckets.clone()) {
            let row = self.row_at(index);
            while let Some((change, new)) = changed.next_if(|(change, new)| change.row_at(*new) < row) {
                hand(change, new)?;
            }
            match changed.next_if(|(change, new)| change.row_at(*new) == row) {
                Some((change, new)) => hand(change, new)?,
                None => hand(self, index)?,
            }
        }
        changed.try_for_each(|(change, new)| hand(change, new))
    }
}
