//! Who gets into a shard, what those cost who do not, and what silence of either side leads to.
#![allow(clippy::unwrap_used, reason = "what a test cannot do without ends it")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, DEADLINE, GENERATION, key, new_shard};
use common::{Workload, greeting, overrides, spec};
use polygram_domain::embedding::{RowType, SameHost};
use polygram_domain::{Cell, FailureKind, MicroBatchRef, Rank, RunSpec, Step};
use polygram_embedding_shard::Door;
use polygram_handshake::{LinkKey, MOST_WAITING};
use polygram_row_exchange::block::BlockShape;
use polygram_row_exchange::codec::FrameReader;
use polygram_row_exchange::error::Cause;
use polygram_row_exchange::frame::{Header, Kind, Outgoing, Piece, run_hash};
use polygram_row_exchange::message::{HelloBody, Message, WelcomeBody};
use polygram_row_exchange::{ClientLimits, ClientOptions, Hello, Reason, RowClient, RowExchange};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

const SHAPE: BlockShape = BlockShape { sites: 1, width: 12, kind: RowType::F32 };
const WORKLOAD: Workload = Workload { seed: 21, poisoned: None };
const DETECTION: Duration = Duration::from_secs(1);

fn at(step: u64, cell: u32) -> MicroBatchRef {
    MicroBatchRef { step: Step(step), index: Cell(cell) }
}

fn small() -> RunSpec {
    spec(&overrides(&["topology.shards=1", "run.failure_detection_seconds=1"]))
}

fn header(spec: &RunSpec, kind: Kind) -> Header {
    let run = run_hash(&spec.name);
    Header { kind, chunk: 0, run, generation: GENERATION, step: Step(0), cell: Cell(0) }
}

fn over_tcp(limit: Duration) -> ClientOptions {
    let limits = ClientLimits { connect: limit, ..DEADLINE.into() };
    ClientOptions { same_host: SameHost::Tcp, ..limits.into() }
}

async fn connect(cluster: &Cluster, hello: Hello) -> Result<RowClient, String> {
    let tables = Arc::new(cluster.spec.tables());
    let client = RowClient::connect(&cluster.addresses, hello, tables, over_tcp(DEADLINE)).await;
    client.map_err(|error| error.to_string())
}

