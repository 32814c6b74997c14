//! Rows to and from the store.

use std::ops::Range;

use polygram_domain::tables::BUCKETS;
use polygram_domain::{RowId, Step, TableIndex};

use crate::cover::check_entry;
use crate::data_io::DataName;
use crate::error::CheckpointError;
use crate::manifest::Manifest;
use crate::object::{Content, ObjectEntry, PartRef, RowScope};
use crate::rows::{RowEncoder, RowHead, RowObject, RowRecord, RowSet, TableShape};
use crate::store::RunStore;
use crate::threads::off_thread;
use crate::word::check_word;

/// Row objects are smaller than tensor objects: a shard of another bucket range reads those at its edges in vain.
const OBJECTS_PER_TENSOR_OBJECT: usize = 2;

/// Writes the rows of a range of buckets of one table, ascending, as objects of at most about 64 MiB (more only
/// where one bucket is larger). Memory holds one object. Dropped without [`RowWriter::finish`], it leaves objects that
/// no manifest names; retention removes them.
#[derive(Debug)]
pub struct RowWriter<'a> {
    store: &'a RunStore,
    step: Step,
    member: String,
    rows: RowSet,
    buckets: Range<u32>,
    previous: Option<u32>,
    encoder: RowEncoder,
    written: Vec<ObjectEntry>,
}

impl<'a> RowWriter<'a> {
    /// Begins all written rows of `buckets` of one table, or those that changed.
    pub fn new(
        store: &'a RunStore,
        PartRef { step, member }: PartRef<'_>,
        rows: RowSet,
        buckets: Range<u32>,
    ) -> Result<RowWriter<'a>, CheckpointError> {
        let shape = rows.shape;
        check_word("member", member)?;
        if buckets.is_empty() || buckets.end > BUCKETS || shape.rows == 0 {
            return Err(CheckpointError::input(
                format!("rows of table {}", shape.table),
                format!("buckets {buckets:?} of {BUCKETS}, {} rows", shape.rows),
            ));
        }
        Ok(RowWriter {
            store,
            step,
            member: member.to_owned(),
            rows,
            previous: None,
            encoder: RowEncoder::new(rows, buckets.start),
            buckets,
            written: Vec::new(),
        })
    }

    /// Adds a row: beyond the last one, inside the buckets, with weights and optimizer values.
    pub async fn push(&mut self, record: RowRecord<'_>) -> Result<(), CheckpointError> {
        let row = record.row.0;
        let refuse = |reason: String| {
            CheckpointError::input(format!("row {row} of table {}", self.rows.shape.table), reason)
        };
        if record.values.len() != self.rows.shape.values() {
            return Err(refuse(format!(
                "{} values, a record has {}",
                record.values.len(),
                self.rows.shape.values()
            )));
        }
        let bucket = self.rows.shape.bucket_of(row).0;
        if row >= self.rows.shape.rows || !self.buckets.contains(&bucket) {
            return Err(refuse(format!("it is not in buckets {:?}", self.buckets)));
        }
        if self.previous.is_some_and(|previous| previous >= row) {
            return Err(refuse(format!("it does not follow row {:?}; rows must ascend", self.previous)));
        }
        if bucket > self.encoder.bucket()
            && self.encoder.bytes() >= self.store.object_bytes() / OBJECTS_PER_TENSOR_OBJECT
        {
            let full = std::mem::replace(&mut self.encoder, RowEncoder::new(self.rows, bucket));
            self.put(full, bucket).await?;
        }
        self.encoder.push(bucket, record);
        self.previous = Some(row);
        Ok(())
    }

    async fn put(&mut self, encoder: RowEncoder, end: u32) -> Result<(), CheckpointError> {
        let (chunks, content) = encoder.finish(end);
        let number = format!("r{}.{}", self.rows.shape.table, end);
        let kind = match self.rows.scope {
            RowScope::All => "rows",
            RowScope::Changed => "changes",
        };
        let name = DataName { step: self.step, member: &self.member, number, kind };
        self.written.push(self.store.put_data(name, chunks, content).await?);
        Ok(())
    }

    /// Closes the last object; together the objects answer for all the buckets, written rows or none.
    pub async fn finish(mut self) -> Result<Vec<ObjectEntry>, CheckpointError> {
        let last = std::mem::replace(&mut self.encoder, RowEncoder::new(self.rows, 0));
        let end = self.buckets.end;
        self.put(last, end).await?;
        Ok(self.written)
    }
}

/// A row that owns its values, for iterators.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedRow {
    /// The row.
    pub row: RowId,
    /// Updates it has had.
    pub updates: u32,
    /// Weights, then optimizer values.
    pub values: Vec<f32>,
}

