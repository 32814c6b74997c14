//! [`RowClient`]: what a worker holds to exchange rows and row gradients with all shards.
//!
//! Legend: C = tables per site, U = unique rows of a cell, w = values per row. Row buffers are `[sites, U, w]`.
//!
//! A call goes to every shard that has a part in it; its future resolves when all have answered. The first failure
//! of any kind ends the client: every open and later call fails with the shard, step and cell named. Deadlines run
//! from a future's first poll.

mod connection;
mod gather;
mod options;
mod pending;
mod push;
mod region;
mod shared;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use polygram_domain::{Cell, MicroBatchRef, Step, TableSet};
use tokio::task::JoinSet;
use tokio::time::timeout;

use connection::{Admitted, Context, Dial, Identity};
pub use options::{ClientLimits, ClientOptions, Hello};
use pending::{Answer, Key, Partial, Registry, lock};
use push::Push;
use shared::{Inner, rows_of};

use crate::block::BlockShape;
use crate::credit::Inflow;
use crate::error::{Cause, RowError};
use crate::exchange::{Prepared, RowExchange};
use crate::frame::run_hash;
use crate::greeting::silence_ms;
use crate::ids::{ShardRows, UniqueIds};
use crate::message::{Commit, HelloBody, Message, SnapshotOrder, WelcomeBody, tables_hash};
use crate::pool::Buffers;
use crate::queue::SendQueue;
use crate::same_host::incarnation;

