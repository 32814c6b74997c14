//! The engine: turns events into ledger calls, and the ledger's effects into commands and frames.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use polygram_domain::{Cell, MicroBatchRef, Rank, Step};
use polygram_faults::{Point, pass};
use polygram_row_exchange::credit::Inflow;
use polygram_row_exchange::frame::{Header, Kind};
use polygram_row_exchange::greeting::silence_ms;
use polygram_row_exchange::message::{HelloBody, Message, Reason, Refusal, WelcomeBody};
use polygram_row_exchange::same_host::Offer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::connection::{Admission, End, Event, Fence, PATIENCE};
use crate::archive::{ArchiveError, RowArchive};
use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::lane::{Command, ReplyTo, Report};
use crate::ledger::{Effect, FrameId, Ledger, Peer, Vote};
use crate::outbox::Outbox;
use crate::query::Peek;
use crate::rows::{DecayLog, Rates};
use crate::selection::RowCounts;
use crate::snapshot::{Snapshot, SnapshotRows};
use crate::status::ShardStatus;

/// Payload bytes of gradients that one worker may have on their way to the ledger.
const PUSH_WINDOW_BYTES: u32 = 32 << 20;

/// A worker and its group of connections. Its outbox ends with it.
struct Worker {
    rank: Rank,
    hello: HelloBody,
    from: SocketAddr,
    /// A bit for every connection that was admitted.
    admitted: u64,
    /// Connections that the worker has closed in order.
    closed: u32,
    outbox: Outbox,
    inflow: Arc<Inflow>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

/// Everything between sockets and lanes.
pub(super) struct Engine {
    pub(super) config: Arc<ShardConfig>,
    pub(super) ledger: Ledger,
    pub(super) fence: Fence,
    pub(super) lanes: Vec<mpsc::Sender<Command>>,
    pub(super) archive: Option<Arc<dyn RowArchive>>,
    pub(super) status: watch::Sender<ShardStatus>,
    pub(super) snapshots: JoinSet<Result<(), ArchiveError>>,
    /// What each lane has, as of its last closed step.
    pub(super) lane_rows: Vec<RowCounts>,
    /// How far rows have decayed that no step touched, as every lane knows it too.
    pub(super) decayed: DecayLog,
    workers: HashMap<u64, Worker>,
    /// Groups numbered so far.
    groups: u64,
}

impl Engine {
    pub(super) fn new(
        fence: Fence,
        version: Step,
        lane_rows: Vec<RowCounts>,
        lanes: Vec<mpsc::Sender<Command>>,
        status: watch::Sender<ShardStatus>,
    ) -> Engine {
        let config = Arc::clone(fence.config());
        Engine {
            ledger: Ledger::new(
                Arc::clone(&config),
                version,
                lane_rows.iter().map(|rows| rows.written).collect(),
            ),
            fence,
            archive: None,
            snapshots: JoinSet::new(),
            decayed: DecayLog::default(),
            workers: HashMap::new(),
            groups: 0,
            config,
            lanes,
            status,
            lane_rows,
        }
    }

    /// Takes a connection's event.
    pub(super) async fn event(&mut self, event: Event) -> Result<(), ShardError> {
        match event {
            Event::Hello { hello, from, offer, answer } => {
                let admission = self.admit(hello, from, offer);
                if let Err(refusal) = &admission {
                    tracing::warn!(rank = %hello.rank, text = %refusal.text, "a worker was refused");
                }
                if let Err(Ok(Admission { group, .. })) = answer.send(admission) {
                    tracing::debug!(rank = %hello.rank, "a worker left before it was answered");
                    self.part(group, End::Lost);
                }
            }
            Event::Message { group, header, crc, message } => {
                let Some(worker) = self.workers.get(&group) else { return Ok(()) };
                let peer = Peer { connection: group, rank: worker.rank };
                let pushed = match &message {
                    Message::Push(block) => worker.inflow.taken(block.payload_bytes()),
                    _ => None,
                };
                if let Some(bytes) = pushed {
                    self.send(group, header.step, header.cell, &Message::Credit(bytes));
                }
                if let Err(refusal) = self.consult(peer, &header, crc, message) {
                    self.nack(group, &header, refusal);
                }
            }
            Event::Gone { group, end } => self.part(group, end),
        }
        self.act().await
    }

