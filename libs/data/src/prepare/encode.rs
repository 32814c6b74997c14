//! Documents to tokens: cut into pieces where that changes nothing, encoded on several threads, given back in
//! order.
//!
//! The caller's thread reads and writes; each worker thread keeps its memory of words for the whole corpus.
//! What is on its way is bounded in bytes, so memory does not depend on the size of the corpus or of a
//! document.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::byte_level::{Memory, Piece};
use super::split::Side;
use super::text::Text;
use super::tokenizer::TextTokenizer;
use crate::error::DataError;

/// Longer documents are cut into pieces of about this size, and shorter ones are gathered to it.
const JOB_BYTES: usize = 256 << 10;
/// Text that is on its way, at most; a single longer piece goes alone.
const MOST_UNDERWAY: usize = 32 << 20;

/// A document or a piece of one.
struct Unit {
    text: String,
    /// It starts its document.
    starts: bool,
    place: PieceOf,
}

/// What a piece of tokens belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PieceOf {
    /// Where its document goes.
    pub(crate) side: Side,
    /// It ends its document.
    pub(crate) ends: bool,
}

/// Tokens of a document or of a piece of one.
pub(crate) struct Encoded {
    pub(crate) tokens: Vec<u32>,
    pub(crate) place: PieceOf,
}

/// Units that are encoded together; results are ordered by the number.
struct Job {
    number: u64,
    bytes: usize,
    units: Vec<Unit>,
}

struct Done {
    number: u64,
    bytes: usize,
    encoded: Result<Vec<Encoded>, DataError>,
}

/// Takes tokens, in the order of the documents.
pub(crate) type Sink<'s> = dyn FnMut(Encoded) -> Result<(), DataError> + 's;

/// Encodes what `feed` hands to the [`Feeder`] and gives it to `sink`, in order and the same for every number
/// of threads.
pub(crate) fn encode<T>(
    tokenizer: &TextTokenizer,
    threads: NonZeroUsize,
    sink: &mut Sink<'_>,
    feed: impl FnOnce(&mut Feeder<'_, '_>) -> Result<T, DataError>,
) -> Result<T, DataError> {
    let most_jobs = 4 * threads.get();
    let (jobs, work) = sync_channel(most_jobs);
    let (results, done) = channel();
    let work = Mutex::new(work);
    std::thread::scope(|scope| {
        for _ in 0..threads.get() {
            let (work, results) = (&work, results.clone());
            std::thread::Builder::new()
                .name("encode".into())
                .spawn_scoped(scope, move || run_worker(tokenizer, work, &results))
                .map_err(|source| DataError::Io {
                    action: "start a thread to encode",
                    path: "(encoder)".into(),
                    source,
                })?;
        }
        drop(results);
        let mut feeder = Feeder {
            tokenizer,
            jobs,
            done,
            sink,
            most_jobs,
            next_job: 0,
            next_written: 0,
            early: BTreeMap::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            underway: 0,
        };
        let fed = feed(&mut feeder)?;
        feeder.finish()?;
        Ok(fed)
        // The feeder's end of the queue is dropped here, and the workers end.
    })
}

fn run_worker(tokenizer: &TextTokenizer, work: &Mutex<Receiver<Job>>, results: &Sender<Done>) {
    let mut memory = Memory::default();
    loop {
        let next = match work.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(Job { number, bytes, units }) = next else { return };
        let encoded = units
            .into_iter()
            .map(|Unit { text, starts, place }| {
                let mut tokens = Vec::with_capacity(text.len() / 3 + 1);
                tokenizer.encode(Piece { text: &text, starts }, &mut memory, &mut tokens)?;
                if place.ends {
                    tokens.push(tokenizer.vocab().eos);
                }
                Ok(Encoded { tokens, place })
            })
            .collect();
        if results.send(Done { number, bytes, encoded }).is_err() {
            return;
        }
    }
}

