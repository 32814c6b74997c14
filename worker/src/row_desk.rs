//! The compute thread's side of the shards: orders go out, plain buffers come back.
//!
//! A task owns the exchange and carries out orders one after the other; the compute thread waits on replies only. Orders
//! are bounded, so a slow shard holds compute back instead of filling memory. When the task fails its own result says
//! why; this side then only learns that the other one has ended.

use std::sync::Arc;

use polygram_domain::{MicroBatchRef, Step};
use polygram_faults::{Point, pass};
use polygram_row_exchange::{Commit, Prepared, RowExchange, SnapshotOrder, UniqueIds};
use tokio::sync::{mpsc, oneshot};

use crate::error::WorkerError;

/// Orders that may wait for the exchange.
const ORDERS: usize = 8;

/// What a commit says to the shards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommitOrder {
    /// Clip scale of row gradients.
    pub scale: f32,
    /// Learning rate of the tables.
    pub lr: f32,
    /// What is to be written of the version that this commit makes.
    pub snapshot: SnapshotOrder,
    /// Not finite: advance the version without an update.
    pub skip: bool,
}

enum Order {
    Push { at: MicroBatchRef, row_gradients_suw: Vec<f32> },
    Prepare { step: Step, reply: oneshot::Sender<Prepared> },
    Commit { step: Step, order: CommitOrder, reply: oneshot::Sender<u64> },
    Read { step: Step, ids: Arc<UniqueIds>, reply: oneshot::Sender<Vec<f32>> },
}

/// The compute thread's handle.
pub struct RowDesk {
    orders: mpsc::Sender<Order>,
}

/// A reply that is still to come.
pub struct Reply<T>(oneshot::Receiver<T>);

impl<T> Reply<T> {
    /// Blocks until it is here.
    pub fn wait(self) -> Result<T, WorkerError> {
        self.0.blocking_recv().map_err(|_| WorkerError::OtherSide("row"))
    }
}

/// The desk and the task behind it, to be spawned by the caller.
pub fn row_desk(exchange: impl RowExchange) -> (RowDesk, impl Future<Output = Result<(), WorkerError>>) {
    let (orders, queue) = mpsc::channel(ORDERS);
    (RowDesk { orders }, carry_out(exchange, queue))
}

impl RowDesk {
    /// Sends a micro-batch's row gradients `[S, U, W]`; returns once the order is queued.
    pub fn push(&self, at: MicroBatchRef, row_gradients_suw: Vec<f32>) -> Result<(), WorkerError> {
        pass(Point::WorkerBeforePush);
        self.send(Order::Push { at, row_gradients_suw })
    }

    /// Asks every shard for the finite flag and the square sums of `step`.
    pub fn prepare(&self, step: Step) -> Result<Reply<Prepared>, WorkerError> {
        pass(Point::WorkerBeforePrepare);
        self.ask(|reply| Order::Prepare { step, reply })
    }

    /// Commits or skips `step` everywhere; answered with the fingerprint of the rows updated, 0 where it is skipped.
    pub fn commit(&self, step: Step, order: CommitOrder) -> Result<Reply<u64>, WorkerError> {
        let reply = self.ask(|reply| Order::Commit { step, order, reply })?;
        pass(Point::WorkerAfterCommit);
        Ok(reply)
    }

    /// Reads rows at exactly version `step` without declaring them, `[S, U, W]`.
    pub fn read(&self, step: Step, ids: Arc<UniqueIds>) -> Result<Vec<f32>, WorkerError> {
        self.ask(|reply| Order::Read { step, ids, reply })?.wait()
    }

    fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<Reply<T>, WorkerError> {
        let (reply, receiver) = oneshot::channel();
        self.send(order(reply))?;
        Ok(Reply(receiver))
    }

    fn send(&self, order: Order) -> Result<(), WorkerError> {
        self.orders.blocking_send(order).map_err(|_| WorkerError::OtherSide("row"))
    }
}

/// Carries out orders until the compute thread drops its handle. It may drop a reply's other end first: then nobody
/// waits for that answer.
async fn carry_out(exchange: impl RowExchange, mut queue: mpsc::Receiver<Order>) -> Result<(), WorkerError> {
    while let Some(order) = queue.recv().await {
        match order {
            Order::Push { at, row_gradients_suw } => exchange.push(at, row_gradients_suw).await?,
            Order::Prepare { step, reply } => {
                reply.send(exchange.prepare(step).await?).ok();
            }
            Order::Commit { step, order, reply } if order.skip => {
                exchange.abort(step, order.snapshot).await?;
                reply.send(0).ok();
            }
            Order::Commit { step, order, reply } => {
                let commit = Commit { scale: order.scale, lr: order.lr, snapshot: order.snapshot };
                reply.send(exchange.commit(step, commit).await?).ok();
            }
            Order::Read { step, ids, reply } => {
                reply.send(exchange.read(step, ids).await?).ok();
            }
        }
    }
    Ok(())
}
