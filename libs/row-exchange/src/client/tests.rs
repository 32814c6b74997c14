//! A client and a shard that is played by the test, frame by frame, where a real one would not do what is needed: refuse
//! to grant credit, offer memory that is not there, or send values that no table has. The tables are the tiny ones.

use std::time::Duration;

use polygram_domain::bf16::round_to_nearest;
use polygram_domain::embedding::{RowType, SameHost, WireSpec};
use polygram_domain::{Generation, MicroBatchRef, Rank, RunName, ShardIndex};
use polygram_handshake::LinkKey;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::block::{RowBlock, Values};
use crate::codec::{LinkReader, LinkWriter, over_tcp};
use crate::frame::{Header, Kind, Outgoing, Piece};
use crate::handshake::Challenge;
use crate::message::WelcomeBody;
use crate::same_host::{Meeting, Offer};
use crate::testing::tiny_tables;

const PATIENCE: Duration = Duration::from_secs(30);
const GENERATION: Generation = Generation(1);

/// The test's side of one connection.
struct Played {
    reader: LinkReader,
    writer: LinkWriter,
    shape: BlockShape,
}

fn at(step: u64, cell: u32) -> MicroBatchRef {
    MicroBatchRef { step: Step(step), index: Cell(cell) }
}

fn key() -> LinkKey {
    LinkKey::of_secret(b"a secret of these tests")
}

fn run() -> RunName {
    RunName::new("played").unwrap()
}

fn options(wire: WireSpec) -> ClientOptions {
    let limits = ClientLimits { chunk_bytes: 1000, ..PATIENCE.into() };
    ClientOptions { wire, ..limits.into() }
}

fn shape(kind: RowType) -> BlockShape {
    let tables = tiny_tables();
    BlockShape { sites: 1, width: tables.iter().next().unwrap().width as usize, kind }
}

/// `rows` rows of the first table.
fn ids(rows: u32) -> Arc<UniqueIds> {
    let count = tiny_tables().tables_per_site() as usize;
    let offsets = std::iter::once(0).chain(vec![rows as usize; count]).collect();
    Arc::new(UniqueIds { offsets, rows: (0..rows).collect() })
}

impl Played {
    fn over(stream: TcpStream, wire: WireSpec) -> Played {
        let (reader, writer) = over_tcp(stream, PATIENCE, &Buffers::new(1 << 20));
        Played { reader, writer, shape: shape(wire.gradients) }
    }

    async fn next(&mut self) -> (Header, Message) {
        let (incoming, payload) = timeout(PATIENCE, self.reader.read()).await.expect("a frame").unwrap();
        (incoming.header, Message::decode(incoming.header.kind, payload, self.shape).unwrap())
    }

    async fn say(&mut self, step: Step, cell: Cell, kind: Kind, words: Vec<u32>) {
        let header = Header { kind, chunk: 0, run: run_hash(&run()), generation: GENERATION, step, cell };
        self.writer.write(&Outgoing::seal(&header, vec![Piece::Words(words)]).unwrap()).await.unwrap();
    }

    async fn tell(&mut self, message: &Message) {
        let (kind, pieces) = message.encode();
        let words = pieces.iter().flat_map(|piece| bytemuck::pod_collect_to_vec(piece.bytes())).collect();
        self.say(Step(0), Cell(0), kind, words).await;
    }

    async fn welcome(&mut self, window_bytes: u32, offer: Option<Offer>) -> HelloBody {
        let (incoming, payload) = timeout(PATIENCE, self.reader.read()).await.expect("a hello").unwrap();
        let challenge = Challenge::to(&incoming, &payload).unwrap();
        let hello = Message::decode(incoming.header.kind, payload, self.shape).unwrap();
        let Message::Hello(hello) = hello else { panic!("{hello:?} is no hello") };
        self.tell(&challenge.message()).await;
        let (_, response) = self.next().await;
        let Message::Response(response) = response else { panic!("{response:?} is no response") };
        self.tell(&challenge.verify(&key(), &response).expect("the right key")).await;
        let (shard, version) = (ShardIndex(0), Step(0));
        let silence_ms = silence_ms(PATIENCE);
        let welcome = WelcomeBody { shard, shards: 1, version, window_bytes, silence_ms, offer };
        self.say(Step(0), Cell(0), Kind::Welcome, welcome.encode()).await;
        hello
    }

