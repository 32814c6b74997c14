//! The open segment of a folder of records: lines that the store has, and lines that it does not have yet.

use polygram_checkpoint::{CheckpointError, RunStore, SegmentId};

/// A segment with so many lines is closed; the next lines go to the next one. Each write of a segment repeats all its
/// lines, about 1 MB at this length.
pub(crate) const SEGMENT_LINES: usize = 4096;
/// Names of replaced versions that are remembered for deletion. What is forgotten stays in the store and is never read.
const MOST_REPLACED: usize = 64;

/// The segment that is being written.
#[derive(Debug)]
pub(crate) struct SegmentBuffer<T> {
    /// The version that was written, or tried, last.
    id: SegmentId,
    lines: Vec<T>,
    /// So many of the lines are in the store.
    stored: usize,
    /// The object that has them.
    newest: Option<String>,
    /// Older versions, to be deleted.
    replaced: Vec<String>,
}

impl<T> Default for SegmentBuffer<T> {
    fn default() -> SegmentBuffer<T> {
        SegmentBuffer {
            id: SegmentId::default(),
            lines: Vec::new(),
            stored: 0,
            newest: None,
            replaced: Vec::new(),
        }
    }
}

impl<T> SegmentBuffer<T> {
    pub(crate) fn push(&mut self, line: T) {
        self.lines.push(line);
    }

    /// Number of the segment within its attempt.
    pub(crate) fn seq(&self) -> u64 {
        self.id.seq
    }

    /// Whether no line of the attempt is in the store or waits for it.
    pub(crate) fn is_untouched(&self) -> bool {
        self.id.seq == 0 && self.lines.is_empty()
    }

    /// Lines that the store has.
    pub(crate) fn stored(&self) -> &[T] {
        &self.lines[..self.stored]
    }

    /// Lines that it does not have.
    pub(crate) fn waiting(&self) -> &[T] {
        &self.lines[self.stored..]
    }

    /// Drops the waiting lines from the first on that `is_void` holds for.
    pub(crate) fn drop_waiting(&mut self, is_void: impl Fn(&T) -> bool) {
        let kept = self.waiting().iter().position(is_void).unwrap_or(self.waiting().len());
        self.lines.truncate(self.stored + kept);
    }

    pub(crate) fn is_long(&self) -> bool {
        self.lines.len() >= SEGMENT_LINES
    }

    /// Begins the next segment. Lines that wait are gone.
    pub(crate) fn close(&mut self) {
        self.lines.clear();
        self.stored = 0;
        if self.newest.take().is_some() {
            self.id = SegmentId { seq: self.id.seq + 1, version: 0 };
        }
    }

    /// Writes the next version of the segment if lines wait. A version whose write failed may have come to the store all
    /// the same, so its number is not used again. Answers the object that was written.
    pub(crate) async fn write<W>(&mut self, write: W) -> Result<Option<String>, CheckpointError>
    where
        W: AsyncFnOnce(SegmentId, &[T]) -> Result<String, CheckpointError>,
    {
        if self.waiting().is_empty() {
            return Ok(None);
        }
        self.id.version += 1;
        let key = write(self.id, &self.lines).await?;
        self.stored = self.lines.len();
        if let Some(older) = self.newest.replace(key.clone())
            && self.replaced.len() < MOST_REPLACED
        {
            self.replaced.push(older);
        }
        Ok(Some(key))
    }

    /// Deletes versions that newer ones have replaced.
    pub(crate) async fn delete_replaced(&mut self, store: &RunStore) {
        store.remove_replaced(&mut self.replaced).await;
    }
}

#[cfg(test)]
mod tests {
    use polygram_checkpoint::FailureLine;
    use polygram_domain::RunName;

    use super::*;

    fn line(pid: u32) -> FailureLine {
        FailureLine::Opened { at_unix_ms: 1, pid, resumed_from: polygram_domain::Step(0) }
    }

    async fn write(segment: &mut SegmentBuffer<FailureLine>, store: &RunStore) -> Option<String> {
        segment.write(async |id, lines| store.append_failure_log(1, id, lines).await).await.unwrap()
    }

    #[tokio::test]
    async fn every_version_holds_all_lines_and_one_object_stays() {
        let store = RunStore::create("memory://", &RunName::new("r").unwrap()).unwrap();
        let mut segment = SegmentBuffer::default();
        for pid in 0..5 {
            segment.push(line(pid));
            assert!(write(&mut segment, &store).await.is_some());
            assert_eq!(write(&mut segment, &store).await, None, "nothing new");
            // A reader finds each line once, before the older version goes and after.
            for _ in 0..2 {
                let lines = store.read_failure_log().await.unwrap().remove(0).lines;
                assert_eq!(lines, (0..=pid).map(line).collect::<Vec<_>>());
                segment.delete_replaced(&store).await;
            }
            assert_eq!(store.list("events").await.unwrap().len(), 1);
        }
        segment.close();
        segment.push(line(5));
        write(&mut segment, &store).await;
        assert_eq!(store.list("events").await.unwrap().len(), 2);
        assert_eq!(store.read_failure_log().await.unwrap()[0].lines.len(), 6);
    }

    #[tokio::test]
    async fn a_failed_write_loses_no_line_and_its_number_is_not_used_again() {
        let store = RunStore::create("memory://", &RunName::new("r").unwrap()).unwrap();
        let mut segment = SegmentBuffer::default();
        segment.push(line(0));
        // It came to the store, and its answer was lost.
        let lost = segment.write(async |id, lines: &[FailureLine]| {
            store.append_failure_log(1, id, lines).await?;
            Err(CheckpointError::ShuttingDown)
        });
        assert!(lost.await.is_err());
        segment.push(line(1));
        assert_eq!(segment.waiting().len(), 2);
        write(&mut segment, &store).await;
        assert_eq!(store.read_failure_log().await.unwrap()[0].lines, [line(0), line(1)]);
    }
}
