//! The connections to one shard: the handshake, and the two tasks that keep each of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygram_domain::embedding::RowType;
use polygram_domain::{Cell, Generation, Step};
use polygram_handshake::{GREETING_BYTES, LinkKey};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::gather::Claim;
use super::options::ClientLimits;
use super::pending::{Key, Registry};
use crate::activity::ReadActivity;
use crate::block::BlockShape;
use crate::codec::{LinkError, LinkReader, LinkWriter, over_rings, over_tcp};
use crate::credit::Inflow;
use crate::error::Cause;
use crate::frame::{Header, Incoming, Kind, MAX_PAYLOAD_BYTES, Outgoing};
use crate::handshake::{HandshakeError, greet};
use crate::liveness::{Heartbeats, write_queue};
use crate::message::{HelloBody, Message, RowBlock, WelcomeBody};
use crate::pool::{Buffers, PooledWords};
use crate::queue::SendQueue;
use crate::same_host::{Offer, accept};

/// Rows in shorter payloads are read whole before they are placed.
const DIRECT_WORDS: usize = 4 << 10;
/// As are rows in more runs than this.
const MOST_RUNS: usize = 1 << 10;
/// Pause between attempts to reach a shard.
const RETRY: Duration = Duration::from_millis(50);

/// What every frame of a client says, and what the payloads of its answers mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) run: u64,
    pub(super) generation: Generation,
    /// Of the first connection.
    pub(super) hello: HelloBody,
    pub(super) rows: BlockShape,
}

impl Identity {
    pub(super) fn header(&self, kind: Kind, step: Step, cell: Cell) -> Header {
        Header { kind, chunk: 0, run: self.run, generation: self.generation, step, cell }
    }

    fn frame(&self, message: &Message) -> Result<Outgoing, Cause> {
        let (kind, pieces) = message.encode();
        Ok(Outgoing::seal(&self.header(kind, Step(0), Cell(0)), pieces)?)
    }

    /// Nothing came from `shard` for so long.
    fn silent(&self, shard: usize, waited: Duration) -> Cause {
        Cause::Silent { rank: self.hello.rank, shard, waited }
    }
}

/// How connections are made.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    pub(super) shard: usize,
    pub(super) address: SocketAddr,
    pub(super) key: LinkKey,
    pub(super) identity: Identity,
    pub(super) limits: ClientLimits,
    pub(super) buffers: Buffers,
}

/// An open connection.
pub(super) struct Link {
    reader: LinkReader,
    writer: LinkWriter,
    /// The TCP connection behind shared memory: silent, but open as long as the memory is used.
    _greeted_over: Option<(LinkReader, LinkWriter)>,
}

/// A shard that has admitted this worker on all connections.
pub(super) struct Admitted {
    pub(super) welcome: WelcomeBody,
    pub(super) links: Vec<Link>,
}

impl From<LinkError> for Cause {
    fn from(error: LinkError) -> Cause {
        match error {
            LinkError::Wire(error) => error.into(),
            LinkError::Deadline(patience) => Cause::Stalled(patience),
            other => Cause::Lost(other.to_string()),
        }
    }
}

impl From<HandshakeError> for Cause {
    fn from(error: HandshakeError) -> Cause {
        match error {
            HandshakeError::Link(error) => error.into(),
            HandshakeError::Refused(refusal) => Cause::NotAdmitted(refusal),
            HandshakeError::Unexpected(_) => Cause::Answer(error.to_string()),
            HandshakeError::Stranger => Cause::Stranger(error.to_string()),
        }
    }
}