    /// The next message, which must be a push.
    async fn pushed(&mut self) -> RowBlock {
        match self.next().await {
            (_, Message::Push(block)) => block,
            (_, other) => panic!("{other:?} instead of a push"),
        }
    }
}

async fn connect(address: SocketAddr, options: ClientOptions) -> Result<RowClient, RowError> {
    let hello = Hello { run: run(), generation: GENERATION, rank: Rank(0), workers: 1, key: key() };
    RowClient::connect(&[address], hello, Arc::new(tiny_tables()), options).await
}

/// A client of one played shard, and the shard's first connection.
async fn meet(options: ClientOptions, window_bytes: u32, offer: Option<Offer>) -> (RowClient, Played) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shard = tokio::spawn(async move {
        let mut shard = Played::over(listener.accept().await.unwrap().0, options.wire);
        shard.welcome(window_bytes, offer).await;
        shard
    });
    let client = timeout(PATIENCE, connect(address, options)).await.unwrap().unwrap();
    (client, shard.await.unwrap())
}

#[tokio::test]
async fn an_offer_of_nobody_leaves_tcp() {
    let elsewhere = Offer::decode(&[7; 16]);
    let gone = Meeting::open().unwrap().offer();
    for offer in [elsewhere, gone] {
        let (client, mut shard) = meet(options(WireSpec::default()), 1 << 20, Some(offer)).await;
        assert_eq!(shard.next().await.1, Message::Path, "the path is told where it stays");
        let _answer = client.lookup(at(0, 0), ids(2));
        assert!(matches!(shard.next().await.1, Message::Lookup(_)));
    }
}