async fn still_serves(cluster: &Cluster, client: &RowClient) {
    let ids = WORKLOAD.ids(&cluster.spec, Step(0), Cell(0));
    assert!(client.read(Step(0), ids).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_token_opens_no_door_on_either_side() {
    let cluster = Cluster::start(&small()).await;
    let other = LinkKey::of_secret(b"another secret of these tests");
    let error = connect(&cluster, Hello { key: other, ..cluster.hello(0) }).await.err().unwrap();
    assert!(error.contains("does not know the run's token"), "{error}");
    // A listener in the shard's place that does not know it, though it accepts every proof.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let head = header(&cluster.spec, Kind::Challenge);
    let fake = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let seal = |kind, words| {
            Outgoing::seal(&Header { kind, ..head }, vec![Piece::Words(words)]).unwrap().to_bytes()
        };
        stream.write_all(&seal(Kind::Challenge, vec![1; 8])).await.unwrap();
        stream.write_all(&seal(Kind::Vouch, vec![2; 8])).await.unwrap();
        let mut rest = Vec::new();
        let _ended = stream.read_to_end(&mut rest).await;
    });
    let tables = Arc::new(cluster.spec.tables());
    let client = RowClient::connect(&[address], cluster.hello(0), tables, over_tcp(DEADLINE)).await;
    let error = client.err().unwrap();
    assert!(matches!(error.cause, Cause::Stranger(_)), "{error}");
    assert_eq!(error.cause.kind(), FailureKind::Program);
    fake.await.unwrap();
    cluster.stop().await.remove(0).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_with_a_rank_is_refused_by_name() {
    let cluster = Cluster::start(&small()).await;
    let first = connect(&cluster, cluster.hello(0)).await.unwrap();
    let error = connect(&cluster, cluster.hello(0)).await.err().unwrap();
    for part in ["worker 0 is connected already", "incarnation", "two processes run with --rank 0"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    still_serves(&cluster, &first).await;
    first.close().await.unwrap();
    cluster.stop().await.remove(0).unwrap();
}

/// The same hello and response on another connection prove nothing: its challenge is another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_handshake_is_refused() {
    let cluster = Cluster::start(&small()).await;
    let hello = Message::Hello(HelloBody::plain(Rank(0), 1, &cluster.spec.tables()));
    let hello = greeting::sealed(&header(&cluster.spec, Kind::Hello), &hello).to_bytes();
    let mut recorded = None;
    for _ in 0..2 {
        let mut stream = TcpStream::connect(cluster.addresses[0]).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        let (read, mut write) = stream.split();
        let mut reader = FrameReader::new(read);
        let (incoming, words) = reader.read().await.unwrap();
        let Message::Challenge(nonce) = Message::decode(incoming.header.kind, words, SHAPE).unwrap() else {
            panic!("{:?} is no challenge", incoming.header)
        };
        let is_replay = recorded.is_some();
        let response = recorded.get_or_insert_with(|| {
            let response = greeting::response_to(&hello, nonce);
            greeting::sealed(&header(&cluster.spec, Kind::Response), &response).to_bytes()
        });
        write.write_all(response).await.unwrap();
        let (incoming, words) = reader.read().await.unwrap();
        match Message::decode(incoming.header.kind, words, SHAPE).unwrap() {
            Message::Vouch(_) => assert!(!is_replay),
            Message::Refused(refusal) => {
                assert!(is_replay, "{}", refusal.text);
                assert_eq!(refusal.reason, Reason::Stranger);
            }
            other => panic!("{other:?}"),
        }
    }
    cluster.stop().await.remove(0).unwrap();
}

/// Whoever says nothing, half a header, or a length that nobody believes, is let go of; none of them keeps a worker out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_strangers_is_bounded() {
    let cluster = Cluster::start(&small()).await;
    let first = connect(&cluster, cluster.hello(0)).await.unwrap();
    let long =
        Outgoing::seal(&header(&cluster.spec, Kind::Hello), vec![Piece::Words(vec![0; 1100])]).unwrap();
    let mut stream = TcpStream::connect(cluster.addresses[0]).await.unwrap();
    stream.write_all(&long.to_bytes()).await.unwrap();
    let mut said = Vec::new();
    // What is left unread makes the end a reset.
    let _ended = timeout(DEADLINE, stream.read_to_end(&mut said)).await.unwrap();
    let mut open = Vec::new();
    for number in 0..2 * MOST_WAITING {
        let mut stream = TcpStream::connect(cluster.addresses[0]).await.unwrap();
        stream.write_all(&long.to_bytes()[..number % 50]).await.unwrap();
        open.push(stream);
    }
    // The oldest were ended for the newest.
    let mut said = Vec::new();
    let ended = timeout(DEADLINE, open[0].read_to_end(&mut said)).await.unwrap();
    assert!(said.is_empty(), "{ended:?}");
    still_serves(&cluster, &first).await;
    first.close().await.unwrap();
    let next = timeout(DEADLINE, async {
        loop {
            // The shard may hear of the end of the first one later.
            match connect(&cluster, cluster.hello(0)).await {
                Ok(client) => break client,
                Err(error) => assert!(error.contains("connected already"), "{error}"),
            }
        }
    });
    still_serves(&cluster, &next.await.unwrap()).await;
    drop(open);
    cluster.stop().await.remove(0).unwrap();
}

