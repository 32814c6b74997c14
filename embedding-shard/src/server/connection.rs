//! One connection of a worker: the handshake, the choice of its path, frames in, frames out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygram_domain::embedding::SameHost;
use polygram_domain::{Cell, Step};
use polygram_handshake::{GREETING_BYTES, GREETING_TIMEOUT, LinkKey, Progress, Strangers};
use polygram_row_exchange::block::BlockShape;
use polygram_row_exchange::codec::{LinkError, LinkReader, LinkWriter, over_rings, over_tcp};
use polygram_row_exchange::credit::Inflow;
use polygram_row_exchange::frame::{Header, Kind, MAX_PAYLOAD_BYTES, Outgoing, WireError, run_hash};
use polygram_row_exchange::handshake::Challenge;
use polygram_row_exchange::liveness::Heartbeats;
use polygram_row_exchange::message::{HelloBody, Message, Reason, Refusal, WelcomeBody, tables_hash};
use polygram_row_exchange::pool::Buffers;
use polygram_row_exchange::same_host::{Meeting, Offer};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::config::ShardConfig;
use crate::outbox::Outbox;

/// A peer that says nothing after connecting, or takes nothing, is given up after this.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Memory of received gradients that is kept for the next ones: those of a whole step, since they stay until its commit.
const KEPT_BYTES: usize = 128 << 20;

/// What a connection tells the engine. A group is all connections of one worker.
#[derive(Debug)]
pub(super) enum Event {
    /// A worker says hello.
    Hello { hello: HelloBody, from: SocketAddr, offer: Option<Offer>, answer: Answer },
    /// A worker's message.
    Message { group: u64, header: Header, crc: u32, message: Message },
    /// A connection brings no more requests.
    Gone { group: u64, end: End },
}

/// Where the engine says whether a worker is admitted.
pub(super) type Answer = oneshot::Sender<Result<Admission, Refusal>>;

/// An accepted connection of which nothing is known yet.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) stream: TcpStream,
    pub(super) from: SocketAddr,
    /// Of this shard's connections.
    pub(super) number: u64,
    pub(super) progress: Progress,
}

/// A worker's admission on one connection.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) group: u64,
    pub(super) welcome: WelcomeBody,
    pub(super) outbox: Outbox,
    pub(super) inflow: Arc<Inflow>,
}

/// Why a connection brings no more requests.
#[derive(Debug)]
pub(super) enum End {
    /// The worker said that it has no more.
    Closed,
    /// It broke.
    Lost,
    /// The worker broke a rule, which it is told.
    Refused(Refusal),
}

/// What all connections of a shard check their frames against.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    run: u64,
    config: Arc<ShardConfig>,
    gradients: BlockShape,
    tables: u64,
    buffers: Buffers,
    key: LinkKey,
    strangers: Arc<Strangers>,
}

impl Fence {
    pub(super) fn new(config: Arc<ShardConfig>, key: LinkKey) -> Fence {
        Fence {
            key,
            strangers: Arc::default(),
            run: run_hash(&config.run),
            gradients: config.shape(config.embedding.wire.gradients),
            tables: tables_hash(&config.tables),
            buffers: Buffers::new(KEPT_BYTES),
            config,
        }
    }

    /// Who did not prove that it belongs to the run.
    pub(super) fn strangers(&self) -> &Strangers {
        &self.strangers
    }

    /// The shard's place in the run.
    pub(super) fn config(&self) -> &Arc<ShardConfig> {
        &self.config
    }

    /// Connections that the workers of the run make at most.
    pub(super) fn connections(&self) -> usize {
        self.config.topology.workers as usize * self.config.embedding.connections as usize
    }

    /// After so long without a heartbeat a worker is given up.
    pub(super) fn silence(&self) -> Duration {
        self.config.failure_detection
    }

    fn heartbeats(&self, hello: &HelloBody) -> Result<Heartbeats, WireError> {
        let frame = self.frame(&Message::Heartbeat, Step(0), Cell(0))?;
        Ok(Heartbeats::new(hello.silence(), frame))
    }

    /// The header of an answer.
    pub(super) fn header(&self, kind: Kind, step: Step, cell: Cell) -> Header {
        Header { kind, chunk: 0, run: self.run, generation: self.config.generation, step, cell }
    }

    /// A whole frame.
    pub(super) fn frame(&self, message: &Message, step: Step, cell: Cell) -> Result<Outgoing, WireError> {
        let (kind, pieces) = message.encode();
        Outgoing::seal(&self.header(kind, step, cell), pieces)
    }

