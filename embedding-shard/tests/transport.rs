//! Real shards behind every path: no bit depends on the path, memory is used where it can be, and what happens to one
//! worker's connections is no other worker's business.
#![allow(clippy::unwrap_used, reason = "what a test cannot do without ends it")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::cluster::{Cluster, DEADLINE, GENERATION, Trainer};
use common::greeting;
use common::reference::bits;
use common::{Workload, overrides, spec};
use polygram_domain::embedding::{SameHost, WireSpec};
use polygram_domain::{Cell, Rank, Step};
use polygram_row_exchange::frame::{Header, Kind, Outgoing, run_hash};
use polygram_row_exchange::message::{HelloBody, Message, Request};
use polygram_row_exchange::{ClientLimits, ClientOptions, RowClient, RowExchange, UniqueIds};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

const WORKLOAD: Workload = Workload { seed: 11, poisoned: Some(2) };

fn options(same_host: SameHost, connections: u32, chunk_bytes: usize) -> ClientOptions {
    let limits = ClientLimits { chunk_bytes, ..DEADLINE.into() };
    ClientOptions { same_host, connections, ..limits.into() }
}

async fn client(cluster: &Cluster, rank: u32, options: ClientOptions) -> RowClient {
    let tables = Arc::new(cluster.spec.tables());
    RowClient::connect(&cluster.addresses, cluster.hello(rank), tables, options).await.unwrap()
}