    /// Admits a connection: the first of a worker, or one more of a worker that is here.
    fn admit(
        &mut self,
        hello: HelloBody,
        from: SocketAddr,
        offer: Option<Offer>,
    ) -> Result<Admission, Refusal> {
        let rank = hello.rank;
        self.ledger.hello(rank, hello.workers)?;
        let bit = 1u64 << hello.connection;
        let group = match hello.connection {
            0 => {
                self.check_alone(&hello, from)?;
                self.groups += 1;
                let (outbox, inflow) =
                    (Outbox::new(hello.window_bytes, PATIENCE), Inflow::new(PUSH_WINDOW_BYTES));
                tracing::info!(%rank, group = self.groups, connections = hello.connections, "worker connected");
                let inflow = Arc::new(inflow);
                self.workers.insert(
                    self.groups,
                    Worker { rank, hello, from, admitted: 0, closed: 0, outbox, inflow },
                );
                self.groups
            }
            connection => {
                let same = |worker: &Worker| HelloBody { connection, ..worker.hello } == hello;
                let found =
                    self.workers.iter().find(|(_, worker)| same(worker) && worker.admitted & bit == 0);
                let text =
                    || format!("connection {connection} of a worker whose first connection is not here");
                *found.ok_or_else(|| Refusal::new(Reason::Conflict, text()))?.0
            }
        };
        let welcome = WelcomeBody {
            shard: self.config.index,
            shards: self.config.topology.shards,
            version: self.ledger.version(),
            window_bytes: PUSH_WINDOW_BYTES,
            silence_ms: silence_ms(self.fence.silence()),
            offer,
        };
        let Some(worker) = self.workers.get_mut(&group) else {
            return Err(Refusal::new(Reason::Failed, "the worker's connections are gone"));
        };
        worker.admitted |= bit;
        pass(Point::ShardConnected);
        let (outbox, inflow) = (worker.outbox.clone(), Arc::clone(&worker.inflow));
        Ok(Admission { group, welcome, outbox, inflow })
    }

    /// Refuses a second process with the rank of one that is here: their requests would mix.
    fn check_alone(&self, hello: &HelloBody, from: SocketAddr) -> Result<(), Refusal> {
        let rank = hello.rank;
        let Some(other) = self.workers.values().find(|worker| worker.rank == rank) else { return Ok(()) };
        let text = format!(
            "worker {rank} is connected already, from {} (incarnation {:x}); this is another one, from {from} \
             (incarnation {:x}): two processes run with --rank {rank}, end one of them",
            other.from, other.hello.incarnation, hello.incarnation
        );
        Err(Refusal::new(Reason::Conflict, text))
    }

    /// A connection of a worker ends: the worker is gone at its first broken connection, or when it has closed all.
    fn part(&mut self, group: u64, end: End) {
        let Some(worker) = self.workers.get_mut(&group) else { return };
        match end {
            End::Closed => {
                worker.closed += 1;
                if worker.closed < worker.admitted.count_ones() {
                    return;
                }
            }
            End::Lost => worker.outbox.abandon(),
            End::Refused(refusal) => {
                let header = self.fence.header(Kind::Nack, self.ledger.version(), Cell(0));
                self.nack(group, &header, refusal);
            }
        }
        if let Some(worker) = self.workers.remove(&group) {
            tracing::info!(rank = %worker.rank, group, "worker disconnected");
        }
    }

