//! What goes wrong ends with a clear word, never with a wrong row or a crash.
#![allow(clippy::unwrap_used, reason = "what a test cannot do without ends it")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::cluster::{Cluster, DEADLINE, GENERATION, key};
use common::greeting;
use common::reference::bits;
use common::{Workload, overrides, spec};
use polygram_domain::embedding::RowType;
use polygram_domain::philox::{Purpose, Stream};
use polygram_domain::{Cell, Generation, MicroBatchRef, Rank, RunName, Step};
use polygram_embedding_shard::ShardError;
use polygram_row_exchange::block::BlockShape;
use polygram_row_exchange::codec::{FrameReader, FrameWriter};
use polygram_row_exchange::error::Cause;
use polygram_row_exchange::frame::{BULK_VERSION, Header, Kind, Outgoing, Piece, run_hash};
use polygram_row_exchange::message::{HelloBody, Message, PreparedBody, Request, RowBlock};
use polygram_row_exchange::{Commit, Hello, Reason, RowClient, RowExchange, SnapshotOrder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SHAPE: BlockShape = BlockShape { sites: 1, width: 12, kind: RowType::F32 };
const WORKLOAD: Workload = Workload { seed: 5, poisoned: Some(1) };
const COMMIT: Commit = Commit { scale: 1.0, lr: 0.1, snapshot: SnapshotOrder::None };

fn at(step: u64, cell: u32) -> MicroBatchRef {
    MicroBatchRef { step: Step(step), index: Cell(cell) }
}

/// Looks up, computes and pushes every cell of a step through one worker.
async fn push_step(cluster: &Cluster, client: &RowClient, step: Step) {
    for cell in (0..cluster.spec.training.cells).map(Cell) {
        let rows = client
            .lookup(MicroBatchRef { step, index: cell }, WORKLOAD.ids(&cluster.spec, step, cell))
            .await
            .unwrap();
        client
            .push(MicroBatchRef { step, index: cell }, WORKLOAD.gradients(step, cell, &rows))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_is_not_finite_leaves_every_byte() {
    let cluster = Cluster::start(&spec(&[])).await;
    let client = cluster.client(0, 1 << 20).await;
    push_step(&cluster, &client, Step(0)).await;
    assert!(client.prepare(Step(0)).await.unwrap().finite);
    client.commit(Step(0), COMMIT).await.unwrap();
    let ids = WORKLOAD.ids(&cluster.spec, Step(1), Cell(1));
    let before = client.read(Step(1), Arc::clone(&ids)).await.unwrap();
    push_step(&cluster, &client, Step(1)).await;
    assert!(!client.prepare(Step(1)).await.unwrap().finite);
    client.abort(Step(1), SnapshotOrder::None).await.unwrap();
    let after = client.read(Step(2), ids).await.unwrap();
    assert_eq!(before, after);
    client.close().await.unwrap();
    let records = cluster.into_records().await;
    assert!(records.iter().all(|record| record.updates == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committing_what_is_not_finite_is_refused() {
    let cluster = Cluster::start(&spec(&overrides(&["topology.shards=1"]))).await;
    let client = cluster.client(0, 1 << 20).await;
    push_step(&cluster, &client, Step(0)).await;
    client.prepare(Step(0)).await.unwrap();
    client.commit(Step(0), COMMIT).await.unwrap();
    push_step(&cluster, &client, Step(1)).await;
    client.prepare(Step(1)).await.unwrap();
    let error = client.commit(Step(1), COMMIT).await.unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
    assert!(
        error.to_string().contains("embedding shard 0") && error.to_string().contains("step 1"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_disagree_stop_the_shard() {
    let cluster = Cluster::start(&spec(&overrides(&["topology.shards=1", "topology.workers=2"]))).await;
    let clients = [cluster.client(0, 1 << 20).await, cluster.client(1, 1 << 20).await];
    for cell in (0..cluster.spec.training.cells).map(Cell) {
        let client = &clients[cluster.spec.topology.rank_of(cell, cluster.spec.training.cells).index()];
        let rows = client
            .lookup(MicroBatchRef { step: Step(0), index: cell }, WORKLOAD.ids(&cluster.spec, Step(0), cell))
            .await
            .unwrap();
        client
            .push(MicroBatchRef { step: Step(0), index: cell }, WORKLOAD.gradients(Step(0), cell, &rows))
            .await
            .unwrap();
    }
    for client in &clients {
        client.prepare(Step(0)).await.unwrap();
    }
    let other = Commit { lr: 0.2, ..COMMIT };
    let (a, b) = tokio::join!(clients[0].commit(Step(0), COMMIT), clients[1].commit(Step(0), other));
    for error in [a.unwrap_err(), b.unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("worker 0") && text.contains("worker 1"), "{text}");
    }
    match cluster.stop().await.remove(0) {
        Err(ShardError::Refused(refusal)) => assert_eq!(refusal.reason, Reason::Disagreement),
        other => panic!("{:?}", other.map(|shard| shard.version())),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_ceiling_is_refused_before_a_row_is_written() {
    let limit = format!("embedding.memory_limit_gib={}", 4096.0 / f64::from(1 << 30));
    let cluster = Cluster::start(&spec(&overrides(&["topology.shards=1", &limit]))).await;
    let client = cluster.client(0, 1 << 20).await;
    let mut lookups = Vec::new();
    for cell in (0..cluster.spec.training.cells).map(Cell) {
        let ids = WORKLOAD.ids(&cluster.spec, Step(0), cell);
        lookups.push(client.lookup(MicroBatchRef { step: Step(0), index: cell }, ids));
    }
    for lookup in lookups {
        // A lookup may be answered before the last cell is declared; the step is refused before its first commit.
        let _answered_or_refused = lookup.await;
    }
    let error = client.prepare(Step(0)).await.unwrap_err();
    assert!(error.to_string().contains("need") && error.to_string().contains("4096"), "{error}");
    assert!(matches!(cluster.stop().await.remove(0), Err(ShardError::Refused(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_far_ahead_names_shard_step_and_cell() {
    let cluster = Cluster::start(&spec(&overrides(&["embedding.prefetch_steps=1"]))).await;
    let client = cluster.client(0, 1 << 20).await;
    let error = client.lookup(at(3, 2), WORKLOAD.ids(&cluster.spec, Step(3), Cell(2))).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error.cause, Cause::Refused { step: Step(3), .. }), "{text}");
    for part in ["embedding shard", "step 3", "cell 2", "too far ahead"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let later = client.prepare(Step(0)).await.unwrap_err();
    assert!(later.to_string().contains("too far ahead"), "the first failure stays: {later}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_not_admitted() {
    let cluster = Cluster::start(&spec(&[])).await;
    let tables = Arc::new(cluster.spec.tables());
    let good = cluster.hello(0);
    let other_tables = Arc::new(spec(&overrides(&["ngram.base_rows=977"])).tables());
    let cases = [
        (Hello { generation: Generation(GENERATION.0 - 1), ..good.clone() }, &tables, "stale"),
        (Hello { generation: Generation(GENERATION.0 + 1), ..good.clone() }, &tables, "unknown here"),
        (Hello { run: RunName::new("other").unwrap(), ..good.clone() }, &tables, "another run"),
        (Hello { workers: 9, ..good.clone() }, &tables, "of 9"),
        (Hello { rank: Rank(7), ..good.clone() }, &tables, "worker 7"),
        (good.clone(), &other_tables, "n-gram tables"),
    ];
    for (hello, tables, word) in cases {
        let refused = RowClient::connect(&cluster.addresses, hello, Arc::clone(tables), DEADLINE).await;
        let text = refused.err().unwrap().to_string();
        assert!(text.contains(word) && text.contains("embedding shard"), "{word:?} is not in {text:?}");
    }
    let mut swapped = cluster.addresses.clone();
    swapped.reverse();
    let refused = RowClient::connect(&swapped, good, tables, DEADLINE).await.err().unwrap();
    assert!(refused.to_string().contains("expected shard 0"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_shard_fails_everything_that_waits() {
    let cluster = Cluster::start(&spec(&overrides(&["topology.workers=2"]))).await;
    let client = cluster.client(0, 1 << 20).await;
    // Worker 1 never declares, so this answer cannot come.
    let ids = WORKLOAD.ids(&cluster.spec, Step(1), Cell(0));
    let lookup = tokio::spawn(client.lookup(at(1, 0), ids));
    let waiting = client.clone();
    let prepare = tokio::spawn(async move { waiting.prepare(Step(0)).await.unwrap_err() });
    tokio::task::yield_now().await;
    for shard in cluster.stop().await {
        shard.unwrap();
    }
    for text in [lookup.await.unwrap().unwrap_err().to_string(), prepare.await.unwrap().to_string()] {
        assert!(text.contains("embedding shard") && text.contains("connection lost"), "{text}");
    }
    assert!(client.failure().is_some());
    assert!(client.commit(Step(0), COMMIT).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_name_the_silent_shard() {
    let cluster = Cluster::start(&spec(&overrides(&["topology.workers=2"]))).await;
    let tables = Arc::new(cluster.spec.tables());
    let limits = Duration::from_millis(200);
    let client = RowClient::connect(&cluster.addresses, cluster.hello(0), tables, limits).await.unwrap();
    let error = client.prepare(Step(0)).await.unwrap_err();
    assert_eq!(error.cause, Cause::Deadline(limits));
    assert!(error.to_string().contains("embedding shard 0"), "{error}");
    let wrong = client.push(at(0, 0), vec![0.0]).await.unwrap_err();
    assert!(matches!(wrong.cause, Cause::Call(_)), "{wrong}");
}

/// Good frames of every kind, one by one mutated, cut, or followed by noise, on fresh connections: the shard
/// answers, refuses or hangs up, and serves the next worker as if nothing had been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_never_harms_a_shard() {
    let seed = 0xbad5_eed5;
    let random = Stream::new(seed, Purpose::SyntheticData);
    let cluster = Cluster::start(&spec(&overrides(&["topology.shards=1"]))).await;
    let tables = cluster.spec.tables();
    let header = |kind: Kind| Header {
        kind,
        chunk: 0,
        run: run_hash(&cluster.spec.name),
        generation: GENERATION,
        step: Step(0),
        cell: Cell(0),
    };
    let request = Request { offsets: vec![0, 2, 2, 3, 3], rows: vec![1, 9, 4] };
    let prepared = PreparedBody { finite: true, total: 0, sums: vec![] };
    let messages = [
        Message::Lookup(request.clone()),
        Message::Read(request),
        Message::Prepare,
        Message::Prepared(prepared),
        Message::Commit(COMMIT),
        Message::Abort { snapshot: SnapshotOrder::Commit },
        Message::Committed(9),
    ];
    let seal = |message: &Message| {
        let (kind, pieces) = message.encode();
        Outgoing::seal(&header(kind), pieces).unwrap()
    };
    let bytes_of = |frame: &Outgoing| frame.to_bytes();
    let hello = HelloBody::plain(Rank(0), 1, &tables);
    for round in 0..300u64 {
        let [a, b, c, d] = random.words(1, round);
        let mut bytes = bytes_of(&seal(&messages[a as usize % messages.len()]));
        let at = b as usize % bytes.len();
        match c % 4 {
            0 => bytes[at] ^= 1 << (d % 8),
            1 => bytes.truncate(at),
            2 => bytes.extend((0..64).map(|i| (d >> (i % 24)) as u8)),
            _ => {}
        }
        let mut stream = TcpStream::connect(cluster.addresses[0]).await.unwrap();
        if c % 5 > 0 {
            greeting::admit(&mut stream, &header(Kind::Hello), &hello).await;
        }
        // The shard may have hung up already, on bytes that are no frame.
        let _written = stream.write_all(&bytes).await;
        let _ended = stream.shutdown().await;
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        let _ended = stream.read_to_end(&mut answer).await;
    }
    let client = cluster.client(0, 1 << 20).await;
    let ids = WORKLOAD.ids(&cluster.spec, Step(0), Cell(0));
    assert!(client.read(Step(0), ids).await.is_ok(), "seed {seed:#x}");
    client.close().await.unwrap();
    assert!(bits(&cluster.into_records().await).is_empty());
}

/// A peer of another schema version gets a frame that says so, and says which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_schema_version_is_refused_in_words() {
    let cluster = Cluster::start(&spec(&overrides(&["topology.shards=1"]))).await;
    let header = Header {
        kind: Kind::Hello,
        chunk: 0,
        run: run_hash(&cluster.spec.name),
        generation: GENERATION,
        step: Step(0),
        cell: Cell(0),
    };
    let frame = Outgoing::seal(&header, vec![]).unwrap();
    let mut bytes: Vec<u8> = frame.to_bytes();
    bytes[4] += 1;
    let mut stream = TcpStream::connect(cluster.addresses[0]).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let (incoming, payload) = FrameReader::new(&mut stream).read().await.unwrap();
    match Message::decode(incoming.header.kind, payload, SHAPE).unwrap() {
        Message::Refused(refusal) => {
            assert_eq!(refusal.reason, Reason::Schema);
            for version in [BULK_VERSION, BULK_VERSION + 1] {
                assert!(refusal.text.contains(&format!("version {version}")), "{}", refusal.text);
            }
        }
        other => panic!("{other:?}"),
    }
    drop(FrameWriter::new(stream, DEADLINE));
    cluster.stop().await.remove(0).unwrap();
}

/// A shard that lies: good answers of every kind, mutated. The client fails or takes them, and never panics; rows it
/// hands out are whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_never_harms_a_worker() {
    let seed = 0x0dd_b175;
    let random = Stream::new(seed, Purpose::SyntheticData);
    let spec = spec(&overrides(&["topology.shards=1"]));
    let tables = Arc::new(spec.tables());
    let ids = WORKLOAD.ids(&spec, Step(0), Cell(0));
    let width = 12;
    let mut failed = 0;
    for round in 0..200u64 {
        let [a, b, c, d] = random.words(2, round);
        let header = |kind: Kind| Header {
            kind,
            chunk: 0,
            run: run_hash(&spec.name),
            generation: GENERATION,
            step: Step(0),
            cell: Cell(0),
        };
        let seal = |kind: Kind, words: Vec<u32>| {
            let frame = Outgoing::seal(&header(kind), vec![Piece::Words(words)]).unwrap();
            frame.to_bytes()
        };
        let mut rows = RowBlock::head(std::slice::from_ref(&(0..ids.rows.len() as u32)));
        rows.resize(rows.len() + ids.rows.len() * width, 7);
        // Either the words are wrong under a good checksum, or the bytes are.
        if a % 2 == 0 {
            let at = b as usize % rows.len().min(4);
            rows[at] = if c % 2 == 0 { d % 100 } else { d };
        }
        let kind = [Kind::Rows, Kind::ReadRows, Kind::Prepared, Kind::Nack, Kind::Push][c as usize % 5];
        let mut bytes = seal(if a % 3 == 0 { kind } else { Kind::Rows }, rows);
        if a % 2 == 1 {
            let at = d as usize % bytes.len();
            bytes[at] ^= 1 << (b % 8);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let head = header(Kind::Challenge);
        let welcome = seal(Kind::Welcome, vec![0, 1, 0, 0, 1 << 20, 30_000]);
        let liar = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            greeting::prove(&mut stream, &head).await;
            stream.write_all(&welcome).await.unwrap();
            let mut request = [0u8; 64];
            let _lookup = stream.read(&mut request).await.unwrap();
            let _taken_or_not = stream.write_all(&bytes).await;
        });
        let hello =
            Hello { run: spec.name.clone(), generation: GENERATION, rank: Rank(0), workers: 1, key: key() };
        let client = RowClient::connect(&[address], hello, Arc::clone(&tables), DEADLINE).await.unwrap();
        match client.lookup(at(0, 0), Arc::clone(&ids)).await {
            Ok(rows) => assert_eq!(rows.len(), ids.rows.len() * width, "seed {seed:#x}, round {round}"),
            Err(error) => {
                failed += 1;
                assert!(error.to_string().contains("embedding shard 0"), "{error}");
            }
        }
        liar.await.unwrap();
    }
    assert!(failed > 100, "seed {seed:#x}: only {failed} of 200 were noticed");
}
