//! [`RowClient`]: what a worker holds to exchange rows and row gradients with all shards.
//!
//! Legend: C = tables per site, U = unique rows of a cell, w = values per row. Row buffers are `[sites, U, w]`.
//!
//! A call goes to every shard that has a part in it; its future resolves when all have answered. The first failure
//! of any kind ends the client: every open and later call fails with the shard, step and cell named. Deadlines run
//! from a future's first poll.

mod connection;
mod error;
mod pending;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use polygram_domain::{Cell, Generation, Rank, RunName, Step, TableSet};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use connection::{Identity, Item, QUEUE_FRAMES, admit};
pub use error::{Cause, RowError};
pub use pending::Prepared;
use pending::{Answer, Gather, Key, Partial, Registry, lock};

use super::frame::{Kind, Outgoing, Piece, run_hash};
use super::ids::{ShardRows, UniqueIds, divide};
use super::message::{Commit, HelloBody, Message, RowBlock, tables_hash};

/// Bytes of pushed gradients that wait for one shard's socket at most.
const PUSH_BUDGET_BYTES: usize = 64 << 20;

/// Who is connecting.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The run.
    pub run: RunName,
    /// Its membership generation; shards refuse any other.
    pub generation: Generation,
    /// This worker.
    pub rank: Rank,
    /// Workers in the run.
    pub workers: u32,
}

/// A client's deadlines and sizes. A `Duration` stands for both deadlines.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// For a connection to be made, and for a socket that takes no data.
    pub connect: Duration,
    /// For an answer, the welcome of a shard that still restores its rows included. A lookup's answer may wait for the commits of earlier steps: allow for `prefetch_steps`
    /// whole steps.
    pub reply: Duration,
    /// Bytes of row gradients per frame; no result depends on it.
    pub chunk_bytes: usize,
}

impl From<Duration> for ClientLimits {
    fn from(deadline: Duration) -> ClientLimits {
        ClientLimits { connect: deadline, reply: deadline, chunk_bytes: 1 << 20 }
    }
}

struct Shard {
    queue: mpsc::Sender<Item>,
    budget: Arc<Semaphore>,
}

/// Cells declared and not pushed yet: their ids' division is what a push follows.
type Declared = HashMap<(Step, Cell), Arc<Vec<ShardRows>>>;

struct Inner {
    identity: Identity,
    limits: ClientLimits,
    tables: Arc<TableSet>,
    sites: usize,
    width: usize,
    version: Step,
    shards: Vec<Shard>,
    registry: Arc<Registry>,
    declared: Mutex<Declared>,
    reads: AtomicU32,
    tasks: Mutex<JoinSet<()>>,
}

/// Exchanges rows with all shards of a run. Clones share the connections; the last one closes them.
#[derive(Clone)]
pub struct RowClient {
    inner: Arc<Inner>,
}

impl RowClient {
    /// Connects to every shard (`shards[i]` is shard `i`) and is admitted by all of them, or fails naming the
    /// first that does not answer or refuses. All shards must have the same version.
    pub async fn connect(
        shards: &[SocketAddr],
        hello: Hello,
        tables: Arc<TableSet>,
        limits: impl Into<ClientLimits>,
    ) -> Result<RowClient, RowError> {
        let limits = limits.into();
        let sites = match tables.is_empty() {
            true => 0,
            false => tables.len() / tables.tables_per_site() as usize,
        };
        let width = tables.iter().next().map_or(0, |table| table.width as usize);
        let identity = Identity {
            run: run_hash(&hello.run),
            generation: hello.generation,
            hello: HelloBody { rank: hello.rank, workers: hello.workers, tables: tables_hash(&tables) },
            stride: sites * width,
        };
        let registry = Arc::new(Registry::new(shards.to_vec()));
        let mut handshakes = JoinSet::new();
        for (index, &address) in shards.iter().enumerate() {
            handshakes.spawn(async move { (index, admit(address, identity, limits).await) });
        }
        let mut admitted: Vec<_> = shards.iter().map(|_| None).collect();
        while let Some(joined) = handshakes.join_next().await {
            let (index, result) = joined.map_err(|error| {
                registry.error(usize::MAX, None, Cause::Connect(format!("handshake task failed: {error}")))
            })?;
            admitted[index] = Some(result.map_err(|cause| registry.error(index, None, cause))?);
        }
        let mut tasks = JoinSet::new();
        let mut connections = Vec::with_capacity(shards.len());
        let mut version: Option<Step> = None;
        for (index, connection) in admitted.into_iter().flatten().enumerate() {
            let welcome = connection.welcome;
            let expected = *version.get_or_insert(welcome.version);
            let refuse = |text: String| Err(registry.error(index, None, Cause::Answer(text)));
            if (welcome.shard.index(), welcome.shards as usize) != (index, shards.len()) {
                return refuse(format!(
                    "it is shard {} of {}, expected shard {index} of {}",
                    welcome.shard,
                    welcome.shards,
                    shards.len()
                ));
            }
            if welcome.version != expected {
                return refuse(format!(
                    "its rows are at version {}, shard 0's at {expected}",
                    welcome.version
                ));
            }
            let (queue, receiver) = mpsc::channel(QUEUE_FRAMES);
            let (reads, writes) = connection.into_tasks(index, identity, Arc::clone(&registry), receiver);
            tasks.spawn(reads);
            tasks.spawn(writes);
            let budget = Arc::new(Semaphore::new(PUSH_BUDGET_BYTES));
            connections.push(Shard { queue, budget });
        }
        let inner = Inner {
            identity,
            limits,
            tables,
            sites,
            width,
            version: version.unwrap_or_default(),
            shards: connections,
            registry,
            declared: Mutex::default(),
            reads: AtomicU32::new(0),
            tasks: Mutex::new(tasks),
        };
        Ok(RowClient { inner: Arc::new(inner) })
    }