impl Dial {
    /// Connects and says hello; the path is memory where both can share it, else all TCP connections.
    pub(super) async fn admit(self) -> Result<Admitted, Cause> {
        let (welcome, link) = self.hello(0).await?;
        let mut links = Vec::with_capacity(self.identity.hello.connections as usize);
        let link = match welcome.offer {
            Some(offer) => self.choose_path(offer, link).await?,
            None => link,
        };
        let is_tcp = link._greeted_over.is_none();
        links.push(link);
        let mut others = JoinSet::new();
        for connection in (1..self.identity.hello.connections).filter(|_| is_tcp) {
            let dial = self.clone();
            others.spawn(async move { dial.hello(connection).await });
        }
        while let Some(joined) = others.join_next().await {
            let failed = |error| Cause::Connect(format!("a handshake task failed: {error}"));
            let (again, link) = joined.map_err(failed)??;
            if again.shard != welcome.shard {
                return Err(Cause::Answer(format!("it is shard {} and {}", welcome.shard, again.shard)));
            }
            links.push(link);
        }
        Ok(Admitted { welcome, links })
    }

    /// Connects and goes through the handshake within `limits.connect`; is then welcomed within `limits.reply`: a
    /// shard that restores its rows sends heartbeats, and admits workers afterwards.
    async fn hello(&self, connection: u32) -> Result<(WelcomeBody, Link), Cause> {
        let limits = self.limits;
        let (mut reader, writer) = self.greeted(connection).await?;
        let activity = reader.activity();
        let welcomed = async {
            loop {
                let (incoming, payload) = reader.read().await?;
                match Message::decode(incoming.header.kind, payload, self.identity.rows)? {
                    Message::Heartbeat => {}
                    Message::Welcome(welcome) => return Ok::<_, Cause>(welcome),
                    Message::Refused(refusal) | Message::Nack(refusal) => {
                        return Err(Cause::NotAdmitted(refusal));
                    }
                    other => {
                        return Err(Cause::Answer(format!("{:?} instead of a welcome", other.encode().0)));
                    }
                }
            }
        };
        let welcome = tokio::select! {
            welcomed = timeout(limits.reply, welcomed) => {
                welcomed.unwrap_or(Err(Cause::Deadline(limits.reply)))?
            }
            () = activity.silent_for(limits.connect) => {
                return Err(self.identity.silent(self.shard, limits.connect));
            }
        };
        reader.limit_payload(MAX_PAYLOAD_BYTES);
        Ok((welcome, Link { reader, writer, _greeted_over: None }))
    }

    /// Connects and goes through the handshake. A shard that is not there yet, cannot be reached yet, or hangs up because
    /// too many connect at once, is tried again.
    async fn greeted(&self, connection: u32) -> Result<(LinkReader, LinkWriter), Cause> {
        let (begun, limit) = (Instant::now(), self.limits.connect);
        let hello = Message::Hello(HelloBody { connection, ..self.identity.hello });
        let header = self.identity.header(Kind::Hello, Step(0), Cell(0));
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            let cause = match timeout(left, TcpStream::connect(self.address)).await {
                Err(_) => {
                    let seconds = limit.as_secs_f64();
                    Cause::Connect(format!("no answer within {seconds:.1} s"))
                }
                Ok(Err(error)) => Cause::Connect(error.to_string()),
                Ok(Ok(stream)) => {
                    let (mut reader, mut writer) = over_tcp(stream, limit, &self.buffers);
                    reader.limit_payload(GREETING_BYTES);
                    let greeted =
                        greet((&mut reader, &mut writer), &self.key, (&header, &hello), self.identity.rows);
                    let left = limit.saturating_sub(begun.elapsed());
                    match timeout(left, greeted).await {
                        Ok(Ok(())) => return Ok((reader, writer)),
                        Ok(Err(HandshakeError::Link(error @ (LinkError::Closed | LinkError::Io(_))))) => {
                            error.into()
                        }
                        Ok(Err(error)) => return Err(error.into()),
                        Err(_) => return Err(self.identity.silent(self.shard, limit)),
                    }
                }
            };
            if begun.elapsed() + RETRY >= limit {
                return Err(cause);
            }
            sleep(RETRY).await;
        }
    }

    /// Moves to shared memory if that can be had, and says so by PATH on the chosen path.
    async fn choose_path(&self, offer: Offer, tcp: Link) -> Result<Link, Cause> {
        let shared = match offer.is_here() {
            true => {
                timeout(self.limits.connect, accept(&offer)).await.unwrap_or_else(|late| Err(late.into()))
            }
            false => Err(std::io::Error::other("it runs on another host")),
        };
        let mut link = match shared {
            Ok(rings) => {
                let (reader, writer) = over_rings(rings, self.limits.connect, &self.buffers);
                Link { reader, writer, _greeted_over: Some((tcp.reader, tcp.writer)) }
            }
            Err(error) => {
                tracing::info!(address = %self.address, %error, "no memory is shared with this shard; TCP is used");
                tcp
            }
        };
        link.writer.write(&self.identity.frame(&Message::Path)?).await?;
        Ok(link)
    }
}