    /// Refuses frames of other runs and other generations.
    fn check(&self, header: &Header) -> Result<(), Refusal> {
        if header.run != self.run {
            let text = format!("this shard serves run {}, the frame is of another run", self.config.run);
            return Err(Refusal::new(Reason::WrongRun, text));
        }
        let (theirs, ours) = (header.generation, self.config.generation);
        if theirs != ours {
            let word = if theirs < ours { "stale" } else { "unknown here" };
            let text = format!("generation {theirs} is {word}: the shard is of generation {ours}");
            return Err(Refusal::new(Reason::Generation, text));
        }
        Ok(())
    }

    fn check_hello(&self, header: &Header, hello: &HelloBody) -> Result<(), Refusal> {
        self.check(header)?;
        if hello.tables != self.tables {
            let text = "the worker's n-gram tables have other sizes than the shard's: one config everywhere";
            return Err(Refusal::new(Reason::WrongRun, text));
        }
        let (theirs, ours) = (hello.wire, self.config.embedding.wire);
        if theirs != ours {
            let text = format!(
                "the worker sends {:?} gradients and takes {:?} rows, the shard takes {:?} and sends {:?}: one \
                 config everywhere (embedding.wire_rows, embedding.wire_gradients)",
                theirs.gradients, theirs.rows, ours.gradients, ours.rows
            );
            return Err(Refusal::new(Reason::WrongRun, text));
        }
        Ok(())
    }

    /// A place to meet a worker that would share memory.
    fn meeting(&self, hello: &HelloBody) -> Option<Meeting> {
        let wanted = [hello.same_host, self.config.embedding.same_host];
        if hello.connection > 0 || wanted.contains(&SameHost::Tcp) {
            return None;
        }
        Meeting::open().inspect_err(|error| tracing::info!(%error, "no memory is offered to workers")).ok()
    }
}

/// Why a connection's reading ended, for its worker; `None` where the worker itself closed.
fn refusal_of(error: &LinkError) -> Option<Refusal> {
    match error {
        LinkError::Wire(error @ WireError::Schema { .. }) => {
            Some(Refusal::new(Reason::Schema, error.to_string()))
        }
        LinkError::Wire(error) => Some(Refusal::new(Reason::Malformed, error.to_string())),
        _ => None,
    }
}

/// Two halves of a connection.
struct Link {
    reader: LinkReader,
    writer: LinkWriter,
    /// The TCP connection behind shared memory, open as long as the memory is used.
    _greeted_over: Option<LinkWriter>,
}

/// Serves a connection of this shard until either side ends it.
pub(super) async fn serve(newcomer: Newcomer, fence: Fence, events: mpsc::Sender<Event>) {
    let Newcomer { stream, from, number, progress } = newcomer;
    let (mut reader, mut writer) = over_tcp(stream, PATIENCE, &fence.buffers);
    reader.limit_payload(GREETING_BYTES);
    let greeted = timeout(GREETING_TIMEOUT, greet(&mut reader, &mut writer, &fence, &progress)).await;
    progress.passed();
    let (header, hello) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(Unproved { reason, refusal })) => {
            fence.strangers.note(from, &reason);
            return refuse(&mut writer, &fence, refusal).await;
        }
        Err(_) => {
            let seconds = GREETING_TIMEOUT.as_secs();
            fence.strangers.note(from, &format!("it did not finish its handshake within {seconds} s"));
            return;
        }
    };
    if let Err(refusal) = fence.check_hello(&header, &hello) {
        tracing::warn!(%from, reason = ?refusal.reason, text = %refusal.text, "a worker was refused");
        return refuse(&mut writer, &fence, Some(refusal)).await;
    }
    reader.limit_payload(MAX_PAYLOAD_BYTES);
    let meeting = fence.meeting(&hello);
    let (answer, answered) = oneshot::channel();
    let offer = meeting.as_ref().map(Meeting::offer);
    let admitted = async {
        events.send(Event::Hello { hello, from, offer, answer }).await.ok()?;
        answered.await.ok()
    };
    let Ok(heartbeats) = fence.heartbeats(&hello) else { return };
    // The shard may still restore its rows: the worker is to know that it is there.
    let Admission { group, welcome, outbox, inflow } =
        match heartbeats.send_until(&mut writer, admitted).await {
            Ok(Some(Ok(admission))) => admission,
            Ok(Some(Err(refusal))) => return refuse(&mut writer, &fence, Some(refusal)).await,
            Ok(None) => return tracing::debug!(number, "the engine ended before it answered a hello"),
            Err(error) => return tracing::info!(number, %error, "a worker left before it was admitted"),
        };
    let link = Link { reader, writer, _greeted_over: None };
    let worker = Worker { group, hello, fence, outbox, inflow, events };
    let end = match worker.settle(link, welcome, meeting).await {
        Ok(link) => worker.exchange(link, number).await,
        Err(end) => end,
    };
    worker.tell_end(end).await;
}

