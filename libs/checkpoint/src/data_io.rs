//! Data objects to and from the store: written under a name of their own content, read whole or in part, never believed
//! unverified. Memory holds one object where it is read whole, a few reads of 8 MiB where it is read in part.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use polygram_domain::Step;

use crate::blocks::{Span, reads};
use crate::error::CheckpointError;
use crate::keys;
use crate::object::{Checksums, Content, ObjectEntry};
use crate::store::RunStore;
use crate::transfer::in_order;

/// Reads of one object that are on their way at a time.
const READS_AT_ONCE: usize = 4;

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
        let hashed = chunks.clone();
        let sums = off_thread(move || Checksums::of(&hashed)).await?;
        let key = keys::data(name.step, name.member, &name.number, &sums.blake3, name.kind);
        self.put(&key, chunks.into_iter().collect()).await?;
        let Checksums { bytes, crc32c, blake3, blocks } = sums;
        Ok(ObjectEntry { key, bytes, crc32c, blake3, blocks, content })
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
        let reads = reads(wanted, entry.bytes).map(move |range| self.span(entry, range));
        in_order(reads, READS_AT_ONCE).boxed()
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
        let bytes = self.root().get_range(&self.place(&entry.key)?, (range, entry.bytes)).await?;
        let sums = entry.blocks.clone();
        let (damaged, bytes) = off_thread(move || (sums.first_damaged(offset, &bytes), bytes)).await?;
        match damaged {
            None => Ok(Span { offset, bytes }),
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

/// Runs `work` where it does not hold up the runtime's threads.
pub(crate) async fn off_thread<T, F>(work: F) -> Result<T, CheckpointError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => Ok(value),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(CheckpointError::ShuttingDown),
    }
}