    fn nack(&self, group: u64, header: &Header, refusal: Refusal) {
        let (step, cell) = (header.step, header.cell);
        let rank = self.workers.get(&group).map(|worker| worker.rank.0);
        tracing::warn!(rank, %step, %cell, text = %refusal.text, "a request was refused");
        self.send(group, step, cell, &Message::Nack(refusal));
    }

    fn consult(&mut self, from: Peer, header: &Header, crc: u32, message: Message) -> Result<(), Refusal> {
        let step = header.step;
        match message {
            Message::Lookup(request) => {
                pass(Point::ShardBeforeDeclare);
                self.ledger.lookup(from, header.micro_batch(), request)
            }
            Message::Read(request) => self.ledger.read(from, step, header.cell, request),
            Message::Push(block) => {
                pass(Point::ShardBeforeAdd);
                let frame = FrameId { chunk: header.chunk, crc };
                self.ledger.push(from, header.micro_batch(), frame, block)
            }
            Message::Prepare => self.ledger.prepare(from, step),
            Message::Commit(commit) => self.ledger.vote(from, step, Vote::Commit(commit)),
            Message::Abort { snapshot } => self.ledger.vote(from, step, Vote::Abort { snapshot }),
            other => {
                let kind = other.encode().0;
                Err(Refusal::new(Reason::Malformed, format!("a {kind:?} frame is not for shards")))
            }
        }
    }

    /// Takes a lane's report.
    pub(super) async fn report(&mut self, lane: usize, report: Report) -> Result<(), ShardError> {
        match report {
            Report::Counted { rows } => self.ledger.counted(lane, rows),
            Report::Summed { step, sums } => {
                pass(Point::ShardPrepared);
                self.ledger.summed(step, sums);
            }
            Report::Closed { step, rows, fingerprint } => {
                pass(Point::ShardAfterApply);
                self.ledger.lane_closed(step, fingerprint);
                self.lane_rows[lane] = rows;
                let (version, written_rows) = (self.ledger.version(), self.rows().written);
                self.status.send_modify(|status| {
                    (status.version, status.written_rows) = (version, written_rows);
                });
            }
            Report::Failed(error) => return Err(error),
        }
        self.act().await
    }

    /// What the shard has, as of the last closed step of each lane.
    pub(super) fn rows(&self) -> RowCounts {
        self.lane_rows.iter().fold(RowCounts::default(), |all, lane| RowCounts {
            written: all.written + lane.written,
            changed: all.changed + lane.changed,
        })
    }

    /// Passes a look from outside on to its lane.
    pub(super) async fn peek(&self, peek: Peek) -> Result<(), ShardError> {
        let lane = peek.lane;
        match self.lanes.get(lane) {
            Some(commands) => commands.send(Command::Peek(peek)).await.map_err(|_| ShardError::Lane(lane)),
            // Whoever asks sees that nobody answers.
            None => Ok(()),
        }
    }

    /// Takes the end of a snapshot.
    pub(super) async fn snapshot_ended(&mut self, ended: Result<(), ArchiveError>) -> Result<(), ShardError> {
        let version = self.ledger.version();
        ended.map_err(|error| ShardError::Snapshot {
            version,
            reason: error.to_string(),
            problem: error.store_problem(),
        })?;
        self.status.send_modify(|status| status.is_snapshotting = false);
        self.tell_all(|| Command::EndSnapshot).await?;
        self.ledger.snapshot_finished();
        self.act().await
    }