/// An admitted worker, as one of its connections sees it.
struct Worker {
    group: u64,
    hello: HelloBody,
    fence: Fence,
    outbox: Outbox,
    inflow: Arc<Inflow>,
    events: mpsc::Sender<Event>,
}

impl Worker {
    /// Welcomes the worker and, where memory is offered, learns which path it takes: the one that brings PATH.
    async fn settle(
        &self,
        mut link: Link,
        welcome: WelcomeBody,
        meeting: Option<Meeting>,
    ) -> Result<Link, End> {
        let welcome = self.fence.frame(&Message::Welcome(welcome), Step(0), Cell(0));
        let welcome = welcome.map_err(|error| end_of(error.into()))?;
        link.writer.write(&welcome).await.map_err(end_of)?;
        let Some(meeting) = meeting else { return Ok(link) };
        let Link { mut reader, writer, .. } = link;
        let over_tcp = async {
            let chosen = self.read_path(&mut reader).await;
            (reader, chosen)
        };
        let over_memory = async {
            let rings = meeting.meet().await.map_err(|error| end_of(error.into()))?;
            let (mut reader, writer) = over_rings(rings, PATIENCE, &self.fence.buffers);
            self.read_path(&mut reader).await.map(|()| (reader, writer))
        };
        tokio::pin!(over_tcp, over_memory);
        let choice = async {
            tokio::select! {
                (reader, chosen) = &mut over_tcp => Err((reader, chosen)),
                shared = &mut over_memory => match shared {
                    Ok(shared) => Ok(shared),
                    // Nothing came of it: the worker stays.
                    Err(_) => Err(over_tcp.await),
                },
            }
        };
        match timeout(PATIENCE, choice).await.map_err(|_| End::Lost)? {
            Ok((reader, shared)) => {
                tracing::info!(group = self.group, "a worker of this host shares memory");
                Ok(Link { reader, writer: shared, _greeted_over: Some(writer) })
            }
            Err((reader, chosen)) => chosen.map(|()| Link { reader, writer, _greeted_over: None }),
        }
    }

    async fn read_path(&self, reader: &mut LinkReader) -> Result<(), End> {
        let (incoming, payload) = reader.read().await.map_err(end_of)?;
        self.fence.check(&incoming.header).map_err(End::Refused)?;
        match Message::decode(incoming.header.kind, payload, self.fence.gradients) {
            Ok(Message::Path) => Ok(()),
            Ok(_) => Err(End::Refused(Refusal::new(
                Reason::Malformed,
                "shared memory was offered, and the next frame is not a path",
            ))),
            Err(error) => Err(end_of(error.into())),
        }
    }

    /// Reads and writes until there is no more to write.
    async fn exchange(&self, link: Link, number: u64) -> End {
        let Link { reader, writer, _greeted_over } = link;
        // A host does not lose itself: over memory nobody has to send heartbeats.
        let watch = if _greeted_over.is_none() { Watch::Link } else { Watch::Nothing };
        let reads = self.read_watched(reader, watch);
        let writes = self.write_all(writer, watch);
        tokio::pin!(reads, writes);
        let log_end = |ended: Result<(), LinkError>| {
            if let Err(error) = ended {
                tracing::info!(number, %error, "a worker's connection ended while answers were due");
            }
        };
        tokio::select! {
            end = &mut reads => {
                self.tell_end(end).await;
                log_end(writes.await);
            }
            ended = &mut writes => log_end(ended),
        }
        End::Lost
    }

    async fn tell_end(&self, end: End) {
        if self.events.send(Event::Gone { group: self.group, end }).await.is_err() {
            tracing::debug!(group = self.group, "the engine ended before its connection");
        }
    }

    /// Reads until the connection ends, or is silent.
    async fn read_watched(&self, reader: LinkReader, watch: Watch) -> End {
        let (activity, silence) = (reader.activity(), self.fence.silence());
        let silent = async {
            match watch {
                Watch::Nothing => std::future::pending().await,
                Watch::Link => activity.silent_for(silence).await,
            }
        };
        tokio::select! {
            biased;
            end = self.read_all(reader) => end,
            () = silent => {
                let (shard, rank) = (self.fence.config.index, self.hello.rank);
                let seconds = silence.as_secs_f64();
                let text = format!("shard {shard} hears nothing from worker {rank} for {seconds:.1} s");
                End::Refused(Refusal::new(Reason::Silent, text))
            }
        }
    }