    /// Version of the shards' rows at connection: updates in them.
    pub fn version(&self) -> Step {
        self.inner.version
    }

    /// The failure that ended this client, if any.
    pub fn failure(&self) -> Option<RowError> {
        self.inner.registry.failure()
    }

    /// Declares a cell's rows for step `step` and asks for them. Sent before this returns, in the order of calls.
    /// The future resolves to the rows `[sites, U, w]` at version `step`; dropping it does not take the
    /// declaration back.
    pub fn lookup(
        &self,
        step: Step,
        cell: Cell,
        ids: Arc<UniqueIds>,
    ) -> impl Future<Output = Result<Vec<f32>, RowError>> + Send + use<> {
        let sent = self.inner.ask(Key::Lookup(step, cell), &ids).map(|(shards, reply)| {
            lock(&self.inner.declared).insert((step, cell), shards);
            reply
        });
        rows_of(Arc::clone(&self.inner), Key::Lookup(step, cell), sent)
    }

    /// The rows `[sites, U, w]` at exactly version `version`, for evaluation: nothing is declared. Sent before
    /// this returns. Refused once that version is past.
    pub fn read(
        &self,
        version: Step,
        ids: Arc<UniqueIds>,
    ) -> impl Future<Output = Result<Vec<f32>, RowError>> + Send + use<> {
        let number = Cell(self.inner.reads.fetch_add(1, Ordering::Relaxed));
        let key = Key::Read(version, number);
        let sent = self.inner.ask(key, &ids).map(|(_, reply)| reply);
        rows_of(Arc::clone(&self.inner), key, sent)
    }

    /// Sends a declared cell's row gradients `[sites, U, w]`. Resolves when all of it is queued: it waits while
    /// a shard's socket is behind by more than a fixed number of bytes.
    pub async fn push(&self, step: Step, cell: Cell, row_grads_suw: Vec<f32>) -> Result<(), RowError> {
        let inner = &self.inner;
        if let Some(mut failure) = inner.registry.failure() {
            (failure.step, failure.cell) = (Some(step), Some(cell));
            return Err(failure);
        }
        let Some(shards) = lock(&inner.declared).remove(&(step, cell)) else {
            return Err(inner.registry.call_error(step, Some(cell), "a push without its lookup"));
        };
        let unique: usize = shards.iter().map(ShardRows::len).sum();
        let expected = inner.sites * unique * inner.width;
        if row_grads_suw.len() != expected {
            let rule = format!("{} gradient values for {expected} row values", row_grads_suw.len());
            return Err(inner.registry.call_error(step, Some(cell), rule));
        }
        let values = Arc::new(row_grads_suw);
        for (index, part) in shards.iter().enumerate() {
            inner.push_to(index, part, &values, (step, cell)).await?;
        }
        Ok(())
    }

    /// The shards' sums of the step, once every cell of every worker is in.
    pub async fn prepare(&self, step: Step) -> Result<Prepared, RowError> {
        let partial = Partial::sums(self.inner.shards.len());
        match self.inner.call(Key::Prepare(step), partial, &Message::Prepare).await? {
            Answer::Prepared(prepared) => Ok(prepared),
            _ => Err(self.inner.registry.call_error(step, None, "prepare was answered by another message")),
        }
    }

    /// Votes to apply the step; resolves when every worker has sent the same bits and every shard has applied it.
    pub async fn commit(&self, step: Step, commit: Commit) -> Result<(), RowError> {
        self.vote(Key::Commit(step), Message::Commit(commit)).await
    }

    /// Votes to skip the step, leaving the tables as they are; the version moves on all the same.
    pub async fn abort(&self, step: Step) -> Result<(), RowError> {
        self.vote(Key::Abort(step), Message::Abort { snapshot: false }).await
    }