    /// Does what the ledger has decided.
    async fn act(&mut self) -> Result<(), ShardError> {
        for effect in self.ledger.take_effects() {
            match effect {
                Effect::Union { step, requests } => {
                    self.tell_all(|| Command::Union { step, requests: requests.clone() }).await?;
                }
                Effect::Serve { at: MicroBatchRef { step, index }, request, to } => {
                    if let Some(reply) = self.reply_to(to, Kind::Rows, step, index) {
                        let serve =
                            || Command::Serve { step, request: request.clone(), reply: reply.clone() };
                        self.tell_all(serve).await?;
                    }
                }
                Effect::ServeRead { version, number, request, to } => {
                    if let Some(reply) = self.reply_to(to, Kind::ReadRows, version, number) {
                        let serve = || Command::Serve {
                            step: version,
                            request: request.clone(),
                            reply: reply.clone(),
                        };
                        self.tell_all(serve).await?;
                    }
                }
                Effect::Add { step, request, blocks } => {
                    let add = || Command::Add { step, request: request.clone(), blocks: blocks.clone() };
                    self.tell_all(add).await?;
                }
                Effect::Sum { step } => self.tell_all(|| Command::Sum { step }).await?,
                Effect::Close { step, vote } => self.close(step, vote).await?,
                Effect::Reply { to, step, message } => {
                    self.send(to.connection, step, Cell(0), &message);
                }
                Effect::Fail(refusal) => return Err(ShardError::Refused(refusal)),
            }
        }
        Ok(())
    }

    async fn close(&mut self, step: Step, vote: Vote) -> Result<(), ShardError> {
        let rates = match vote {
            Vote::Commit(commit) => Some(Rates { scale: commit.scale, lr: commit.lr, step }),
            Vote::Abort { .. } => None,
        };
        if let Some(rates) = rates
            && self.config.embedding.all_rows_decay()
        {
            self.decayed = self.decayed.after(rates.lr, self.config.embedding.weight_decay);
        }
        let (order, version) = (vote.snapshot(), step.next());
        pass(Point::ShardBeforeApply);
        if !order.is_some() {
            return self.tell_all(|| Command::Close { step, rates, snapshot: None }).await;
        }
        let Some(archive) = self.archive.clone() else {
            let reason = "this shard has no archive".to_owned();
            return Err(ShardError::Snapshot { version, reason, problem: None });
        };
        let selection = archive.select(order, self.rows());
        self.tell_all(|| Command::Close { step, rates, snapshot: Some(selection) }).await?;
        let rows = SnapshotRows::new(
            Snapshot { version, decayed: self.decayed, order, selection },
            self.lanes.clone(),
        );
        self.status.send_modify(|status| status.is_snapshotting = true);
        self.snapshots.spawn(async move { archive.archive(rows).await });
        pass(Point::ShardSnapshotBegun);
        Ok(())
    }

    async fn tell_all(&self, command: impl Fn() -> Command) -> Result<(), ShardError> {
        for (index, lane) in self.lanes.iter().enumerate() {
            lane.send(command()).await.map_err(|_| ShardError::Lane(index))?;
        }
        Ok(())
    }

    fn reply_to(&self, to: Peer, kind: Kind, step: Step, cell: Cell) -> Option<ReplyTo> {
        let worker = self.workers.get(&to.connection)?;
        Some(ReplyTo { frames: worker.outbox.clone(), header: self.fence.header(kind, step, cell) })
    }

    /// Queues a frame for a worker that is still connected.
    fn send(&self, group: u64, step: Step, cell: Cell, message: &Message) {
        let Some(worker) = self.workers.get(&group) else { return };
        match self.fence.frame(message, step, cell) {
            Ok(frame) => {
                if worker.outbox.answer(frame).is_err() {
                    tracing::debug!(group, "an answer came after its worker");
                }
            }
            Err(error) => tracing::error!(%error, "an answer does not fit a frame"),
        }
    }

    /// Tells every worker why the shard gives up, and lets go of them.
    pub(super) fn say_goodbye(&mut self, error: &ShardError) {
        let refusal = match error {
            ShardError::Refused(refusal) => refusal.clone(),
            other => Refusal::new(Reason::Failed, other.to_string()),
        };
        let step = self.ledger.version();
        for group in self.workers.keys() {
            self.send(*group, step, Cell(0), &Message::Nack(refusal.clone()));
        }
        self.workers.clear();
    }
}