/// Whether a connection carries heartbeats.
#[derive(Clone, Copy, Debug)]
enum Beats {
    None,
    Sent,
}

/// What the tasks of one shard's connections share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) shard: usize,
    pub(super) identity: Identity,
    pub(super) registry: Arc<Registry>,
    pub(super) queue: SendQueue,
    pub(super) inflow: Arc<Inflow>,
    /// After so long without a heartbeat the shard is given up.
    pub(super) silence: Duration,
    /// The shard gives this worker up after so long.
    pub(super) heard_within: Duration,
}

impl Link {
    /// The two halves' work: `(reads, writes)`. Each ends with the connection and reports why to the registry.
    pub(super) fn into_tasks(
        self,
        connection: u32,
        context: Context,
    ) -> (impl Future<Output = ()> + Send, impl Future<Output = ()> + Send) {
        let Link { reader, writer, _greeted_over } = self;
        let for_writer = context.clone();
        // A host does not lose itself: over memory nobody has to send heartbeats.
        let activity = _greeted_over.is_none().then(|| reader.activity());
        let beats = if activity.is_some() { Beats::Sent } else { Beats::None };
        let reads = async move {
            let cause = context.read_watched(reader, activity).await;
            context.registry.fail(context.shard, &cause);
            context.queue.close();
            drop(_greeted_over);
        };
        let writes = async move {
            if let Err(cause) = for_writer.write_all(writer, connection, beats).await {
                for_writer.registry.fail(for_writer.shard, &cause);
                for_writer.queue.abandon();
            }
        };
        (reads, writes)
    }
}

impl Context {
    async fn write_all(&self, writer: LinkWriter, connection: u32, beats: Beats) -> Result<(), Cause> {
        let heartbeats = match beats {
            Beats::None => None,
            Beats::Sent => {
                Some(Heartbeats::new(self.heard_within, self.identity.frame(&Message::Heartbeat)?))
            }
        };
        Ok(write_queue(writer, &self.queue, connection, heartbeats).await?)
    }

    /// Reads until the connection ends, or is silent.
    async fn read_watched(&self, reader: LinkReader, activity: Option<ReadActivity>) -> Cause {
        let Some(activity) = activity else { return self.read_all(reader).await };
        tokio::select! {
            biased;
            cause = self.read_all(reader) => cause,
            () = activity.silent_for(self.silence) => self.identity.silent(self.shard, self.silence),
        }
    }

    async fn read_all(&self, mut reader: LinkReader) -> Cause {
        loop {
            let (incoming, payload) = match self.next(&mut reader).await {
                Ok(Some(frame)) => frame,
                Ok(None) => continue,
                Err(cause) => return cause,
            };
            let (header, ours) = (incoming.header, &self.identity);
            if (header.run, header.generation) != (ours.run, ours.generation) {
                return Cause::Answer(format!(
                    "a frame of run {:#x} and generation {}, expected run {:#x} and generation {}",
                    header.run, header.generation, ours.run, ours.generation
                ));
            }
            let placed = match Message::decode(header.kind, payload, ours.rows) {
                Ok(message) => self.place(&header, message),
                Err(error) => Err(error.into()),
            };
            if let Err(cause) = placed {
                return cause;
            }
        }
    }

