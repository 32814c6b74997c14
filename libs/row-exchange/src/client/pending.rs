//! What a client waits for: every open request and how much of it is still missing, per shard.
//!
//! Connection tasks place answers here; a future owns the receiving end of its request. One failure fails every
//! open request and every later one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use polygram_domain::{BucketIndex, Cell, MicroBatchRef, ShardIndex, Step, TableIndex};
use tokio::sync::oneshot;

use super::gather::{Claim, Gather};
use crate::error::{Cause, RowError};
use crate::exchange::Prepared;
use crate::message::{PreparedBody, RowBlock};

/// Requests open at once at most; a worker needs a few per step of prefetch.
const MAX_OPEN: usize = 1 << 14;

/// Locks a mutex. A panic while it was held leaves only a request of the panicking caller half-placed, and that
/// panic already ends the process's work.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Lookup(MicroBatchRef),
    /// Of a version, with the number of the read.
    Read(Step, Cell),
    Prepare(Step),
    Commit(Step),
    Abort(Step),
}

impl Key {
    pub(super) fn step(self) -> Step {
        match self {
            Key::Lookup(at) => at.step,
            Key::Read(step, _) | Key::Prepare(step) | Key::Commit(step) | Key::Abort(step) => step,
        }
    }

    pub(super) fn cell(self) -> Option<Cell> {
        match self {
            Key::Lookup(at) => Some(at.index),
            _ => None,
        }
    }
}

/// What a request resolves to.
#[derive(Debug)]
pub(super) enum Answer {
    Rows(Vec<f32>),
    Prepared(Prepared),
    /// All shards have done what was voted; the sum of their fingerprints of the rows updated.
    Done(u64),
}

/// An answer in the making.
#[derive(Debug)]
pub(super) enum Partial {
    Rows(Gather),
    Sums { finite: bool, sums: Vec<(TableIndex, BucketIndex, f64)>, missing: Vec<Option<usize>> },
    Acks { waiting: Vec<bool>, rows: u64 },
}

impl Partial {
    pub(super) fn sums(shards: usize) -> Partial {
        Partial::Sums { finite: true, sums: Vec::new(), missing: vec![None; shards] }
    }

    pub(super) fn acks(shards: usize) -> Partial {
        Partial::Acks { waiting: vec![true; shards], rows: 0 }
    }

    /// The first shard that has not answered in full.
    fn awaited(&self) -> Option<usize> {
        match self {
            Partial::Rows(gather) => gather.awaited(),
            Partial::Sums { missing, .. } => missing.iter().position(|sums| *sums != Some(0)),
            Partial::Acks { waiting, .. } => waiting.iter().position(|&waits| waits),
        }
    }

    fn finish(&mut self) -> Answer {
        match self {
            Partial::Rows(gather) => Answer::Rows(gather.finish()),
            Partial::Sums { finite, sums, .. } => {
                let mut sums = std::mem::take(sums);
                sums.sort_unstable_by_key(|&(table, bucket, _)| (table, bucket));
                Answer::Prepared(Prepared { finite: *finite, sums })
            }
            Partial::Acks { rows, .. } => Answer::Done(*rows),
        }
    }
}

#[derive(Debug)]
struct Request {
    partial: Partial,
    reply: Option<oneshot::Sender<Result<Answer, RowError>>>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<Key, Arc<Mutex<Request>>>,
    failure: Option<(usize, Cause)>,
}

/// All open requests of a client.
#[derive(Debug)]
pub(super) struct Registry {
    shards: Vec<SocketAddr>,
    state: Mutex<State>,
}

impl Registry {
    pub(super) fn new(shards: Vec<SocketAddr>) -> Registry {
        Registry { shards, state: Mutex::default() }
    }

    /// An error about `shard`, for a request of `key`.
    pub(super) fn error(&self, shard: usize, key: Option<Key>, cause: Cause) -> RowError {
        RowError {
            shard: self.shards.get(shard).map(|&address| (ShardIndex(shard as u32), address)),
            step: key.map(Key::step),
            cell: key.and_then(Key::cell),
            cause,
        }
    }

    /// An error of the caller.
    pub(super) fn call_error(&self, step: Step, cell: Option<Cell>, rule: impl Into<String>) -> RowError {
        RowError { shard: None, step: Some(step), cell, cause: Cause::Call(rule.into()) }
    }

    /// Opens a request. Resolved at once when no shard has to answer.
    pub(super) fn open(
        &self,
        key: Key,
        mut partial: Partial,
    ) -> Result<oneshot::Receiver<Result<Answer, RowError>>, RowError> {
        let (sender, receiver) = oneshot::channel();
        let mut state = lock(&self.state);
        if let Some((shard, cause)) = &state.failure {
            return Err(self.error(*shard, Some(key), cause.clone()));
        }
        if state.open.len() >= MAX_OPEN {
            let rule = format!("{MAX_OPEN} requests are open already");
            return Err(self.call_error(key.step(), key.cell(), rule));
        }
        match state.open.entry(key) {
            Entry::Occupied(_) => {
                Err(self.call_error(key.step(), key.cell(), "the same request is open already"))
            }
            Entry::Vacant(_) if partial.awaited().is_none() => {
                // The receiver is in this function's hands, so the send cannot fail.
                let _sent = sender.send(Ok(partial.finish()));
                Ok(receiver)
            }
            Entry::Vacant(slot) => {
                slot.insert(Arc::new(Mutex::new(Request { partial, reply: Some(sender) })));
                Ok(receiver)
            }
        }
    }

