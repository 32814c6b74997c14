//! A pass over a corpus at work: it takes documents one by one, counts them and hands them on.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::meta::{LeftOutCount, SourceCount};
use super::monitor::{Monitor, Progress, Stage};
use super::split::PREFIX_BYTES;
use super::text::{Text, boundary_below};
use crate::error::DataError;

/// What a pass found.
#[derive(Debug, Default)]
pub(crate) struct PassReport {
    /// Counts per kind of file that was read.
    pub(crate) sources: BTreeMap<String, SourceCount>,
    /// Files left out, with those that have no text.
    pub(crate) left_out: BTreeMap<String, LeftOutCount>,
    /// Files that were taken as one text and may hold records, by what they look like.
    pub(crate) doubts: BTreeMap<&'static str, LeftOutCount>,
    /// A hash of each file's documents: their starts and lengths.
    pub(crate) prints: Vec<[u8; 32]>,
}

impl PassReport {
    pub(crate) fn documents(&self) -> u64 {
        self.sources.values().map(|count| count.documents).sum()
    }
}

/// Who a pass serves.
pub(crate) struct Pass<'a> {
    /// What it is for.
    pub(crate) stage: Stage,
    /// Who follows it.
    pub(crate) monitor: &'a dyn Monitor,
    /// What the pass before found; the same must be found again.
    pub(crate) before: Option<&'a PassReport>,
}

/// Takes documents.
pub(crate) type Visit<'v> = dyn FnMut(&mut dyn Text) -> Result<(), DataError> + 'v;

/// A pass at work.
pub(crate) struct Reading<'a> {
    pub(super) report: PassReport,
    /// Bytes of text that may still be read.
    left: u64,
    documents: u64,
    /// Bytes of the files before the current one.
    pub(super) base: u64,
    /// Bytes of the current file.
    pub(super) within: Cell<u64>,
    total_bytes: u64,
    pass: &'a Pass<'a>,
}

/// What is counted of one file.
#[derive(Default)]
pub(crate) struct FileCount {
    pub(super) count: SourceCount,
    pub(super) print: blake3::Hasher,
}

impl<'a> Reading<'a> {
    /// A pass at its beginning that reads `max_bytes` of text at most.
    pub(super) fn new(
        report: PassReport,
        max_bytes: u64,
        total_bytes: u64,
        pass: &'a Pass<'a>,
    ) -> Reading<'a> {
        let within = Cell::new(0);
        Reading { report, left: max_bytes, documents: 0, base: 0, within, total_bytes, pass }
    }

    /// A rest smaller than a character would never be used up.
    pub(crate) fn is_full(&self) -> bool {
        self.left < 4
    }

    /// Notes how much of the current file was read, where no reader counts it.
    pub(crate) fn advance_to(&self, bytes: u64) {
        self.within.set(bytes);
    }

    /// Offers one document.
    pub(crate) fn offer(
        &mut self,
        offered: Offered<'_>,
        count: &mut FileCount,
        visit: &mut Visit<'_>,
    ) -> Result<(), DataError> {
        let Offered { mut first, repaired, place, rest } = offered;
        if first.starts_with('\u{feff}') {
            first.remove(0);
        }
        self.tick()?;
        // A file that is one text and is empty is left out as a file.
        let is_record = rest.is_none();
        if is_record && first.trim().is_empty() {
            count.count.empty_texts += 1;
        }
        first.truncate(boundary_below(&first, self.left));
        if first.trim().is_empty() {
            return Ok(());
        }
        self.documents += 1;
        count.count.documents += 1;
        count.count.repaired_documents += u64::from(repaired);
        count.print.update(&first.as_bytes()[..boundary_below(&first, PREFIX_BYTES as u64)]);
        let mut document = Document { reading: self, first: Some(first), rest, place, bytes: 0 };
        visit(&mut document)?;
        while document.next_chunk()?.is_some() {}
        let bytes = document.bytes;
        count.count.bytes += bytes;
        count.print.update(&bytes.to_le_bytes());
        Ok(())
    }

    /// Counts a record whose text is null.
    pub(crate) fn skip_null(&self, count: &mut FileCount) -> Result<(), DataError> {
        count.count.null_texts += 1;
        self.tick()
    }

    /// Reports progress; ends the pass where it is to stop.
    pub(super) fn tick(&self) -> Result<(), DataError> {
        let Pass { stage, monitor, .. } = self.pass;
        if monitor.stop_requested() {
            return Err(DataError::Stopped);
        }
        monitor.progress(&Progress {
            stage: *stage,
            bytes: self.base + self.within.get(),
            total_bytes: self.total_bytes,
            documents: self.documents,
            tokens: 0,
        });
        Ok(())
    }
}

/// Gives the next chunk and how many bytes of the file it took.
type Rest<'a> = dyn FnMut() -> Result<Option<(String, u64)>, DataError> + 'a;

/// A document as it is read.
pub(crate) struct Offered<'a> {
    /// Its first chunk.
    pub(crate) first: String,
    /// Something of it was broken and is replaced.
    pub(crate) repaired: bool,
    /// Where it stands.
    pub(crate) place: &'a dyn Fn() -> String,
    /// Its other chunks; `None` when the first is all.
    pub(crate) rest: Option<&'a mut Rest<'a>>,
}

/// A document that counts itself, up to the byte limit.
struct Document<'a, 'r, 'p> {
    reading: &'a mut Reading<'p>,
    first: Option<String>,
    rest: Option<&'r mut Rest<'r>>,
    place: &'a dyn Fn() -> String,
    bytes: u64,
}

impl Text for Document<'_, '_, '_> {
    fn next_chunk(&mut self) -> Result<Option<String>, DataError> {
        let mut chunk = match (self.first.take(), &mut self.rest) {
            (Some(first), _) => first,
            (None, Some(rest)) if !self.reading.is_full() => {
                let Some((chunk, within)) = rest()? else { return Ok(None) };
                self.reading.advance_to(within);
                self.reading.tick()?;
                chunk
            }
            _ => return Ok(None),
        };
        chunk.truncate(boundary_below(&chunk, self.reading.left));
        self.bytes += chunk.len() as u64;
        self.reading.left -= chunk.len() as u64;
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    fn place(&self) -> String {
        (self.place)()
    }
}
