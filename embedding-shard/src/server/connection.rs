//! One worker's connection: the handshake, frames in, frames out.

use std::sync::Arc;
use std::time::Duration;

use polygram_domain::{Cell, Step};
use polygram_proto::bulk::codec::{self, FrameReader, FrameWriter, LinkError};
use polygram_proto::bulk::frame::{Header, Kind, Outgoing, WireError, run_hash};
use polygram_proto::bulk::message::{HelloBody, Message, Reason, Refusal, tables_hash};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::config::ShardConfig;

/// A peer that says nothing after connecting, or takes nothing, is given up after this.
const PATIENCE: Duration = Duration::from_secs(30);
/// Frames that wait for a worker's socket at most.
const QUEUE_FRAMES: usize = 16;

/// What a connection tells the engine.
#[derive(Debug)]
pub(super) enum Event {
    /// A worker says hello; answers go to `frames`.
    Hello { connection: u64, hello: HelloBody, frames: mpsc::Sender<Outgoing> },
    /// A worker's message.
    Message { connection: u64, header: Header, crc: u32, message: Message },
    /// The connection takes no more requests; the refusal, if any, is the peer's to read.
    Gone { connection: u64, refusal: Option<Refusal> },
}

/// What all connections of a shard check their frames against.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    run: u64,
    config: Arc<ShardConfig>,
    stride: usize,
    tables: u64,
}

impl Fence {
    pub(super) fn new(config: Arc<ShardConfig>) -> Fence {
        Fence {
            run: run_hash(&config.run),
            stride: config.sites() * config.width(),
            tables: tables_hash(&config.tables),
            config,
        }
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
        Ok(())
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

/// Serves one connection until either side ends it.
pub(super) async fn serve(stream: TcpStream, connection: u64, fence: Fence, events: mpsc::Sender<Event>) {
    let (mut reader, mut writer) = codec::split(stream, PATIENCE);
    let hello = match timeout(PATIENCE, read_hello(&mut reader, &fence)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(refusal)) => return refuse(&mut writer, &fence, refusal).await,
        Err(_) => return tracing::warn!(connection, "a peer connected and said nothing"),
    };
    let (frames, queue) = mpsc::channel(QUEUE_FRAMES);
    if events.send(Event::Hello { connection, hello, frames }).await.is_err() {
        return;
    }
    let reads = read_all(reader, connection, &fence, &events);
    let writes = write_all(writer, queue);
    tokio::pin!(reads, writes);
    let (refusal, is_writing) = tokio::select! {
        refusal = &mut reads => (refusal, true),
        ended = &mut writes => {
            log_end(connection, ended);
            (None, false)
        }
    };
    if events.send(Event::Gone { connection, refusal }).await.is_err() {
        tracing::debug!(connection, "the engine ended before its connection");
    }
    if is_writing {
        log_end(connection, writes.await);
    }
}

fn log_end(connection: u64, ended: Result<(), LinkError>) {
    if let Err(error) = ended {
        tracing::info!(connection, %error, "a worker's connection ended while answers were due");
    }
}

async fn read_hello(
    reader: &mut FrameReader<OwnedReadHalf>,
    fence: &Fence,
) -> Result<HelloBody, Option<Refusal>> {
    let (incoming, payload) = reader.read().await.map_err(|error| refusal_of(&error))?;
    match Message::decode(incoming.header.kind, payload, fence.stride) {
        Ok(Message::Hello(hello)) => {
            fence.check_hello(&incoming.header, &hello)?;
            Ok(hello)
        }
        Ok(_) => Err(Some(Refusal::new(Reason::Malformed, "the first frame is not a hello"))),
        Err(error) => Err(refusal_of(&error.into())),
    }
}

async fn refuse(writer: &mut FrameWriter<OwnedWriteHalf>, fence: &Fence, refusal: Option<Refusal>) {
    let Some(refusal) = refusal else { return tracing::debug!("a peer left before its hello") };
    tracing::warn!(reason = ?refusal.reason, text = %refusal.text, "a peer was refused");
    let Ok(frame) = fence.frame(&Message::Refused(refusal), Step(0), Cell(0)) else { return };
    if let Err(error) = writer.write(&frame).await {
        tracing::debug!(%error, "a refusal was not delivered");
    }
}

async fn read_all(
    mut reader: FrameReader<OwnedReadHalf>,
    connection: u64,
    fence: &Fence,
    events: &mpsc::Sender<Event>,
) -> Option<Refusal> {
    loop {
        let (incoming, payload) = match reader.read().await {
            Ok(frame) => frame,
            Err(error) => return refusal_of(&error),
        };
        let header = incoming.header;
        if let Err(refusal) = fence.check(&header) {
            return Some(refusal);
        }
        let message = match Message::decode(header.kind, payload, fence.stride) {
            Ok(message) => message,
            Err(error) => return refusal_of(&error.into()),
        };
        let event = Event::Message { connection, header, crc: incoming.crc, message };
        if events.send(event).await.is_err() {
            return None;
        }
    }
}

async fn write_all(
    mut writer: FrameWriter<OwnedWriteHalf>,
    mut queue: mpsc::Receiver<Outgoing>,
) -> Result<(), LinkError> {
    while let Some(frame) = queue.recv().await {
        writer.write(&frame).await?;
    }
    writer.close().await
}