    /// Whether a request still waits for some answer.
    pub(super) fn is_open(&self, key: Key) -> bool {
        lock(&self.state).open.contains_key(&key)
    }

    /// Places a part of rows. Answers to requests that are no longer open are dropped.
    pub(super) fn rows(&self, shard: usize, key: Key, block: &RowBlock) -> Result<(), Cause> {
        self.update(key, |partial| match partial {
            Partial::Rows(gather) => gather.place(shard, block),
            _ => Err("rows answer no lookup".to_owned()),
        })
    }

    /// Claims the places of a part of rows, to be filled as it comes. `None` where that cannot be, and the part is
    /// to be read and placed as a whole.
    pub(super) fn claim(&self, shard: usize, key: Key, runs: &[Range<u32>]) -> Option<Claim> {
        let request = lock(&self.state).open.get(&key).cloned()?;
        match &mut lock(&request).partial {
            Partial::Rows(gather) => gather.claim(shard, runs),
            _ => None,
        }
    }

    /// Counts a claim as filled, once its values are verified.
    pub(super) fn settle(&self, shard: usize, key: Key, claim: Claim) -> Result<(), Cause> {
        self.update(key, |partial| match partial {
            Partial::Rows(gather) => {
                gather.settle(shard, claim);
                Ok(())
            }
            _ => Err("rows answer no lookup".to_owned()),
        })
    }

    /// Places a part of sums.
    pub(super) fn sums(&self, shard: usize, key: Key, body: PreparedBody) -> Result<(), Cause> {
        self.update(key, |partial| {
            let Partial::Sums { finite, sums, missing } = partial else {
                return Err("sums answer no prepare".to_owned());
            };
            let left = missing[shard].get_or_insert(body.total as usize);
            match left.checked_sub(body.sums.len()) {
                Some(rest) => *left = rest,
                None => return Err(format!("{} sums came, {left} were expected", body.sums.len())),
            }
            *finite &= body.finite;
            sums.extend(body.sums);
            Ok(())
        })
    }

    /// Notes that a shard is done, and its fingerprint of the rows that it has updated. Said again, it counts once.
    pub(super) fn acknowledge(&self, shard: usize, key: Key, fingerprint: u64) -> Result<(), Cause> {
        self.update(key, |partial| match partial {
            Partial::Acks { waiting, rows } => {
                if std::mem::take(&mut waiting[shard]) {
                    *rows = rows.wrapping_add(fingerprint);
                }
                Ok(())
            }
            _ => Err("an acknowledgement answers no vote".to_owned()),
        })
    }

    fn update(&self, key: Key, place: impl FnOnce(&mut Partial) -> Result<(), String>) -> Result<(), Cause> {
        let Some(request) = lock(&self.state).open.get(&key).cloned() else {
            tracing::debug!(?key, "an answer came for no open request");
            return Ok(());
        };
        let mut request = lock(&request);
        place(&mut request.partial).map_err(|rule| Cause::Answer(format!("{rule} ({key:?})")))?;
        if request.partial.awaited().is_none() {
            lock(&self.state).open.remove(&key);
            let answer = request.partial.finish();
            if let Some(reply) = request.reply.take()
                && reply.send(Ok(answer)).is_err()
            {
                tracing::debug!(?key, "an answer came after its future was dropped");
            }
        }
        Ok(())
    }

    /// Closes a request whose time is up; the error names the first shard that did not answer.
    pub(super) fn expire(&self, key: Key, cause: Cause) -> RowError {
        let request = lock(&self.state).open.remove(&key);
        let shard = request.and_then(|request| lock(&request).partial.awaited());
        self.error(shard.unwrap_or(usize::MAX), Some(key), cause)
    }

    /// Fails every open request, and every later one. The first cause stays.
    pub(super) fn fail(&self, shard: usize, cause: &Cause) {
        let open = {
            let mut state = lock(&self.state);
            state.failure.get_or_insert_with(|| (shard, cause.clone()));
            std::mem::take(&mut state.open)
        };
        for (key, request) in open {
            if let Some(reply) = lock(&request).reply.take()
                && reply.send(Err(self.error(shard, Some(key), cause.clone()))).is_err()
            {
                tracing::debug!(?key, "a request failed after its future was dropped");
            }
        }
    }

    /// Why a connection takes nothing more: the failure, or the client's own end.
    pub(super) fn closed(&self) -> Cause {
        self.failure().map_or_else(|| Cause::Lost("it is closed".to_owned()), |failure| failure.cause)
    }

    /// The failure, if there was one.
    pub(super) fn failure(&self) -> Option<RowError> {
        lock(&self.state).failure.as_ref().map(|(shard, cause)| self.error(*shard, None, cause.clone()))
    }
}