/// Cuts documents and hands them to the workers; takes back what they have done.
pub(crate) struct Feeder<'t, 's> {
    tokenizer: &'t TextTokenizer,
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
    sink: &'s mut Sink<'s>,
    most_jobs: usize,
    next_job: u64,
    next_written: u64,
    /// Results that came before those of an earlier job.
    early: BTreeMap<u64, Vec<Encoded>>,
    batch: Vec<Unit>,
    batch_bytes: usize,
    /// Bytes of text that are underway.
    underway: usize,
}

impl Feeder<'_, '_> {
    /// Takes a whole document.
    pub(crate) fn document(
        &mut self,
        first: String,
        rest: &mut dyn Text,
        side: Side,
    ) -> Result<(), DataError> {
        let mut pending = first;
        let mut starts = true;
        // Nothing before this place can be cut.
        let mut searched = 0;
        loop {
            let mut taken = 0;
            while self.tokenizer.can_cut() && pending.len() - taken > JOB_BYTES {
                let from = searched.max(taken + JOB_BYTES);
                let Some(at) = self.tokenizer.cut_after(&pending, from) else {
                    searched = pending.len();
                    break;
                };
                let place = PieceOf { side, ends: false };
                self.push(Unit { text: pending[taken..at].to_owned(), starts, place })?;
                (taken, starts) = (at, false);
            }
            pending.drain(..taken);
            searched -= taken.min(searched);
            let Some(chunk) = rest.next_chunk()? else { break };
            pending.push_str(&chunk);
            self.check_length(&pending, rest)?;
        }
        self.check_length(&pending, rest)?;
        self.push(Unit { text: pending, starts, place: PieceOf { side, ends: true } })
    }

    fn check_length(&self, pending: &str, document: &dyn Text) -> Result<(), DataError> {
        let most = self.tokenizer.most_bytes();
        if pending.len() as u64 <= most {
            return Ok(());
        }
        let reason = if self.tokenizer.can_cut() {
            "there is no word end in it where it can be cut"
        } else {
            "with this tokenizer no document can be cut without a change of its tokens"
        };
        Err(DataError::Corpus {
            place: document.place(),
            problem: format!(
                "a document, or a part of it, is longer than {} MiB, and {reason}; divide it into several documents",
                most >> 20
            ),
        })
    }

    fn push(&mut self, unit: Unit) -> Result<(), DataError> {
        self.batch_bytes += unit.text.len();
        self.batch.push(unit);
        if self.batch_bytes >= JOB_BYTES { self.submit() } else { Ok(()) }
    }

    fn submit(&mut self) -> Result<(), DataError> {
        let (units, bytes) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.batch_bytes));
        while self.unwritten() > 0
            && (self.underway + bytes > MOST_UNDERWAY || self.unwritten() >= self.most_jobs as u64)
        {
            self.take_back()?;
        }
        self.underway += bytes;
        let job = Job { number: self.next_job, bytes, units };
        self.next_job += 1;
        // The queue has room for all jobs that may be underway.
        self.jobs.send(job).map_err(|_| workers_gone())
    }

    /// Jobs whose results are not written.
    fn unwritten(&self) -> u64 {
        self.next_job - self.next_written
    }

    /// Waits for a result and writes all that are due.
    fn take_back(&mut self) -> Result<(), DataError> {
        let Done { number, bytes, encoded } = self.done.recv().map_err(|_| workers_gone())?;
        self.underway -= bytes;
        self.early.insert(number, encoded?);
        while let Some(due) = self.early.remove(&self.next_written) {
            self.next_written += 1;
            due.into_iter().try_for_each(&mut *self.sink)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), DataError> {
        if !self.batch.is_empty() {
            self.submit()?;
        }
        while self.unwritten() > 0 {
            self.take_back()?;
        }
        Ok(())
    }
}

/// All workers ended without a request, which only a panic explains; the scope raises it again.
fn workers_gone() -> DataError {
    let source = std::io::Error::other("its threads ended early");
    DataError::Io { action: "encode with", path: "(encoder)".into(), source }
}