    /// The next frame; `None` where its rows went straight to their places.
    async fn next(&self, reader: &mut LinkReader) -> Result<Option<(Incoming, PooledWords)>, Cause> {
        let mut arriving = reader.begin().await?;
        let Incoming { header, payload_words, .. } = arriving.incoming;
        let (ours, mut begun) = (&self.identity, Vec::new());
        let key = match header.kind {
            Kind::Rows => Some(Key::Lookup(header.micro_batch())),
            Kind::ReadRows => Some(Key::Read(header.step, header.cell)),
            _ => None,
        };
        let is_direct = payload_words >= DIRECT_WORDS
            && ours.rows.kind == RowType::F32
            && (header.run, header.generation) == (ours.run, ours.generation);
        if let Some(key) = key.filter(|_| is_direct) {
            begun.push(0);
            reader.read_into(&mut arriving, &mut begun).await?;
            let runs = begun[0] as usize;
            // What is not as it should be is read whole: then it is known whether it was sent so.
            if runs <= MOST_RUNS && 2 * runs < payload_words {
                begun.resize(1 + 2 * runs, 0);
                reader.read_into(&mut arriving, &mut begun[1..]).await?;
                if let Some(mut claim) = self.claim(key, &begun, payload_words) {
                    for index in 0..claim.stretches() {
                        reader.read_into(&mut arriving, claim.stretch_mut(index)).await?;
                    }
                    arriving.verify()?;
                    self.inflow.arrived(4 * payload_words)?;
                    self.registry.settle(self.shard, key, claim)?;
                    self.give_back(4 * payload_words)?;
                    return Ok(None);
                }
            }
        }
        Ok(Some(reader.read_rest(arriving, &begun).await?))
    }

    /// The places of a block of rows that begins with `head`, if they can be filled as it comes.
    fn claim(&self, key: Key, head: &[u32], payload_words: usize) -> Option<Claim> {
        let (runs, rows) = RowBlock::runs_of(&head[1..]).ok()?;
        let values = usize::try_from(rows).ok()?.checked_mul(self.identity.rows.stride())?;
        (head.len() + values == payload_words).then(|| self.registry.claim(self.shard, key, &runs))?
    }

    fn place(&self, header: &Header, message: Message) -> Result<(), Cause> {
        let (shard, registry, step, cell) = (self.shard, &self.registry, header.step, header.cell);
        match message {
            Message::Rows(block) => self.rows(Key::Lookup(header.micro_batch()), &block),
            Message::ReadRows(block) => self.rows(Key::Read(step, cell), &block),
            Message::Prepared(body) => registry.sums(shard, Key::Prepare(step), body),
            Message::Committed(rows) => registry.acknowledge(shard, Key::Commit(step), rows),
            Message::Aborted => registry.acknowledge(shard, Key::Abort(step), 0),
            Message::Credit(bytes) => Ok(self.queue.give_back(bytes)?),
            Message::Heartbeat => Ok(()),
            Message::Nack(refusal) => Err(Cause::Refused { step, cell, refusal }),
            other => Err(Cause::Answer(format!("a {:?} frame is not for workers", other.encode().0))),
        }
    }

    /// Places rows, and gives their credit back.
    fn rows(&self, key: Key, block: &RowBlock) -> Result<(), Cause> {
        self.inflow.arrived(block.payload_bytes())?;
        self.registry.rows(self.shard, key, block)?;
        self.give_back(block.payload_bytes())
    }

    fn give_back(&self, payload_bytes: usize) -> Result<(), Cause> {
        if let Some(bytes) = self.inflow.taken(payload_bytes)
            && self.queue.send_urgent(self.identity.frame(&Message::Credit(bytes))?).is_err()
        {
            tracing::debug!(shard = self.shard, "credit was left over at the end");
        }
        Ok(())
    }
}