/// Rows after a few steps of two workers, each with `options`.
async fn trained(options: ClientOptions, shuffle: u64) -> Vec<polygram_embedding_shard::Record> {
    let cluster = Cluster::start(&spec(&overrides(&["topology.workers=2"]))).await;
    let mut workers = JoinSet::new();
    for rank in 0..2 {
        let client = client(&cluster, rank, options).await;
        let shuffle = shuffle + u64::from(rank);
        let trainer = Trainer { workload: WORKLOAD, rank: Rank(rank), client, shuffle, snapshots: vec![] };
        let spec = cluster.spec.clone();
        workers.spawn(async move {
            trainer.train(&spec, 0..5).await.unwrap();
            trainer.client.close().await.unwrap();
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    cluster.into_records().await
}

/// Memory, one connection and five connections, with chunks of one row to chunks of all: the same bits. With five
/// connections frames arrive in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bit_depends_on_the_path() {
    let expected = bits(&trained(options(SameHost::Tcp, 1, 1 << 20), 0).await);
    assert!(!expected.is_empty());
    let paths = [
        (SameHost::Auto, 1, 64),
        (SameHost::Auto, 3, 1 << 20),
        (SameHost::Tcp, 5, 64),
        (SameHost::Tcp, 5, 500),
    ];
    for (shuffle, (same_host, connections, chunk_bytes)) in (1..).zip(paths) {
        for window in [1 << 20, 500] {
            let options =
                ClientOptions { row_window_bytes: window, ..options(same_host, connections, chunk_bytes) };
            let found = bits(&trained(options, shuffle).await);
            assert_eq!(
                found, expected,
                "{same_host:?}, {connections} connections, {chunk_bytes} bytes, {window}"
            );
        }
    }
}

/// A relay in front of a shard that counts the bytes it passes on. Its connections end with the set.
async fn relay(shard: SocketAddr) -> (SocketAddr, Arc<AtomicU64>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let counted = Arc::clone(&bytes);
    tasks.spawn(async move {
        let mut pumps = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = TcpStream::connect(shard).await.unwrap().into_split();
            for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
                let counted = Arc::clone(&counted);
                pumps.spawn(async move {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(read @ 1..) = from.read(&mut buffer).await {
                        counted.fetch_add(read as u64, Ordering::Relaxed);
                        if to.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (address, bytes, tasks)
}

/// What a client moved over TCP for one read of `ids`.
async fn bytes_over_tcp(cluster: &Cluster, options: ClientOptions, ids: &Arc<UniqueIds>) -> u64 {
    let (address, bytes, _relay) = relay(cluster.addresses[0]).await;
    let tables = Arc::new(cluster.spec.tables());
    let client = RowClient::connect(&[address], cluster.hello(0), tables, options).await.unwrap();
    client.read(Step(0), Arc::clone(ids)).await.unwrap();
    client.close().await.unwrap();
    bytes.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_shared_unless_either_side_says_tcp() {
    let ids = WORKLOAD.ids(&spec(&[]), Step(0), Cell(0));
    let payload = 48 * ids.rows.len() as u64;
    assert!(payload > 2000);
    for (shard, worker, is_shared) in
        [("auto", SameHost::Auto, true), ("tcp", SameHost::Auto, false), ("auto", SameHost::Tcp, false)]
    {
        let same_host = format!("embedding.same_host=\"{shard}\"");
        let cluster = Cluster::start(&spec(&overrides(&["topology.shards=1", &same_host]))).await;
        let bytes = bytes_over_tcp(&cluster, options(worker, 2, 1 << 20), &ids).await;
        assert_eq!(bytes < payload, is_shared, "{shard} and {worker:?}: {bytes} bytes over TCP");
        cluster.stop().await.remove(0).unwrap();
    }
}

/// When a connection breaks, the worker's client fails, the shard lets go of the worker, and serves the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_ends_its_worker_only() {
    let cluster = Cluster::start(&spec(&overrides(&["topology.shards=1"]))).await;
    let ids = WORKLOAD.ids(&cluster.spec, Step(0), Cell(0));
    let (address, _, mut relayed) = relay(cluster.addresses[0]).await;
    let tables = Arc::new(cluster.spec.tables());
    let three = options(SameHost::Tcp, 3, 1 << 20);
    let broken = RowClient::connect(&[address], cluster.hello(0), Arc::clone(&tables), three).await.unwrap();
    broken.read(Step(0), Arc::clone(&ids)).await.unwrap();
    relayed.shutdown().await;
    let error = timeout(DEADLINE, broken.prepare(Step(0))).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("connection"), "{error}");
    // The shard may hear of the end after the next one says hello.
    let next = timeout(DEADLINE, async {
        loop {
            let tables = Arc::clone(&tables);
            match RowClient::connect(&cluster.addresses, cluster.hello(0), tables, three).await {
                Ok(client) => break client,
                Err(error) => assert!(error.to_string().contains("connected already"), "{error}"),
            }
        }
    });
    let next = next.await.unwrap();
    next.read(Step(0), ids).await.unwrap();
    next.close().await.unwrap();
    cluster.stop().await.remove(0).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_wire_type_is_refused_in_words() {
    let cluster = Cluster::start(&spec(&overrides(&["embedding.wire_gradients=\"bf16\""]))).await;
    let tables = Arc::new(cluster.spec.tables());
    let wire = WireSpec::default();
    let options = ClientOptions { wire, ..options(SameHost::Auto, 1, 1 << 20) };
    let refused = RowClient::connect(&cluster.addresses, cluster.hello(0), tables, options).await;
    let text = refused.err().unwrap().to_string();
    assert!(text.contains("wire_gradients") && text.contains("Bf16"), "{text}");
}

/// A worker that asks for rows and never reads them costs what it granted; the shard goes on serving another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_never_reads_stops_nobody() {
    let wide = ["model.hidden_size=3072", "ngram.max_order=4", "ngram.heads=4", "ngram.base_rows=4009"];
    let more = ["topology.shards=1", "topology.workers=2", "embedding.lanes=1"];
    let cluster = Cluster::start(&spec(&overrides(&[&wide[..], &more[..]].concat()))).await;
    let tables = cluster.spec.tables();
    let count = tables.tables_per_site() as usize;
    let row_bytes = 4 * (tables.len() / count) * tables.iter().next().unwrap().width as usize;
    let rows = (1 << 20) / row_bytes as u32;
    let frame = |message: &Message, cell: u32| {
        let (kind, pieces) = message.encode();
        let run = run_hash(&cluster.spec.name);
        let header = Header { kind, chunk: 0, run, generation: GENERATION, step: Step(0), cell: Cell(cell) };
        Outgoing::seal(&header, pieces).unwrap().to_bytes()
    };
    let mut silent = TcpStream::connect(cluster.addresses[0]).await.unwrap();
    let run = run_hash(&cluster.spec.name);
    let header =
        Header { kind: Kind::Hello, chunk: 0, run, generation: GENERATION, step: Step(0), cell: Cell(0) };
    greeting::admit(&mut silent, &header, &HelloBody::plain(Rank(1), 2, &tables)).await;
    let offsets: Vec<usize> = std::iter::once(0).chain(vec![rows as usize; count]).collect();
    let request = Request { offsets: offsets.clone(), rows: (0..rows).collect() };
    for number in 0..14 {
        silent.write_all(&frame(&Message::Read(request.clone()), number)).await.unwrap();
    }
    assert_eq!(Kind::Read, Message::Read(request).encode().0);
    let other = client(&cluster, 0, options(SameHost::Tcp, 1, 1 << 20)).await;
    let ids = Arc::new(UniqueIds { offsets, rows: (0..rows).collect() });
    for _ in 0..20 {
        let read = timeout(Duration::from_secs(10), other.read(Step(0), Arc::clone(&ids)));
        assert_eq!(read.await.unwrap().unwrap().len() * 4, rows as usize * row_bytes);
    }
    drop(silent);
    other.close().await.unwrap();
    cluster.stop().await.remove(0).unwrap();
}
