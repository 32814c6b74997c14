//! Data objects to and from the store: written under a name of their own content, read whole or in part, never believed
//! unverified. Memory holds one object where it is read whole, a few reads of at most 8 MiB where it is read in part.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use polygram_domain::Step;

use crate::blocks::{Span, reads};
use crate::disk::Disk;
use crate::error::CheckpointError;
use crate::keys;
use crate::object::{Checksums, Content, ObjectEntry};
use crate::root::Grain;
use crate::store::RunStore;
use crate::threads::{beside, off_thread};
use crate::transfer::{Request, generic, in_order};

/// What a data object's name is made of, its hash aside.
pub(crate) struct DataName<'a> {
    pub(crate) step: Step,
    pub(crate) member: &'a str,
    pub(crate) number: String,
    pub(crate) kind: &'static str,
}

impl RunStore {
    /// Writes a data object under a name made of its own hash, so that a retry writes the same object again and two
    /// attempts never write over each other.
    pub(crate) async fn put_data(
        &self,
        name: DataName<'_>,
        chunks: Vec<Bytes>,
        content: Content,
    ) -> Result<ObjectEntry, CheckpointError> {
        let key_of = {
            let (step, member) = (name.step, name.member.to_owned());
            let (number, kind) = (name.number.clone(), name.kind);
            move |sums: &Checksums| keys::data(step, &member, &number, &sums.blake3, kind)
        };
        let (key, sums) = match self.root().disk.clone() {
            Some(disk) => self.put_on_disk(disk, &name, chunks, key_of).await?,
            None => {
                let hashed = chunks.clone();
                let sums = beside(move || Checksums::of(&hashed)).await?;
                let key = key_of(&sums);
                self.put(&key, chunks.into_iter().collect()).await?;
                (key, sums)
            }
        };
        let Checksums { bytes, crc32c, blake3, blocks } = sums;
        Ok(ObjectEntry { key, bytes, crc32c, blake3, blocks, content })
    }

    /// Writes an object to this machine's disk, and names it once its checksums are known.
    async fn put_on_disk(
        &self,
        disk: Disk,
        name: &DataName<'_>,
        chunks: Vec<Bytes>,
        key_of: impl FnOnce(&Checksums) -> String + Clone + Send + 'static,
    ) -> Result<(String, Checksums), CheckpointError> {
        let folder = self.place(keys::DATA)?.path;
        let what = format!("object {} of {} for checkpoint {}", name.number, name.member, name.step);
        let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let write = || {
            let (store, disk, folder) = (self.clone(), disk.clone(), folder.clone());
            let (chunks, key_of) = (chunks.clone(), key_of.clone());
            async move {
                beside(move || {
                    let draft = disk.draft(&folder, &chunks)?;
                    let (key, sums) = (key_of(&draft.sums), draft.sums.clone());
                    let place = store.place(&key).map_err(|error| generic(error.to_string()))?;
                    draft.publish(&place.path).map(|()| (key, sums))
                })
                .await?
            }
        };
        self.root().persist(Request { action: "write", key: &what, bytes }, write).await
    }

    /// Reads a data object and verifies length, CRC-32C and BLAKE3. The object is in memory as a whole: about 128 MiB as
    /// written here.
    pub async fn read_object(&self, entry: &ObjectEntry) -> Result<Bytes, CheckpointError> {
        self.hashed(entry, |object: &mut BytesMut, span, bytes| {
            if object.is_empty() {
                // The object has this length: its first read has found that out.
                object.reserve(bytes as usize);
            }
            object.extend_from_slice(&span);
        })
        .await
        .map(BytesMut::freeze)
    }

    /// Reads a data object and verifies length, CRC-32C and BLAKE3, without keeping it.
    pub async fn check_object(&self, entry: &ObjectEntry) -> Result<(), CheckpointError> {
        self.hashed(entry, |(), _, _| ()).await
    }