/// Memory of received and converted payloads that is kept for the next ones.
const PAYLOADS_KEPT_BYTES: usize = 64 << 20;
/// Memory of pushed gradients that is kept for rows of later lookups.
const ROWS_KEPT_BYTES: usize = 512 << 20;

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
        options: impl Into<ClientOptions>,
    ) -> Result<RowClient, RowError> {
        let options: ClientOptions = options.into();
        let registry = Arc::new(Registry::new(shards.to_vec()));
        let nowhere =
            |error: std::io::Error| registry.error(usize::MAX, None, Cause::Connect(error.to_string()));
        let (sites, width) = (tables.sites(), tables.width());
        let identity = Identity {
            run: run_hash(&hello.run),
            generation: hello.generation,
            hello: HelloBody {
                rank: hello.rank,
                workers: hello.workers,
                tables: tables_hash(&tables),
                incarnation: incarnation().map_err(nowhere)?,
                connection: 0,
                connections: options.connections,
                wire: options.wire,
                same_host: options.same_host,
                window_bytes: options.row_window_bytes,
                silence_ms: silence_ms(options.limits.connect),
            },
            rows: BlockShape { sites, width, kind: options.wire.rows },
        };
        let payloads = Buffers::new(PAYLOADS_KEPT_BYTES);
        let mut handshakes = JoinSet::new();
        for (shard, &address) in shards.iter().enumerate() {
            let (limits, buffers) = (options.limits, payloads.clone());
            let dial = Dial { shard, address, key: hello.key, identity, limits, buffers };
            handshakes.spawn(async move { (shard, dial.admit().await) });
        }
        let mut tasks = JoinSet::new();
        let mut admitted: Vec<Option<(WelcomeBody, SendQueue)>> = shards.iter().map(|_| None).collect();
        while let Some(joined) = handshakes.join_next().await {
            let (shard, result) = joined.map_err(|error| nowhere(error.into()))?;
            let Admitted { welcome, links } = result.map_err(|cause| registry.error(shard, None, cause))?;
            let queue = SendQueue::new(welcome.window_bytes);
            let context = Context {
                shard,
                identity,
                registry: Arc::clone(&registry),
                queue: queue.clone(),
                inflow: Arc::new(Inflow::new(options.row_window_bytes)),
                silence: options.limits.connect,
                heard_within: welcome.silence(),
            };
            // At once: other shards may let this worker wait for long, and this one is to hear of it meanwhile.
            for (connection, link) in (0..).zip(links) {
                let (reads, writes) = link.into_tasks(connection, context.clone());
                tasks.spawn(reads);
                tasks.spawn(writes);
            }
            admitted[shard] = Some((welcome, queue));
        }
        let mut queues = Vec::with_capacity(shards.len());
        let mut version: Option<Step> = None;
        for (shard, (welcome, queue)) in admitted.into_iter().flatten().enumerate() {
            let expected = *version.get_or_insert(welcome.version);
            let refuse = |text: String| Err(registry.error(shard, None, Cause::Answer(text)));
            if (welcome.shard.index(), welcome.shards as usize) != (shard, shards.len()) {
                return refuse(format!(
                    "it is shard {} of {}, expected shard {shard} of {}",
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
            queues.push(queue);
        }
        let inner = Inner {
            identity,
            limits: options.limits,
            tables,
            gradients: BlockShape { sites, width, kind: options.wire.gradients },
            version: version.unwrap_or_default(),
            shards: queues,
            registry,
            declared: Mutex::default(),
            reads: AtomicU32::new(0),
            tasks: Mutex::new(tasks),
            payloads,
            rows: Buffers::new(ROWS_KEPT_BYTES),
        };
        Ok(RowClient { inner: Arc::new(inner) })
    }

    /// The failure that ended this client, if any.
    pub fn failure(&self) -> Option<RowError> {
        self.inner.registry.failure()
    }

    /// Closes the connections once what is queued is sent, and joins their tasks.
    pub async fn close(self) -> Result<(), RowError> {
        let failure = self.failure();
        self.inner.shards.iter().for_each(SendQueue::close);
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

    async fn vote(&self, key: Key, message: Message) -> Result<u64, RowError> {
        lock(&self.inner.declared).retain(|at, _| at.step != key.step());
        match self.inner.call(key, Partial::acks(self.inner.shards.len()), &message).await? {
            Answer::Done(rows) => Ok(rows),
            _ => {
                let rule = "a vote was answered by another message";
                Err(self.inner.registry.call_error(key.step(), None, rule))
            }
        }
    }
}

impl RowExchange for RowClient {
    fn version(&self) -> Step {
        self.inner.version
    }

    fn lookup(
        &self,
        at: MicroBatchRef,
        ids: Arc<UniqueIds>,
    ) -> impl Future<Output = Result<Vec<f32>, RowError>> + Send + use<> {
        let sent = self.inner.ask(Key::Lookup(at), &ids).map(|(shards, reply)| {
            lock(&self.inner.declared).insert(at, shards);
            reply
        });
        rows_of(Arc::clone(&self.inner), Key::Lookup(at), sent)
    }

    fn read(
        &self,
        version: Step,
        ids: Arc<UniqueIds>,
    ) -> impl Future<Output = Result<Vec<f32>, RowError>> + Send + use<> {
        let number = Cell(self.inner.reads.fetch_add(1, Ordering::Relaxed));
        let key = Key::Read(version, number);
        let sent = self.inner.ask(key, &ids).map(|(_, reply)| reply);
        rows_of(Arc::clone(&self.inner), key, sent)
    }

    async fn push(&self, at: MicroBatchRef, row_grads_suw: Vec<f32>) -> Result<(), RowError> {
        let inner = &self.inner;
        if let Some(mut failure) = inner.registry.failure() {
            (failure.step, failure.cell) = (Some(at.step), Some(at.index));
            return Err(failure);
        }
        let Some(shards) = lock(&inner.declared).remove(&at) else {
            return Err(inner.registry.call_error(at.step, Some(at.index), "a push without its lookup"));
        };
        let unique: usize = shards.iter().map(ShardRows::len).sum();
        let expected = inner.gradients.stride() * unique;
        if row_grads_suw.len() != expected {
            let rule = format!("{} gradient values for {expected} row values", row_grads_suw.len());
            return Err(inner.registry.call_error(at.step, Some(at.index), rule));
        }
        let values = Arc::new(inner.rows.adopt(row_grads_suw));
        Push { inner: Arc::clone(inner), shards, values, unique, at }.send().await
    }

    async fn prepare(&self, step: Step) -> Result<Prepared, RowError> {
        let partial = Partial::sums(self.inner.shards.len());
        match self.inner.call(Key::Prepare(step), partial, &Message::Prepare).await? {
            Answer::Prepared(prepared) => Ok(prepared),
            _ => Err(self.inner.registry.call_error(step, None, "prepare was answered by another message")),
        }
    }

    async fn commit(&self, step: Step, commit: Commit) -> Result<u64, RowError> {
        self.vote(Key::Commit(step), Message::Commit(commit)).await
    }

    async fn abort(&self, step: Step, snapshot: SnapshotOrder) -> Result<(), RowError> {
        self.vote(Key::Abort(step), Message::Abort { snapshot }).await.map(drop)
    }
}