impl RunStore {
    /// Writes the rows of `buckets` of one table from an iterator, ascending; see [`RowWriter`].
    pub async fn write_rows<I>(
        &self,
        part: PartRef<'_>,
        shape: TableShape,
        buckets: Range<u32>,
        rows: I,
    ) -> Result<Vec<ObjectEntry>, CheckpointError>
    where
        I: IntoIterator<Item = OwnedRow>,
        I::IntoIter: Send,
    {
        let mut writer = RowWriter::new(self, part, RowSet { shape, scope: RowScope::All }, buckets)?;
        for OwnedRow { row, updates, values } in rows {
            writer.push(RowRecord { row, updates, values: &values }).await?;
        }
        writer.finish().await
    }

    /// Reads and verifies one row object.
    pub async fn read_row_object(&self, entry: &ObjectEntry) -> Result<RowObject, CheckpointError> {
        let bytes = self.read_object(entry).await?;
        let entry = entry.clone();
        off_thread(move || RowObject::decode(&entry, bytes)).await?
    }

    /// Reads and verifies the records of `buckets` of one row object: all of it where all are wanted, otherwise its head
    /// and the MiB that hold them.
    async fn read_row_part(
        &self,
        entry: &ObjectEntry,
        buckets: &Range<u32>,
    ) -> Result<RowObject, CheckpointError> {
        let damaged = |reason| CheckpointError::damaged(&entry.key, reason);
        check_entry(entry).map_err(damaged)?;
        let Content::Rows { buckets: all, .. } = &entry.content else {
            return Err(damaged("its entry does not speak of rows".into()));
        };
        if buckets.start <= all.start && all.end <= buckets.end {
            return self.read_row_object(entry).await;
        }
        let head = self.read_part(entry, 0..RowHead::bytes(all)).await?;
        let head = RowHead::parse(&entry.key, &head, entry.bytes)?;
        let bytes = self.read_part(entry, head.place_of(buckets)).await?;
        let (entry, buckets) = (entry.clone(), buckets.clone());
        off_thread(move || RowObject::part(&entry, head, &buckets, bytes)).await?
    }

    /// Hands every written row of `buckets` of `table` to `each`, rows ascending, whatever bucket ranges they were
    /// written by; stops at the first error of `each`. Of other buckets only what lies near is read.
    ///
    /// Errors: [`CheckpointError::NoBuckets`] where no object answers for a bucket.
    pub async fn read_rows<E: From<CheckpointError>>(
        &self,
        manifest: &Manifest,
        table: TableIndex,
        buckets: Range<u32>,
        mut each: impl FnMut(RowRecord<'_>) -> Result<(), E> + Send,
    ) -> Result<(), E> {
        self.read_scoped_rows(manifest, table, buckets, |row, _| each(row)).await
    }

    /// As [`RunStore::read_rows`]; `each` is also told whether the row is of those that changed since the others were
    /// written.
    ///
    /// Errors: as there.
    pub async fn read_scoped_rows<E: From<CheckpointError>>(
        &self,
        manifest: &Manifest,
        table: TableIndex,
        buckets: Range<u32>,
        mut each: impl FnMut(RowRecord<'_>, RowScope) -> Result<(), E> + Send,
    ) -> Result<(), E> {
        let changed = manifest.row_objects_of(table, RowScope::Changed);
        let mut next = buckets.start;
        for (range, entry) in manifest.row_objects(table) {
            if range.end <= next || range.start >= buckets.end {
                continue;
            }
            if range.start > next {
                break;
            }
            let wanted = next..buckets.end.min(range.end);
            let mut changes = Vec::new();
            for (range, change) in &changed {
                if range.start < wanted.end && wanted.start < range.end {
                    changes.push(self.read_row_part(change, &wanted).await?);
                }
            }
            self.read_row_part(entry, &wanted).await?.records_under(&changes, wanted.clone(), &mut each)?;
            next = range.end;
        }
        if next < buckets.end {
            let (step, table, end) = (manifest.step, table.0, buckets.end);
            return Err(CheckpointError::NoBuckets { step, table, start: next, end }.into());
        }
        Ok(())
    }
}

impl Manifest {
    /// The row objects of `table` that hold all rows of the buckets they answer for, with those, by first bucket.
    pub fn row_objects(&self, table: TableIndex) -> Vec<(Range<u32>, &ObjectEntry)> {
        self.row_objects_of(table, RowScope::All)
    }

    /// The row objects of `table` of one scope, in the same way.
    pub fn row_objects_of(&self, table: TableIndex, scope: RowScope) -> Vec<(Range<u32>, &ObjectEntry)> {
        let mut objects: Vec<_> = self
            .objects
            .iter()
            .filter_map(|entry| match &entry.content {
                Content::Rows { table: t, buckets, scope: s, .. } if *t == table.0 && *s == scope => {
                    Some((buckets.clone(), entry))
                }
                _ => None,
            })
            .collect();
        objects.sort_by_key(|(buckets, _)| buckets.start);
        objects
    }
}