    async fn read_all(&self, mut reader: LinkReader) -> End {
        loop {
            let (incoming, payload) = match reader.read().await {
                Ok(frame) => frame,
                Err(error) => return end_of(error),
            };
            let header = incoming.header;
            if let Err(refusal) = self.fence.check(&header) {
                return End::Refused(refusal);
            }
            let message = match Message::decode(header.kind, payload, self.fence.gradients) {
                Ok(message) => message,
                Err(error) => return end_of(error.into()),
            };
            let credited = match &message {
                Message::Push(block) => self.inflow.arrived(block.payload_bytes()),
                Message::Credit(bytes) => self.outbox.give_back(*bytes),
                _ => Ok(()),
            };
            if let Err(error) = credited {
                return end_of(error.into());
            }
            if matches!(message, Message::Credit(_) | Message::Heartbeat) {
                continue;
            }
            let event = Event::Message { group: self.group, header, crc: incoming.crc, message };
            if self.events.send(event).await.is_err() {
                return End::Lost;
            }
        }
    }

    async fn write_all(&self, writer: LinkWriter, watch: Watch) -> Result<(), LinkError> {
        let heartbeats = match watch {
            Watch::Nothing => None,
            Watch::Link => Some(self.fence.heartbeats(&self.hello)?),
        };
        self.outbox.write_all(writer, self.hello.connection, heartbeats).await
    }
}

/// Whether both sides of a connection send heartbeats.
#[derive(Clone, Copy, Debug)]
enum Watch {
    Link,
    Nothing,
}

fn end_of(error: LinkError) -> End {
    match (refusal_of(&error), error) {
        (Some(refusal), _) => End::Refused(refusal),
        (None, LinkError::Closed) => End::Closed,
        (None, _) => End::Lost,
    }
}

/// Why a peer has not passed the handshake, and what it is told, if anything.
struct Unproved {
    reason: String,
    refusal: Option<Refusal>,
}

impl From<LinkError> for Unproved {
    fn from(error: LinkError) -> Unproved {
        Unproved { reason: error.to_string(), refusal: refusal_of(&error) }
    }
}

impl From<WireError> for Unproved {
    fn from(error: WireError) -> Unproved {
        LinkError::from(error).into()
    }
}

impl Unproved {
    fn refused(reason: Reason, text: &str) -> Unproved {
        Unproved { reason: text.to_owned(), refusal: Some(Refusal::new(reason, text)) }
    }
}

/// Reads a hello, and lets its sender prove that it knows the run's token.
async fn greet(
    reader: &mut LinkReader,
    writer: &mut LinkWriter,
    fence: &Fence,
    progress: &Progress,
) -> Result<(Header, HelloBody), Unproved> {
    let (incoming, payload) = reader.read().await?;
    let challenge = Challenge::to(&incoming, &payload).map_err(LinkError::from)?;
    let header = incoming.header;
    let Message::Hello(hello) = Message::decode(header.kind, payload, fence.gradients)? else {
        return Err(Unproved::refused(Reason::Malformed, "the first frame is not a hello"));
    };
    progress.greeted();
    writer.write(&fence.frame(&challenge.message(), Step(0), Cell(0))?).await?;
    let (incoming, payload) = reader.read().await?;
    let Message::Response(response) = Message::decode(incoming.header.kind, payload, fence.gradients)? else {
        return Err(Unproved::refused(Reason::Malformed, "the challenge is not answered"));
    };
    let Some(vouch) = challenge.verify(&fence.key, &response) else {
        let text = "it does not know the run's token: give every member the token file of this run";
        return Err(Unproved::refused(Reason::Stranger, text));
    };
    writer.write(&fence.frame(&vouch, Step(0), Cell(0))?).await?;
    Ok((header, hello))
}

async fn refuse(writer: &mut LinkWriter, fence: &Fence, refusal: Option<Refusal>) {
    let Some(refusal) = refusal else { return };
    let Ok(frame) = fence.frame(&Message::Refused(refusal), Step(0), Cell(0)) else { return };
    if let Err(error) = writer.write(&frame).await {
        tracing::debug!(%error, "a refusal was not delivered");
    }
}