/// A worker that is admitted and sends no heartbeat is told so, and let go of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_worker_is_given_up_by_name() {
    let cluster = Cluster::start(&small()).await;
    let hello = HelloBody::plain(Rank(0), 1, &cluster.spec.tables());
    let mut stream = TcpStream::connect(cluster.addresses[0]).await.unwrap();
    let begun = Instant::now();
    greeting::admit(&mut stream, &header(&cluster.spec, Kind::Hello), &hello).await;
    let refused = timeout(DEADLINE, async {
        // What came with the shard's proof is gone with the handshake's reader.
        let mut reader = FrameReader::new(&mut stream);
        loop {
            let (incoming, words) = reader.read().await.unwrap();
            if let Message::Nack(refusal) = Message::decode(incoming.header.kind, words, SHAPE).unwrap() {
                break refusal;
            }
        }
    });
    let refused = refused.await.unwrap();
    assert_eq!(refused.reason, Reason::Silent);
    assert_eq!(refused.text, "shard 0 hears nothing from worker 0 for 1.0 s");
    assert!(begun.elapsed() >= DETECTION * 3 / 4 && begun.elapsed() < DETECTION * 3, "{:?}", begun.elapsed());
    let next = connect(&cluster, cluster.hello(0)).await.unwrap();
    still_serves(&cluster, &next).await;
    // One that only sends heartbeats stays.
    tokio::time::sleep(DETECTION * 2).await;
    still_serves(&cluster, &next).await;
    next.close().await.unwrap();
    cluster.stop().await.remove(0).unwrap();
}

/// A shard that has admitted a worker and says nothing any more is named by the worker, whatever it waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_shard_is_given_up_by_name() {
    let spec = small();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let head = header(&spec, Kind::Welcome);
    let mute = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        greeting::prove(&mut stream, &head).await;
        let (shard, version) = (polygram_domain::ShardIndex(0), Step(0));
        // A window of two rows: a push waits for credit.
        let (window_bytes, silence_ms) = (100, 30_000);
        let welcome = WelcomeBody { shard, shards: 1, version, window_bytes, silence_ms, offer: None };
        let welcome = greeting::sealed(&head, &Message::Welcome(welcome));
        stream.write_all(&welcome.to_bytes()).await.unwrap();
        stream
    });
    let tables = Arc::new(spec.tables());
    let hello =
        Hello { run: spec.name.clone(), generation: GENERATION, rank: Rank(0), workers: 1, key: key() };
    let mut options = over_tcp(DETECTION);
    // A row a frame.
    options.limits.chunk_bytes = 48;
    let client = RowClient::connect(&[address], hello, tables, options).await.unwrap();
    let stream = mute.await.unwrap();
    let begun = Instant::now();
    let ids = WORKLOAD.ids(&spec, Step(0), Cell(0));
    let values = vec![0.0; ids.rows.len() * 12];
    let lookup = client.lookup(at(0, 0), ids);
    let push = client.push(at(0, 0), values);
    let (lookup, push) = tokio::join!(lookup, push);
    for error in [lookup.unwrap_err(), push.unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("worker 0 hears nothing from shard 0 for 1.0 s"), "{text}");
        assert_eq!(error.cause.kind(), FailureKind::Timeout);
    }
    assert!(begun.elapsed() < DETECTION * 3, "{:?}", begun.elapsed());
    drop(stream);
}

/// A shard that restores its rows for many times the detection is there: its door says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_restores_is_waited_for() {
    let spec = small();
    let shard = new_shard(&spec, 0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let door = Door::open(listener, shard.config(), key());
    let hello =
        Hello { run: spec.name.clone(), generation: GENERATION, rank: Rank(0), workers: 1, key: key() };
    let connecting = {
        let tables = Arc::new(spec.tables());
        tokio::spawn(async move { RowClient::connect(&[address], hello, tables, over_tcp(DETECTION)).await })
    };
    tokio::time::sleep(DETECTION * 3).await;
    assert!(!connecting.is_finished());
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(shard.serve(door, async move {
        let _dropped = stopped.await;
    }));
    let client = connecting.await.unwrap().unwrap();
    client.close().await.unwrap();
    drop(stop);
    served.await.unwrap().unwrap();
}