#[tokio::test]
async fn memory_is_refused_where_the_run_says_tcp() {
    let tcp = ClientOptions { same_host: SameHost::Tcp, ..options(WireSpec::default()) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connecting = tokio::spawn(connect(address, tcp));
    let mut shard = Played::over(listener.accept().await.unwrap().0, WireSpec::default());
    assert_eq!(shard.welcome(1 << 20, None).await.same_host, SameHost::Tcp);
    assert!(timeout(PATIENCE, connecting).await.unwrap().unwrap().is_ok());
}

fn deadline_of<T>(result: Result<T, tokio::time::error::Elapsed>) -> bool {
    result.is_err()
}

/// Gradients stop at the window; lookups, prepares and votes do not.
#[tokio::test]
async fn requests_do_not_wait_behind_pushes_without_credit() {
    const WINDOW: u32 = 4000;
    /// 20 rows of 12 values, and one run.
    const CHUNK: usize = 4 * (3 + 20 * 12);
    let (client, mut shard) = meet(options(WireSpec::default()), WINDOW, None).await;
    let rows = 400;
    let _answer = client.lookup(at(0, 0), ids(rows));
    assert!(matches!(shard.next().await.1, Message::Lookup(_)));
    let values = rows as usize * shard.shape.width;
    let mut push = std::pin::pin!(client.push(at(0, 0), vec![0.25; values]));
    assert!(deadline_of(timeout(Duration::from_millis(50), &mut push).await), "there is more than a window");
    let (mut bytes, mut pushed) = (0, 0);
    while bytes + CHUNK <= WINDOW as usize {
        let block = shard.pushed().await;
        (bytes, pushed) = (bytes + block.payload_bytes(), pushed + block.rows());
    }
    let _answer = client.lookup(at(1, 1), ids(1));
    let (header, next) = shard.next().await;
    assert!(matches!(next, Message::Lookup(_)) && header.step == Step(1), "{next:?} came first");
    let vote = client.commit(Step(0), Commit { scale: 1.0, lr: 0.5, snapshot: SnapshotOrder::None });
    let mut vote = std::pin::pin!(vote);
    assert!(deadline_of(timeout(Duration::from_millis(5), &mut vote).await));
    assert!(matches!(shard.next().await.1, Message::Commit(_)));
    // Every byte given back lets one more come, and never more than the window is on its way.
    let giving = async {
        while pushed < rows as usize {
            shard.say(Step(0), Cell(0), Kind::Credit, vec![bytes as u32]).await;
            bytes = 0;
            while pushed < rows as usize && bytes + CHUNK <= WINDOW as usize {
                let block = shard.pushed().await;
                assert!(
                    matches!(block.values(), Values::F32(values) if values.iter().all(|&value| value == 0.25))
                );
                (bytes, pushed) = (bytes + block.payload_bytes(), pushed + block.rows());
            }
        }
    };
    let (sent, ()) = tokio::join!(timeout(PATIENCE, push), giving);
    sent.unwrap().unwrap();
}

#[tokio::test]
async fn rows_are_paid_for() {
    let small = ClientOptions { row_window_bytes: 4000, ..options(WireSpec::default()) };
    let (client, mut shard) = meet(small, 1 << 20, None).await;
    let answer = client.lookup(at(0, 0), ids(100));
    assert!(matches!(shard.next().await.1, Message::Lookup(_)));
    let width = shard.shape.width;
    let rows = |first: u32, count: u32| {
        let mut words = RowBlock::head(std::slice::from_ref(&(first..first + count)));
        words.extend((first..first + count).flat_map(|row| vec![(row as f32).to_bits(); width]));
        words
    };
    let (mut spent, mut given) = (0, 0);
    for first in (0..100).step_by(10) {
        let words = rows(first, 10);
        while spent + 4 * words.len() - given > 4000 {
            match shard.next().await.1 {
                Message::Credit(bytes) => given += bytes as usize,
                other => panic!("{other:?} instead of credit"),
            }
        }
        spent += 4 * words.len();
        shard.say(Step(0), Cell(0), Kind::Rows, words).await;
    }
    let rows_uw = timeout(PATIENCE, answer).await.unwrap().unwrap();
    assert!(rows_uw.chunks(width).zip(0..).all(|(row, i)| row.iter().all(|&value| value == i as f32)));
    // One who gives back what it never got has lost count: the client does not go on with it.
    shard.say(Step(0), Cell(0), Kind::Credit, vec![1]).await;
    let error = timeout(PATIENCE, client.prepare(Step(0))).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("only 0 were sent"), "{error}");
}

/// Rows widen exactly and gradients round to nearest even, whatever they are; what is not finite survives.
#[tokio::test]
async fn bf16_travels_both_ways() {
    let wire = WireSpec { rows: RowType::Bf16, gradients: RowType::Bf16 };
    let (client, mut shard) = meet(options(wire), 1 << 20, None).await;
    let width = shard.shape.width;
    let rows = 151;
    let answer = client.lookup(at(0, 0), ids(rows));
    assert!(matches!(shard.next().await.1, Message::Lookup(_)));
    let special = [0x7f80u16, 0xff80, 0x7fc1, 0x0001, 0x8000, 0x7f7f];
    let bits: Vec<u16> = (0..rows as usize * width)
        .map(|i| special.get(i).copied().unwrap_or((i as u16).wrapping_mul(0x1f3)))
        .collect();
    for half in [0..75u32, 75..rows] {
        let mut words = RowBlock::head(std::slice::from_ref(&half));
        let mut values = bits[half.start as usize * width..half.end as usize * width].to_vec();
        values.resize(values.len().next_multiple_of(2), 0);
        words.extend(values.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16));
        shard.say(Step(0), Cell(0), Kind::Rows, words).await;
    }
    let rows_uw = timeout(PATIENCE, answer).await.unwrap().unwrap();
    let found: Vec<u32> = rows_uw.iter().map(|value| value.to_bits()).collect();
    assert_eq!(found, bits.iter().map(|&bits| u32::from(bits) << 16).collect::<Vec<u32>>());
    let gradients: Vec<f32> = (0..found.len())
        .map(|i| match i % 97 {
            0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            2 => f32::MAX,
            _ => (i as f32).sin(),
        })
        .collect();
    let mut expected = vec![0; gradients.len()];
    round_to_nearest(&gradients, &mut expected);
    client.push(at(0, 0), gradients).await.unwrap();
    let mut pushed = Vec::new();
    while pushed.len() < expected.len() {
        let block = shard.pushed().await;
        assert_eq!(block.runs()[0].start as usize * width, pushed.len());
        let Values::Bf16(bits) = block.values() else { panic!("{block:?}") };
        pushed.extend_from_slice(bits);
    }
    assert_eq!(pushed, expected);
}