    /// Reads and verifies a whole object; `keep` is given its bytes in order, and its length, beside what it has kept.
    async fn hashed<K: Default + Send + 'static>(
        &self,
        entry: &ObjectEntry,
        keep: fn(&mut K, Bytes, u64),
    ) -> Result<K, CheckpointError> {
        let (mut hasher, mut kept, bytes) = (blake3::Hasher::new(), K::default(), entry.bytes);
        let mut spans = std::pin::pin!(self.spans(entry, std::slice::from_ref(&(0..bytes))));
        while let Some(span) = spans.try_next().await? {
            (hasher, kept) = off_thread(move || {
                hasher.update(&span.bytes);
                keep(&mut kept, span.bytes, bytes);
                (hasher, kept)
            })
            .await?;
        }
        entry.believe(&hasher.finalize()).map(|()| kept)
    }

    /// The parts `wanted` (ascending) of a data object: whole blocks that hold them, ascending, each block verified by
    /// its CRC-32C. What is not near a wanted part is not read.
    pub(crate) fn spans<'a>(
        &'a self,
        entry: &'a ObjectEntry,
        wanted: &[Range<u64>],
    ) -> BoxStream<'a, Result<Span, CheckpointError>> {
        self.spans_of(vec![(entry, wanted.to_vec())]).map_ok(|(_, span)| span).boxed()
    }

    /// The same of several objects, one after the other, with the object's place among them. Reads of the next one begin
    /// before the last of one have ended.
    pub(crate) fn spans_of<'a>(
        &'a self,
        objects: Vec<(&'a ObjectEntry, Vec<Range<u64>>)>,
    ) -> BoxStream<'a, Result<(usize, Span), CheckpointError>> {
        let Grain { bytes, at_once } = self.root().grain();
        let reads = objects.into_iter().enumerate().flat_map(move |(object, (entry, wanted))| {
            reads(&wanted, entry.bytes, bytes).map(move |range| (object, entry, range))
        });
        let span = move |(object, entry, range)| async move {
            self.span(entry, range).await.map(|span| (object, span))
        };
        in_order(reads.map(span), at_once).boxed()
    }

    /// A damaged read is made once more before it counts: the store may be sound and the way from it not.
    async fn span(&self, entry: &ObjectEntry, range: Range<u64>) -> Result<Span, CheckpointError> {
        match self.span_once(entry, range.clone()).await {
            Err(error @ CheckpointError::Damaged { .. }) => {
                tracing::warn!(key = entry.key, %error, "read again");
                self.span_once(entry, range).await
            }
            other => other,
        }
    }

    async fn span_once(&self, entry: &ObjectEntry, range: Range<u64>) -> Result<Span, CheckpointError> {
        let offset = range.start;
        let sums = entry.blocks.clone();
        let look = move |bytes: Bytes| (sums.first_damaged(offset, &bytes), bytes);
        let place = self.place(&entry.key)?;
        let (damaged, bytes) = self.root().get_range(&place, range, entry.bytes, look).await?;
        match damaged {
            None => {
                self.count_read(bytes.len() as u64);
                Ok(Span { offset, bytes })
            }
            Some(block) => Err(CheckpointError::damaged(
                &entry.key,
                format!("its MiB {block} does not have the CRC-32C that was written"),
            )),
        }
    }

    /// One part of a data object, verified, in one piece.
    pub(crate) async fn read_part(
        &self,
        entry: &ObjectEntry,
        part: Range<u64>,
    ) -> Result<Bytes, CheckpointError> {
        let mut spans = std::pin::pin!(self.spans(entry, std::slice::from_ref(&part)));
        let mut pieces = Vec::new();
        while let Some(span) = spans.try_next().await? {
            pieces.extend(span.part_of(&part).map(|span| span.bytes));
        }
        Ok(match <[Bytes; 1]>::try_from(pieces) {
            Ok([piece]) => piece,
            Err(pieces) => pieces.concat().into(),
        })
    }
}
