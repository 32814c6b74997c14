//! What a client's handles, connection tasks and pushes share: the shards' queues and the requests that are open.

use std::collections::HashMap;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use polygram_domain::{Cell, MicroBatchRef, Step, TableSet};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::Identity;
use super::gather::Gather;
use super::options::ClientLimits;
use super::pending::{Answer, Key, Partial, Registry};
use crate::block::BlockShape;
use crate::error::{Cause, RowError};
use crate::frame::Outgoing;
use crate::ids::{ShardRows, UniqueIds, divide};
use crate::message::Message;
use crate::pool::Buffers;
use crate::queue::SendQueue;

/// Micro-batches declared and not pushed yet: their ids' division is what a push follows.
pub(super) type Declared = HashMap<MicroBatchRef, Arc<Vec<ShardRows>>>;

/// What the handles and the tasks of a client share.
pub(super) struct Inner {
    pub(super) identity: Identity,
    pub(super) limits: ClientLimits,
    pub(super) tables: Arc<TableSet>,
    /// How gradients travel.
    pub(super) gradients: BlockShape,
    pub(super) version: Step,
    pub(super) shards: Vec<SendQueue>,
    pub(super) registry: Arc<Registry>,
    pub(super) declared: Mutex<Declared>,
    pub(super) reads: AtomicU32,
    pub(super) tasks: Mutex<JoinSet<()>>,
    pub(super) payloads: Buffers,
    pub(super) rows: Buffers,
}

pub(super) type Reply = oneshot::Receiver<Result<Answer, RowError>>;

impl Inner {
    /// Opens a lookup or read and queues its requests.
    pub(super) fn ask(&self, key: Key, ids: &UniqueIds) -> Result<(Arc<Vec<ShardRows>>, Reply), RowError> {
        let shards = divide(ids, &self.tables, self.shards.len() as u32)
            .map_err(|rule| self.registry.call_error(key.step(), key.cell(), rule))?;
        let shards = Arc::new(shards);
        let gather = Gather::new(Arc::clone(&shards), self.identity.rows, &self.rows);
        let reply = self.registry.open(key, Partial::Rows(gather))?;
        for (index, part) in shards.iter().enumerate() {
            let request = part.request(ids);
            let (message, cell) = match key {
                Key::Read(_, number) => (Message::Read(request), number),
                _ => (Message::Lookup(request), key.cell().unwrap_or_default()),
            };
            self.send(index, key, cell, &message)?;
        }
        Ok((shards, reply))
    }

    /// Sends `message` to every shard and waits for all answers.
    pub(super) async fn call(
        &self,
        key: Key,
        partial: Partial,
        message: &Message,
    ) -> Result<Answer, RowError> {
        let reply = self.registry.open(key, partial)?;
        for index in 0..self.shards.len() {
            self.send(index, key, Cell(0), message)?;
        }
        self.wait(key, reply).await
    }

    async fn wait(&self, key: Key, reply: Reply) -> Result<Answer, RowError> {
        match timeout(self.limits.reply, reply).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.registry.expire(key, Cause::Lost("the client was closed".to_owned()))),
            Err(_) => Err(self.registry.expire(key, Cause::Deadline(self.limits.reply))),
        }
    }

    /// Queues one frame, at once.
    fn send(&self, shard: usize, key: Key, cell: Cell, message: &Message) -> Result<(), RowError> {
        let fail = |cause: Cause| {
            self.registry.fail(shard, &cause);
            self.registry.error(shard, Some(key), cause)
        };
        let (kind, pieces) = message.encode();
        let frame = Outgoing::seal(&self.identity.header(kind, key.step(), cell), pieces)
            .map_err(|error| fail(Cause::Call(error.to_string())))?;
        self.shards[shard].send_urgent(frame).map_err(|_| fail(self.registry.closed()))
    }
}

/// The rows that a lookup or read is answered with.
pub(super) async fn rows_of(
    inner: Arc<Inner>,
    key: Key,
    sent: Result<Reply, RowError>,
) -> Result<Vec<f32>, RowError> {
    match inner.wait(key, sent?).await? {
        Answer::Rows(rows) => Ok(rows),
        _ => Err(inner.registry.call_error(key.step(), key.cell(), "rows were answered by another message")),
    }
}