/// A cell without rows is told by an empty push, behind its lookup.
#[tokio::test]
async fn an_empty_cell_is_pushed_in_order() {
    let several = ClientOptions { connections: 1, ..options(WireSpec::default()) };
    let (client, mut shard) = meet(several, 1 << 20, None).await;
    let rows = client.lookup(at(0, 0), ids(0)).await.unwrap();
    client.push(at(0, 0), rows).await.unwrap();
    assert!(matches!(shard.next().await.1, Message::Lookup(_)));
    assert_eq!(shard.pushed().await.rows(), 0);
}

#[tokio::test]
async fn several_connections_are_one_client() {
    let three = ClientOptions { connections: 3, ..options(WireSpec::default()) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connecting = tokio::spawn(connect(address, three));
    let mut links = Vec::new();
    let mut hellos = Vec::new();
    for _ in 0..3 {
        let mut link = Played::over(listener.accept().await.unwrap().0, three.wire);
        hellos.push(link.welcome(1 << 20, None).await);
        links.push(link);
    }
    assert_eq!(hellos[0].connection, 0, "the first is admitted before the others are made");
    let mut numbers: Vec<u32> = hellos.iter().map(|hello| hello.connection).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
    assert!(hellos.iter().all(|hello| HelloBody { connection: 0, ..*hello } == hellos[0]));
    let client = timeout(PATIENCE, connecting).await.unwrap().unwrap().unwrap();
    // Rows may come over any connection; gradients spread once they are there.
    let rows = 60;
    let answer = client.lookup(at(0, 0), ids(rows));
    assert!(matches!(links[0].next().await.1, Message::Lookup(_)));
    for (i, link) in links.iter_mut().enumerate().rev() {
        let run = 20 * i as u32..20 * (i as u32 + 1);
        let mut words = RowBlock::head(std::slice::from_ref(&run));
        words.resize(words.len() + 20 * link.shape.width, (i as f32).to_bits());
        link.say(Step(0), Cell(0), Kind::Rows, words).await;
    }
    let values = timeout(PATIENCE, answer).await.unwrap().unwrap();
    assert!(values.chunks(values.len() / 3).zip(0..).all(|(part, i)| part.iter().all(|&v| v == i as f32)));
    client.push(at(0, 0), values).await.unwrap();
    let mut pushed = 0;
    let mut readers = JoinSet::new();
    let (blocks, mut received) = tokio::sync::mpsc::unbounded_channel();
    for mut link in links {
        let blocks = blocks.clone();
        readers.spawn(async move {
            while let Ok((incoming, payload)) = link.reader.read().await {
                let message = Message::decode(incoming.header.kind, payload, link.shape).unwrap();
                if blocks.send(message).is_err() {
                    return link;
                }
            }
            link
        });
    }
    while pushed < rows as usize {
        match timeout(PATIENCE, received.recv()).await.unwrap().unwrap() {
            Message::Push(block) => pushed += block.rows(),
            other => panic!("{other:?} instead of a push"),
        }
    }
    // Losing one connection is losing the client.
    let waits = tokio::spawn({
        let client = client.clone();
        async move { client.prepare(Step(0)).await.unwrap_err() }
    });
    readers.shutdown().await;
    let error = timeout(PATIENCE, waits).await.unwrap().unwrap();
    assert!(error.to_string().contains("connection"), "{error}");
}
