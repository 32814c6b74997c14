//! One connection to one shard: the handshake, and the two tasks that keep it.

use std::net::SocketAddr;
use std::sync::Arc;

use polygram_domain::{Cell, Step};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use super::ClientLimits;
use super::error::Cause;
use super::pending::{Key, Registry};
use crate::bulk::codec::{self, FrameReader, FrameWriter, LinkError};
use crate::bulk::frame::{Header, Kind, Outgoing};
use crate::bulk::message::{HelloBody, Message, WelcomeBody};

/// Frames that wait for the socket at most; pushes are bounded by bytes well before.
pub(super) const QUEUE_FRAMES: usize = 1024;

/// A frame on its way to the socket, with the bytes it holds of the push budget.
pub(super) enum Item {
    Frame(Outgoing, Option<OwnedSemaphorePermit>),
    Close,
}

/// What every frame of a connection says, and what its payloads mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) run: u64,
    pub(super) generation: polygram_domain::Generation,
    pub(super) hello: HelloBody,
    pub(super) stride: usize,
}

impl Identity {
    pub(super) fn header(&self, kind: Kind, step: Step, cell: Cell) -> Header {
        Header { kind, chunk: 0, run: self.run, generation: self.generation, step, cell }
    }
}

/// An admitted connection, not yet at work.
pub(super) struct Admitted {
    pub(super) welcome: WelcomeBody,
    reader: FrameReader<OwnedReadHalf>,
    writer: FrameWriter<OwnedWriteHalf>,
}

impl From<LinkError> for Cause {
    fn from(error: LinkError) -> Cause {
        match error {
            LinkError::Wire(error) => error.into(),
            LinkError::Deadline(patience) => Cause::Lost(format!("it took no data for {patience:?}")),
            other => Cause::Lost(other.to_string()),
        }
    }
}

/// Connects within `limits.connect` and says hello. A shard that restores its rows admits workers afterwards: the
/// welcome may take `limits.reply`.
pub(super) async fn admit(
    address: SocketAddr,
    identity: Identity,
    limits: ClientLimits,
) -> Result<Admitted, Cause> {
    let stream = timeout(limits.connect, TcpStream::connect(address))
        .await
        .map_err(|_| Cause::Deadline(limits.connect))?
        .map_err(|error| Cause::Connect(error.to_string()))?;
    let handshake = async {
        let (mut reader, mut writer) = codec::split(stream, limits.connect);
        let (kind, pieces) = Message::Hello(identity.hello).encode();
        writer.write(&Outgoing::seal(&identity.header(kind, Step(0), Cell(0)), pieces)?).await?;
        let (incoming, payload) = reader.read().await?;
        match Message::decode(incoming.header.kind, payload, identity.stride)? {
            Message::Welcome(welcome) => Ok(Admitted { welcome, reader, writer }),
            Message::Refused(refusal) | Message::Nack(refusal) => Err(Cause::NotAdmitted(refusal)),
            other => Err(Cause::Answer(format!("{:?} instead of a welcome", other.encode().0))),
        }
    };
    timeout(limits.reply, handshake).await.unwrap_or(Err(Cause::Deadline(limits.reply)))
}

impl Admitted {
    /// The two halves' work: `(reads, writes)`. Each ends with the connection and reports why to the registry.
    pub(super) fn into_tasks(
        self,
        shard: usize,
        identity: Identity,
        registry: Arc<Registry>,
        queue: mpsc::Receiver<Item>,
    ) -> (impl Future<Output = ()> + Send, impl Future<Output = ()> + Send) {
        let for_writer = Arc::clone(&registry);
        let reads = async move {
            let cause = read_all(self.reader, shard, identity, &registry).await;
            registry.fail(shard, &cause);
        };
        let writes = async move {
            if let Err(error) = write_all(self.writer, queue).await {
                for_writer.fail(shard, &error.into());
            }
        };
        (reads, writes)
    }
}

async fn write_all(
    mut writer: FrameWriter<OwnedWriteHalf>,
    mut queue: mpsc::Receiver<Item>,
) -> Result<(), LinkError> {
    while let Some(Item::Frame(frame, permit)) = queue.recv().await {
        writer.write(&frame).await?;
        drop(permit);
    }
    writer.close().await
}

async fn read_all(
    mut reader: FrameReader<OwnedReadHalf>,
    shard: usize,
    identity: Identity,
    registry: &Registry,
) -> Cause {
    loop {
        let (incoming, payload) = match reader.read().await {
            Ok(frame) => frame,
            Err(error) => return error.into(),
        };
        let header = incoming.header;
        if (header.run, header.generation) != (identity.run, identity.generation) {
            return Cause::Answer(format!(
                "a frame of run {:#x} and generation {}, expected run {:#x} and generation {}",
                header.run, header.generation, identity.run, identity.generation
            ));
        }
        let (step, cell) = (header.step, header.cell);
        let placed = match Message::decode(header.kind, payload, identity.stride) {
            Ok(Message::Rows(block)) => registry.rows(shard, Key::Lookup(step, cell), &block),
            Ok(Message::ReadRows(block)) => registry.rows(shard, Key::Read(step, cell), &block),
            Ok(Message::Prepared(body)) => registry.sums(shard, Key::Prepare(step), body),
            Ok(Message::Committed) => registry.acknowledge(shard, Key::Commit(step)),
            Ok(Message::Aborted) => registry.acknowledge(shard, Key::Abort(step)),
            Ok(Message::Nack(refusal)) => Err(Cause::Refused { step, cell, refusal }),
            Ok(other) => Err(Cause::Answer(format!("a {:?} frame is not for workers", other.encode().0))),
            Err(error) => Err(error.into()),
        };
        if let Err(cause) = placed {
            return cause;
        }
    }
}