    /// As [`RowClient::abort`], with a snapshot of the rows as they are.
    pub async fn abort_with_snapshot(&self, step: Step) -> Result<(), RowError> {
        self.vote(Key::Abort(step), Message::Abort { snapshot: true }).await
    }

    /// Closes the connections once what is queued is sent, and joins their tasks.
    pub async fn close(self) -> Result<(), RowError> {
        let failure = self.failure();
        for shard in &self.inner.shards {
            // A queue that is gone belongs to a connection that has ended already.
            let _ended = timeout(self.inner.limits.connect, shard.queue.send(Item::Close)).await;
        }
        let mut tasks = std::mem::take(&mut *lock(&self.inner.tasks));
        let joined = timeout(self.inner.limits.connect, async {
            while let Some(joined) = tasks.join_next().await {
                if let Err(error) = joined {
                    tracing::warn!(%error, "a connection task ended badly");
                }
            }
        });
        if joined.await.is_err() {
            tasks.shutdown().await;
        }
        failure.map_or(Ok(()), Err)
    }

    async fn vote(&self, key: Key, message: Message) -> Result<(), RowError> {
        lock(&self.inner.declared).retain(|(step, _), _| *step != key.step());
        self.inner.call(key, Partial::acks(self.inner.shards.len()), &message).await.map(|_| ())
    }
}

type Reply = oneshot::Receiver<Result<Answer, RowError>>;

impl Inner {
    /// Opens a lookup or read and queues its requests.
    fn ask(&self, key: Key, ids: &UniqueIds) -> Result<(Arc<Vec<ShardRows>>, Reply), RowError> {
        let shards = divide(ids, &self.tables, self.shards.len() as u32)
            .map_err(|rule| self.registry.call_error(key.step(), key.cell(), rule))?;
        let shards = Arc::new(shards);
        let gather = Gather::new(Arc::clone(&shards), self.sites, self.width);
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
    async fn call(&self, key: Key, partial: Partial, message: &Message) -> Result<Answer, RowError> {
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
        self.shards[shard].queue.try_send(Item::Frame(frame, None)).map_err(|error| {
            let full = matches!(error, mpsc::error::TrySendError::Full(_));
            fail(Cause::Lost(if full { "its queue is full" } else { "it is closed" }.to_owned()))
        })
    }

    /// Sends one shard its part of a cell's gradients, in chunks.
    async fn push_to(
        &self,
        index: usize,
        part: &ShardRows,
        values: &Arc<Vec<f32>>,
        (step, cell): (Step, Cell),
    ) -> Result<(), RowError> {
        let fail = |cause: Cause| RowError {
            step: Some(step),
            cell: Some(cell),
            ..self.registry.error(index, None, cause)
        };
        let unique = values.len() / (self.sites * self.width).max(1);
        let row_bytes = self.sites * self.width * 4;
        let rows_per_chunk = (self.limits.chunk_bytes / row_bytes.max(1)).max(1);
        let shard = &self.shards[index];
        let mut start = 0;
        let mut chunk = 0;
        loop {
            let end = part.len().min(start + rows_per_chunk);
            let run = (start < end).then_some(start as u32..end as u32);
            let mut pieces = vec![Piece::Words(RowBlock::head(run.as_slice()))];
            for site in 0..self.sites {
                pieces.extend(part.stretches(start..end).map(|(_, rows)| {
                    let at = |row: usize| (site * unique + row) * self.width;
                    Piece::Shared(Arc::clone(values), at(rows.start)..at(rows.end))
                }));
            }
            let mut header = self.identity.header(Kind::Push, step, cell);
            header.chunk = chunk;
            let frame = Outgoing::seal(&header, pieces).map_err(|error| fail(error.into()))?;
            let bytes = frame.wire_bytes().min(PUSH_BUDGET_BYTES) as u32;
            let permit = timeout(self.limits.reply, Arc::clone(&shard.budget).acquire_many_owned(bytes))
                .await
                .map_err(|_| fail(Cause::Deadline(self.limits.reply)))?
                .map_err(|_| fail(Cause::Lost("it is closed".to_owned())))?;
            let queued = timeout(self.limits.reply, shard.queue.send(Item::Frame(frame, Some(permit)))).await;
            queued.map_err(|_| fail(Cause::Deadline(self.limits.reply)))?.map_err(|_| {
                fail(self.registry.failure().map_or(Cause::Lost("it is closed".into()), |e| e.cause))
            })?;
            start = end;
            chunk += 1;
            if start >= part.len() {
                return Ok(());
            }
        }
    }
}

async fn rows_of(inner: Arc<Inner>, key: Key, sent: Result<Reply, RowError>) -> Result<Vec<f32>, RowError> {
    match inner.wait(key, sent?).await? {
        Answer::Rows(rows) => Ok(rows),
        _ => Err(inner.registry.call_error(key.step(), key.cell(), "rows were answered by another message")),
    }
}
